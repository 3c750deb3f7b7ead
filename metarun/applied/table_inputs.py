"""A user's table made what the tables of training were: numbers in columns, of mean 0 and deviation 1 on the labelled rows.

Columns with texts or categories become numbers of their levels; what is missing, and a level that the labelled rows lack,
is missing to the model. Columns that never vary there are left out. n rows, F columns, D columns of the model
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from metarun.errors import DataError
from metarun.tasks.tabular_columns import standard_columns


@dataclass(frozen=True)
class Levels:
    """The levels of each column in ascending order, and None for a column of numbers."""

    of: tuple[tuple[str, ...] | None, ...]

    @staticmethod
    def found(x: Any) -> "Levels":
        """The levels in the columns of ``x``, a data frame or an array [n, F]."""
        return Levels(tuple(_levels(column) for column in columns(x)))

    def numbers(self, x: Any) -> np.ndarray:
        """``x`` as numbers [n, F], NaN where there is none. Raises DataError for a text where the column has numbers."""
        found = [_coded(column, levels) for column, levels in zip(columns(x), self.of, strict=True)]
        return np.stack(found, 1)


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
    if series.dtype.kind in "biuf":
        return series.to_numpy(dtype=np.float64, na_value=np.nan)
    values: np.ndarray = series.astype(object).to_numpy(dtype=object, copy=True)
    values[series.isna().to_numpy()] = None
    return values


def _levels(column: np.ndarray) -> tuple[str, ...] | None:
    if column.dtype.kind in "biuf":
        return None
    known = [value for value in column.tolist() if not missing(value)]
    if all(isinstance(value, (int, float, np.number)) for value in known):
        return None
    if wrong := [value for value in known if not isinstance(value, (str, bytes, int, float, np.generic))]:
        raise TypeError(f"a table's values must be a string or a number, but one is {type(wrong[0]).__name__}.")
    return tuple(sorted({str(value) for value in known}))


def _coded(column: np.ndarray, levels: tuple[str, ...] | None) -> np.ndarray:
    if levels is None:
        try:
            return np.array([np.nan if missing(v) else v for v in column.tolist()], dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise DataError(f"a column had numbers where the model was fitted, and now {error}.") from error
    place = {level: float(k) for k, level in enumerate(levels)}
    return np.array([np.nan if missing(v) else place.get(str(v), np.nan) for v in column.tolist()], dtype=np.float64)


def missing(value: Any) -> bool:
    """Whether a value of a table says that there is none."""
    return value is None or value != value  # noqa: PLR0124 (NaN)


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
