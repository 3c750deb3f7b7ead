"""One run of a sweep: what it is, its folder, and what has become of it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from metarun.config.compose import assigned, escaped
from metarun.config.schema import without_fetching
from metarun.errors import MetarunError, listed, shortened
from metarun.output.folder import RunFolder, slug
from metarun.output.kept import configuration, flat, json_object, number
from metarun.output.lock import busy
from metarun.sweep.identity import DIGITS, NO_EFFECT

MOST_LETTERS = 80  # of the readable part of a folder's name


@dataclass
class Job:
    """One run of a sweep."""

    overrides: list[str]
    name: str  # what tells it from the other jobs
    config: dict[str, Any]  # composed and resolved
    identity: str  # a hash of what its numbers depend on
    folder: RunFolder
    number: int = 0  # its place in the sweep, from 1
    state: str = "waiting"  # waiting | running: by this process | elsewhere: by another | ended
    outcome: str = ""  # how it ended
    pid: int = 0  # its number with what started it
    process: int = 0  # as status.json names it; 0 as long as it waits in the queue of an engine of others
    code: int | None = None
    slot: int = -1
    began: float = 0.0  # of this attempt, by time.monotonic(), which a queue has no part in
    found: dict[str, Any] = field(default_factory=dict, repr=False)  # its status, from which another is news
    tries: int = 0
    unusable: str = ""  # why it could not begin
    told_to_stop: float | None = None  # when its time was over, or a search gave it up
    why_stopped: str = ""
    steps_seen: tuple[float, int] | None = field(default=None, repr=False)  # when, and which, of this attempt

    @property
    def completed(self) -> bool:
        """Whether its folder says that it is, and holds what a run of it leaves."""
        return self.says_completed and not self.damage

    @property
    def says_completed(self) -> bool:
        """Whether its status.json says so; nothing is run again then, whatever else the folder holds."""
        return self.folder.read_status()["state"] == "completed"

    @property
    def damage(self) -> str:
        """Why its folder is not what this job leaves when it is completed, and what to do; empty where it is."""
        path = self.folder.path
        unreadable: list[str] = []
        kept = flat(_compared(configuration(path / "config.yaml", unreadable)[0]))
        own = flat(_compared(escaped(self.config)))
        if isinstance(steps := kept.get("steps"), int):  # resume=RUN may have trained it longer
            own["steps"] = max(own["steps"], steps)
        changed = [
            f"{key} is {shortened(str(kept.get(key, 'not there')))}, not {shortened(str(own.get(key, 'there')))}"
            for key in sorted({*own, *kept})
            if (key in own, own.get(key)) != (key in kept, kept.get(key))
        ]
        if unreadable or changed:
            what = unreadable[0] if unreadable else f"its config.yaml is another run's: {listed(changed, most=3)}"
            return f"{what}. Delete the folder {path.name}, and the same command runs it again"
        if (step := self.folder.read_status().get("step", 0)) < (steps := self.config["steps"]):
            unreadable.append(f"its status.json says that it ended at step {step} of {steps}")
        elif self.config["evaluation"]["num_tasks"]:
            json_object(path / "results.json", unreadable)
        return "".join(
            f"{what}. Delete {path.name}/status.json, and the same command finishes it" for what in unreadable[:1]
        )

    @property
    def seconds(self) -> float:
        """What it has taken in all its attempts."""
        return max(0.0, number(self.folder.read_status().get("seconds")) or 0.0)

    @contextmanager
    def noting_trouble(self) -> Iterator[None]:
        """A context in which what keeps it from beginning is noted as ``unusable`` and not raised, for other jobs go on."""
        try:
            yield
        except (MetarunError, OSError) as error:
            self.unusable = str(error)

    def command(self, flags: list[str]) -> list[str]:
        """The arguments of ``python -m metarun`` that begin or continue it, whoever starts it."""
        return [*flags, *self.overrides, assigned("run_dir", self.folder.path), "resume=auto"]

    def begin(self, pid: int, slot: int, process: int) -> None:
        """Note that it was started."""
        self.state, self.pid, self.slot, self.code, self.told_to_stop = "running", pid, slot, None, None
        self.process, self.began, self.steps_seen = process, time.monotonic(), None
        self.tries += 1

    def known_as(self, process: int, runs: bool) -> None:
        """Note its process, where it is known now; if it still ``runs`` its time begins."""
        self.process = process
        if process and runs:
            self.began = time.monotonic()

    def describe(self) -> str:
        """Its state as a table has it."""
        if self.says_completed:
            return "damaged" if self.damage else "completed"
        if busy(self.folder.path):
            return "running"
        state = self.folder.read_status()["state"]
        tried = self.unusable or self.code is not None or (self.folder.path / "output.txt").exists()
        return {"running": "died", "unknown": "failed" if tried else "not begun"}.get(state, state)

    def why(self) -> Iterator[str]:
        """Why it did not complete: the message in its output from the last line that metarun began, or its last line."""
        if self.says_completed:
            yield self.damage
            return
        if self.unusable or (self.code is not None and self.code < 0):
            yield self.unusable or f"killed by signal {-(self.code or 0)}"
            return
        try:
            lines = (self.folder.path / "output.txt").read_text(errors="replace").splitlines()
        except OSError:
            return
        start = max((i for i, line in enumerate(lines) if line.startswith("metarun: ")), default=len(lines) - 1)
        _, unexpected, place = lines[start].partition("did not expect.")
        before = [lines[start - 1] + place] if unexpected else []
        yield from (line.removeprefix("metarun: ") for line in (before or lines[start:]))


def _compared(config: dict[str, Any]) -> dict[str, Any]:
    """The settings in which a run of a job is no other than the job."""
    return without_fetching({key: value for key, value in config.items() if key not in NO_EFFECT})


class Folders:
    """The folders of a sweep: a run has one by its identity, whatever its overrides and the other runs are."""

    def __init__(self, sweep: Path) -> None:
        self.sweep = sweep
        there = sorted(path.name for path in sweep.iterdir() if path.is_dir()) if sweep.is_dir() else []
        self.there = {name.rpartition("-")[2]: name for name in there}

    def at(self, name: str) -> RunFolder:
        """The folder of this name."""
        return RunFolder(self.sweep / name)

    def of(self, identity: str, shown: list[str]) -> RunFolder:
        """The folder of a run: the one that it has, or one named by the overrides ``shown``."""
        digits = identity[:DIGITS]
        readable = slug("_".join(shown) or "defaults")[:MOST_LETTERS]
        return RunFolder(self.sweep / self.there.get(digits, f"{readable}-{digits}"))
