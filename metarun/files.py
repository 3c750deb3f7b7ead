"""Small files that are either wholly there or not at all."""

import errno
import json
import os
from pathlib import Path
from typing import Any

DISK_REFUSALS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EFBIG),
    *(errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG),  # something else is where a file belongs
    *(errno.ESTALE, errno.ETIMEDOUT),  # of a network
)
CANNOT = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)  # what a file system answers that does not know the call


def refused_by_disk(error: Exception, then: str) -> str:
    """What to say of an error with which the disk refused a file, and to do ``then``; empty for any other error."""
    if not isinstance(error, OSError) or error.errno not in DISK_REFUSALS:
        return ""
    return (
        f"the disk refused: {error}.\nWhat was written before is intact. Free some space, make it writable, or move away "
        f"what is in the place of a file; then {then}"
    )


def write_atomically(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` by way of a file beside it that is flushed to the disk and renamed.

    A crash at any moment leaves the old file or the new one; a link stays one. Raises OSError where the disk refuses, and
    where ``path`` is a device or a pipe, which the renamed file would take the place of.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file() and not path.is_dir():
        raise OSError(errno.EPERM, "it is no regular file", str(path))
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            flush(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if hasattr(os, "O_DIRECTORY"):  # POSIX: the rename itself must reach the disk too
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            flush(folder)
        finally:
            os.close(folder)


def flush(descriptor: int) -> None:
    """Let the disk have what was written, where its file system can do that; some of networks cannot."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in CANNOT:
            raise


def read_json(path: Path, kind: type = dict) -> Any:
    """What a JSON file holds, which is a ``kind``; raises ValueError where it is absent, damaged or something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, RecursionError) as error:
        raise ValueError(str(error)) from error
    if not isinstance(content, kind):
        raise ValueError(f"{path} holds a {type(content).__name__}")
    return content


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` as an indented JSON file that is wholly there or not at all."""
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())
