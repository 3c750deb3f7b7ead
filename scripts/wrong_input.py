"""One wrong input to metarun: what is typed, what it may be answered with, and what it was answered with.

A case runs in a child of a process that has imported everything, so that it costs its own time alone.
"""

import ctypes
import gc
import os
import pty
import re
import resource
import select
import shlex
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

SECONDS = 10.0  # of the processor
WAITING = 40.0  # seconds on the clock, on a machine that does other things too
MEGABYTES = 2000.0  # resident
STARTED = re.compile(rb"run folder: |sweep of \d+ runs")  # what a run or a sweep says once it has been accepted
PAGE = os.sysconf("SC_PAGE_SIZE")
TICK = os.sysconf("SC_CLK_TCK")
REFUSED = frozenset({2})
ANY = frozenset({0, 1, 2, 3})  # the documented exit codes of what is not stopped


@dataclass(frozen=True)
class Case:
    """A command line, the empty folder that it begins in made ready by ``before``, and what may come of it."""

    kind: str  # a row of the table
    what: str
    argv: tuple[str, ...]
    expects: frozenset[int] = REFUSED
    names: str = ""  # what a refusal must name
    before: Callable[[Path], object] | None = None
    terminal: bool = False
    damage: str = ""  # what ``before`` did
    short: bool = False  # whether a run that is started ends by itself

    @property
    def command(self) -> str:
        """As a shell takes it."""
        return shlex.join(["metarun", *self.argv]) + (f"   # {self.damage}" if self.damage else "")


@dataclass(frozen=True)
class Outcome:
    """What came of a case; the code is minus the signal's number where it was killed."""

    code: int
    text: str
    seconds: float
    megabytes: float
    ended: str = ""  # why it was killed
    changed: tuple[str, ...] = ()  # files that are others than before

    def faults(self, case: Case) -> list[str]:
        """What is wrong with it, by kind; nothing, where the input was answered as it should be."""
        if self.ended:
            return [self.ended]
        found = ["traceback"] * ("Traceback (most recent call last)" in self.text)
        if self.code not in case.expects and not found:
            accepted = self.code == 0
            found.append("accepted" if accepted else f"exit code {self.code}")
        if self.code in (1, 2) and case.names and case.names not in self.text and not found:
            found.append("refused without naming it")
        if self.code == 2 and self.changed:
            found.append("refused, but something was started")
        if self.megabytes > MEGABYTES:
            found.append("memory")
        return found


def preload() -> None:
    """Import what a command would, so that a child need not."""
    from metarun.process import prepare

    prepare()
    import matplotlib.figure  # noqa: F401
    import torch._dynamo
    import torch.utils.tensorboard

    import metarun.commands.app
    import metarun.commands.control
    import metarun.commands.doctor
    import metarun.commands.evaluate
    import metarun.commands.sweep
    import metarun.commands.train
    import metarun.training.runner  # noqa: F401

    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()  # a child that collects would copy every page
    adopt_orphans()


def answer(case: Case, folder: Path) -> Outcome:
    """Run ``case`` in the empty ``folder``."""
    folder.mkdir(parents=True)
    if case.before is not None:
        case.before(folder)
    before = contents(folder)
    outcome = _watched(case, folder)
    after = contents(folder)
    changed = tuple(sorted(str(path) for path in {*before, *after} if before.get(path) != after.get(path)))
    return replace(outcome, changed=changed)


def contents(folder: Path) -> dict[Path, tuple[int, int]]:
    """Size and time of every file below ``folder``, but for locks, compiled modules, and data prepared before a run."""
    files = [path for path in folder.rglob("*") if path.name != ".lock" and path.is_file()]
    files = [path for path in files if not {"prepared", "__pycache__"}.intersection(path.parts)]
    return {path.relative_to(folder): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


def _watched(case: Case, folder: Path) -> Outcome:
    reads, writes = pty.openpty() if case.terminal else os.pipe()
    began = time.monotonic()
    if (pid := os.fork()) == 0:
        os.close(reads)
        _child(case, folder, writes)
    os.close(writes)
    text, most, ended, status, listens = bytearray(), 0.0, "", None, True
    while status is None:
        if not listens:
            time.sleep(0.003)
        elif select.select([reads], [], [], 0.02)[0]:
            more = _read(reads)
            text, listens = text + more, bool(more)  # once closed it is always ready
        most = max(most, _resident(pid))
        if 0 not in case.expects and not case.short and STARTED.search(text):  # it need not train to its end
            ended = "accepted"
        ended = ended or _beyond(pid, most, time.monotonic() - began)
        if ended:
            os.killpg(pid, signal.SIGKILL)
        done, code, usage = os.wait4(pid, os.WNOHANG)
        if done:
            status = os.waitstatus_to_exitcode(code)
            most = max(most, usage.ru_maxrss / 1024)
    _end_orphans()
    while select.select([reads], [], [], 0)[0] and (more := _read(reads)):
        text += more
    os.close(reads)
    return Outcome(status, text.decode(errors="replace"), time.monotonic() - began, most, ended)


def _read(descriptor: int) -> bytes:
    """What there is to read; nothing at its end, which is an error on a terminal."""
    try:
        return os.read(descriptor, 1 << 16)
    except OSError:
        return b""


def adopt_orphans() -> None:
    """Let what a case has started, and left behind, become this process's own child (Linux)."""
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


def _end_orphans() -> None:
    """End the processes that the last case left behind; this process has no other children."""
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    while found := children.read_text().split():
        for pid in map(int, found):
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


def _child(case: Case, folder: Path, output: int) -> None:
    """Never returns."""
    code = 70
    try:
        os.setsid()
        for stream in (1, 2):
            os.dup2(output, stream)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdout, sys.stderr = (os.fdopen(os.dup(number), "w", buffering=1) for number in (1, 2))
        os.chdir(folder)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, 1 << 30))
        sys.argv = ["metarun", *case.argv]
        from metarun.commands.main import main

        main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _resident(pid: int) -> float:
    """Megabytes."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE / 2**20
    except (OSError, IndexError):
        return 0.0


def _beyond(pid: int, megabytes: float, waited: float) -> str:
    """Which bound it is beyond."""
    if megabytes > MEGABYTES:
        return "memory"
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    own = (int(fields[11]) + int(fields[12])) / TICK
    return "hang" if own > SECONDS or waited > WAITING else ""
