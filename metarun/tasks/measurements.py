"""What the columns of a table are to a task, and the rows that can be used: read, counted, and told to the user."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from metarun.errors import DataProblems, Faults, listed
from metarun.tasks.table_columns import Column, Fit, Missing, Reader
from metarun.tasks.table_rows import filled, rows_of_tasks, without_repeats
from metarun.tasks.tables import Table


class Measurements(NamedTuple):
    """Input and output columns, the usable rows of each task, the group of every row, and what the user should know."""

    columns: tuple[list[Column], list[Column]]
    of_task: dict[str, list[int]]
    groups: list[str] | None
    notes: list[str]


@dataclass(frozen=True)
class Roles:
    """The names of columns by what they are to the task."""

    task: str
    inputs: Sequence[str]
    outputs: Sequence[str]
    categories: Sequence[str]
    log: Sequence[str]
    group: str | None

    def check(self, table: Table, split: str | None) -> None:
        """Raise DataProblems unless each column is there and has one place; ``split`` is the one that says the split."""
        if not self.inputs or not self.outputs:
            raise ValueError("task.input_columns and task.output_columns must each name at least one column.")
        names = [self.task, *([split] if split else []), *self.inputs, *self.outputs]
        problems = [
            f"task: the column {name!r} is named more than once among task_column, split_column, input_columns and "
            "output_columns; each has one place."
            for name in sorted({name for name in names if names.count(name) > 1})
        ]
        keys: dict[str, Sequence[str | None]] = {
            "task_column": [self.task],
            "split_column": [split],
            "group_column": [self.group],
        }
        for key, wanted in {**keys, "input_columns": self.inputs, "output_columns": self.outputs}.items():
            problems += [
                f"task.{key} names {name!r}, but {table.without(name)}"
                for name in filter(None, wanted)
                if table.without(name)
            ]
        numbers = [name for name in (*self.inputs, *self.outputs) if name not in self.categories]
        for key, named, among in (("log", self.log, numbers), ("category", self.categories, self.inputs)):
            if other := [name for name in named if name not in among]:
                problems.append(f"task.{key}_columns names {listed(other)}, but can name {listed([*among], 20)} alone.")
        if problems:
            raise DataProblems(problems)

    def read(self, table: Table, missing: Missing, fits: Sequence[Fit]) -> Measurements:
        """The columns and the usable rows; inputs that were fitted hold what they held then. Raises DataProblems with all
        that is wrong."""
        faults, notes = Faults(), [f"{table.path}: {table.num_comments} lines of comments (#) are left out."]
        notes = notes if table.num_comments else []
        reader = Reader(table, missing, faults)
        holds = dict.fromkeys(self.log, False) | dict.fromkeys(self.categories, True)
        holds |= {found.column: found.levels is not None for found in fits}
        inputs = [reader.read(name, name in self.log, holds.get(name)) for name in self.inputs]
        outputs = [reader.read(name, name in self.log, False) for name in self.outputs]
        of_task = rows_of_tasks(table, self.task, faults)
        alone = "and say which group it is of; a row alone is a group of its own."
        groups = filled(table, self.group, "which names the group,", alone, faults) if self.group else None
        faults.refuse()
        gone = np.any([c.missing for c in (outputs if missing == "mean" else [*inputs, *outputs])], 0)
        of_task = {task: [row for row in rows if not gone[row]] for task, rows in of_task.items()}
        used = [*self.inputs, *self.outputs, *filter(None, [self.group])]
        of_task, repeats = without_repeats(table, of_task, used)
        notes += [*reader.notes(), *_notes_on_missing(table, inputs, gone), *_notes_on_categories(inputs), *repeats]
        notes += _notes_on_names([*of_task])
        return Measurements((inputs, outputs), of_task, groups, notes)


def _notes_on_missing(table: Table, inputs: list[Column], gone: np.ndarray) -> list[str]:
    notes = []
    if gone.any():
        lines = [f"line {table.lines[row]}" for row in np.flatnonzero(gone)]
        notes.append(f"rows with missing entries are left out ({len(lines)} of {len(gone)}): {listed(lines)}.")
    if filled_in := int(sum((column.missing & ~gone).sum() for column in inputs)):
        notes.append(f"missing entries that are set to the mean of the training tasks: {filled_in}.")
    return notes


def _notes_on_names(names: Sequence[str]) -> list[str]:
    """What to say of tasks that may be one under two spellings: S1 and s1, 1 and 1.0 (of which 007 and 7 are none)."""
    spelt: dict[str, list[str]] = {}
    for name in names:
        spelt.setdefault(name.casefold().removesuffix(".0"), []).append(name)
    alike = [" and ".join(map(repr, several)) for several in spelt.values() if len(several) > 1]
    return [f"names of tasks that are nearly equal, and taken for different ones: {listed(alike)}."] if alike else []


def _notes_on_categories(inputs: list[Column]) -> list[str]:
    of = {c.name: sorted({*c.texts.tolist()} - {""}) for c in inputs if c.texts is not None}
    return [f"column {name!r} holds categories, an input for each: {listed(held, 20)}." for name, held in of.items()]
