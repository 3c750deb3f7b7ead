"""The claim of a run folder by one process: a lock, which the system frees at its death, and a lease beside it.

Some shared storage grants a lock to a process on every machine. There the lease decides: a file that can be created once,
and that its holder renews. One that is not renewed any more is taken over.
"""

import errno
import os
import platform
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from metarun.errors import MetarunError

try:
    import fcntl
except ImportError:  # Windows: there the lease alone keeps processes apart
    fcntl = None  # type: ignore[assignment]

NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)  # of a file system that knows none
TRIES, PAUSE = 5, 0.05  # seconds: whoever lists runs holds each lock for a moment
RENEW_SECONDS = 5.0
STALE_SECONDS = 60.0  # without renewal, after which the holder is taken for dead


@contextmanager
def claim(folder: Path) -> Iterator[bool]:
    """A context in which this process has the run folder; yields False where another one has it."""
    with (folder / ".lock").open("ab") as file:
        held = locked(file)
        lease = Lease(folder)
        if held is False or not lease.take(alone=held is True):
            yield False
            return
        with lease.renewed():
            yield True


def busy(folder: Path) -> bool:
    """Whether a process, of this machine or another, has the run folder."""
    if not os.path.lexists(folder / ".lock"):
        return False  # nobody ever had it
    held = in_use(folder / ".lock")
    return bool(held) or Lease(folder).is_held(alone=held is False)


def in_use(lock: Path) -> bool | None:
    """Whether a process of this machine holds the file ``lock``; None where the system does not say."""
    if fcntl is None:
        return None
    try:
        with lock.open("rb") as file:
            # shared: who looks may not be able to write, and for NFS an exclusive lock takes a file open for writing
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return None
    return False


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """A context in which no other process holds the file ``path``. Raises MetarunError where one does for ten seconds."""
    with path.open("ab") as file:
        if locked(file, tries=200) is False:
            raise MetarunError(
                f"another command has held {path} for {200 * PAUSE:.0f} s. Give this one again when that is done."
            )
        yield


def locked(file: IO[bytes], tries: int = TRIES) -> bool | None:
    """Whether this process holds the lock on ``file`` now; None where the file system knows no locks."""
    if fcntl is None:
        return None
    for last in (*[False] * (tries - 1), True):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if not last:
                time.sleep(PAUSE)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            return None
    return False


class Lease:
    """The file ``.lease`` of a run folder, which names the process that has it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / ".lease"
        self.content = f"{platform.node()} {os.getpid()} {uuid.uuid4().hex}"

    def take(self, alone: bool) -> bool:
        """Become its holder; False where another process is. ``alone``: a lock keeps others of this machine away."""
        for _ in range(TRIES):
            if self._created():
                return True
            content = self._read()
            if content is not None and (self._holds(content, alone) or not self._removed(content)):
                return False
        return False

    def is_held(self, alone: bool) -> bool:
        """Whether a process that lives has it."""
        content = self._read()
        return content is not None and self._holds(content, alone)

    @contextmanager
    def renewed(self) -> Iterator[None]:
        """A context in which a thread renews it; then it is given back."""
        over = threading.Event()
        thread = threading.Thread(target=self._renew, args=[over], daemon=True, name="lease")
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            if self._read() == self.content:
                self.path.unlink(missing_ok=True)

    def _renew(self, over: threading.Event) -> None:
        while not over.wait(RENEW_SECONDS):
            content = self._read()
            if content == self.content:
                with suppress(OSError):
                    os.utime(self.path)
            elif content is not None and not over.is_set():
                print(f"metarun: another process has taken over {self.path.parent}: {content}", file=sys.stderr)
                os._exit(1)  # and write nothing more where another one writes
            else:
                self._created()

    def _created(self) -> bool:
        try:
            with self.path.open("x") as file:
                file.write(self.content)
        except FileExistsError:
            return False
        except OSError:  # a full disk, say: the run will say so itself
            return True
        return True

    def _read(self) -> str | None:
        try:
            return self.path.read_text(errors="replace")
        except OSError:
            return None

    def _holds(self, content: str, alone: bool) -> bool:
        """Whether the process that ``content`` names lives: of this machine it can be asked for, else its file tells."""
        host, pid = (*content.split(), "", "")[:2]
        if host == platform.node() and (alone or not _alive(pid)):
            return False
        return self._age() < STALE_SECONDS

    def _age(self) -> float:
        """Seconds since it was renewed, by the clock of the file system."""
        beside = self.path.with_name(f".clock.{os.getpid()}.tmp")
        try:
            beside.touch()
            now = beside.stat().st_mtime
            beside.unlink()
            return now - self.path.stat().st_mtime
        except OSError:
            return 0.0

    def _removed(self, content: str) -> bool:
        """Take away a lease that nobody holds; False where somebody else has just taken it over."""
        aside = self.path.with_name(f".lease.{os.getpid()}.tmp")
        try:
            os.replace(self.path, aside)
        except FileNotFoundError:
            return True
        try:
            if aside.read_text(errors="replace") == content:
                return True
            with suppress(FileExistsError):
                os.link(aside, self.path)  # it was a new one: its holder finds it again
            return False
        finally:
            aside.unlink(missing_ok=True)


def _alive(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, ValueError, OverflowError):
        return False
    except OSError:
        return True
    return True
