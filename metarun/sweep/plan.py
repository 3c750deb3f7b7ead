"""The jobs of a sweep: each composed, checked and built once before any starts, with all mistakes in one list."""

import json
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import track

from metarun.config.compose import composed
from metarun.errors import ConfigError
from metarun.sweep.composing import Composer
from metarun.sweep.grammar import combinations, varying
from metarun.sweep.identity import NO_EFFECT, identity
from metarun.sweep.job import Folders, Job
from metarun.sweep.mistakes import Mistakes

LONG = 20  # jobs, of which a terminal shows the progress
Look = Callable[[Any, dict[str, Any]], None]  # at an experiment, and the plain values that it was made of


def no_look(experiment: Any, config: dict[str, Any]) -> None:
    """Refuse nothing."""


def planned(overrides: list[str], config_dirs: Sequence[Path], sweep: Path, build: bool = True) -> list[Job]:
    """The jobs that ``overrides`` span, each run once. Raises ConfigError with the mistakes of all.

    ``build``: also what shows only when a run's objects are built, once for each kind, on the CPU.
    """
    texts = combinations(overrides, config_dirs)
    shown, shared = varying(texts), frozenset.intersection(*map(frozenset, texts))
    compared = {text.lstrip("+~").partition("=")[0].split(".")[0] for names in shown for text in names}
    compared = compared & {*NO_EFFECT} if len(texts) > 1 else set()
    planner = Planner(config_dirs, sweep, shared, build)
    mistakes = Mistakes()
    jobs: dict[str, Job] = {}
    for job_overrides, names in _with_progress(list(zip(texts, shown, strict=True))):
        try:
            job = planner.job(job_overrides, names, compared)
        except ConfigError as error:
            mistakes.add(named(names), names, error.problems)
        else:
            mistakes.add(named(names), names)
            job.number = len(jobs) + 1
            jobs.setdefault(job.identity, job)
    mistakes.refuse()
    return list(jobs.values())


def first_of(first: list[str], options: list[str], config_dirs: Sequence[Path]) -> DictConfig:
    """The configuration of the overrides ``first``. Raises ConfigError, which tells apart those ``options``, GROUP=A,B,
    that lack a setting which others have."""
    try:
        return composed(first, list(config_dirs))
    except ConfigError:
        groups = {text.partition("=")[0] for text in options}
        others = [text for text in first if text.partition("=")[0] not in groups]
        planned([*others, *options], config_dirs, Path(), build=False)
        raise


class Planner:
    """Makes the jobs of one sweep: composes, checks and builds them; what they share is done once."""

    def __init__(
        self, config_dirs: Sequence[Path], sweep: Path, shared: Collection[str], build: bool, look: Look = no_look
    ) -> None:
        self.compose, self.checked, self.folders = Composer(config_dirs), Checked(build, look), Folders(sweep)
        self.shared = shared  # the overrides that all jobs have

    def job(self, overrides: list[str], shown: list[str], compared: Collection[str] = ()) -> Job:
        """The job of ``overrides``, named by those that are ``shown``. Raises ConfigError with its problems."""
        config = self.checked(self.compose(overrides, self.shared))
        own = identity(config, compared)
        return Job(overrides, named(shown), config, own, self.folders.of(own, shown))


def named(shown: Sequence[str]) -> str:
    """The name of the job that these overrides tell from the others."""
    return " ".join(shown) or "defaults"


def _with_progress(jobs: list[Any]) -> Iterable[Any]:
    console = Console(stderr=True)
    return track(
        jobs, "checking the runs", console=console, transient=True, disable=len(jobs) < LONG or not console.is_terminal
    )


class Checked:
    """Finds what is wrong with configurations; those that differ in their seed alone are built once.

    ``look`` is shown what was built of which values, and may refuse it by a ConfigError.
    """

    def __init__(self, build: bool, look: Look) -> None:
        self.build, self.look = build, look
        self.known: dict[str, list[str]] = {}

    def __call__(self, cfg: DictConfig) -> dict[str, Any]:
        """The plain values of a configuration, which is used up. Raises ConfigError with its problems."""
        from metarun.config.build import check
        from metarun.config.ready import ready

        if problems := check(cfg):
            raise ConfigError(problems)
        config: Any = OmegaConf.to_container(cfg, resolve=True)
        cfg.seed, cfg.device, cfg.tf32 = 0, "cpu", False  # a GPU is for the jobs
        kind = json.dumps({**config, "seed": 0, "device": "cpu", "tf32": False}, sort_keys=True, default=str)
        if self.build and kind not in self.known:
            try:
                self.look(ready(cfg), config)
                self.known[kind] = []
            except ConfigError as error:
                self.known[kind] = error.problems
        if self.known.get(kind):
            raise ConfigError(self.known[kind])
        return config
