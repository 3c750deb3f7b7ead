"""What the numbers of a table give the user to look at: tasks that hold the same rows, codes of missing ones, leaks."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from metarun.errors import listed
from metarun.tasks.table_columns import Column

CODES = (-9, -99, -999, -9999, -99999, 99, 999, 9999, 99999)  # by which tables say that a number is missing
LEAST_ROWS = 5  # of a task that lies within another: fewer may be equal by chance
LEAST_VALUES = 10  # that rise in the order of another column: fewer may do so by chance


def notes_on_twins(held: Mapping[str, Counter[Any]]) -> list[str]:
    """What to say of tasks whose rows another holds: one may be for training, and the other for the test."""
    first: dict[frozenset[Any], str] = {}
    sets = {task: frozenset(rows.items()) for task, rows in held.items() if rows}
    twins = [f"{task!r} = {first[rows]!r}" for task, rows in sets.items() if first.setdefault(rows, task) != task]
    twins += [f"{task!r} within {other!r}" for task, other in _within(held)]
    if not twins:
        return []
    return [
        f"{len(twins)} task{'s have' if len(twins) > 1 else ' has'} the rows of another task, under another name: "
        f"{listed(twins)}. A test task may be one of the training so: if they are one, leave one of them out."
    ]


def _within(held: Mapping[str, Counter[Any]]) -> list[tuple[str, str]]:
    """Each task all of whose rows another has, that has more, and that other. Rows that a third task has do not count:
    where columns have few values, many tasks hold them by chance."""
    first: dict[Any, str] = {}
    shared: dict[Any, list[str]] = {}  # the holders of rows that more than one task has
    for task, rows in held.items():
        for row in rows:
            if (holder := first.setdefault(row, task)) != task:
                shared.setdefault(row, [holder]).append(task)
    found = []
    for task, rows in held.items():
        if len(rows) >= LEAST_ROWS and all(len(shared.get(row, ())) == 2 for row in rows):
            others = {name for row in rows for name in shared[row]} - {task}
            found += [(task, other) for other in others if len(others) == 1 and len(held[other]) > len(rows)]
    return found


def notes_on_numbers(inputs: Sequence[Column], outputs: Sequence[Column]) -> list[str]:
    """What to say of entries that seem to be codes of missing ones, and of inputs that tell an output by themselves."""
    numeric = [column for column in inputs if column.numbers is not None]
    notes = [note for column in (*numeric, *outputs) if not column.log for note in _codes(column)]
    how: dict[str, list[str]] = {}
    for x, y in ((x, y) for y in outputs for x in inputs):
        if told := _tells(x, y):
            how.setdefault(told, []).append(f"{x.name!r} of {y.name!r}")
    fix = "Leave out what is not known when the output is to be predicted."
    return [
        *notes,
        *(f"input columns {told}, so that they tell it: {listed(leaks)}. {fix}" for told, leaks in how.items()),
    ]


def _codes(column: Column) -> list[str]:
    assert column.numbers is not None
    values, counts = np.unique(column.numbers[~column.missing], return_counts=True)
    found = []
    for end, others in ((0, values[1:]), (-1, values[:-1])):
        if len(others) > 1 and values[end] in CODES and counts[end] > 1:
            low, high, next_one = others[0], others[-1], others[end]
            # 99 is no code among percentages from 99.9 to 100
            if abs(next_one - values[end]) > max(high - low, abs(next_one) / 3):
                found.append(
                    f"column {column.name!r} has {counts[end]} times {values[end]:g}, far from all others ({low:g} to "
                    f"{high:g}). If it says that a number is missing, leave those entries empty and choose task.missing."
                )
    return found


def _tells(x: Column, y: Column) -> str:
    """How an input tells an output in all rows; empty where it does not."""
    assert y.numbers is not None
    there = ~(x.missing | y.missing)
    b = y.numbers[there]
    if len(b) < LEAST_ROWS or b.min() == b.max():
        return ""
    if x.numbers is None:
        assert x.texts is not None
        levels, of = np.unique(x.texts[there], return_inverse=True)
        high, low = np.full(len(levels), -np.inf), np.full(len(levels), np.inf)
        np.maximum.at(high, of, b)
        np.minimum.at(low, of, b)
        return (
            "of which each category has one output"
            if len(b) >= LEAST_ROWS * len(levels) and (high == low).all()
            else ""
        )
    a = x.numbers[there]
    if _is_line(a, b):
        return "of which an output is a line in all rows"
    values = len(np.unique(a))
    together = any((np.diff(b[np.lexsort((sign * b, a))]) * sign >= 0).all() for sign in (1, -1))
    return "with which an output rises, or falls, in all rows" if values >= LEAST_VALUES and together else ""


def _is_line(a: np.ndarray, b: np.ndarray) -> bool:
    with np.errstate(all="ignore"):
        a, b = a - a.mean(), b - b.mean()
        return bool(abs(a @ b) > (1 - 1e-10) * np.sqrt((a @ a) * (b @ b)) > 0)
