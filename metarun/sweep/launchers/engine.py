"""Jobs that an engine of others starts: joblib, submitit, Ray. The engine is handed strings, and says when it is done.

All else goes through the sweep's folder, which all machines share. A job is described in a file; ``metarun.sweep.worker``,
which the engine runs, reads it and starts ``python -m metarun ...``. Signals for the job are lines of another file. The
parent holds the folder of these files by a lock and a lease: when it has died, the workers stop their jobs.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from abc import abstractmethod
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, ClassVar, Protocol

from metarun.errors import ConfigError, shortened
from metarun.files import write_json
from metarun.output.folder import new_name, slug
from metarun.output.lock import claim
from metarun.sweep.launcher import Launcher
from metarun.sweep.way import Sweep, Way, drained

PARENTS = ".parents"
PID, TOLD = ".pid", ".told"  # beside the description of a job: its process, and the signals for it


class Submitted(Protocol):
    """What an engine gives for a command: a future, or something like it."""

    def done(self) -> bool:
        """Whether it has ended."""

    def cancel(self) -> Any:
        """Take it out of the queue, where it has not begun."""

    def result(self) -> Any:
        """What the command left, a ``subprocess.CompletedProcess``; raises what the engine says where it was lost."""


Submit = Callable[[list[str]], Submitted]


@dataclass(frozen=True)
class Engine(Way):
    """A way that starts each job by somebody else's launcher."""

    forks: ClassVar[bool] = False
    package: ClassVar[str]  # which has to be installed

    @abstractmethod
    def submitting(self, jobs: int, folder: Path) -> AbstractContextManager[Submit]:
        """A context with a function that hands the engine a command, for ``finished`` to run; ``jobs`` may run at once.
        What the engine itself writes belongs into ``folder``."""

    @abstractmethod
    def environment(self, wanted: dict[str, str]) -> dict[str, str]:
        """What to set in the environment of a job; ``wanted`` is what it would be on this machine."""

    def refuse(self, words: Collection[str]) -> None:
        if find_spec(self.package) is None:
            why = f"launcher={type(self).__name__.lower()}: the package {self.package} is not installed"
            fix = f"pip install {self.package}, or leave out launcher: metarun starts the runs itself."
            raise ConfigError([f"{why}. {fix}"])

    def run(self, sweep: Sweep, forked: Callable[[], Launcher]) -> int | None:
        with _started(self, sweep) as launcher:
            return drained(sweep, launcher)


def finished(command: list[str]) -> "subprocess.CompletedProcess[str]":
    """Run a command, with its output as text: what every engine is asked to do."""
    return subprocess.run(command, capture_output=True, text=True, check=False, start_new_session=True)


@contextmanager
def _started(engine: Engine, sweep: Sweep) -> Iterator["ByEngine"]:
    folder = sweep.folder / PARENTS / slug(new_name("parent"))
    folder.mkdir(parents=True)
    try:
        with claim(folder), engine.submitting(sweep.slots.jobs, folder) as submit:
            yield ByEngine(engine, submit, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class ByEngine:
    """Starts jobs by an engine, as ``Launcher`` has it; a job's number is its place among those that this has started."""

    def __init__(self, engine: Engine, submit: Submit, folder: Path) -> None:
        self.engine, self.submit, self.folder = engine, submit, folder
        self.submitted: dict[int, Submitted] = {}
        self.held: dict[int, tuple[int, str]] = {}  # of those that run: the open file of the slot, and the output
        self.codes: dict[int, int] = {}
        self.pids: dict[int, int] = {}

    def start(self, arguments: list[str], environment: dict[str, str], output: IO[bytes], slot: IO[bytes]) -> int:
        """As ``Launcher`` has it; the slot is kept by this process."""
        number = len(self.submitted) + 1
        wanted = {name: value for name, value in environment.items() if os.environ.get(name) != value}
        description = self.folder / f"{number}.json"
        content = {"arguments": arguments, "environment": self.engine.environment(wanted)}
        write_json(description, {**content, "folder": os.getcwd(), "output": output.name})
        self.submitted[number] = self.submit([sys.executable, "-m", "metarun.sweep.worker", str(description)])
        self.held[number] = os.dup(slot.fileno()), output.name
        return number

    def process(self, started: int) -> int:
        if started not in self.pids:
            with suppress(OSError, ValueError):
                self.pids[started] = int((self.folder / f"{started}{PID}").read_text())
        return self.pids.get(started, 0)

    def signal(self, started: int, number: int) -> None:
        """As ``Launcher`` has it; the worker looks for signals a few times a second. What waits in the engine's queue has
        ended with that, and if it begins all the same its worker ends at once."""
        with (self.folder / f"{started}{TOLD}").open("a") as file:
            file.write(f"{int(number)}\n")
        if not self.process(started) and started not in self.codes:
            with suppress(OSError, subprocess.SubprocessError):  # of a command of the engine's, as scancel
                self.submitted[started].cancel()
            self._free(started)
            self.codes[started] = 128 + int(number)

    def ended(self, started: int) -> int | None:
        """As ``Launcher`` has it; a job whose worker was lost counts as killed."""
        if started not in self.codes and self.submitted[started].done():
            self.codes[started] = self._code(started, self._free(started))
        return self.codes.get(started)

    def _free(self, started: int) -> str:
        """Free the slot of a job; its output."""
        slot, output = self.held.pop(started)
        os.close(slot)
        return output

    def close(self) -> None:
        """As ``Launcher`` has it: the engine's context ends it."""

    def _code(self, started: int, output: str) -> int:
        said = ""
        try:
            left = self.submitted[started].result()
            said = left.stderr
            told = json.loads(left.stdout)
            self.pids[started] = told["pid"]
            return told["code"]
        except Exception as error:  # of the engine: a worker or a machine that it has lost
            reason = shortened(" ".join((said or f"{type(error).__name__}: {error}").split()), 600)
        with open(output, "a") as file:
            file.write(f"metarun: {self.engine.package} has lost the run: {reason}\n")
        return -signal.SIGKILL
