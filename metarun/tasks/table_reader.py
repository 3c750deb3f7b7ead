"""New rows of a table for a trained model: a CSV file, columns by name, rows by name, or an array of the input columns.

They are measured as the training tasks were: by their means, deviations and levels.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from metarun.core import TaskSpec
from metarun.errors import DataError, DataProblems, Faults, listed
from metarun.tasks.reading import Examples, Reader, absent, as_array, columns_of
from metarun.tasks.splits import composed
from metarun.tasks.table_columns import Column, Fit, Missing, encoded
from metarun.tasks.table_columns import Reader as ColumnReader
from metarun.tasks.tables import Table, read_table


class Columns(NamedTuple):
    """What the columns of the training's table were to the task, and what was fitted on its training tasks."""

    task: str
    log: Sequence[str]
    missing: Missing
    separator: str
    inputs: Sequence[Fit]
    outputs: Sequence[Fit]


FAR = 10  # deviations from the mean; a table of the training seldom has a number so far off
CURE_OF_QUERIES = (
    "No row is left out of these examples, for each of them gets its answer: fill in the entries, or leave the rows out. "
    "task.missing=mean puts the mean of the training tasks there."
)


class TableReader(Reader):
    """Reads rows whose columns are those of the training, in their own units."""

    takes = "a CSV file with the columns of the training, or a .npz"

    def __init__(self, spec: TaskSpec, device: torch.device, dtype: torch.dtype, columns: Columns) -> None:
        super().__init__(spec, device, dtype)
        self.columns = columns

    @property
    def output_names(self) -> list[str]:
        return [found.column for found in self.columns.outputs]

    def noted(self, examples: Any) -> tuple[Tensor, Sequence[str]]:
        """Of columns by name, of rows that are such mappings, or of an array [n, input columns]; in their own units."""
        table = _table_of(examples, [found.column for found in self.columns.inputs])
        found = self._read(table, labelled=None)
        return found.x, found.notes

    def examples(self, path: Path, labelled: bool) -> Examples:
        names = [found.column for found in self.columns.inputs]
        table = read_table(path, self.columns.separator, names)
        found, name = self._read(table, labelled), self.columns.task
        tasks = sorted({*table.column(name)} - {""}) if name in table.header else []
        if len(tasks) > 1:
            raise DataError(
                f"{path} holds rows of {len(tasks)} tasks ({name}: {listed(tasks)}), but a model is adapted to one. Write a "
                "file for each, and name their folder with --tasks."
            )
        return found._replace(task="".join(tasks))

    def _read(self, table: Table, labelled: bool | None) -> Examples:
        """The rows with what is in them; ``labelled``: whether outputs must be there, or None where none are read."""
        names = [found.column for found in self.columns.inputs]
        given = labelled or (labelled is not None and any(not table.without(name) for name in self.output_names))
        needed = names + self.output_names * bool(given)
        if problems := [
            f"the column {name!r} is missing: {said}" for name in needed if (said := table.without(name, needed))
        ]:
            raise DataProblems(problems)
        faults, log, missing = Faults(), self.columns.log, self.columns.missing
        reader = ColumnReader(table, missing, faults)
        if not labelled and missing != "mean":  # an answer is expected for every row
            reader = ColumnReader(table, "refuse", faults, CURE_OF_QUERIES)
        inputs = [reader.read(f.column, f.log, f.levels is not None) for f in self.columns.inputs]
        of_outputs = ColumnReader(table, missing if labelled else "drop", faults)
        outputs = [of_outputs.read(name, name in log, False) for name in self.output_names * bool(given)]
        faults.refuse()
        gone = np.zeros(len(table.rows), dtype=bool)
        for column in (*(inputs if missing != "mean" else ()), *(outputs if labelled else ())):
            gone |= column.missing
        notes: list[str] = reader.notes()
        if gone.any():
            lines = [f"line {table.lines[row]}" for row in np.flatnonzero(gone)]
            notes.append(f"{table.path}: rows with missing entries are left out ({len(lines)}): {listed(lines)}.")
        kept = [line for line, left_out in zip(table.lines, gone, strict=True) if not left_out]
        for column, fitted in zip((*inputs, *outputs), (*self.columns.inputs, *self.columns.outputs), strict=False):
            notes += _far(table.path, column, fitted, ~gone, kept)
        x = torch.from_numpy(encoded(inputs, self.columns.inputs, notes)[~gone]).to(self.device, self.dtype)
        refuse_infinite(table.path, kept, x)
        items = [f"line {line}" for line in kept]
        labels = _own(outputs)[~gone] if outputs else self.unlabelled(len(x))
        return Examples(items, x, labels, notes)

    def targets(self, values: np.ndarray) -> np.ndarray:
        numbers = columns_of(values, len(self.columns.outputs)).copy()
        for i, found in enumerate(self.columns.outputs):
            if found.log and (numbers[:, i] <= 0).any():
                raise DataError(
                    f"{found.column} is learned as its logarithm (task.log_columns), so it must be above 0."
                )
            column = np.log(numbers[:, i]) if found.log else numbers[:, i]
            numbers[:, i] = (column - found.mean[0]) / found.deviation[0]
        return numbers

    def in_own_units(self, mean: np.ndarray, deviation: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
        """Predictions and deviations in the columns' units; of a logarithm, the median, and the deviation of the
        log-normal distribution."""
        own = np.empty_like(mean)
        spread = None if deviation is None else np.empty_like(deviation)
        for i, found in enumerate(self.columns.outputs):
            own[:, i] = mean[:, i] * found.deviation[0] + found.mean[0]
            s = None if deviation is None else deviation[:, i] * found.deviation[0]
            if found.log:
                with np.errstate(over="ignore"):  # a mean that is infinite is refused
                    s = None if s is None else np.exp(own[:, i] + s**2 / 2) * np.sqrt(np.expm1(s**2))
                    own[:, i] = np.exp(own[:, i])
            if spread is not None:
                spread[:, i] = s
        return own, spread


def _far(path: Path, column: Column, fitted: Fit, there: np.ndarray, lines: Sequence[int]) -> list[str]:
    """A note on numbers of a column that are further from the training's than any of its own, as in another unit."""
    if column.numbers is None or fitted.levels is not None:
        return []
    far = abs((column.numbers[there] - fitted.mean[0]) / fitted.deviation[0]) > FAR
    if not far.any():
        return []
    said = listed([f"line {line}" for line in np.asarray(lines)[far]])
    usual = f"{fitted.mean[0]:g} +- {fitted.deviation[0]:g}{' of logarithms' if fitted.log else ''}"
    return [
        f"{path}: column {column.name!r} has {far.sum()} numbers that are more than {FAR} deviations from the mean of the "
        f"training ({usual}): {said}. Are they in the same unit?"
    ]


def refuse_infinite(path: Path, lines: Sequence[int] | np.ndarray, values: Tensor) -> None:
    """Raise DataError with the ``lines`` whose ``values`` [lines, n], in the units of the training, are not finite."""
    if (far := ~torch.isfinite(values).all(1).cpu().numpy()).any():
        said = [f"line {line}" for line in np.asarray(lines)[far]]
        raise DataError(f"{path}, {listed(said)}: numbers that are too large for the model, in {values.dtype}.")


def _own(outputs: Sequence[Column]) -> np.ndarray:
    columns = [column.numbers for column in outputs]
    own = [np.exp(v) if c.log and v is not None else v for c, v in zip(outputs, columns, strict=True)]
    return np.array(own, dtype=np.float64).T


def _table_of(examples: Any, names: Sequence[str]) -> Table:
    """A table of columns by name (a mapping, or a data frame), of rows that are mappings, or of an array."""
    rows = isinstance(examples, (list, tuple)) and bool(examples) and all(hasattr(row, "keys") for row in examples)
    if rows:
        given = _asked([*dict.fromkeys(name for row in examples for name in row)], names)
        columns = {name: [row.get(name) for row in examples] for name in given}
    elif hasattr(examples, "keys"):
        columns = {name: examples[name] for name in _asked([*examples.keys()], names)}
        for name, values in columns.items():
            if isinstance(values, str) or not hasattr(values, "__len__") or getattr(values, "ndim", 1) != 1:
                raise DataError(f"the column {name!r} is no list of entries; give one list for each column.")
    else:
        array = as_array(examples, "rows", dtype=object if isinstance(examples, (list, tuple)) else None)
        if array.ndim != 2 or array.shape[1] != len(names):
            raise DataError(
                f"the array has shape {list(array.shape)}, but must have a column for each of {', '.join(names)}: "
                f"[n, {len(names)}], in their own units."
            )
        columns = {name: list(array[:, i]) for i, name in enumerate(names)}
    lengths = {len(column) for column in columns.values()}
    if len(lengths) > 1 or lengths == {0}:
        raise DataError(
            f"the columns have {listed([str(n) for n in sorted(lengths)])} entries; all need as many, and some."
        )
    entries = [[_written(value) for value in row] for row in zip(*columns.values(), strict=True)]
    return Table(Path("these rows, counted from 0"), ",", [*map(str, columns)], entries, [*range(len(entries))], "", 0)


def _asked(given: Sequence[Any], names: Sequence[str]) -> Sequence[Any]:
    """The columns of these ``names``; where one is missing all that are ``given``, of which the message speaks."""
    return names if {*names} <= {*given} else given


def _written(value: Any) -> str:
    """An entry as a file has it; what is missing is empty. Whole numbers have no point: a level of a category is 1, not
    1.0, and data frames make floats of them where an entry is missing."""
    if absent(value):
        return ""
    if not isinstance(value, (int, float, np.integer, np.floating)) or isinstance(value, bool):
        return composed(str(value).strip())
    return str(int(value)) if isinstance(value, int) or float(value).is_integer() else repr(float(value))
