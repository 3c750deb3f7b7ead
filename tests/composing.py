"""Experiments from metarun's own configuration, beside an outsider's config folder with a task that needs no data."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from omegaconf import DictConfig

from metarun.commands.train import plan, run
from metarun.config.build import build
from metarun.config.experiment import Experiment
from metarun.config.help import options
from metarun.config.trust import trust
from metarun.sweep.composing import Composer

__all__ = ["OUTSIDE", "built", "compose", "experiment", "last_of_each", "options", "outsider", "train"]

OUTSIDE = Path(__file__).parent / "outside"
CHEAP = ["device=cpu", "dtype=float64", "execution=looped", "logger=none"]
COMPOSER = Composer([OUTSIDE])  # once for all tests that choose the same options, and ask for other values


@contextmanager
def outsider() -> Iterator[list[Path]]:
    """What ``--config-dir tests/outside`` does to the process, undone afterwards; yields the folders."""
    path = list(sys.path)
    with mock.patch.dict(os.environ):
        try:
            yield trust([str(OUTSIDE)], [])
        finally:
            sys.path[:] = path


def last_of_each(*overrides: str) -> list[str]:
    """The overrides without those whose key comes again: a test changes what it has in common with others."""
    return list({text if text.startswith("-") else text.partition("=")[0]: text for text in overrides}.values())


def compose(*overrides: str) -> DictConfig:
    with outsider():
        return COMPOSER(last_of_each(*CHEAP, *overrides), ())


def experiment(*overrides: str) -> Experiment:
    """The objects of a run; raises ConfigError as the command line would."""
    return built(compose(*overrides))


def built(cfg: DictConfig) -> Experiment:
    """The objects of a run with this configuration."""
    with outsider():
        return build(cfg)


def train(folder: Path, *overrides: str) -> float:
    """One whole run in this process; returns its test score. The process keeps its signal handlers."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    texts = last_of_each(*CHEAP, f"run_dir={folder}", *overrides)
    try:
        with outsider():
            return run(plan(COMPOSER(texts, ()), texts))
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
