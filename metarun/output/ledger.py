"""Runs as their folders tell of them, read without torch and without writing anything.

``runs_in(DIR)`` finds every run below a folder, ``run_at(RUN)`` reads one. A file that is damaged or absent leaves its
part of the ``Run`` empty and is named in ``Run.damaged``; nothing here raises because of what a run folder holds.
"""

import os
import platform
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from metarun.config.choices import option_of
from metarun.errors import shortened, wrong_command
from metarun.output.folder import STATES, place, short_hash
from metarun.output.kept import configuration, json_lines, json_object, mapping, moment, number, read_alarms, text_lines
from metarun.output.lock import in_use
from metarun.output.tables import Score

RUN_FILES = {"run.json", "overrides.yaml", "results.json", "checkpoints", "output.txt"}  # beside config.yaml
SILENT_SECONDS = 600.0  # after which a run of another machine that says nothing counts as killed
# how the names of scores begin that are reached without the model
OF_OTHERS = ("baseline_", "frozen_", "oracle_", "least_squares_", "averaging_", "lasso_", "nearest_3_", "greedy_tree_")
NO_SCORES = ("query_loss", *OF_OTHERS)  # ... that are not a task's own


@dataclass(frozen=True)
class Run:
    """What the folder of one run says."""

    path: Path
    state: str  # running | completed | failed | interrupted | diverged | pruned | killed | unknown
    status: dict[str, Any]  # status.json
    config: dict[str, Any]  # config.yaml
    settings: dict[str, Any]  # its values by dotted keys
    results: dict[str, Any]  # results.json
    facts: dict[str, Any]  # run.json
    damaged: tuple[str, ...]  # what could not be read, and why

    @property
    def learner(self) -> str:
        """The option of the group ``meta_learner``."""
        return self.option("meta_learner")

    @property
    def task(self) -> str:
        """The option of the group ``task``."""
        return self.option("task")

    @property
    def seed(self) -> int | None:
        """The seed of its random choices."""
        seed = self.config.get("seed")
        return seed if isinstance(seed, int) else None

    def option(self, group: str) -> str:
        """The option of a group of the configuration; empty where it has no such group."""
        return option_of(group, self.config.get(group), self.overrides)

    @cached_property
    def scores(self) -> dict[str, Score]:
        """Every score of the final test by its name, such as test/accuracy."""
        return scores_in(self.results)

    @property
    def infinite(self) -> list[str]:
        """The scores of the final test that are no finite number, as where adaptation diverges on some task."""
        return [
            name for name, value in self.results.items() if isinstance(value, dict) and value.get("mean", 0) is None
        ]

    @cached_property
    def score_name(self) -> str:
        """The task's own score, such as accuracy; empty where nothing was scored yet."""
        said = [key.partition("/")[2] for key in self.status if key.startswith(("test/", "val/"))]
        own = [name.removeprefix("test/") for name in self.scores if name.startswith("test/") and "_step_" not in name]
        own.sort(key=lambda name: name.startswith(NO_SCORES) or "/" in name)
        return next(iter(said + own), "")

    @property
    def score(self) -> Score | None:
        """The task's own score in the final test."""
        return self.scores.get(f"test/{self.score_name}")

    @property
    def best_validation(self) -> float | None:
        """The best validation score of a run that is under way or ended early."""
        return number(self.status.get(f"best_val/{self.score_name}"))

    def curve(self, name: str) -> list[Score]:
        """The score ``name`` after 0, 1, ... adaptation steps; empty where there was none to tell."""
        steps = (self.scores.get(f"{name}_step_{k}") for k in range(len(self.scores)))
        return [score for score in steps if score]

    @property
    def history(self) -> list[dict[str, Any]]:
        """When and how the run was begun, and each time that it was continued."""
        history = self.facts.get("history")
        return [entry for entry in history if isinstance(entry, dict)] if isinstance(history, list) else []

    @property
    def overrides(self) -> list[str]:
        """The overrides that it began with."""
        said = self.history[0].get("overrides") if self.history else None
        return [str(text) for text in said] if isinstance(said, list) else []

    @cached_property
    def started(self) -> float | None:
        """When it began, in seconds since 1970."""
        begun = moment(self.history[0].get("started")) if self.history else None
        return self.updated if begun is None else begun

    @property
    def updated(self) -> float | None:
        """When it last told of itself, in seconds since 1970."""
        return moment(self.status.get("updated"))

    @cached_property
    def code(self) -> dict[str, Any]:
        """The version of metarun and, of a checkout, its commit and what was changed in it."""
        found = {"metarun": self.facts.get("metarun"), **mapping(self.facts.get("git"))}
        if found.get("dirty"):
            found["git.diff"] = short_hash(text_lines(self.path / "git.diff"))
        return found

    @cached_property
    def machine(self) -> dict[str, Any]:
        """Host, system, Python, torch, cores and GPU; the execution, and torch's threads in it."""
        execution, names = json_object(self.path / "execution.json", []), {"chosen": "execution", "threads": "threads"}
        chosen = {name: execution[key] for key, name in names.items() if key in execution}
        return {**mapping(self.facts.get("hardware")), **chosen}

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl; without those that a killed run cut short."""
        return json_lines(self.path / "metrics.jsonl")

    def validations(self, score: str) -> dict[float, Score]:
        """The validation score by training step, as the log has it."""
        name = f"val/{score}"
        rows = [
            (number(row.get("step")), number(row.get(name)), number(row.get(f"{name}_ci95"))) for row in self.metrics()
        ]
        return {step: Score(mean, ci95) for step, mean, ci95 in rows if step is not None and mean is not None}

    def alarms(self) -> list[dict[str, Any]]:
        """What alarms.jsonl says: step, alarm and text of each."""
        return read_alarms(self.path / "alarms.jsonl")

    def evaluations(self) -> dict[str, dict[str, Any]]:
        """What later evaluations left, by the names of their files; a damaged one is empty."""
        found = sorted((self.path / "evaluations").glob("*.json"))
        return {path.stem: json_object(path, []) for path in found}


def runs_in(root: Path) -> list[Run]:
    """Every run in or below ``root``, the oldest first. Raises ConfigError where there is no folder, or no run in it."""
    if not os.path.isdir(root):
        raise wrong_command(f"there is no folder {root}. Name the one that your runs lie in: runs, or a sweep_dir.")
    runs = [read(path) for path in folders(root)]
    if not runs:
        raise wrong_command(f"{root} holds no run. Name the folder that your runs lie in: runs, or a sweep_dir.")
    return sorted(runs, key=lambda run: (run.started or 0, run.path))


def run_at(path: Path) -> Run:
    """The run in the folder ``path``; raises ConfigError where there is none."""
    folder = place(str(path), "RUN")
    if not os.path.isdir(folder):
        raise wrong_command(f"there is no folder {folder}. List your runs with: metarun runs DIR")
    if next(folders(folder), None) != folder:
        raise wrong_command(
            f"{folder} holds no run (no config.yaml of metarun). List your runs with: metarun runs {path}"
        )
    return read(folder)


def folders(root: Path) -> Iterator[Path]:
    """The run folders in or below ``root``. A run's own folders are not looked into, nor those that cannot be read."""
    for place_, inner, names in os.walk(root):
        inner.sort()
        if _is_run(Path(place_), {*inner, *names}):
            inner.clear()
            yield Path(place_)


def _is_run(path: Path, held: set[str]) -> bool:
    """Whether metarun made the folder, which holds files and folders of these names: its config.yaml says so or, where that
    is lost, what else metarun leaves. Other programs have files of these names, too."""
    if "status.json" not in held and not (held & {"config.yaml", "output.txt"} and held & RUN_FILES):
        return False
    if any("meta_learner" in line for line in text_lines(path / "config.yaml")):
        return True
    if configuration(path / "config.yaml", [])[0]:  # whole, and of another program
        return False
    status = json_object(path / "status.json", [])
    said = status.get("state") in STATES if status else held & {"status.json", "run.json", "results.json"}
    return bool(said) or any("metarun" in line for line in text_lines(path / "output.txt"))


def read(path: Path) -> Run:
    """The run in the folder ``path``, as far as it can be read."""
    damaged: list[str] = []
    status, facts = (json_object(path / name, damaged) for name in ("status.json", "run.json"))
    config, settings = configuration(path / "config.yaml", damaged)
    state = status.get("state")
    if state not in STATES:
        damaged += [] if not status else [f"status.json: it names no state but {shortened(repr(state), 40)}"]
        state = "unknown"
    if state == "running" and not _goes_on(path, status, facts):
        state = "killed"
    tested = (state == "completed" and settings.get("evaluation.num_tasks") != 0) or os.path.lexists(
        path / "results.json"
    )
    results = json_object(path / "results.json", damaged) if tested else {}
    return Run(path, state, status, config, settings, results, facts, tuple(damaged))


def _goes_on(path: Path, status: dict[str, Any], facts: dict[str, Any]) -> bool:
    """Whether a process holds a run that says it is running; of another machine its lock may not be seen here."""
    held = in_use(path / ".lock")
    host = mapping(facts.get("hardware")).get("host")
    if held is not None and (held or host in (None, platform.node())):
        return held
    told = moment(status.get("updated")) or 0.0
    with suppress(OSError):  # it may go at any moment
        told = max(told, (path / ".lease").stat().st_mtime)  # renewed also during a long test
    return time.time() - told < SILENT_SECONDS


def scores_in(content: dict[str, Any]) -> dict[str, Score]:
    """The scores of a results.json, or of an evaluation, by their names."""
    found = {name: score_of(value) for name, value in content.items()}
    return {name: score for name, score in found.items() if score}


def score_of(value: Any) -> Score | None:
    """The score that an entry of results.json is, where it is one."""
    if not isinstance(value, dict) or (mean := number(value.get("mean"))) is None:
        return None
    n = value.get("n")
    return Score(mean, number(value.get("ci95")), n if isinstance(n, int) else None)
