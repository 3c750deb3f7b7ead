"""Tables for people and programs: on a terminal, as JSON, CSV, Markdown or LaTeX.

A cell is a text, a number, a truth value, a list, a ``Score``, or None where there is nothing.
"""

import csv
import io
import json
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from rich.console import Console

from metarun.errors import wrong_command

FORMATS = ("table", "json", "csv", "md", "latex")
MOST_DIGITS = 7  # after the point, as many as float32 has
UNFOLDED = 1000  # columns of a table that goes to a file or another program
OF_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
OF_LATEX |= {"<": r"\textless{}", ">": r"\textgreater{}", **{letter: f"\\{letter}" for letter in "&%$#_{}"}}
OF_MARKDOWN = re.compile(r"[\\`*\[\]<>|~]|(?<!\w)_|_(?!\w)")  # an underscore within a word is one


class Score(NamedTuple):
    """A mean with the half width of its 95% interval and the number behind it, None where these are not known."""

    mean: float
    ci95: float | None = None
    n: int | None = None

    def text(self, plus_minus: str = " +- ") -> str:
        """The mean to the second digit of its interval; of a tiny one only the digits that numbers have."""
        if self.ci95 is None or not math.isfinite(self.ci95) or self.ci95 <= 0:
            return f"{self.mean:.4g}"
        digits = max(0, 1 - math.floor(math.log10(self.ci95)))
        if digits > MOST_DIGITS:
            return f"{self.mean:.{MOST_DIGITS}g}{plus_minus}{self.ci95:.2g}"
        return f"{self.mean:.{digits}f}{plus_minus}{self.ci95:.{digits}f}"


@dataclass(frozen=True)
class Table:
    """Rows of cells under the names of their columns."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    title: str = ""

    def of_numbers(self, column: int) -> bool:
        """Whether it holds numbers and scores alone, which stand at the right."""
        cells = [row[column] for row in self.rows if row[column] is not None]
        return bool(cells) and all(isinstance(cell, (int, float, Score)) for cell in cells)


def table_console(width: int) -> Console:
    """A console for tables, as wide as the terminal or ``width``; brackets and colons in what it prints are only that."""
    return Console(width=None if sys.stdout.isatty() else width, markup=False, emoji=False)


def refuse_other_formats(chosen: str) -> None:
    """Raise ConfigError unless ``chosen`` is a format."""
    if chosen not in FORMATS:
        raise wrong_command(f"--format is {chosen!r}; use {', '.join(FORMATS[:-1])} or {FORMATS[-1]}.")


def show(table: Table, chosen: str = "table") -> None:
    """Print ``table`` in the ``chosen`` format."""
    if chosen == "table":
        _show_on_a_terminal(table)
    else:
        print(WRITERS[chosen](table), end="")


def _show_on_a_terminal(table: Table) -> None:
    from rich.table import Table as RichTable

    drawn, console = RichTable(title=table.title or None, title_justify="left"), table_console(UNFOLDED)
    longest = max((len(text_of(row[0])) for row in table.rows), default=0)
    for number, name in enumerate(table.columns):
        whole = number == 0 and longest <= console.width // 2  # what a row is called can be copied
        drawn.add_column(name, overflow="fold", justify="right" if table.of_numbers(number) else "left", no_wrap=whole)
    for row in table.rows:
        drawn.add_row(*map(text_of, row))
    console.print(drawn)


def text_of(cell: Any, plus_minus: str = " +- ") -> str:
    """A cell as one line that does nothing to a terminal."""
    if cell is None:
        return ""
    if isinstance(cell, Score):
        return cell.text(plus_minus)
    if isinstance(cell, bool):
        return str(cell).lower()
    if cell == {}:  # as of a run without loggers
        return "none"
    text = f"{cell:.4g}" if isinstance(cell, float) else str(cell)
    return "".join(letter if letter.isprintable() else " " for letter in text)


def as_json(table: Table) -> str:
    """A list of objects, one a row; what is not finite is null."""
    return json.dumps(_objects(table), indent=2, allow_nan=False) + "\n"


def tables_as_json(tables: Mapping[str, Table | None], **facts: Any) -> str:
    """An object of the ``facts``, and for each table a list under its name, empty where there is none."""
    lists = {name: _objects(table) if table else [] for name, table in tables.items()}
    return json.dumps({**plain(facts), **lists}, indent=2, allow_nan=False) + "\n"


def _objects(table: Table) -> list[dict[str, Any]]:
    return [dict(zip(table.columns, map(plain, row), strict=True)) for row in table.rows]


def plain(cell: Any) -> Any:
    """A cell, or a tree of them, as JSON can hold it."""
    if isinstance(cell, Score):
        return plain(cell._asdict())
    if isinstance(cell, dict):
        return {str(key): plain(value) for key, value in cell.items()}
    if isinstance(cell, (list, tuple)):
        return [plain(value) for value in cell]
    if isinstance(cell, float):
        return cell if math.isfinite(cell) else None
    return cell if cell is None or isinstance(cell, (bool, int, str)) else str(cell)


def as_csv(table: Table) -> str:
    """A header and a line a row, numbers in full; a column of scores is three: mean, ci95 and n."""
    spread = [any(isinstance(row[number], Score) for row in table.rows) for number in range(len(table.columns))]
    header = [
        name
        for column, scores in zip(table.columns, spread, strict=True)
        for name in ([column, f"{column}_ci95", f"{column}_n"] if scores else [column])
    ]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    for row in table.rows:
        writer.writerow([value for cell, scores in zip(row, spread, strict=True) for value in _values(cell, scores)])
    return text.getvalue()


def _values(cell: Any, scores: bool) -> Sequence[Any]:
    value = str(cell).lower() if isinstance(cell, bool) else cell
    return cell if isinstance(cell, Score) else [value, None, None] if scores else [value]


def as_markdown(table: Table) -> str:
    """A table of GitHub's Markdown, with its title as a heading above it."""
    rules = ["---:" if table.of_numbers(number) else "---" for number in range(len(table.columns))]
    rows = [[OF_MARKDOWN.sub(r"\\\g<0>", text_of(cell, " ± ")) for cell in row] for row in [table.columns, *table.rows]]
    lines = [f"| {' | '.join(row)} |" for row in (rows[0], rules, *rows[1:])]
    return "\n".join([*([f"### {table.title}", ""] if table.title else []), *lines, ""])


def as_latex(table: Table) -> str:
    """A tabular of the package booktabs; scores stand in mathematics."""
    sides = "".join("r" if table.of_numbers(number) else "l" for number in range(len(table.columns)))
    rows = [" & ".join(map(_in_latex, row)) + r" \\" for row in (table.columns, *table.rows)]
    begin = [rf"\begin{{tabular}}{{{sides}}}", r"\toprule", rows[0], r"\midrule", *rows[1:]]
    lines = [r"% needs \usepackage{booktabs}", *begin, r"\bottomrule", r"\end{tabular}", ""]
    return "\n".join([f"% {text_of(table.title)}", *lines] if table.title else lines)


def _in_latex(cell: Any) -> str:
    if isinstance(cell, Score):
        return "$" + cell.text(r" \pm ") + "$"
    return "".join(OF_LATEX.get(letter, letter) for letter in text_of(cell))


WRITERS: dict[str, Callable[[Table], str]] = {"json": as_json, "csv": as_csv, "md": as_markdown, "latex": as_latex}
