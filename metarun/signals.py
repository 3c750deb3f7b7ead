"""SIGTERM and Ctrl-C, taken at a safe point instead of in the middle of a step."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from metarun.errors import Interrupted


class StopRequest:
    """Remembers a signal until the program is ready to stop."""

    def __init__(self) -> None:
        self.signum: int | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Inside, a signal is remembered; a second one stops at once. On leaving, the handlers are as before."""
        before = {signum: signal.signal(signum, self._receive) for signum in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is not None:
            raise SystemExit(128 + signum)  # asked twice: stop at once; the last checkpoint stands
        self.signum = signum

    def obey(self) -> None:
        """Raise Interrupted if a signal has come."""
        if self.signum is not None:
            raise Interrupted(self.signum)
