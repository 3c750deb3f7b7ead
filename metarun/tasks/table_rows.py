"""The rows of a table's tasks: repeated ones kept once, groups kept together; and which split each task is in."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from metarun.counter import uniform
from metarun.errors import DataError, DataProblems, Faults, listed
from metarun.tasks.splits import SPLITS, composed, spellings_of, split_named
from metarun.tasks.table_columns import Column
from metarun.tasks.table_notes import notes_on_twins
from metarun.tasks.tables import Table

Split = dict[str, list[str]]  # the tasks of train, val and test
SEE = "See task.val_tasks and task.test_tasks, task.val_share and task.test_share, and of a table task.split_column."


@dataclass(frozen=True)
class TaskRows:
    """Rows of one task, group after group as they begin in the file; without groups each row is one of its own."""

    rows: np.ndarray
    first: np.ndarray  # where each group begins in ``rows``
    count: np.ndarray  # and how many it has

    @staticmethod
    def of(rows: Sequence[int], groups: Sequence[str] | None) -> "TaskRows":
        """The ``rows``, whose groups are ``groups[row]``."""
        members: dict[Any, list[int]] = {}
        for row in rows:
            members.setdefault(row if groups is None else groups[row], []).append(row)
        count = np.array([len(of_group) for of_group in members.values()])
        return TaskRows(np.concatenate([*members.values()]), np.cumsum(count) - count, count)

    def __len__(self) -> int:
        return len(self.first)

    def at(self, groups: np.ndarray, u: np.ndarray, num_first: int = 0) -> np.ndarray:
        """One row of each of ``groups``, chosen by uniforms ``u``. The first ``num_first`` are the first of the task: of
        these, one that stands before all rows of the later groups, as the row does that begins a group."""
        count = self.count[groups]
        if num_first:
            end = self.first[num_first]
            early = self.rows[:end] < self.rows[end]
            count[:num_first] = np.add.reduceat(early, self.first[:num_first], dtype=np.int64)
        return self.rows[self.first[groups] + np.floor(count * u).astype(np.int64)]


def rows_of_tasks(table: Table, task_column: str, faults: Faults) -> dict[str, list[int]]:
    """The rows of each task, tasks in alphabetical order: a file with its lines in another order gives the same split."""
    of_task: dict[str, list[int]] = {}
    for row, name in enumerate(filled(table, task_column, "which names the task,", "or leave it out.", faults)):
        of_task.setdefault(name, []).append(row)
    return dict(sorted(of_task.items()))


def filled(table: Table, name: str, role: str, otherwise: str, faults: Faults) -> list[str]:
    """The entries of a column that may not be empty."""
    entries = table.column(name)
    for entry, line in zip(entries, table.lines, strict=True):
        if not entry:
            what = f"line {line}: column {name!r}, {role} is empty"
            faults.add(str(table.path), what, f"Correct the line, {otherwise}")
    return entries


def without_repeats(
    table: Table, of_task: dict[str, list[int]], columns: Sequence[Column], group: str | None
) -> tuple[dict[str, list[int]], list[str]]:
    """The first of equal rows of each task, and notes on the others: a row may not be in the support and in the query.

    Rows are equal by what was read in the ``columns``, and in all others by their text; tasks by the columns alone.
    """
    values = [*zip(*(column.entries() for column in columns), strict=True)]
    used = values if group is None else [*zip(values, table.column(group), strict=True)]
    others = [at for at, name in enumerate(table.header) if name not in {column.name for column in columns}]
    kept: dict[str, list[int]] = {}
    repeats, alike = [], 0
    for task, rows in of_task.items():
        whole: dict[tuple[Any, ...], int] = {}
        for row in rows:
            first = whole.setdefault((*values[row], *(table.rows[row][at] for at in others)), row)
            if first != row:
                repeats.append(f"line {table.lines[row]} = line {table.lines[first]}")
        kept[task] = [*whole.values()]
        alike += len(kept[task]) - len({used[row] for row in kept[task]})
    notes = notes_on_twins({task: Counter(values[row] for row in rows) for task, rows in kept.items()})
    if repeats:
        notes.append(
            f"{len(repeats)} row{'s repeat' if len(repeats) > 1 else ' repeats'} another row of the same task and "
            f"{'are' if len(repeats) > 1 else 'is'} left out: {listed(repeats)}."
        )
    if alike:
        notes.append(
            f"{alike} row{'s' if alike > 1 else ''} of {table.path} equal{'' if alike > 1 else 's'} another row of the same "
            "task in all columns that are used, though not in others, and may be in the support while that is in the query. "
            "If they are one measurement, leave them out or name their group in task.group_column."
        )
    return kept, notes


# ---------------------------------------------------------------------------------------------------------- the split


@dataclass(frozen=True)
class Choice:
    """How tasks are split: all in one, by a column, by names, or else by shares."""

    all_in: Mapping[str, str] | None
    column: str | None
    val_tasks: Sequence[Any] | None
    test_tasks: Sequence[Any] | None
    shares: tuple[float, float]
    seed: int

    @property
    def by_shares(self) -> bool:
        """Whether nothing says which tasks are in which split."""
        return self.all_in is None and self.column is None and self.val_tasks is None and self.test_tasks is None

    def of(self, table: Table, of_task: dict[str, list[int]], dropped: Sequence[str]) -> Split:
        """The tasks of each split. Raises ValueError or DataError where the choice does not fit."""
        if self.all_in is None and len(of_task) < len(SPLITS):
            raise DataError(
                f"{table.path}: task.task_column has {len(of_task)} different values, but training, validation and test "
                "need a task each: 3 or more. To evaluate a run on new tasks alone: 'task.split={test: all}'."
            )
        if self.all_in is None and self.column is not None:
            if self.val_tasks is not None or self.test_tasks is not None:
                raise ValueError(
                    "task.split_column decides on the split; set task.val_tasks and task.test_tasks to null."
                )
            return split_by_column(table, self.column, of_task)
        return self.of_tasks(list(of_task), dropped)

    def of_tasks(self, tasks: list[str], dropped: Sequence[str] = ()) -> Split:
        """The tasks of each split but by a column; with ``test_tasks`` alone those for validation by their share, from the
        others in the same order."""
        if self.all_in is not None:
            return all_in_one(self.all_in, tasks)
        if self.by_shares:
            return split_by_shares(tasks, *self.shares, self.seed)
        val_tasks = self.val_tasks
        if val_tasks is None:
            test = {_as_text(name, "", tasks, []) for name in self.test_tasks or ()}
            others = [task for task in _by_lot(tasks, self.seed) if task not in test]
            val_tasks = others[: max(1, round(self.shares[0] * len(tasks)))]
        return split_by_names(tasks, val_tasks, self.test_tasks or [], dropped)


def all_in_one(split: Mapping[str, str], tasks: list[str]) -> Split:
    """All tasks in the split that ``split`` names."""
    if len(split) != 1 or [*split.values()] != ["all"] or not {*split} <= {*SPLITS}:
        raise ValueError(
            f"task.split is {dict(split)}, but for these data it can only put all tasks into one split, as by "
            f"'task.split={{test: all}}'. {SEE}"
        )
    return {name: tasks if name in split else [] for name in SPLITS}


def split_by_column(table: Table, split_column: str, of_task: dict[str, list[int]]) -> Split:
    """The tasks of each split, by what ``split_column`` says in the rows of each.

    Raises DataError where it is not train, val or test, or not the same in all rows of a task, and ValueError where a
    split has no task.
    """
    entries, faults = [split_named(entry) for entry in table.column(split_column)], Faults()
    split: Split = {name: [] for name in SPLITS}
    for task, rows in of_task.items():
        for row in rows:
            if entries[row] not in split or entries[row] != entries[rows[0]]:
                what = f"line {table.lines[row]}: column {split_column!r} says {entries[row]!r} of the task {task!r}"
                rule = "It must be train, val or test, and the same in all rows of a task."
                faults.add(str(table.path), what, rule)
        if entries[rows[0]] in split:
            split[entries[rows[0]]].append(task)
    faults.refuse()
    return _filled(split)


def split_by_names(
    tasks: list[str], val_tasks: Sequence[Any], test_tasks: Sequence[Any], dropped: Sequence[str] = ()
) -> Split:
    """The tasks of each split: those listed for validation and test, but for ``dropped`` ones, all others for training.

    Raises DataProblems for names that are no task, or stand twice, and ValueError where a split has no task.
    """
    problems: list[str] = []
    known = [*tasks, *dropped]
    val, test = (
        [_as_text(name, key, known, problems) for name in names]
        for key, names in (("task.val_tasks", val_tasks), ("task.test_tasks", test_tasks))
    )
    if both := sorted({*val} & {*test}):
        problems.append(f"task.val_tasks and task.test_tasks both name {listed(_quoted(both))}; a task has one place.")
    for key, names in (("task.val_tasks", val), ("task.test_tasks", test)):
        if twice := sorted({name for name in names if names.count(name) > 1}):
            problems.append(f"{key} names {listed(_quoted(twice))} more than once; name a task once.")
    if unknown := [name for name in (*val, *test) if name not in known]:
        what = "which is no task of the data" if len(unknown) == 1 else "which are no tasks of the data"
        there = f"there are {listed(_quoted(known))}"
        problems.append(f"task.val_tasks and task.test_tasks name {listed(_quoted(unknown))}, {what}; {there}.")
    if problems:
        raise DataProblems(problems)
    held = {*val, *test}
    parts = {"train": [name for name in tasks if name not in held], "val": val, "test": test}
    return _filled({part: [name for name in names if name not in dropped] for part, names in parts.items()})


def _as_text(name: Any, key: str, tasks: Sequence[str], problems: list[str]) -> str:
    """The task that was meant by a name that may have been read as a number or truth value."""
    spellings = [composed(name)] if isinstance(name, str) else spellings_of(name, tasks)
    if len(spellings) > 1:
        problems.append(
            f"{key} has {name!r}, which may be any of {listed(_quoted(spellings))}: put the name in quotation marks."
        )
    return spellings[0] if spellings else str(name)


def _quoted(names: Sequence[str]) -> list[str]:
    return [repr(name) for name in names]


def split_by_shares(tasks: list[str], val_share: float, test_share: float, split_seed: int) -> Split:
    """The tasks of each split by shares, at least one each; ``split_seed`` draws their order, not the run's seed."""
    if not (val_share > 0 and test_share > 0 and val_share + test_share < 1):
        raise ValueError(
            f"task.val_share {val_share} and task.test_share {test_share} must be above 0, and below 1 in sum."
        )
    num_val, num_test = (max(1, round(share * len(tasks))) for share in (val_share, test_share))
    shuffled = _by_lot(tasks, split_seed)
    held = num_val + num_test
    return _filled({"train": shuffled[held:], "val": shuffled[:num_val], "test": shuffled[num_val:held]})


def _by_lot(tasks: list[str], seed: int) -> list[str]:
    """The tasks in an order drawn from ``seed``."""
    return [tasks[i] for i in np.argsort(uniform(seed, "csv_regression/split", np.zeros(1), len(tasks))[0])]


def _filled(split: Split) -> Split:
    if empty := [name for name, tasks in split.items() if not tasks]:
        raise ValueError(
            f"the split leaves no task for {empty[0]}; training, validation and test need at least one each. {SEE}"
        )
    return split
