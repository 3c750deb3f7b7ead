"""Columns of a table as numbers: what their entries say, what is fitted on training tasks, and the inputs that it makes.

Numbers are standardised by mean and deviation over the rows of the training tasks. A column of categories becomes a column
of 0 and 1 for each level that the training tasks have; a level that they have not is 0 in all of them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import chain
from typing import Any, Literal

import numpy as np

from metarun.errors import DataError, Faults, listed
from metarun.tasks.doubtful import MISSING, MISSING_NUMBER, nearly_equal
from metarun.tasks.splits import composed
from metarun.tasks.table_numbers import DECIMAL_COMMA, NUMBER, POINTS_OF_THOUSANDS, THOUSANDS, level_of, look_of
from metarun.tasks.tables import Table

Missing = Literal["refuse", "drop", "mean"]
ROUNDING = 1e-15  # of a column's numbers: what is computed twice differs so, and is one number

CURE_OF_MISSING = (
    "Where entries are missing (empty, NA, NaN, ?, -) choose: task.missing=drop leaves those rows out, task.missing=mean "
    "puts the mean of the training tasks there (and leaves out rows without an output), task.missing=refuse asks you to "
    "correct the line."
)
CURE_OF_WORDS = (
    "Correct the line, or leave it out; an input column of categories that look like numbers is named in "
    "task.category_columns."
)
CURE_OF_NUMBERS = "Correct the line, or leave it out; the column is read as numbers alone (1 and 0 for yes and no)."
CURE_OF_THOUSANDS = "Write all of the column without commas (1234), or with decimal points (1.234)."
CURE_OF_POINTS = "Write all of the column without points (1234), or with decimal commas (1,234)."


@dataclass(frozen=True)
class Column:
    """A column of numbers, NaN where one is missing, or of categories, "" there."""

    name: str
    log: bool
    numbers: np.ndarray | None
    texts: np.ndarray | None = None

    @property
    def missing(self) -> np.ndarray:
        """Which rows [rows] have no entry."""
        if self.numbers is not None:
            return np.isnan(self.numbers)
        assert self.texts is not None
        return self.texts == ""

    def entries(self) -> list[float | str | None]:
        """What was read in each row, None where nothing was: equal for numbers that are, however they are written."""
        read = self.texts if self.numbers is None else self.numbers
        assert read is not None
        return [None if gone else entry for entry, gone in zip(read.tolist(), self.missing, strict=True)]


@dataclass(frozen=True)
class Fit:
    """What the training tasks say of a column: its mean and deviation, or its levels and how often each of them is."""

    column: str
    log: bool
    levels: Sequence[str] | None
    mean: Sequence[float]
    deviation: Sequence[float]

    def plain(self) -> dict[str, Any]:
        """As JSON keeps it."""
        return asdict(self)


class Reader:
    """Reads columns of a table; all that is wrong with them goes to ``faults``. ``cure``: of entries that are missing."""

    def __init__(self, table: Table, missing: Missing, faults: Faults, cure: str = CURE_OF_MISSING) -> None:
        self.table, self.missing, self.faults, self.cure = table, missing, faults, cure
        self.with_commas: list[str] = []

    def notes(self) -> list[str]:
        """What the user should know of how numbers were read."""
        columns = listed([repr(name) for name in self.with_commas], most=20)
        return [f"{self.table.path}: decimal commas are read in {columns}."] if self.with_commas else []

    def read(self, name: str, log: bool, categories: bool | None) -> Column:
        """The column ``name``; ``categories``: whether it holds them, or None where its entries are to say so."""
        texts = self.table.column(name)
        absent, cure = [text.casefold() in ("", *MISSING) for text in texts], CURE_OF_NUMBERS
        if categories is None:
            there, cure = [text for text, gone in zip(texts, absent, strict=True) if not gone], CURE_OF_WORDS
            categories = bool(there) and not any(map(self._is_number, there))
        if not categories:
            absent = [text.casefold() in ("", *MISSING, *MISSING_NUMBER) for text in texts]
        if self.missing == "refuse":
            for text, line in self._at(texts, absent):
                what = f"is {text!r}, which is not a finite number" if text else "is empty"
                self._fault(name, line, what, self.cure)
        if categories:
            return Column(name, False, None, np.array(["" if g else t for t, g in zip(texts, absent, strict=True)]))
        return Column(name, log, self._numbers(name, texts, absent, log, cure))

    def _numbers(self, name: str, texts: list[str], absent: list[bool], log: bool, cure: str) -> np.ndarray:
        if self.table.separator != "," and any(map(DECIMAL_COMMA.fullmatch, texts)):
            texts = self._with_points(name, texts)
        elif self._decimal_commas:
            self._refuse_points(name, texts)
        values = np.array([float(text) if NUMBER.fullmatch(text) else math.nan for text in texts])
        wrong = ~np.isfinite(values) & ~np.array(absent)
        look = look_of([text for text, _ in self._at(texts, wrong)])
        cure = look.cure if look else cure
        for text, line in self._at(texts, wrong):
            self._fault(name, line, f"is {text!r}, which is not a finite number", cure)
        low = values <= 0
        for text, line in self._at(texts, low & log):
            self._fault(name, line, f"is {text}", "task.log_columns takes the logarithm, so it must be above 0.")
        return np.log(np.where(low, 1.0, values)) if log else values

    def _with_points(self, name: str, texts: list[str]) -> list[str]:
        commas = [(text, line) for text, line in zip(texts, self.table.lines, strict=True) if "," in text]
        if len(commas) > 1 and all(THOUSANDS.fullmatch(text) for text, _ in commas):
            what = (
                f"{len(commas)} entries of column {name!r}, as {commas[0][0]!r} (line {commas[0][1]}), may be thousands"
            )
            self.faults.add(str(self.table.path), f"{what} or decimals", CURE_OF_THOUSANDS)
            return [text.replace(",", "") for text in texts]
        with_points = [line for text, line in self._at(texts, ["." in t and bool(NUMBER.fullmatch(t)) for t in texts])]
        with_commas = [line for text, line in self._at(texts, [bool(DECIMAL_COMMA.fullmatch(t)) for t in texts])]
        if with_points:
            what = f"decimal commas (line {with_commas[0]}) and decimal points (line {with_points[0]})"
            self.faults.add(str(self.table.path), f"column {name!r} has {what}", "Write all of its numbers alike.")
        self.with_commas.append(name)
        return [text.replace(",", ".") if DECIMAL_COMMA.fullmatch(text) else text for text in texts]

    @cached_property
    def _decimal_commas(self) -> bool:
        """Whether numbers of the table have decimal commas, in columns that are not read, too."""
        entries = chain.from_iterable(self.table.rows if self.table.separator != "," else ())
        return any("," in text and DECIMAL_COMMA.fullmatch(text) and not THOUSANDS.fullmatch(text) for text in entries)

    def _refuse_points(self, name: str, texts: list[str]) -> None:
        """Add a fault where every point may be that of thousands, in a table with decimal commas."""
        points = [(text, line) for text, line in zip(texts, self.table.lines, strict=True) if "." in text]
        if points and all(POINTS_OF_THOUSANDS.fullmatch(text) for text, _ in points):
            what = (
                f"{len(points)} entries of column {name!r}, as {points[0][0]!r} (line {points[0][1]}), may be thousands"
            )
            why = "or decimals, for the table has decimal commas"
            self.faults.add(str(self.table.path), f"{what} {why}", CURE_OF_POINTS)

    def _is_number(self, text: str) -> bool:
        return bool(NUMBER.fullmatch(text) or (self.table.separator != "," and DECIMAL_COMMA.fullmatch(text)))

    def _at(self, texts: Sequence[str], chosen: Sequence[bool] | np.ndarray) -> list[tuple[str, int]]:
        return [(text, line) for text, line, is_in in zip(texts, self.table.lines, chosen, strict=True) if is_in]

    def _fault(self, name: str, line: int, what: str, cure: str) -> None:
        self.faults.add(str(self.table.path), f"line {line}: column {name!r} {what}", cure)


# ------------------------------------------------------------------------------------------------------------- fitting


def fit(columns: Sequence[Column], rows: np.ndarray, where: str) -> list[Fit]:
    """What ``rows``, those of the training tasks, say of each column; raises DataError where it is always the same."""
    fits = {column.name: _levels(column, rows, where) for column in columns if column.numbers is None}
    numeric = [column for column in columns if column.numbers is not None]
    if numeric:
        values = np.array([column.numbers for column in numeric]).T[rows]
        with np.errstate(all="ignore"):
            partly = bool(np.isnan(values).any())
            mean, deviation = (np.nanmean, np.nanstd) if partly else (np.mean, np.std)
            low, high = (np.nanmin(values, 0), np.nanmax(values, 0)) if partly else (values.min(0), values.max(0))
            means, deviations = mean(values, 0), deviation(values, 0)
            varies = high - low > ROUNDING * np.maximum(abs(low), abs(high))
        _refuse_constant([column.name for column, does in zip(numeric, varies, strict=True) if not does], where)
        for column, m, d, least, most in zip(numeric, means, deviations, low, high, strict=True):
            if not (d > 0 and np.isfinite([m, d]).all()):
                raise DataError(
                    f"{where}: column {column.name!r} has numbers from {least:g} to {most:g}, which are too large or too "
                    "small to compute their deviation. Write them in another unit, or name the column in task.log_columns."
                )
            fits[column.name] = Fit(column.name, column.log, None, [float(m)], [float(d)])
    return [fits[column.name] for column in columns]


def _levels(column: Column, rows: np.ndarray, where: str) -> Fit:
    assert column.texts is not None
    texts = column.texts[rows]
    levels, counts = np.unique(texts[texts != ""], return_counts=True)
    if len(levels) < 2:
        _refuse_constant([column.name], where)
    if len(levels) == len(rows):
        look = look_of(levels.tolist())
        cure = look.cure if look else "Leave it out of task.input_columns."
        raise DataError(
            f"{where}: column {column.name!r} holds another text in every row of the training tasks, so it is neither a "
            f"number nor a category: {listed([repr(str(level)) for level in levels])}. {cure}"
        )
    return Fit(column.name, False, [str(v) for v in levels], list(counts / counts.sum()), [1.0] * len(levels))


def _refuse_constant(names: Sequence[str], where: str) -> None:
    if names:
        raise DataError(
            f"{where}: column {', '.join(map(repr, names))} has one and the same value, but for rounding, in all rows of "
            "the training tasks; there is nothing to learn from it or about it, so leave it out."
        )


def from_plain(fits: Sequence[Mapping[str, Any]], columns: Sequence[str], log: Sequence[str], key: str) -> list[Fit]:
    """What a run fitted, as JSON kept it; raises ValueError unless it is of these columns."""
    found = [Fit(**{**fit, "levels": fit["levels"] and [*map(composed, fit["levels"])]}) for fit in fits]
    if [fit.column for fit in found] != [*columns]:
        raise ValueError(
            f"{key} is {', '.join(columns)}, but the run was trained on {', '.join(fit.column for fit in found)}, and its "
            "means, deviations and levels are of these."
        )
    if other := [fit.column for fit in found if fit.log != (fit.column in log)]:
        raise ValueError(f"task.log_columns must be as the run was trained, for {', '.join(other)} too.")
    return found


def encoded(columns: Sequence[Column], fits: Sequence[Fit], notes: list[str]) -> np.ndarray:
    """The columns [rows, inputs] in the units of ``fits``; what is missing is the mean. Unknown levels join ``notes``."""
    parts = []
    for column, found in zip(columns, fits, strict=True):
        if column.numbers is not None:
            standard = (column.numbers - found.mean[0]) / found.deviation[0]
            parts.append(np.where(column.missing, 0.0, standard)[:, None])
            continue
        assert column.texts is not None and found.levels is not None
        of = {text: level_of(text, found.levels) for text in {*column.texts.tolist()}}
        one_hot = (np.array([of[text] for text in column.texts])[:, None] == np.array(found.levels)).astype(float)
        parts.append(np.where(column.missing[:, None], found.mean, one_hot))
        if unknown := sorted(text for text, level in of.items() if level not in (*found.levels, "")):
            said = f"column {column.name!r}: no training task has {listed([*map(repr, unknown)])}; all its inputs are 0"
            notes.append(f"{said} there.")
            alike = nearly_equal([*found.levels, *unknown], f"categories of {column.name!r}")
            notes += [note for note in alike if note not in notes]
    return np.concatenate(parts, 1)


def names_of_inputs(fits: Sequence[Fit]) -> list[str]:
    """A name for each input: that of its column, with the level where it stands for one."""
    return [name for f in fits for name in ([f"{f.column}={v}" for v in f.levels] if f.levels else [f.column])]
