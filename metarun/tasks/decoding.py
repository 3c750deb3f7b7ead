"""Text files of the user's: UTF-8, and CSV that can be read; else a message that says what they are."""

import csv
import re
from collections.abc import Collection
from pathlib import Path

from metarun.errors import DataError
from metarun.tasks.file_kinds import from_windows, what_else

SEPARATORS = {";": ";", "\t": "\\t", ",": ",", "|": "|"}  # of CSV, and how to write them on the command line
SAID = re.compile(r'"?sep=([^"\r\n])"?(?:\r\n?|\n|$)', re.IGNORECASE)  # by which Excel takes a separator


def text_of(path: Path, table: bool = False) -> str:
    """What a file says; raises DataError unless it is UTF-8, and as a ``table`` what might be one."""
    return decoded(path, bytes_of(path), table)


def bytes_of(path: Path) -> bytes:
    """The content of a file; raises DataError where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error


def decoded(path: Path, content: bytes, table: bool = False) -> str:
    """What the ``content`` of a file says; raises DataError unless it is UTF-8, and as a ``table`` what might be one."""
    if other := what_else(path, content, table):
        raise DataError(other)
    if b"\0" in content:
        line = content[: content.index(b"\0")].count(b"\n") + 1
        raise DataError(f"{path}, line {line} holds a NUL (a byte 0), which no text does. Save the file as UTF-8.")
    if table and re.match(rb"\s*<(!doctype )?html", content, re.IGNORECASE):
        raise DataError(
            f"{path} is a web page. Download the table itself; sites have it under 'raw', or after a login."
        )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        what = f"{path}, line {line} is not UTF-8 (byte 0x{content[error.start]:02x}). Save the file as UTF-8."
        raise DataError(f"{what} {from_windows(path)}") from error


def separator_said(text: str) -> tuple[str, str]:
    """The separator that a first line ``sep=;`` says, as for Excel, or ""; and the text, with that line empty."""
    said = SAID.match(text)
    return (said[1], "\n" + text[said.end() :]) if said else ("", text)


def separator_of(header: str, usual: str, names: Collection[str]) -> str:
    """The ``usual`` separator, or else the one by which the ``header`` holds these ``names``."""
    marks = (usual, *SEPARATORS)
    return next((mark for mark in marks if {*names} <= {name.strip(' "\r\n') for name in header.split(mark)}), usual)


def unquoted(entry: str) -> str:
    """An entry of CSV without the quotation marks that a reader leaves where a blank stands before them."""
    bare = entry.strip()
    quoted = entry[:1] in " \xa0" and len(bare) > 1 and bare[0] == bare[-1] == '"'
    return bare[1:-1].replace('""', '"') if quoted and '"' not in bare[1:-1].replace('""', "") else entry


def csv_problem(error: csv.Error) -> tuple[str, str]:
    """What is wrong with a line of CSV, and what is to be done."""
    if "field limit" not in str(error):
        return str(error), "Quotation marks must come in pairs."
    what = f"an entry has more than {csv.field_size_limit()} letters, which are not read"
    return what, "Shorten it; where it runs over many lines, close the quotation mark that it begins with."
