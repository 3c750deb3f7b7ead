"""Reading a table of numbers that a user brings, with errors that name the line, the value and the fix."""

import csv
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from metarun.errors import DataError, MissingDataError, did_you_mean

SEPARATORS = {";": ";", "\t": "\\t", ",": ",", "|": "|"}  # and how to write them on the command line


@dataclass(frozen=True)
class Table:
    """Rows of text under a header, with the line of the file that each row begins on."""

    path: Path
    header: list[str]
    rows: list[list[str]]
    lines: list[int]
    sha256: str

    def column(self, name: str, key: str) -> list[str]:
        """The entries of a column; ``key`` is the setting that names it. Raises DataError where there is none."""
        if name not in self.header:
            hint = did_you_mean(name, self.header)
            raise DataError(f"{key} names {name!r}, but {self.path} has no such column{hint}; {self._columns()}.")
        at = self.header.index(name)
        return [row[at] for row in self.rows]

    def numbers(self, names: Sequence[str], key: str) -> np.ndarray:
        """Columns of finite numbers: float64 [rows, columns]. Raises DataError at the first entry that is none."""
        return np.array([[self._number(*entry) for entry in self._entries(name, key)] for name in names]).T

    def _entries(self, name: str, key: str) -> list[tuple[str, int, str]]:
        return [(text, line, name) for text, line in zip(self.column(name, key), self.lines, strict=True)]

    def _number(self, text: str, line: int, name: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if math.isfinite(value):
            return value
        what = "is empty" if not text.strip() else f"is {text!r}, which is not a finite number"
        raise DataError(f"{self.path}, line {line}: column {name!r} {what}. Correct the line, or leave it out.")

    def _columns(self) -> str:
        return f"there are {', '.join(map(repr, self.header))}"


def read_table(path: Path, separator: str) -> Table:
    """The table in ``path``: UTF-8, a header line, and in each further line as many entries."""
    if separator == "\\t":  # as typed on a command line
        separator = "\t"
    if len(separator) != 1:
        raise ValueError(f"task.separator is {separator!r}, but must be one character, such as ',' or ';' or \"\\t\".")
    content = _content(path)
    try:
        reader = csv.reader(content.decode("utf-8-sig").splitlines(keepends=True), delimiter=separator, strict=True)
        lines, rows = [], []
        for row in reader:
            if row:  # an empty line is no row
                lines.append(reader.line_num)
                rows.append([entry.strip() for entry in row])
    except UnicodeDecodeError as error:
        at = content[: error.start].count(b"\n") + 1
        raise DataError(
            f"{path}, line {at}: byte {content[error.start]:#04x} is not UTF-8; save it as UTF-8."
        ) from error
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}. Quotation marks must come in pairs.") from error
    if not rows:
        raise DataError(f"{path} is empty; it must have a line of column names, and a line for each measurement.")
    header, rows = rows[0], rows[1:]
    _check(path, separator, header, rows, lines[1:])
    return Table(path, header, rows, lines[1:], hashlib.sha256(content).hexdigest())


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise MissingDataError(f"task.path is {str(path)!r}, but there is no such file.") from None
    except OSError as error:
        raise DataError(f"task.path is {str(path)!r}, which cannot be read: {error.strerror}.") from error


def _check(path: Path, separator: str, header: list[str], rows: list[list[str]], lines: list[int]) -> None:
    others = [written for mark, written in SEPARATORS.items() if mark != separator and mark in header[0]]
    if len(header) == 1 and others:
        raise DataError(
            f"{path}: the first line has one column, {header[0]!r}; is it separated otherwise? "
            f"'task.separator=\"{others[0]}\"'"
        )
    if repeated := sorted({name for name in header if header.count(name) > 1}):
        raise DataError(f"{path}: several columns are named {', '.join(map(repr, repeated))}; give each its own name.")
    if not rows:
        raise DataError(f"{path} has column names and no further line.")
    for row, line in zip(rows, lines, strict=True):
        if len(row) != len(header):
            raise DataError(f"{path}, line {line}: {len(row)} entries, where the header has {len(header)}.")
