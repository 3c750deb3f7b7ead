"""What the columns of a table are to a task, and the rows that can be used: read, counted, and told to the user."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from metarun.errors import DataProblems, Faults, listed
from metarun.tasks.doubtful import missing_names, nearly_equal
from metarun.tasks.splits import say_splits
from metarun.tasks.table_columns import Column, Fit, Missing, Reader
from metarun.tasks.table_notes import notes_on_numbers
from metarun.tasks.table_numbers import look_of
from metarun.tasks.table_rows import Choice, filled, rows_of_tasks, without_repeats
from metarun.tasks.tables import Table

CODE = re.compile(r"0\d{3,}", re.ASCII)  # 01 may be a month
DAY = re.compile(r"(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])", re.ASCII)


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
                f"task.{key} names {name!r}, but {said}"
                for name in wanted
                if name is not None and (said := table.without(name, names))
            ]
        numbers = [name for name in (*self.inputs, *self.outputs) if name not in self.categories]
        for key, named, among in (("log", self.log, numbers), ("category", self.categories, self.inputs)):
            if other := [name for name in named if name not in among]:
                problems.append(f"task.{key}_columns names {listed(other)}, but can name {listed([*among], 20)} alone.")
        if problems:
            raise DataProblems(problems)

    def read(self, table: Table, missing: Missing, fits: Sequence[Fit], choice: Choice) -> Measurements:
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
        of_task, repeats = without_repeats(table, of_task, [*inputs, *outputs], self.group)
        notes += [
            *reader.notes(),
            *_notes_on_missing(table, inputs, gone),
            *_notes_on_categories(inputs, holds),
            *_notes_on_codes(
                table, [column.name for column in inputs if column.texts is None and column.name not in holds]
            ),
            *repeats,
            *notes_on_numbers(inputs, outputs),
        ]
        notes += nearly_equal(of_task, "tasks") + nearly_equal(groups or (), "groups")
        notes += missing_names(of_task, "tasks") + missing_names(groups or (), "groups")
        notes += _notes_on_unread(table, [self.task, *self.inputs, *self.outputs, self.group, choice.column], choice)
        return Measurements((inputs, outputs), of_task, groups, notes)


def _notes_on_missing(table: Table, inputs: list[Column], gone: np.ndarray) -> list[str]:
    notes = []
    if gone.any():
        lines = [f"line {table.lines[row]}" for row in np.flatnonzero(gone)]
        notes.append(f"rows with missing entries are left out ({len(lines)} of {len(gone)}): {listed(lines)}.")
    if filled_in := int(sum((column.missing & ~gone).sum() for column in inputs)):
        notes.append(f"missing entries that are set to the mean of the training tasks: {filled_in}.")
    return notes


def _notes_on_categories(inputs: list[Column], holds: Mapping[str, bool]) -> list[str]:
    """What to say of columns of categories; ``holds``: what was asked for, or fitted, of columns, and so is meant."""
    of = {c.name: sorted({*c.texts.tolist()} - {""}) for c in inputs if c.texts is not None}
    cures = {
        name: f" They look like {look.like}. {look.cure} If they are categories, name the column in task.category_columns."
        for name, held in of.items()
        if name not in holds and (look := look_of(held))
    }
    return [
        note
        for name, held in of.items()
        for note in (
            f"column {name!r} holds categories, an input for each: {listed(held, 20)}.{cures.get(name, '')}",
            *nearly_equal(held, f"categories of {name!r}"),
            *missing_names(held, f"categories of {name!r}"),
        )
    ]


def _notes_on_codes(table: Table, numeric: Sequence[str]) -> list[str]:
    """What to say of columns that are read as numbers, and are codes or days by the look of their entries."""
    notes = []
    for name in numeric:
        held = sorted({*table.column(name)})
        if codes := [text for text in held if CODE.fullmatch(text)]:
            said = f"column {name!r} has numbers that begin with 0, as {codes[0]!r}, and is read as numbers"
            notes.append(f"{said}. If they are codes, name the column in task.category_columns.")
        elif len(held) > 1 and all(map(DAY.fullmatch, held)):
            said = f"column {name!r} has dates written as numbers, as {held[0]}, and is read as these: months end with jumps"
            notes.append(f"{said}. Write days since the first, say.")
    return notes


def _notes_on_unread(table: Table, read: Sequence[str | None], choice: Choice) -> list[str]:
    """The columns that are not read, and of these the one by which tasks could be split, where that is left to shares."""
    unread = [name for name in table.header if name and name not in read]
    splits = [name for name in unread if choice.by_shares and say_splits(table.column(name))]
    fix = f"; task.split_column={splits[0]} splits the tasks by it" if splits else ""
    return [f"{table.path}: not read are the columns {listed([*map(repr, unread)])}{fix}."] if unread else []
