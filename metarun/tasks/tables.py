"""Reading a table that a user brings, with errors that name the lines, the values and the fix."""

import csv
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from metarun.errors import DataError, Faults, MissingDataError, did_you_mean
from metarun.tasks.decoding import csv_problem, decoded
from metarun.tasks.splits import composed

SEPARATORS = {";": ";", "\t": "\\t", ",": ",", "|": "|"}  # and how to write them on the command line
COMMENT = re.compile(r"#(?:[#\s]|$)")  # a # before a name or a number, as in #1, may begin a row


@dataclass(frozen=True)
class Table:
    """Rows of text under a header, with the line of the file that each row ends on."""

    path: Path
    separator: str
    header: list[str]
    rows: list[list[str]]
    lines: list[int]
    sha256: str
    num_comments: int

    def column(self, name: str) -> list[str]:
        """The entries of a column that is there."""
        at = self.header.index(name)
        return [row[at] for row in self.rows]

    def without(self, name: str) -> str:
        """What to say of a column that is not there: empty where it is."""
        if name in self.header:
            return ""
        hint = did_you_mean(name, self.header)
        there = ", ".join(map(repr, self.header))
        return f"{self.path}: no such column{hint}; there are {there or 'none'}.{_on_comments(self.num_comments)}"


def read_table(path: Path, separator: str) -> Table:
    """The table in ``path``: UTF-8, a header line, and in each further line as many entries; comments are left out."""
    if separator == "\\t":  # as typed on a command line
        separator = "\t"
    if len(separator) != 1:
        raise ValueError(f"task.separator is {separator!r}, but must be one character, such as ',' or ';' or \"\\t\".")
    content = _content(path)
    try:
        in_lines = StringIO(decoded(path, content), newline="")  # str.splitlines ends them at marks within entries
        uncommented = _Uncommented([*in_lines], separator)
        reader = csv.reader(uncommented, delimiter=separator, strict=True)
        lines, rows = [], []
        for row in reader:
            uncommented.between_rows = True
            if row:  # an empty line is no row
                lines.append(reader.line_num)
                rows.append([entry.strip() for entry in row])
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {'. '.join(csv_problem(error))}") from error
    if not rows:
        raise DataError(f"{path} is empty; it must have a line of column names, and a line for each measurement.")
    digest = hashlib.sha256(content).hexdigest()
    entries = [[*map(composed, row)] for row in rows[1:]]
    table = Table(path, separator, rows[0], entries, lines[1:], digest, uncommented.num_comments)
    _check(table)
    return table


class _Uncommented:
    """The lines for a CSV reader, an empty one in the place of each comment, so that lines keep their numbers.

    A comment begins with # and a blank, or has not as many separators as the first line that does not begin with #.
    """

    def __init__(self, lines: list[str], separator: str) -> None:
        self.lines, self.separator = lines, separator
        self.width = next((line.count(separator) for line in lines if line.strip() and line[0] != "#"), 0)
        self.between_rows = True  # the reader's: within quotation marks a line is no comment
        self.num_comments = 0

    def __iter__(self) -> Iterator[str]:
        for line in self.lines:
            begins_row, self.between_rows = self.between_rows, False
            comment = COMMENT.match(line) or (line[0] == "#" and line.count(self.separator) != self.width)
            if begins_row and comment:
                self.num_comments += 1
                yield "\n"
            else:
                yield line


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise MissingDataError(f"task.path is {str(path)!r}, but there is no such file.") from None
    except OSError as error:
        raise DataError(f"task.path is {str(path)!r}, which cannot be read: {error.strerror}.") from error


def _on_comments(count: int) -> str:
    """A question to end what is said of a header: numpy.savetxt, say, writes # before it. Nothing without comments."""
    lines = "lines that begin with # are comments" if count > 1 else "line that begins with # is a comment"
    return f" {count} {lines}; is that the header? Remove its #." if count else ""


def _check(table: Table) -> None:
    path, separator, header = table.path, table.separator, table.header
    others = [written for mark, written in SEPARATORS.items() if mark != separator and mark in header[0]]
    if len(header) == 1 and others:
        raise DataError(
            f"{path}: the first line has one column, {header[0]!r}; is another separator used? "
            f"'task.separator=\"{others[0]}\"'"
        )
    if not table.rows:
        raise DataError(f"{path} has column names and no further line.")
    faults = Faults()
    if repeated := sorted({name for name in header if header.count(name) > 1}):
        cure = f"Give each its own name.{_on_comments(table.num_comments)}"
        faults.add(str(path), f"several columns are named {', '.join(map(repr, repeated))}", cure)
    for row, line in zip(table.rows, table.lines, strict=True):
        if len(row) != len(header):
            what = f"line {line}: {len(row)} entries, where the header has {len(header)}"
            commas = f" Put entries that hold {separator!r} in quotation marks."
            faults.add(str(path), what, f"Correct the lines.{commas if len(row) > len(header) else ''}")
    faults.refuse()
