"""Experiments from metarun's own configuration, beside an outsider's config folder with a task that needs no data."""

import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import hydra
from omegaconf import DictConfig

from metarun.commands.job import plan
from metarun.commands.train import run
from metarun.config.build import build
from metarun.config.compose import REFUSALS
from metarun.config.compose import composed as by_hydra
from metarun.config.experiment import Experiment
from metarun.config.help import options
from metarun.config.trust import trust
from metarun.paths import config_dir
from metarun.sweep.composing import Composer

__all__ = ["OUTSIDE", "built", "compose", "composed", "experiment", "last_of_each", "options", "outsider", "train"]
__all__ += ["unexamined"]

OUTSIDE = Path(__file__).parent / "outside"
PARTS = ("task", "base_learner", "meta_learner", "optimizer", "scheduler", "execution", "logger")
CHEAP = ["device=cpu", "dtype=float64", "execution=looped", "logger=none"]


class InParts(Composer):
    """Composes each option of these groups once, and puts them together where they have no part in each other: not in
    an experiment, and not where a task brings settings of a learner."""

    def base(self, overrides: tuple[str, ...]) -> DictConfig:
        if overrides not in self.bases:
            parts = {group: tuple(text for text in overrides if re.match(rf"{group}(/\w+)?=", text)) for group in PARTS}
            rest = tuple(text for text in overrides if not any(text in part for part in parts.values()))
            of_parts = tuple(text for text in rest if not text.startswith("+rates."))  # which only the root has
            if brings_settings(overrides) or sum(map(bool, parts.values())) < 2:
                return super().base(overrides)
            cfg = super().base(rest).copy()
            for group, chosen in parts.items():
                if chosen:
                    cfg[group] = super().base((*of_parts, *chosen))[group].copy()
            self.bases[overrides] = cfg
        return self.bases[overrides]


def brings_settings(overrides: Sequence[str]) -> bool:
    """Whether an option of one group sets values of another: an experiment, or a task with settings of the learner."""
    chosen = dict(text.split("=", 1) for text in overrides if "=" in text)
    learner = chosen.get("meta_learner", "maml")
    return "experiment" in chosen or (config_dir() / "per_task" / chosen.get("task", "") / f"{learner}.yaml").is_file()


@cache
def composer(*folders: Path) -> Composer:
    """What composes once for all tests that choose the same options, and ask for other values."""
    return InParts(folders)


@cache
def _of_hydra(*words: str) -> DictConfig | Exception:
    try:
        return hydra.compose("config", [*words])
    except REFUSALS as refusal:
        return refusal


def once(name: str, words: list[str]) -> DictConfig:
    """hydra.compose for the words, once: to tell every mistake of a command it composes what is right again and again."""
    if name != "config" or any(text.startswith("hydra.searchpath") for text in words):  # folders that a test changes
        return hydra.compose(name, words)
    found = _of_hydra(*words)
    if isinstance(found, Exception):
        raise found
    return found.copy()


def composed(overrides: Sequence[str], folders: Sequence[Path]) -> DictConfig:
    """What metarun.config.compose.composed gives, in a fifth of the time; folders that a test makes may change."""
    return composer(*folders)(list(overrides), ()) if {*folders} <= {OUTSIDE} else by_hydra(list(overrides), [*folders])


@contextmanager
def outsider() -> Iterator[None]:
    """What ``--config-dir tests/outside`` does to the process, undone afterwards."""
    path = list(sys.path)
    with mock.patch.dict(os.environ, trusted()):
        try:
            sys.path.insert(0, str(OUTSIDE))
            yield
        finally:
            sys.path[:] = path


@cache
def trusted() -> dict[str, str]:
    """What trusting the folder writes into the environment, once its files are found to be in order."""
    path = list(sys.path)
    with mock.patch.dict(os.environ):
        trust([str(OUTSIDE)], [])
        sys.path[:] = path
        return {"METARUN_ALLOW": os.environ["METARUN_ALLOW"]}


def last_of_each(*overrides: str) -> list[str]:
    """The overrides without those whose key comes again: a test changes what it has in common with others."""
    return list({text if text.startswith("-") else text.partition("=")[0]: text for text in overrides}.values())


def compose(*overrides: str) -> DictConfig:
    with outsider():
        return composed(last_of_each(*CHEAP, *overrides), [OUTSIDE])


def experiment(*overrides: str) -> Experiment:
    """The objects of a run; raises ConfigError as the command line would."""
    return built(compose(*overrides))


def built(cfg: DictConfig) -> Experiment:
    """The objects of a run with this configuration."""
    with outsider():
        return build(cfg)


def unexamined() -> AbstractContextManager[Any]:
    """A context in which runs have neither costs nor alarms, which take as long as a short training; others have them."""
    return mock.patch.multiple("metarun.output.report", signs_of=lambda *_: None, cost_of_run=lambda *_: {})


def train(folder: Path, *overrides: str) -> float:
    """One whole run in this process; returns its test score. The process keeps its signal handlers."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    texts = last_of_each(*CHEAP, f"run_dir={folder}", *overrides)
    try:
        with outsider():
            return run(plan(composed(texts, [OUTSIDE]), texts))
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
