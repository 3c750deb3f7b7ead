"""A process that has imported everything and computed nothing, from which each job is forked: imports take 3 s, a fork none.

A job is a command line, that of ``python -m metarun ...`` in a process of its own. When whoever wanted it has died it ends
as by SIGTERM, with a checkpoint: of a pipe, the ones hold the end to read from and the other the one to write to.
"""

import atexit
import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import IO, Any, NoReturn

from metarun.config.targets import plugins
from metarun.errors import MetarunError
from metarun.output.machine import installed
from metarun.paths import PACKAGE

Main = Callable[[list[str]], None]  # of the command line; ends in SystemExit
LATE = (  # modules that a run imports on its way
    "torch._dynamo",
    "torch.utils.tensorboard",
    "tensorboard.plugins.hparams.summary_v2",
    "matplotlib.pyplot",
)
SIGNALS = tuple(signal.Signals[name] for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2"))
MOST_BYTES = 1 << 20  # of a message
POLL_SECONDS = 0.1


class Preloaded:
    """Starts jobs by a process that forks them."""

    def __init__(self, connection: socket.socket, lifeline: int, pid: int) -> None:
        self.connection, self.lifeline, self.pid = connection, lifeline, pid
        self.codes: dict[int, int] = {}  # of the jobs that have ended, by process
        self.used = False

    @classmethod
    def forked(cls, main: Main) -> "Preloaded":
        """Fork the process from this one, which must have computed nothing: threads do not survive a fork."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            ours.close()
            os.close(writing)
            serve(theirs, reading, main)
        theirs.close()
        os.close(reading)
        return cls(ours, writing, pid)

    @classmethod
    def fresh(cls, module: str, environment: dict[str, str]) -> "Preloaded":
        """Begin the process as ``python -m MODULE CONNECTION LIFELINE``, which calls ``serve`` with what it is given."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        reading, writing = os.pipe()
        command = [sys.executable, "-m", module, str(theirs.fileno()), str(reading)]
        process = subprocess.Popen(command, pass_fds=[theirs.fileno(), reading], env=environment)
        theirs.close()
        os.close(reading)
        return cls(ours, writing, process.pid)

    def start(self, arguments: list[str], environment: dict[str, str], output: IO[bytes], slot: IO[bytes]) -> int:
        """Fork a job, and return its process. It prints into ``output``, and keeps ``slot`` open as long as it lives."""
        self.used = True
        changed = {name: value for name, value in environment.items() if os.environ.get(name) != value}
        message = {"start": arguments, "environment": changed, "folder": os.getcwd()}
        self._ask(message, output.fileno(), slot.fileno())
        while "started" not in (answer := self._answer()):
            self._note(answer)
        return answer["started"]

    def process(self, started: int) -> int:
        """The process of a job that was started: the number that it has."""
        return started

    def signal(self, pid: int, number: int) -> None:
        """Send a job a signal, if it still runs."""
        self._ask({"signal": number, "to": pid})

    def ended(self, pid: int) -> int | None:
        """The exit code of a job, below 0 for a signal that killed it; None as long as it runs."""
        while select.select([self.connection], [], [], 0)[0]:
            self._note(self._answer())
        return self.codes.get(pid)

    def close(self) -> None:
        """End the process, and with it the jobs that still run; return when they have ended."""
        self.connection.close()
        os.close(self.lifeline)
        if not self.used:
            os.kill(self.pid, signal.SIGKILL)  # it may still be importing
        os.waitpid(self.pid, 0)

    def _note(self, answer: dict[str, int]) -> None:
        self.codes[answer["ended"]] = answer["code"]

    def _ask(self, message: dict[str, Any], *files: int) -> None:
        try:
            socket.send_fds(self.connection, [json.dumps(message).encode()], files)
        except OSError as error:
            raise _lost() from error

    def _answer(self) -> dict[str, int]:
        try:
            message = self.connection.recv(MOST_BYTES)
        except OSError as error:
            raise _lost() from error
        if not message:
            raise _lost()
        return json.loads(message)


def _lost() -> MetarunError:
    return MetarunError(
        "the process that starts the runs was killed, so they end, with checkpoints. The same command goes on."
    )


def serve(connection: socket.socket, lifeline: int, main: Main) -> NoReturn:
    """Fork the jobs that are asked for, and tell of those that end, until nobody asks any more."""
    silenced = [number for number in SIGNALS if signal.getsignal(number) is signal.SIG_IGN]  # by nohup, say
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    os.setsid()
    preload()
    running: set[int] = set()
    while True:
        if select.select([connection], [], [], POLL_SECONDS)[0]:
            message, files, _, _ = socket.recv_fds(connection, MOST_BYTES, 2)
            if not message:
                break
            asked = json.loads(message)
            if "start" in asked:
                if (pid := os.fork()) == 0:
                    connection.close()
                    become(asked, files, lifeline, silenced, main)
                running.add(pid)
                connection.send(json.dumps({"started": pid}).encode())
            elif asked["to"] in running:
                os.kill(asked["to"], asked["signal"])
            for file in files:
                os.close(file)
        for pid in list(running):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                running.remove(pid)
                connection.send(json.dumps({"ended": pid, "code": os.waitstatus_to_exitcode(status)}).encode())
    for pid in running:
        os.waitpid(pid, 0)
    os._exit(0)


def preload() -> None:
    """Import what runs import on their way, and find out what stays the same, so that no job has to."""
    gc.disable()  # nothing of it is ever freed
    for name in LATE:
        import_module(name)
    from matplotlib.figure import Figure
    from PIL import Image

    Image.preinit()
    figure = Figure()
    figure.add_subplot().set_title("fonts are looked up once")
    figure.savefig(os.devnull, format="png")
    installed()
    plugins()
    gc.freeze()  # what is shared stays shared
    gc.enable()


def become(asked: dict[str, Any], files: list[int], lifeline: int, silenced: Sequence[int], main: Main) -> NoReturn:
    """Be the job: a process as a shell would have started it, with the second of ``files`` open."""
    os.setsid()
    for number in set(SIGNALS) - {*silenced}:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for file, standard in ((nothing, 0), (files[0], 1), (files[0], 2)):
        os.dup2(file, standard)
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(n, "w" if n else "r", closefd=False) for n in range(3))
    os.close(nothing)
    os.close(files[0])
    os.environ.update(asked["environment"])
    os.chdir(asked["folder"])
    sys.argv = [str(PACKAGE / "__main__.py"), *asked["start"]]
    atexit._clear()  # those of the parent are the parent's
    threading.Thread(target=_watch, args=[lifeline], daemon=True, name="lifeline").start()
    code = 1
    try:
        main(asked["start"])
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(bool(end.code))
    except BaseException:
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _watch(lifeline: int) -> None:
    """End this process when nobody holds the other end of ``lifeline`` any more."""
    os.read(lifeline, 1)
    os.kill(os.getpid(), signal.SIGTERM)
