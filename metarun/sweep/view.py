"""What a sweep shows while it goes on: a live table in a terminal, plain lines elsewhere; and the table at its end."""

import sys
import time
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from metarun.output.folder import tensorboard_line
from metarun.output.kept import number
from metarun.output.tables import table_console
from metarun.paths import as_shown
from metarun.sweep.job import Job

REFRESH_SECONDS = 1.0
ROWS = 12  # of jobs that have ended, the latest


class View:
    """Tells of jobs on standard error; in a terminal also a table of those that run."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.console = Console(stderr=True)
        self.live = Live(console=self.console, auto_refresh=False, transient=True) if self.console.is_terminal else None
        self.shown = float("-inf")

    def __enter__(self) -> "View":
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.live.stop()

    def tell(self, job: Job, what: str) -> None:
        """A line about a job."""
        line = f"[{job.number}/{self.total}] {job.name}: {what}"
        if self.live is None:
            print(line, file=sys.stderr, flush=True)
        elif what != "started":
            self.live.console.print(line, markup=False, highlight=False, emoji=False)

    def show(self, jobs: Sequence[Job]) -> None:
        """Renew the table, where there is a terminal and it is time."""
        if self.live and time.monotonic() - self.shown >= REFRESH_SECONDS:
            self.shown = time.monotonic()
            self.live.update(progress_table(jobs), refresh=True)


def progress_table(jobs: Sequence[Job]) -> Table:
    """The jobs that run: state, step, score and time left; and how many there are of each state."""
    counts = Counter(job.state for job in jobs)
    table = Table(title=", ".join(f"{counts[state]} {state}" for state in ("running", "elsewhere", "waiting", "ended")))
    for column in ("run", "state", "step", "score", "time left"):
        table.add_column(column)
    for job in [job for job in jobs if job.state in ("running", "elsewhere")][:ROWS]:
        status = job.folder.read_status()
        step, steps = (number(status.get(key)) for key in ("step", "steps"))
        own = status.get("pid") == job.process or job.state == "elsewhere"
        done = f"{step:.0f}/{steps:.0f}" if own and step is not None and steps is not None else ""
        left = _left(job, step, steps) if own else ""
        table.add_row(Text(job.name), job.state, done, Text(_score(status)), left)
    return table


def _left(job: Job, step: float | None, steps: float | None) -> str:
    """The time until the last step, at the rate since this attempt was first seen."""
    if step is None or steps is None:
        return ""
    now = time.monotonic()
    if job.steps_seen is None:
        job.steps_seen = (now, int(step))
    then, first = job.steps_seen
    return str(timedelta(seconds=round((now - then) * (steps - step) / (step - first)))) if step > first else ""


def _score(status: dict[str, object]) -> str:
    """The test score, else the latest validation score."""
    scores = {name: value for name, value in status.items() if name.startswith(("test/", "val/"))}
    return next((f"{name} {value:.4g}" for name, value in sorted(scores.items()) if number(value) is not None), "")


def final_table(jobs: Sequence[Job], folder: Path) -> int:
    """Print every job with its score and seconds, or the reason that it has none; how many are completed."""
    completed = [job.completed for job in jobs]
    table = Table(title=f"{sum(completed)} of {len(jobs)} runs completed")
    for column in ("run", "state", "score", "seconds", "why"):
        table.add_column(column, overflow="fold")
    for job, good in zip(jobs, completed, strict=True):
        why = "" if good else job.outcome if job.told_to_stop else "\n".join(job.why())
        row = (job.name, job.describe(), _score(job.folder.read_status()), f"{job.seconds:.0f}", why)
        table.add_row(*map(Text, row))
    table_console(160).print(table)
    print("\n".join(filter(None, [f"runs:        {as_shown(folder)}", tensorboard_line(folder)])))
    return sum(completed)


def dry_table(jobs: Sequence[Job], folder: Path) -> None:
    """Print every job with its folder and what would be done."""
    table = Table(title=f"{len(jobs)} runs in {as_shown(folder)}")
    for column in ("run", "folder", "would"):
        table.add_column(column, overflow="fold")
    plans = [_would(job) for job in jobs]
    for job, plan in zip(jobs, plans, strict=True):
        table.add_row(Text(job.name), Text(job.folder.path.name), plan)
    table_console(160).print(table)
    counts = Counter(plan.partition(" at ")[0] for plan in plans)
    print("; ".join(f"{count} would {plan}" for plan, count in counts.items()))


def _would(job: Job) -> str:
    status = job.folder.read_status()
    state = job.describe()
    kept = {"completed": "be kept, completed", "running": "be waited for, in progress", "damaged": "be left, damaged"}
    if state in kept:
        return kept[state]
    if job.folder.holds_a_run and status.get("step"):
        return f"continue at step {status['step']}"
    return "begin"
