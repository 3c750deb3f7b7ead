"""SIGTERM and its like: taken between two steps where that is soon, else what can be computed again is broken off."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from metarun.errors import Interrupted

PATIENCE = 0.6  # seconds that a step may still take after a signal before it is broken off
STUCK = 0.6  # seconds more until the process ends from another thread: Python has not run again, a kernel of torch has
POLL = 0.1


class BrokenOff(BaseException):
    """Raised in the middle of a computation. No Exception, or torch's compiler would take it for a failure of its own."""


class StopRequest:
    """Remembers a signal until the program is ready to stop.

    ``last_words(signum)`` saves what there is and marks the run; it is called from another thread, and the process then
    exits, where a breakable computation does not come back to Python.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self.breakable_now = self.overdue = self.ended = False
        self.leaving = threading.Lock()  # held where the run changes from breakable, and during the last words
        self.last_words: Callable[[int], None] = lambda signum: None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """A context that remembers a signal; a second one stops at once. On leaving, the handlers are as before."""
        before = {signum: signal.signal(signum, self._receive) for signum in stopping_signals()}
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        waking = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)  # written to while torch computes, too
        watcher = threading.Thread(target=self._watch, args=[reading, set(before)], daemon=True, name="signals")
        watcher.start()
        try:
            yield
        except BrokenOff:  # just as its part ended
            raise Interrupted(self.signum or signal.SIGTERM) from None
        finally:
            self.ended = True
            signal.set_wakeup_fd(waking)
            for signum, handler in before.items():
                signal.signal(signum, handler)
            os.close(writing)
            watcher.join()
            os.close(reading)

    @contextmanager
    def breakable(self) -> Iterator[None]:
        """A context that may be broken off, for nothing of the run changes in it. Raises Interrupted if it was."""
        try:
            self.breakable_now = True
            yield
        except BrokenOff:
            raise Interrupted(self.signum or signal.SIGTERM) from None
        finally:
            self.hold()

    def hold(self) -> None:
        """End the breakable part: from here on the run changes."""
        with self.leaving:
            self.breakable_now = False

    def obey(self, agreed: Callable[[int], int] = int) -> None:
        """Raise Interrupted if a signal has come; ``agreed`` gives that of another process of the run, so that all leave
        at the same step."""
        if signum := agreed(self.signum or 0):
            raise Interrupted(signum)

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        if self.overdue:  # sent by ``_watch``
            self.overdue = False
            if self.breakable_now:
                self.breakable_now = False
                raise BrokenOff
        elif self.signum is not None:
            raise SystemExit(128 + signum)  # asked twice: stop at once; the last checkpoint stands
        else:
            self.signum = signum

    def _watch(self, reading: int, expected: set[int]) -> None:
        """Wait for a signal, then see to it that it is obeyed in time."""
        signum = next((number for number in iter(lambda: _byte(reading), None) if number in expected), None)
        if signum is None:
            return
        self._wait(PATIENCE)
        while not self.ended:
            if self.breakable_now:
                self.overdue = True
                os.kill(os.getpid(), signum)
                self._wait(STUCK)
                with self.leaving:
                    if self.overdue and self.breakable_now:
                        self.overdue = False
                        self.last_words(signum)
                        os._exit(128 + signum)
            time.sleep(POLL)

    def _wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not self.ended and time.monotonic() < end:
            time.sleep(POLL / 2)


@contextmanager
def received_by(handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """A context in which ``handler`` has the stopping signals; on leaving, their handlers are as before."""
    before = {signum: signal.signal(signum, handler) for signum in stopping_signals()}
    try:
        yield
    finally:
        for signum, former in before.items():
            signal.signal(signum, former)


def stopping_signals() -> list[signal.Signals]:
    """SIGTERM, SIGINT and, where the system has them and nobody (nohup, say) has silenced them, SIGHUP, SIGUSR1 and
    SIGUSR2, by which clusters announce that a job's time ends."""
    others = [getattr(signal, name) for name in ("SIGHUP", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)]
    return [signal.SIGTERM, signal.SIGINT, *(n for n in others if signal.getsignal(n) != signal.SIG_IGN)]


def _byte(reading: int) -> int | None:
    """The number of the next signal; None once nobody can write any more."""
    with suppress(OSError):
        return next(iter(os.read(reading, 1)), None)
    return None
