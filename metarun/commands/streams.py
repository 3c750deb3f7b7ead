"""Standard output and error that end no command: what they do not take is left out, and told at the end."""

import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Literal


class Lasting(io.FileIO):
    """A file that is written to until that fails once, as on a full disk; ``refusal`` is why it did."""

    refusal: OSError | None = None

    def write(self, content: Any) -> int:
        """Write ``content``, or drop it; the number of bytes that are done with."""
        if self.refusal is None:
            try:
                return super().write(content)
            except OSError as error:
                self.refusal = error
        return memoryview(content).nbytes


def told(refusal: OSError | None) -> int:
    """The exit code where standard output took not all; said on standard error, if it was not a reader who has gone."""
    if refusal and not isinstance(refusal, BrokenPipeError):  # which ``metarun ... | head`` leaves
        print(f"metarun: standard output took no more ({refusal.strerror}); all else is done.", file=sys.stderr)
    return int(refusal is not None)


@contextmanager
def lasting(name: Literal["stdout", "stderr"]) -> Iterator[Callable[[], OSError | None]]:
    """A context in which printing to a standard stream raises no OSError and knows every letter, and which yields a
    function that says why something was not printed. A stream that is closed takes nothing; one that is no file stays."""
    before = getattr(sys, name)
    stream, file = _lasting(before, 1 if name == "stdout" else 2)
    setattr(sys, name, stream)

    def refusal() -> OSError | None:
        stream.flush()
        return file.refusal if file else None

    try:
        yield refusal
    finally:
        stream.flush()
        setattr(sys, name, before)


def _lasting(stream: Any, number: int) -> tuple[Any, Lasting | None]:
    if stream is None:  # as after ``metarun ... >&-``
        _occupied(number)
        return open(os.devnull, "w", encoding="utf-8"), None
    buffer = getattr(stream, "buffer", None)
    raw = getattr(buffer, "raw", buffer)  # python -u has no buffer between
    if type(raw) is not io.FileIO:
        return stream, None
    stream.flush()
    file = Lasting(raw.fileno(), "w", closefd=False)
    return (
        io.TextIOWrapper(
            file if buffer is raw else io.BufferedWriter(file),
            encoding=stream.encoding,
            errors="backslashreplace" if stream.errors == "strict" else stream.errors,
            line_buffering=stream.line_buffering,
            write_through=stream.write_through,
        ),
        file,
    )


def _occupied(number: int) -> None:
    """Let no file of a run take the number of a standard stream, into which the processes that it starts may print."""
    with suppress(OSError):
        os.fstat(number)
        return
    nothing = os.open(os.devnull, os.O_WRONLY)
    if nothing != number:
        os.dup2(nothing, number)
        os.close(nothing)
