"""Text files of the user's: UTF-8, and CSV that can be read; else a message that says what they are."""

import csv
from pathlib import Path

from metarun.errors import DataError

PACKED = {
    b"PK\x03\x04": "a zip archive, or a workbook: unpack it, or save the workbook as CSV",
    b"\x1f\x8b": "packed by gzip: unpack it",
    b"BZh": "packed by bzip2: unpack it",
    b"\xfd7zXZ\x00": "packed by xz: unpack it",
    b"\x28\xb5\x2f\xfd": "packed by zstd: unpack it",
}


def text_of(path: Path) -> str:
    """What a file says; raises DataError unless it is UTF-8."""
    return decoded(path, bytes_of(path))


def bytes_of(path: Path) -> bytes:
    """The content of a file; raises DataError where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error


def decoded(path: Path, content: bytes) -> str:
    """What the ``content`` of a file says; raises DataError unless it is UTF-8."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        for begins, what in PACKED.items():
            if content.startswith(begins):
                raise DataError(f"{path} is {what}.") from error
        line = content[: error.start].count(b"\n") + 1
        raise DataError(
            f"{path}, line {line} is not UTF-8 (byte 0x{content[error.start]:02x}). Save the file as UTF-8."
        ) from error


def csv_problem(error: csv.Error) -> tuple[str, str]:
    """What is wrong with a line of CSV, and what is to be done."""
    if "field limit" not in str(error):
        return str(error), "Quotation marks must come in pairs."
    what = f"an entry has more than {csv.field_size_limit()} letters, which are not read"
    return what, "Shorten it; where it runs over many lines, close the quotation mark that it begins with."
