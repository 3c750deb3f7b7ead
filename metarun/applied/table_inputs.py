"""A user's table made what the tables of training were: numbers in columns, of mean 0 and deviation 1 on the labelled rows.

Columns with texts or categories become numbers of their levels, in the order of the alphabet or of ordered categories;
texts that are all numbers are these numbers, and times those of nanoseconds. What is missing, and a level that the
labelled rows lack, is missing to the model. Columns that never vary there are left out. n rows, F columns, D columns of
the model
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from metarun.errors import DataError, listed
from metarun.tasks.reading import absent
from metarun.tasks.splits import seen
from metarun.tasks.table_numbers import NUMBER, level_of, look_of
from metarun.tasks.tabular_columns import standard_columns


@dataclass(frozen=True)
class Levels:
    """The levels of each column in their order; None for a column of numbers, and no level for one without values."""

    of: tuple[tuple[str, ...] | None, ...]

    @staticmethod
    def found(x: Any) -> "Levels":
        """The levels in the columns of ``x``, a data frame or an array [n, F]."""
        orders = [_order(x.iloc[:, k]) for k in range(x.shape[1])] if hasattr(x, "iloc") else [None] * x.shape[1]
        return Levels(tuple(order or _levels(column) for order, column in zip(orders, columns(x), strict=True)))

    def doubts(self, x: Any) -> list[str]:
        """What to say of columns of ``x`` whose texts people read as numbers or times, and which are levels here."""
        frame = hasattr(x, "iloc")
        free = [not (frame and _order(x.iloc[:, k])) for k in range(x.shape[1])]  # of no order of the user's own
        found = [
            (name, of, look_of(of))
            for name, of, is_free in zip(_names(x), self.of, free, strict=True)
            if of and is_free
        ]
        return [
            f"column {name!r} has texts that look like {look.like}, as {of[0]!r}, and is read as categories, numbered by "
            f"the alphabet. {look.cure} Where a number is missing, give None or NaN."
            for name, of, look in found
            if look
        ]

    def unknown(self, x: Any) -> list[str]:
        """What to say of columns of ``x`` with levels that are written otherwise here, or of which none is known."""
        notes = []
        for name, column, levels in zip(_names(x), columns(x), self.of, strict=True):
            held = {str(value) for value in column.tolist() if not absent(value)}
            new = sorted(text for text in held if levels and level_of(text, levels) not in levels)
            alike = {*map(seen, new)} & {*map(seen, levels or ())}
            if levels and new and (alike or len(new) == len(held)):
                said = (
                    f"column {name!r} holds {listed([*map(repr, new)])}, which the labelled rows lack, and is missing"
                )
                notes.append(f"{said} to the model. They have {listed([*map(repr, levels)])}: write alike what is one.")
        return notes

    def numbers(self, x: Any) -> np.ndarray:
        """``x`` as numbers [n, F], NaN where there is none. Raises DataError where a column has numbers for texts, or texts
        for numbers."""
        found = [_coded(*given) for given in zip(_names(x), columns(x), self.of, strict=True)]
        return np.stack(found, 1)


def of_rows(x: Any) -> Any:
    """``x`` as an array of objects where it is a list of rows with texts, as a reader of CSV gives; or as it is."""
    rows = x if isinstance(x, (list, tuple)) and all(isinstance(row, (list, tuple)) for row in x) else ()
    texts = any(isinstance(value, str) for row in rows for value in row)
    return np.array(rows, dtype=object) if texts and len({*map(len, rows)}) == 1 else x


def _names(x: Any) -> Any:
    """The names of the columns of a data frame, or the numbers of those of an array."""
    return x.columns if hasattr(x, "iloc") else range(x.shape[1])


def may_have_texts(x: Any) -> bool:
    """Whether ``x`` is a table whose columns may be of several types: a data frame, or an array [n, F] of objects."""
    if hasattr(x, "iloc"):
        return x.ndim == 2 and bool(x.shape[0]) and bool(x.shape[1])
    return isinstance(x, np.ndarray) and x.dtype.kind in "OUS" and x.ndim == 2 and x.size > 0


def columns(x: Any) -> list[np.ndarray]:
    """The columns of a data frame or an array, each an array [n]."""
    if hasattr(x, "iloc"):
        return [_of_series(x.iloc[:, k]) for k in range(x.shape[1])]
    return [column for column in np.asarray(x).T]  # noqa: C416 (an array's rows have a type of their own)


def _of_series(series: Any) -> np.ndarray:
    """A data frame's column as floats, or as objects where it holds anything else."""
    if series.dtype.kind in "iuf":
        return series.to_numpy(dtype=np.float64, na_value=np.nan)
    if series.dtype.kind in "mM":
        kind = "datetime64[ns]" if series.dtype.kind == "M" else "timedelta64[ns]"
        return np.where(series.isna(), np.nan, series.to_numpy(dtype=kind).astype(np.float64))
    values: np.ndarray = series.astype(object).to_numpy(dtype=object, copy=True)
    values[series.isna().to_numpy()] = None
    return values


def _order(series: Any) -> tuple[str, ...] | None:
    """The ordered categories of a data frame's column, also those that it lacks; None where they have no order."""
    return tuple(str(value) for value in series.cat.categories) if getattr(series.dtype, "ordered", False) else None


def _levels(column: np.ndarray) -> tuple[str, ...] | None:
    known = [value for value in column.tolist() if not absent(value)]
    if not known:
        return ()
    if column.dtype.kind in "biuf":
        return None
    if all(isinstance(value, (int, float, np.number)) or NUMBER.fullmatch(str(value)) for value in known):
        return None
    if wrong := [value for value in known if not isinstance(value, (str, bytes, int, float, np.generic))]:
        raise TypeError(
            f"a table's values must be a string or a number, but one is {type(wrong[0]).__name__}: make its column "
            "strings or numbers, or leave it out."
        )
    return tuple(sorted({str(value) for value in known}))


def _coded(name: Any, column: np.ndarray, levels: tuple[str, ...] | None) -> np.ndarray:
    values = [None if absent(v) else v for v in column.tolist()]
    if levels is None:
        try:
            return np.array([np.nan if v is None else v for v in values], dtype=np.float64)
        except (TypeError, ValueError, OverflowError) as error:
            raise DataError(f"column {name!r} has numbers where the model is fitted; here {error}.") from error
    numbers = [v for v in values if isinstance(v, (int, float, np.number)) and not isinstance(v, bool)]
    if levels and numbers and not any(NUMBER.fullmatch(level) for level in levels):
        raise DataError(
            f"column {name!r} has texts where the model is fitted, as {levels[0]!r}, and here numbers, as {numbers[0]}: "
            "give it the same texts."
        )
    place = {level: float(k) for k, level in enumerate(levels)}
    number = {text: place.get(text if text in place else level_of(text, levels), np.nan) for text in map(str, values)}
    return np.array([np.nan if v is None else number[str(v)] for v in values], dtype=np.float64)


def check_targets(x: np.ndarray, y: np.ndarray) -> None:
    """Raise DataError where rows x [n, F] and targets y [n] differ in number, or a target is missing, or not of one kind."""
    if len(x) != len(y):
        raise DataError(f"X has {len(x)} rows and y {len(y)}: inconsistent numbers of samples.")
    values = y.tolist() if y.dtype == object else []
    if rows := [k for k, value in enumerate(values) if absent(value)]:
        raise DataError(f"y has no value in row {rows[0]} ({len(rows)} have none); leave rows without a target out.")
    if len({isinstance(value, str) for value in values}) > 1:
        raise DataError("y has texts and other values together; make all of them texts, or numbers.")


def with_indicators(x: np.ndarray, context: np.ndarray, room: int) -> np.ndarray:
    """``x`` [n, F] and up to ``room`` columns more that say where it lacks values that ``context`` lacks in places, too."""
    gaps = np.isnan(context)
    told = np.flatnonzero(gaps.any(0) & ~gaps.all(0))[: max(room, 0)]
    return np.concatenate([x, np.isnan(x[:, told])], 1)


def model_inputs(x: np.ndarray, context: np.ndarray, chosen: np.ndarray, size: int) -> np.ndarray:
    """Inputs [n, ``size``] of the model for rows ``x`` [n, F]: the columns ``chosen``, standardised by ``context``."""
    z = standard_columns(x[:, chosen], context[:, chosen])
    return np.pad(z, ((0, 0), (0, size - z.shape[1])))


def uniform_columns(x: np.ndarray, context: np.ndarray) -> np.ndarray:
    """Each value's normal score among those of its column in ``context`` [S, F]: no outlier is left. NaN stays."""
    from torch import special, tensor

    z = np.full(x.shape, np.nan)
    for k in range(x.shape[1]):
        known = np.sort(context[~np.isnan(context[:, k]), k])
        if len(known):
            below, upto = (np.searchsorted(known, x[:, k], side=side) for side in ("left", "right"))
            level = ((below + upto) / 2 + 0.5) / (len(known) + 1)
            z[:, k] = special.ndtri(tensor(level.clip(0.002, 0.998))).numpy()
    return np.where(np.isnan(x), np.nan, z)
