"""``launcher=local``: processes of this machine, as ``metarun -m`` starts them without any other."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import ClassVar

from metarun.sweep.launcher import Launcher
from metarun.sweep.way import Sweep, Way, drained


@dataclass(frozen=True)
class Local(Way):
    """Processes that are forked from one that has everything imported."""

    forks: ClassVar[bool] = True

    def refuse(self, words: Collection[str]) -> None:
        """As ``Way`` has it: it can run everywhere."""

    def run(self, sweep: Sweep, forked: Callable[[], Launcher]) -> int | None:
        return drained(sweep, forked())
