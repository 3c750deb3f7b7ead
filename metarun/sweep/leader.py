"""Who decides about the jobs of a sweep while they run: nobody, or a search."""

from typing import Protocol

from metarun.sweep.job import Job


class Leader(Protocol):
    """Who adds jobs while others run, and gives up those that are not worth their time: a search."""

    def more(self) -> Job | None:
        """The next job; None where there is none now, for a place that is free."""

    def gives_up(self, job: Job) -> str:
        """Why a job that runs shall stop; empty where it goes on."""

    def over(self, job: Job) -> None:
        """A job has ended, however it did."""


class Unled:
    """The jobs of a sweep are known from the start, and all are worth their time."""

    def more(self) -> Job | None:
        return None

    def gives_up(self, job: Job) -> str:
        return ""

    def over(self, job: Job) -> None:
        """As ``Leader`` has it."""


UNLED = Unled()
