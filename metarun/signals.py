"""SIGTERM and Ctrl-C, taken at a safe point instead of in the middle of a step."""

import signal
from types import FrameType

from metarun.errors import Interrupted


class StopRequest:
    """Remembers a signal until the program is ready to stop."""

    def __init__(self) -> None:
        self.signum: int | None = None

    def listen(self) -> None:
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, self._receive)

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is not None:
            raise KeyboardInterrupt  # asked twice: stop at once; the last checkpoint stands
        self.signum = signum

    def obey(self) -> None:
        """Raise Interrupted if a signal has come."""
        if self.signum is not None:
            raise Interrupted(self.signum)
