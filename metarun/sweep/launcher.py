"""What starts the jobs of a sweep on this machine."""

import os
import subprocess
import sys
from typing import IO, Protocol


class Launcher(Protocol):
    """Starts jobs, which are command lines of metarun, and tells how they ended."""

    def start(self, arguments: list[str], environment: dict[str, str], output: IO[bytes], slot: IO[bytes]) -> int:
        """Start a job, and return its number. It prints into ``output``, and ``slot`` is kept open as long as it lives."""

    def process(self, started: int) -> int:
        """The process of a job, by its number, as its status.json names it; 0 as long as that is not known."""

    def signal(self, pid: int, number: int) -> None:
        """Send a job a signal, if it still runs."""

    def ended(self, pid: int) -> int | None:
        """The exit code of a job, below 0 for a signal that killed it; None as long as it runs."""

    def close(self) -> None:
        """Start no more."""


class Separate:
    """A new process for each job, where forking one that has loaded torch is not safe: macOS, Windows."""

    def __init__(self) -> None:
        self.processes: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, arguments: list[str], environment: dict[str, str], output: IO[bytes], slot: IO[bytes]) -> int:
        process = subprocess.Popen(
            [sys.executable, "-m", "metarun", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # Ctrl-C reaches the parent alone, which passes it on
            pass_fds=[slot.fileno()] if os.name == "posix" else [],
        )
        self.processes[process.pid] = process
        return process.pid

    def process(self, started: int) -> int:
        return started

    def signal(self, pid: int, number: int) -> None:
        self.processes[pid].send_signal(number)

    def ended(self, pid: int) -> int | None:
        return self.processes[pid].poll()

    def close(self) -> None:
        """Start no more."""
