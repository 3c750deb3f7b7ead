"""Processes that begin with everything imported: forked from a server that has computed nothing, 5 s sooner than new ones.

What a process is for is a function of this package's by name, so that nothing but strings is sent.
"""

import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache, wraps
from importlib import import_module
from multiprocessing import forkserver, reduction
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any
from unittest import mock

from metarun.commands.main import main
from metarun.sweep.preloaded import LATE, Preloaded, serve

IMPORTED = ["tests.running", "metarun.commands.train", "metarun.commands.evaluate", *LATE]
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


@contextmanager
def nothing_to_wait_for() -> Iterator[None]:
    """A context in which a run that goes on finds its event files a second old, for which it would wait up to a second."""
    from metarun.output.loggers.tensorboard import TensorBoard

    begins = TensorBoard.__init__

    @wraps(begins)
    def older_first(self: TensorBoard, folder: Path, *settings: Any, **named: Any) -> None:
        seconds = {path: int(path.name.split(".")[3]) for path in folder.glob("events.out.tfevents.[0-9]*")}
        if max(seconds.values(), default=0) + 1 > time.time():
            for path, second in sorted(seconds.items()):  # each keeps its place among them
                path.rename(path.with_name(path.name.replace(str(second), str(second - 1), 1)))
        begins(self, folder, *settings, **named)

    with mock.patch.object(TensorBoard, "__init__", older_first):
        yield


@cache
def server(**env: str) -> ForkServerContext:
    """The context whose server, begun with ``env``, has imported metarun and computed nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    with mock.patch.dict(os.environ, env):
        forkserver.ensure_running()
    return context


class Forked:
    """``function(*arguments)``, named by its module too, in a process of its own with this ``sys.argv``, folder and
    environment; what it prints goes to the ends of two files. As subprocess.Popen, as far as tests need it."""

    def __init__(
        self,
        function: str,
        arguments: list[str],
        argv: list[str],
        cwd: Path,
        env: Mapping[str, str],
        printed: tuple[Path, Path],
    ) -> None:
        self.out, self.err = printed
        told = (function, arguments, argv, str(cwd), dict(env), str(self.out), str(self.err))
        self.process = server(PYTHONPATH=env["PYTHONPATH"], OMP_NUM_THREADS="1").Process(target=_child, args=told)
        self.process.start()

    @property
    def pid(self) -> int:
        return int(self.process.pid or 0)

    @property
    def returncode(self) -> int | None:
        """The exit code, below 0 for a signal that killed it; None as long as it runs."""
        return self.process.exitcode

    def poll(self) -> int | None:
        """The exit code, or None."""
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """End it, if it runs."""
        self.process.kill()

    def communicate(self, timeout: float) -> tuple[str, str]:
        """What it printed, once it has ended; raises TimeoutError."""
        self.process.join(timeout)
        if self.returncode is None:
            self.kill()
            raise TimeoutError(self.err.read_text())
        return self.out.read_text(), self.err.read_text()


class Workers(Preloaded):
    """The process that forks a sweep's jobs, itself forked from the server that has imported everything."""

    @classmethod
    def fresh(cls, module: str, environment: dict[str, str]) -> "Workers":
        assert module == "metarun.commands.workers"
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        reading, writing = os.pipe()
        begin = server(PYTHONPATH=os.environ.get("PYTHONPATH", ""), OMP_NUM_THREADS="1").Process
        process = begin(target=_workers, args=(theirs, reduction.DupFd(reading), sys.path, environment))
        process.start()
        theirs.close()
        os.close(reading)
        made = cls(ours, writing, int(process.pid or 0))
        made.child = process
        return made

    def close(self) -> None:
        """As of another one, but this is no child of ours."""
        self.connection.close()
        os.close(self.lifeline)
        self.child.join()


def _workers(connection: socket.socket, lifeline: Any, path: list[str], environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:] = path
    with nothing_to_wait_for():
        serve(connection, lifeline.detach(), main)


def _child(
    function: str, arguments: list[str], argv: list[str], cwd: str, env: dict[str, str], out: str, err: str
) -> None:
    for number in SIGNALS:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    for path, descriptor in ((out, 1), (err, 2)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, descriptor)
        os.close(file)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    sys.argv = argv
    module, _, name = function.rpartition(".")
    with nothing_to_wait_for():
        getattr(import_module(module), name)(*arguments)
