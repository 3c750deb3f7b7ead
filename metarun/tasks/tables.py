"""Reading a table that a user brings, with errors that name the lines, the values and the fix."""

import csv
import hashlib
import re
import shlex
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from metarun.errors import DataError, Faults, did_you_mean, listed, shortened
from metarun.tasks.decoding import SEPARATORS, csv_problem, decoded, separator_of, separator_said, unquoted
from metarun.tasks.misread import meant, notes_on_file
from metarun.tasks.splits import composed
from metarun.tasks.table_files import table_content

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

    def without(self, name: str, others: Collection[str] = ()) -> str:
        """What to say of a column that is not there, and is none of the ``others`` that are asked for: empty where it is."""
        if name in self.header:
            return ""
        hint = did_you_mean(name, [column for column in self.header if column not in others])
        there = listed([*map(repr, self.header)], 20)
        misread = notes_on_file(self.path) if name in map(meant, self.header) else []
        said = f"{self.path}: no such column{hint}; there are {there or 'none'}.{_on_comments(self.num_comments)}"
        return " ".join([said, *misread])


def read_table(path: Path, separator: str, names: Collection[str] = ()) -> Table:
    """The table in ``path``: UTF-8, a header line, and in each further line as many entries; comments are left out.

    The separator is what a first line ``sep=;`` says, as for Excel; or else ``separator``, unless another
    one alone finds the ``names`` in the header.
    """
    separator = separator.replace("\\t", "\t")  # as typed on a command line
    if len(separator) != 1:
        raise ValueError(f"task.separator is {separator!r}, but must be one character, such as ',' or ';' or \"\\t\".")
    content = table_content(path)
    said, text = separator_said(decoded(path, content, table=True))
    in_lines = [*StringIO(text, newline="")]  # str.splitlines ends them at marks within entries
    separator = said or separator_of(_header(in_lines), separator, names)
    try:
        uncommented = _Uncommented(in_lines, separator)
        reader = csv.reader(uncommented, delimiter=separator, strict=True)
        lines, rows = [], []
        for row in reader:
            uncommented.between_rows = True
            if row:  # an empty line is no row
                lines.append(reader.line_num)
                rows.append([unquoted(entry).strip() for entry in row])
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {'. '.join(csv_problem(error))}") from error
    if not rows:
        raise DataError(f"{path} is empty; it must have a line of column names, and a line for each measurement.")
    entries = [[*map(composed, row)] for row in rows[1:]]
    digest = hashlib.sha256(content).hexdigest()
    table = Table(path, separator, rows[0], entries, lines[1:], digest, uncommented.num_comments)
    _check(table, bool(said))
    return table


def _header(lines: Sequence[str]) -> str:
    """The first line that is not empty and does not begin with #."""
    return next((line for line in lines if line.strip() and line[0] != "#"), "")


class _Uncommented:
    """The lines for a CSV reader, an empty one in the place of each comment, so that lines keep their numbers.

    A comment begins with # and a blank, or has not as many separators as the first line that does not begin with #.
    """

    def __init__(self, lines: list[str], separator: str) -> None:
        self.lines, self.separator = lines, separator
        self.width = _header(lines).count(separator)
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


def _on_comments(count: int) -> str:
    """A question to end what is said of a header: numpy.savetxt, say, writes # before it. Nothing without comments."""
    lines = "lines that begin with # are comments" if count > 1 else "line that begins with # is a comment"
    return f" {count} {lines}; is that the header? Remove its #." if count else ""


def _check(table: Table, said: bool) -> None:
    """Raise DataError with what is wrong; ``said``: the first line of the file says the separator."""
    path, separator, header = table.path, table.separator, table.header
    others = [written for mark, written in SEPARATORS.items() if mark != separator and mark in header[0]]
    if len(header) == 1 and others:
        cure = f"line 1 says sep={separator}: correct it" if said else f"'task.separator=\"{others[0]}\"'"
        raise DataError(
            f"{path}: the first line has one column, {shortened(repr(header[0]))}; is another separator used? {cure}"
        )
    if not table.rows:
        raise DataError(f"{path} has column names and no further line.")
    _refuse_blanks(table)
    _refuse_one_more(table)
    faults = Faults()
    if repeated := sorted(
        {name for name in header if name and header.count(name) > 1}
    ):  # spreadsheets leave empty ones
        cure = f"Give each its own name.{_on_comments(table.num_comments)}"
        faults.add(str(path), f"several columns are named {listed([*map(repr, repeated)])}", cure)
    for row, line in zip(table.rows, table.lines, strict=True):
        if len(row) != len(header):
            what = f"line {line}: {len(row)} entries, where the header has {len(header)}"
            commas = f" Put entries that hold {separator!r} in quotation marks."
            faults.add(str(path), what, f"Correct the lines.{commas if len(row) > len(header) else ''}")
    faults.refuse()


def _refuse_blanks(table: Table) -> None:
    """Raise DataError where blanks stand between the columns, as programs print tables."""
    entries = [entry for row in ([*table.header], *table.rows) for entry in row]
    if len(table.header) == 1 and len({len(entry.split()) for entry in entries} - {1}) == 1 == len(
        {*map(len, table.rows)}
    ):
        old, new = (shlex.quote(str(name)) for name in (table.path, table.path.with_stem(f"{table.path.stem}_commas")))
        sed = "sed 's/^[[:blank:]]*//; s/[[:blank:]]*$//; s/[[:blank:]][[:blank:]]*/,/g'"
        raise DataError(
            f"{table.path}: its columns are separated by blanks, as in {shortened(repr(table.header[0]))}. This makes of it "
            f"a file to be named instead: {sed} {old} > {new}"
        )


def _refuse_one_more(table: Table) -> None:
    """Raise DataError where every line has an entry more than the header: an empty one at its end, or a row's name."""
    if {len(row) for row in table.rows} != {len(table.header) + 1}:
        return
    begins, ends = f"has {len(table.header)} names, and every other line an entry more", table.separator
    if not any(row[-1] for row in table.rows):
        cure = f"All of these end with {ends!r}: end the first line with it, too."
    else:
        cure = f"If they begin with names of rows, as R writes them, begin the first line with a name and {ends!r}."
    raise DataError(f"{table.path}: the first line {begins}. {cure}")
