"""The folder of one run: its name, what produced it, and what became of it."""

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from metarun import __version__
from metarun.annotations import conforms
from metarun.errors import ConfigError, MetarunError, shortened
from metarun.files import read_json, write_atomically, write_json
from metarun.output.kept import number
from metarun.output.lock import claim
from metarun.output.machine import hardware, installed
from metarun.paths import as_shown, refuse_no_text, usable

HEARTBEAT_SECONDS = 5.0
OTHER_FOLDER = "run_dir=PATH (metarun rerun: --run-dir PATH; metarun reproduce: --to DIR)"
STATES = ("running", "completed", "failed", "interrupted", "diverged", "pruned")
FITTED = "fitted.json"
TRAINED_ON = "trained_on.json"


def slug(text: str) -> str:
    """``text`` as part of a folder name: letters, digits, dot, minus and underscore alone, at most 80 characters."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.")[:80] or "run"


def short_hash(*parts: Any) -> str:
    """Six hexadecimal digits, equal for parts that print alike."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:6]


def new_name(label: str) -> str:
    """A fresh ``<date>/<time>-<label>-<hash>``; the hash keeps runs of the same second apart."""
    now = time.strftime("%Y-%m-%d/%H%M%S")
    return f"{now}-{slug(label)}-{short_hash(time.time_ns(), os.getpid())}"


def place(path: str, setting: str) -> Path:
    """The absolute path of the folder that a setting names; raises ConfigError where no folder can have such a name."""
    folder = usable(path, setting).resolve()
    there = next(place for place in (folder, *folder.parents) if os.path.exists(place))
    if not there.is_dir():
        raise ConfigError([f"{setting}={shortened(path)}: {there} is a file; name a folder."])
    return folder


def place_of_runs(path: str, setting: str) -> Path:
    """As ``place``, of a folder that runs are to lie in; raises ConfigError in a run, where nothing would find them."""
    refuse_no_text(folder := place(path, setting), setting)
    files = ("config.yaml", "status.json")
    within = (outer for outer in (folder, *folder.parents) if all(os.path.isfile(outer / name) for name in files))
    if run := next(within, None):
        raise ConfigError(
            [f"{setting}={shortened(path)}: {run} is a run, and runs lie beside each other; choose another."]
        )
    return folder


def tensorboard_line(folder: Path) -> str:
    """A line with the command that shows the events in ``folder`` or its runs, by the tensorboard of this environment,
    whether or not it is on the PATH; empty where there are none."""
    if not any(next(folder.glob(f"{place}events.out.tfevents.*"), None) for place in ("", "*/")):
        return ""
    beside = Path(sys.executable).with_name("tensorboard")
    program = "tensorboard" if shutil.which("tensorboard") or not beside.is_file() else str(beside)
    return f"tensorboard: {shlex.join([program, '--logdir', as_shown(folder)])}"


class RunFolder:
    """Paths and status of a run; ``create`` makes it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self.last_beat = 0.0
        self.began = time.monotonic()  # as if all attempts had followed each other
        self.status: dict[str, Any] = {}

    @property
    def shown(self) -> str:
        """Its path as it is shown: relative to the current folder where it lies in that."""
        return as_shown(self.path)

    def create(self) -> None:
        """Make the folders; raises MetarunError where that cannot be done."""
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            probe = self.path / f".probe.{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise MetarunError(
                f"cannot write to the run folder {self.path} ({error.strerror}). "
                f"Choose another with {OTHER_FOLDER}, or make this one writable."
            ) from error

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Create the folder and hold it; raises MetarunError while another process does."""
        self.create()
        with claim(self.path) as ours:
            before = self.read_status()
            if not ours:
                pid = before.get("pid", "unknown")
                raise MetarunError(
                    f"the run {self.path} is in progress (process {pid}). Wait for it, or choose another folder: "
                    f"{OTHER_FOLDER}."
                )
            self._sweep_up()
            self.began = time.monotonic() - max(0.0, number(before.get("seconds")) or 0.0)
            yield

    def _sweep_up(self) -> None:
        """Remove what processes left behind that were killed while they wrote."""
        for left in (*self.path.glob(".*.tmp"), *self.checkpoints.glob(".*.tmp")):
            left.unlink(missing_ok=True)

    @property
    def holds_a_run(self) -> bool:
        """Whether a run has begun here: its config.yaml is there."""
        return (self.path / "config.yaml").is_file()

    def read_status(self) -> dict[str, Any]:
        """What status.json says; the state is "unknown" where the file is absent or damaged."""
        try:
            status = read_json(self.path / "status.json")
        except ValueError:
            return {"state": "unknown"}
        whole = status.get("state") in STATES and type(status.get("step", 0)) is int
        return status if whole else {"state": "unknown"}

    def mark(self, state: str, **details: Any) -> None:
        """Write status.json: running, completed, failed, interrupted or diverged, with the time, the seconds that the run
        has taken in all its attempts, and what is known."""
        self.last_beat = time.monotonic()
        seconds = round(self.last_beat - self.began, 1)
        self.status = {"state": state, "updated": _now(), "pid": os.getpid(), "seconds": seconds, **details}
        write_json(self.path / "status.json", self.status)

    def mark_pruned(self) -> None:
        """Note that a search stopped the run, which nobody holds any more; it can still be resumed."""
        status = {name: value for name, value in self.read_status().items() if name != "error"}
        write_json(self.path / "status.json", status | {"state": "pruned"})

    def beat(self, **details: Any) -> None:
        """The heartbeat of a running run, at most every few seconds."""
        if time.monotonic() - self.last_beat >= HEARTBEAT_SECONDS:
            self.mark("running", **details)

    def facts(self) -> dict[str, Any]:
        """What run.json says; nothing where there is none. Raises MetarunError for a damaged file."""
        without = "the run then forgets its history and which data it began with"
        return self._kept("run.json", without, history=list, data=str, evaluation_data=dict)

    def overrides(self) -> list[str]:
        """The overrides that the run began with; none where run.json does not say them."""
        first = (self.facts().get("history") or [{}])[0]
        said = first.get("overrides") if isinstance(first, dict) else None
        return [str(text) for text in said] if isinstance(said, list) else []

    def fitted(self) -> dict[str, Any]:
        """What the run's task fitted on its training tasks; nothing where it did not, or an earlier metarun kept nothing.
        Raises MetarunError for a damaged file."""
        return self._kept(FITTED, "new data then have their own means")

    def trained_on(self) -> list[str]:
        """The names of the training classes, or of a table's training tasks; none where they have no names, or an earlier
        metarun kept none. Raises MetarunError for a damaged file."""
        without = "no evaluation then tells which classes were trained on"
        return self._kept(TRAINED_ON, without, names=list[str]).get("names", [])

    def _kept(self, name: str, without: str, **kinds: Any) -> dict[str, Any]:
        """What a file says, of whose parts some have a kind."""
        path = self.path / name
        try:
            content = read_json(path) if path.exists() else {}
            if wrong := [key for key, kind in kinds.items() if key in content and not conforms(content[key], kind)]:
                raise ValueError(f"not what they may be: {', '.join(wrong)}")
            return content
        except ValueError as error:
            raise MetarunError(f"{path} is damaged. Remove it to go on: {without}; or train again.") from error

    def keep_training(self, fitted: dict[str, Any], names: Sequence[str]) -> None:
        """Write what the task fitted on its training tasks, and the ``names`` of these or of their classes, once: a run that
        is continued keeps what it began with."""
        for name, values in ((FITTED, fitted), (TRAINED_ON, {"names": [*dict.fromkeys(names)]} if names else {})):
            if values and not (self.path / name).is_file():
                write_json(self.path / name, values)

    def refuse_other_data(self, facts: dict[str, Any], fix: str) -> None:
        """Raise ConfigError where the data are not those that the run began with: its split and score would be others."""
        known = self.facts()
        if changed := [key for key in facts if known.get(key) not in (None, facts[key], _without_groups(facts[key]))]:
            then, now = known[changed[0]], facts[changed[0]]
            raise ConfigError([f"the data have changed since {self.path} began: {then} then, {now} now. {fix}"])

    def describe(self, overrides: list[str], **facts: Any) -> None:
        """Write run.json (who, what, where, when), git.diff and freeze.txt; a resumed run adds to its history."""
        before = self.facts().get("history", [])
        if before and isinstance(before[-1], dict):  # so that pauses do not count as time of the run
            before[-1].setdefault("ended", self.read_status().get("updated"))
        code = self._git()
        part = {"started": _now(), "argv": sys.argv, "overrides": overrides, "metarun": __version__, **code}
        write_json(
            self.path / "run.json",
            {"metarun": __version__, **facts, "hardware": hardware(), **code, "history": [*before, part]},
        )
        write_atomically(self.path / "freeze.txt", installed().encode())

    def _git(self) -> dict[str, Any]:
        """The commit of the code that runs, with its uncommitted changes in git.diff and the names of its untracked files;
        nothing outside a checkout."""
        here = Path(__file__).resolve().parents[1]

        def git(*words: str) -> str:
            return subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True, check=True).stdout

        try:
            if git("ls-files", "core.py").strip() != "core.py":
                return {"git": None}
            diff = git("diff", "HEAD", "--", ".", "../configs")  # what a run reads, and none of the pages about it
            if diff:
                write_atomically(self.path / "git.diff", diff[:1_000_000].encode())
            added = git("ls-files", "--others", "--exclude-standard", "--", ".", "../configs").splitlines()
            commit = git("rev-parse", "HEAD").strip()
            return {"git": {"commit": commit, "dirty": bool(diff or added), "untracked": added}}
        except (OSError, subprocess.CalledProcessError):
            return {"git": None}


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def _without_groups(data: Any) -> Any:
    """Fingerprints as runs of an earlier metarun have them, which did not see groups."""
    if isinstance(data, dict):
        return {name: _without_groups(fingerprint) for name, fingerprint in data.items()}
    return re.sub(r", groups [0-9a-f]{16}", "", data)
