"""What the rows of a user's arrays are to each other: copies, rows of two classes, tasks that share rows; and their names.

n rows
"""

from collections import Counter
from collections.abc import Collection, Hashable, Sequence
from pathlib import Path

import numpy as np

from metarun.errors import DataError, listed
from metarun.tasks.doubtful import missing_names, nearly_equal
from metarun.tasks.reading import arrays_in, names_in
from metarun.tasks.table_notes import notes_on_twins

SPLIT_NAMES = ("split", "splits", "subset", "partition", "fold", "folds")


def without_copies(
    keys: Sequence[Hashable], tasks: Sequence[str], classes: Sequence[str]
) -> tuple[np.ndarray, list[str]]:
    """Which rows [n] are kept: of equal ones, by their ``keys``, of a task and class the first alone, for a copy would be in
    the support while the other is in the query. And what to say of these, and of equal rows of other tasks and classes."""
    kept = np.ones(len(keys), dtype=bool)
    copies, twins = [], []
    first: dict[Hashable, int] = {}
    of_class: dict[Hashable, int] = {}
    held: dict[str, Counter[Hashable]] = {task: Counter() for task in dict.fromkeys(tasks)}
    for row, (key, task, name) in enumerate(zip(keys, tasks, classes, strict=True)):
        if (other := first.setdefault((key, task, name), row)) != row:
            kept[row] = False
            copies.append(f"{row} = {other}")
            continue
        held[task][key, name] += 1
        if (other := of_class.setdefault((key, task), row)) != row:
            twins.append(f"{row} ({name}) = {other} ({classes[other]})")
    notes = []
    if copies:
        what = "row is a copy" if len(copies) == 1 else "rows are copies"
        notes.append(
            f"{len(copies)} {what} of another of the same task and class, and left out (counted from 0): {listed(copies)}."
        )
    if twins:
        what = "row equals one" if len(twins) == 1 else "rows equal one each"
        notes.append(
            f"{len(twins)} {what} of the same task in another class (counted from 0): {listed(twins)}. Leave out each that "
            "is not of its class."
        )
    return kept, [*notes, *notes_on_twins(held)]


def notes_on_names(tasks: Collection[str], classes: Collection[str]) -> list[str]:
    """What to say of names of tasks and classes that may be one, or none."""
    return [
        note
        for names, what in ((classes, "classes"), (tasks, "tasks"))
        for note in (*missing_names(names, what), *nearly_equal(names, what))
    ]


def notes_on_unread(held: Sequence[str], read: Collection[str]) -> list[str]:
    """A note on the arrays of a file, ``held``, that are not ``read``."""
    unread = [name for name in held if name not in read]
    splits = any(name.lower() in SPLIT_NAMES for name in unread)
    fix = "; tasks are split by task.val_tasks and task.test_tasks" if splits else ""
    return [f"not read are the arrays {listed([*map(repr, unread)], 20)}{fix}."] if unread else []


def only_task(path: Path, task_array: str) -> str:
    """The task that the array ``task_array`` of a .npz file names; "" where there is none. Raises DataError for several."""
    arrays = arrays_in(path, (), also=(task_array,))
    if task_array not in arrays:
        return ""
    names = sorted({*names_in(path, np.ravel(arrays[task_array]))} - {""})
    if len(names) > 1:
        raise DataError(
            f"{path} holds rows of {len(names)} tasks ({task_array}: {listed(names)}), but a model is adapted to one. Write "
            "a file for each, and name their folder with --tasks."
        )
    return "".join(names)
