"""The ways to run the jobs of a sweep, of which ``launcher=NAME`` chooses one: what each is told, and what it answers."""

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

from metarun.sweep.drain import Drain, Launching, Limits
from metarun.sweep.job import Job
from metarun.sweep.launcher import Launcher
from metarun.sweep.slots import Slots
from metarun.sweep.view import View

STOPPED = "sweep stopped; the same command with the same sweep_dir continues it"


class Sweep(NamedTuple):
    """The jobs, which are composed and checked, and how they are to be run."""

    jobs: Sequence[Job]
    folder: Path
    flags: list[str]  # before the overrides of each job
    slots: Slots
    limits: Limits
    most: int | None  # jobs at a time, where the user said it


class Way(ABC):
    """Runs the jobs of a sweep: an option of the group ``launcher``."""

    forks: ClassVar[bool]  # whether by a process that is forked from the sweep's own

    @abstractmethod
    def refuse(self, words: Collection[str]) -> None:
        """Raise ConfigError where it cannot run here, or a setting of the sweep has no meaning for it.

        ``words``: the names of the sweep's settings that the user gave.
        """

    @abstractmethod
    def run(self, sweep: Sweep, forked: Callable[[], Launcher]) -> int | None:
        """Run the jobs. None once all have ended, whose folders tell how; else the exit code with which this process ends
        before they do. ``forked`` gives the launcher of a way that forks."""


def drained(sweep: Sweep, launcher: Launcher, stopped: str = STOPPED) -> int | None:
    """Start the jobs by ``launcher`` until all have ended, as ``Way.run`` has it; ``stopped`` is said after a signal."""
    with View(len(sweep.jobs)) as view:
        launching = Launching(sweep.slots, launcher, sweep.flags)
        signum = Drain(sweep.jobs, sweep.folder, launching, sweep.limits, view).run()
    if signum is None:
        return None
    print(stopped, file=sys.stderr)
    return 128 + signum
