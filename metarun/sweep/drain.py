"""Run the jobs of a sweep that nobody has run, some at a time. Any number of processes may do so at once in one sweep."""

import math
import re
import shlex
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

from metarun.output.lock import busy
from metarun.sweep.job import Job
from metarun.sweep.launcher import Launcher
from metarun.sweep.leader import UNLED, Leader
from metarun.sweep.slots import Slots
from metarun.sweep.view import View
from metarun.training.signals import received_by

POLL_SECONDS = 0.05
LOOK_SECONDS = 1.0  # between two looks at what other processes do
GRACE_SECONDS = 30.0  # for a checkpoint, after which a job whose time is over is killed
NO_MEMORY = re.compile(r"\Aout of memory|MemoryError\b")  # also numpy's _ArrayMemoryError


@dataclass(frozen=True)
class Limits:
    """How often a job that was killed, or found no memory, is tried again; seconds that an attempt may take."""

    retries: int = 0
    timeout: float | None = None


class Launching(NamedTuple):
    """How jobs are started: at which places, by what, and with which flags before their overrides."""

    slots: Slots
    launcher: Launcher
    flags: list[str]


class Drain:
    """Starts jobs until each is completed or has failed, or a signal comes."""

    def __init__(
        self,
        jobs: Sequence[Job],
        sweep: Path,
        launching: Launching,
        limits: Limits,
        view: View,
        leader: Leader = UNLED,
    ) -> None:
        self.jobs, self.sweep, self.limits, self.view, self.leader = list(jobs), sweep, limits, view, leader
        self.slots, self.launcher, self.flags = launching
        self.waiting = list(jobs)  # of nobody, or of another process
        self.running: list[Job] = []
        self.stop: list[int] = []  # signals
        self.passed_on = 0
        self.looked = float("-inf")
        for job in self.jobs:
            job.found = job.folder.read_status()

    def run(self) -> int | None:
        """Run the jobs; the signal that stopped it, or None."""
        with received_by(lambda number, _: self.stop.append(number)):
            self._fill()
            while self.running or (self.waiting and not self.stop):
                self._pass_on()
                for job in list(self.running):
                    code = self.launcher.ended(job.pid)
                    if not job.process:
                        job.known_as(self.launcher.process(job.pid), runs=code is None)
                    if code is not None:
                        self._ended(job, code)
                if not self.stop:
                    self._look()
                    self._start()
                    self._fill()  # last, for each of these may end a job
                self.view.show(self.jobs)
                time.sleep(POLL_SECONDS)
        return self.stop[0] if self.stop else None

    def _pass_on(self) -> None:
        """Pass signals on to the jobs, and end those whose time is over."""
        for number in self.stop[self.passed_on :]:
            for job in self.running:
                self.launcher.signal(job.pid, number)
        self.passed_on = len(self.stop)
        now, timeout = time.monotonic(), self.limits.timeout
        for job in self.running:
            if job.told_to_stop is None:
                over = timeout is not None and job.process > 0 and now - job.began > timeout
                job.why_stopped = f"its time of {timeout:g} s is over" if over else self.leader.gives_up(job)
                if job.why_stopped:
                    job.told_to_stop = now
                    self.launcher.signal(job.pid, signal.SIGTERM)
            elif now - job.told_to_stop > GRACE_SECONDS:
                job.told_to_stop = math.inf  # which is enough
                self.launcher.signal(job.pid, signal.SIGKILL)

    def _fill(self) -> None:
        """Let the leader add jobs for the places that are free."""
        while len(self.running) + len(self.waiting) < self.slots.jobs and (job := self.leader.more()):
            job.found = job.folder.read_status()
            self.jobs.append(job)
            self.waiting.append(job)

    def _look(self) -> None:
        """Find out what has become of the jobs that are not ours: completed, failed or taken by other processes, or free."""
        if time.monotonic() - self.looked < max(LOOK_SECONDS, 0.002 * len(self.waiting)):
            return
        for job in list(self.waiting):
            self._is_free(job)
        self.looked = time.monotonic()

    def _is_free(self, job: Job) -> bool:
        """Whether nobody has the job, and it is not over; notes what it is otherwise."""
        status = job.folder.read_status()
        if status["state"] == "completed":
            kept = "completed elsewhere" if status != job.found else "completed before, kept"
            self._over(job, f"damaged: {damage}" if (damage := job.damage) else kept)
        elif busy(job.folder.path):
            if job.state != "elsewhere":
                job.state = "elsewhere"
                self.view.tell(job, "in progress in another process, waited for")
            return False
        elif status["state"] in ("failed", "diverged") and status != job.found:
            self._over(job, f"{status['state']} elsewhere")
        else:
            job.state = "waiting"
            return True
        return False

    def _start(self) -> None:
        """Start as many jobs as there are places, and nobody has."""
        while len(self.running) < self.slots.jobs and any(job.state == "waiting" for job in self.waiting):
            if (taken := self.slots.take(self.sweep, {job.slot for job in self.running})) is None:
                return
            with taken[1] as file:
                free = (job for job in list(self.waiting) if job.state == "waiting" and self._is_free(job))
                if (job := next(free, None)) is None:
                    return
                self._begin(job, taken[0], file)

    def _begin(self, job: Job, slot: int, file: IO[bytes]) -> None:
        command, job.found = job.command(self.flags), job.folder.read_status()
        with job.noting_trouble():
            job.folder.create()
            with (job.folder.path / "output.txt").open("ab", buffering=0) as output:
                output.write(f"$ {shlex.join(['python', '-m', 'metarun', *command])}\n".encode())
                devices = max(one.config["devices"] for one in self.jobs)  # so that places have no GPU in common
                pid = self.launcher.start(command, self.slots.environment(slot, devices), output, file)
            job.begin(pid, slot, self.launcher.process(pid))
        if job.unusable:
            self._over(job, f"not begun: {job.unusable}")
            return
        self.waiting.remove(job)
        self.running.append(job)
        self.view.tell(job, "started" if job.tries == 1 else f"started again, attempt {job.tries}")

    def _ended(self, job: Job, code: int) -> None:
        """Note what became of a job of ours: its folder counts, the exit code says why."""
        self.running.remove(job)
        job.code = code
        status = job.folder.read_status()
        seconds = time.monotonic() - job.began
        if status["state"] == "completed":
            self._over(job, f"completed after {seconds:.0f} s")
        elif code == 1 and self._was_taken(job, status):
            job.tries -= 1
            self._wait(job)
        elif job.told_to_stop is not None:
            self._over(job, f"stopped, {job.why_stopped}")
        elif not self.stop and job.tries <= self.limits.retries and (why := _worth_another(job, status)):
            self.view.tell(job, f"{why} after {seconds:.0f} s; to be tried again")
            job.found = status  # what this attempt left is no news
            self._wait(job)
        else:
            self._over(job, f"{_said(code)} after {seconds:.0f} s")

    def _wait(self, job: Job) -> None:
        job.state, job.slot = "waiting", -1
        self.waiting.append(job)

    def _was_taken(self, job: Job, status: dict[str, Any]) -> bool:
        """Whether the job ended because another process had begun it at the same moment."""
        others = status.get("pid") not in (None, job.process) and status != job.found
        return others or busy(job.folder.path)

    def _over(self, job: Job, outcome: str) -> None:
        if job in self.waiting:
            self.waiting.remove(job)
        job.state, job.outcome, job.slot = "ended", outcome, -1
        self.view.tell(job, outcome)
        self.leader.over(job)


def _worth_another(job: Job, status: dict[str, Any]) -> str:
    """Why another attempt may succeed: a signal that nobody here sent, or no memory; empty where it would fail again."""
    assert job.code is not None
    if job.code < 0 or job.code > 128:
        return f"ended by signal {-job.code if job.code < 0 else job.code - 128}"
    said = str(status.get("error", "")) if job.code == 1 and status.get("pid") == job.process else ""
    return "out of memory" if NO_MEMORY.search(said) else ""


def _said(code: int) -> str:
    """What an exit code says of a job that is not completed."""
    if code > 128 and code - 128 in map(int, signal.Signals):
        return "interrupted"
    return f"killed by signal {-code}" if code < 0 else f"failed, exit code {code}"
