"""The runs of a target: trained in processes of their own, each continued where it stands, then tested as papers do."""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metarun.config.checks import changed_settings, flat
from metarun.config.compose import assigned, composed, override_key, read_config
from metarun.errors import ConfigError, Interrupted, MetarunError
from metarun.files import read_json
from metarun.output import ledger
from metarun.output.folder import RunFolder
from metarun.output.kept import number
from metarun.process import LED, ending_with
from metarun.reproduce import dependence
from metarun.reproduce.registry import Target
from metarun.training.signals import received_by, stopping_signals

OF_THE_PLACE = ("data_root", "device", "execution", "task.download", "log_every")  # what may be said beside a target
COMMON_QUERIES, COMMON_TASKS = 15, 600  # of metarun's own protocol


@dataclass(frozen=True)
class Seed:
    """One run of a target."""

    target: Target
    number: int
    path: Path

    @property
    def words(self) -> list[str]:
        """The command line that trains it, without where it runs."""
        return [*(self.target.words or ()), f"seed={self.number}"]

    def state(self) -> str:
        """completed, running, interrupted ..., or unknown where it has not begun."""
        return RunFolder(self.path).read_status()["state"]

    def refuse_damaged(self) -> None:
        """Raise MetarunError where a file of the ended run that its card is made of cannot be read."""
        for name in ("results.json", "run.json"):
            try:
                read_json(self.path / name)
            except ValueError as error:
                raise self._without_proof(f"{self.path / name} is absent or damaged ({error})") from None
        if lost := self.lost_scores(read_json(self.path / "results.json"), ()):
            raise self._without_proof(f"{self.path / 'results.json'} is damaged ({', '.join(lost)} is gone)")
        run = ledger.read(self.path)
        if not run.history or not all({"started", "overrides"} <= part.keys() for part in run.history):
            raise self._without_proof(f"{self.path / 'run.json'} does not say how the run was begun and continued")
        if not run.validations(run.score_name):
            raise self._without_proof(f"{self.path / 'metrics.jsonl'} has no validation, so there is no learning curve")

    def lost_scores(self, results: dict[str, Any], overrides: Sequence[str]) -> list[str]:
        """What the results of a test by ``overrides`` should hold and do not; a score that diverged is null there."""
        measure = self.target.measure
        own = read_json(self.path / "results.json") if not any("inner_steps" in text for text in overrides) else {}
        names = {measure, *(name for name in own if name.startswith(f"{measure}_step_"))}
        steps = {figure.step for figure in self.target.figures if figure.evaluate == tuple(overrides)} - {None}
        names |= {f"{measure}_step_{step}" for step in steps}
        return sorted(name for name in names if not _is_score(results.get(name)))

    @property
    def model(self) -> Path:
        """The checkpoint that the target tests; raises MetarunError where it is gone."""
        path = self.path / "checkpoints" / f"{self.target.tested}.pt"
        if not path.is_file():
            raise self._without_proof(f"{path} is gone")
        return path

    def refuse_another_model(self, step: int) -> None:
        """Raise MetarunError where the checkpoint that was tested, of ``step``, is not the model that the target tests."""
        path = self.model
        if step != self.tested_step():
            raise self._without_proof(f"{path} is of step {step}, but the run ended with that of {self.tested_step()}")

    def _without_proof(self, what: str) -> MetarunError:
        rule = f"and with it the proof of the run. Delete {self.path}; the same command trains it again."
        return MetarunError(f"{what}, {rule}")

    def tested_step(self) -> int:
        """The step of the model that the target tests."""
        if self.target.tested == "last":
            return int(read_config(self.path / "config.yaml").steps)
        return int(read_json(self.path / "results.json")["protocol"]["checkpoint_step"])


def _is_score(entry: Any) -> bool:
    return isinstance(entry, dict) and "mean" in entry and (entry["mean"] is None or number(entry["mean"]) is not None)


def seeds_of(target: Target, root: Path, number: int) -> list[Seed]:
    """The runs of a target with seeds 0 ... ``number`` - 1."""
    return [Seed(target, seed, root / target.folder / f"seed{seed}") for seed in range(number)]


def refuse_another(seed: Seed, place: Sequence[str]) -> None:
    """Raise ConfigError where the seed's folder holds a run of another configuration."""
    now = composed([*seed.words, *place], [])
    path = seed.path / "config.yaml"
    if not path.is_file():
        return
    old, new = (flat(dependence.of_numbers(dependence.plain(config))) for config in (read_config(path), now))
    other = changed_settings(old, new, set(map(override_key, seed.words)))
    if other:
        held, wanted = old.get(other[0]), new.get(other[0])
        rule = f"holds a run with {other[0]}={held!r}, but {seed.target.id} has {other[0]}={wanted!r} now"
        raise ConfigError([f"{seed.path} {rule}. Move it away, or choose another folder: --to DIR."])


def as_typed(error: ConfigError) -> ConfigError:
    """The error of data that are missing, with the command that was typed in the place of ``metarun ...``."""
    typed = shlex.join(["metarun", *sys.argv[1:]])
    told = [problem.replace("metarun ... ", f"{typed} ") for problem in error.problems]
    return ConfigError([*told[:-1], f"{told[-1]} Then type again: {typed}"])


def _stored_execution(seed: Seed, place: Sequence[str]) -> list[str]:
    """What the run was told of its execution when it began, unless ``place`` tells it again: a run keeps its own."""
    began = ledger.read(seed.path).overrides if (seed.path / "config.yaml").is_file() else []
    told, now = ([t for t in texts if override_key(t).startswith("execution")] for texts in (began, place))
    return [] if now else [text for text in told if text not in seed.words]


def train(seed: Seed, place: Sequence[str], until: float | None) -> None:
    """Let the run end, from where it stands.

    Raises Interrupted where a signal or the budget, which ends when time.monotonic() is ``until``, stopped it with a
    checkpoint, and MetarunError with its exit code where it failed.
    """
    if seed.state() == "completed":
        return
    words = [
        *seed.words,
        *place,
        *_stored_execution(seed, place),
        assigned("run_dir", seed.path.resolve()),
        "resume=auto",
    ]
    end_with_this, command = ending_with(os.getpid()), [sys.executable, "-m", "metarun", *words]
    process = subprocess.Popen(command, preexec_fn=end_with_this, env={**os.environ, LED: "1"})  # noqa: PLW1509

    def pass_on(signum: int, _: object) -> None:  # but for a Ctrl-C that the process has from the terminal itself
        if signum != signal.SIGINT or not _in_the_foreground():
            process.send_signal(signum)

    with received_by(pass_on):
        try:
            process.wait(None if until is None else max(0.0, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)
            process.wait()
    code = process.returncode if process.returncode >= 0 else 128 - process.returncode  # it had not begun to listen
    if code in (128 + number for number in stopping_signals()):
        raise Interrupted(code - 128)
    if code > 128:
        why = f"was killed by signal {code - 128}" + " (often: no memory was left)" * (code == 128 + signal.SIGKILL)
        raise MetarunError(f"the run in {seed.path} {why}; the same command goes on from its last checkpoint.")
    if code != 0:
        failure = MetarunError(f"the run in {seed.path} ended with exit code {code}; its message stands above.")
        failure.exit_code = code
        raise failure


def _in_the_foreground() -> bool:
    """Whether a terminal's Ctrl-C reaches this process, and with it those that it has started."""
    try:
        with Path("/dev/tty").open("rb") as terminal:
            return os.tcgetpgrp(terminal.fileno()) == os.getpgrp()
    except OSError:
        return False


def protocols(seed: Seed) -> list[tuple[str, ...]]:
    """The overrides of every evaluation that the seed's run is given: the paper's, then metarun's common ones.

    The common protocol has 600 test tasks, as many queries as shots and 15, and, where the network has batch norms, both
    statistics of the query batch (transductive) and others (inductive: those of training, or of the support).
    """
    own = seed.target.tested == "best"  # the run's own test
    papers = [figure.evaluate for figure in seed.target.figures if figure.evaluate or not own]
    return list(dict.fromkeys([*papers, *common_protocols(seed.path, seed.target)]))


def common_protocols(run: Path, target: Target) -> list[tuple[str, ...]]:
    """The overrides of metarun's common protocol for a run; none for a task whose test has a fixed form."""
    cfg: Any = read_config(run / "config.yaml")
    if not isinstance(cfg.task.get("num_queries"), int) or "num_shots" not in cfg.task:
        return []
    own = next((figure.evaluate for figure in target.figures if figure.evaluate), ())
    said = [text for text in own if text.startswith(("task.num_ways=", "task.num_shots="))] if target.trained_as else []
    shots = next((int(text.split("=")[1]) for text in said if "num_shots" in text), cfg.task.num_shots)
    norm = cfg.base_learner.get("batch_norm")
    norms = [f"base_learner.batch_norm={name}" for name in ("transductive", inductive(norm))] if norm else [""]
    numbers = dict.fromkeys((shots, COMMON_QUERIES))
    tasks = f"evaluation.num_tasks={COMMON_TASKS}"
    return [
        tuple(filter(None, (*said, f"task.num_queries={queries}", name, tasks)))
        for name in norms
        for queries in numbers
    ]


def inductive(norm: str) -> str:
    """The statistics that take nothing from the queries, of a network that was trained with ``norm``."""
    return "running" if norm == "running" else "support"
