"""Regression on a table of your own: one line a measurement, one task for each value of a column (a subject, a machine).

    y = f_T(x):  x the input columns, y the output columns, K support and Q query rows of one task T

Tasks are split into training, validation and test tasks: by a column that says train, val or test, by lists of names, or
else by shares, in an order drawn from ``split_seed``. Inputs and outputs are standardised with mean and deviation over the
rows of the training tasks alone, so predicting their mean has an ``mse`` of about 1; ``mae_<column>`` is the mean
absolute error in that column's own unit.

B episodes, K support and Q query rows of each
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from metarun.core import Batch, Draw, Episode, Metrics, Params, TaskDistribution, TaskSpec
from metarun.counter import uniform, without_replacement
from metarun.errors import DataError
from metarun.objectives import SQUARED_ERROR
from metarun.tasks.episodes import PointSize, sizes_by_split
from metarun.tasks.splits import SPLITS
from metarun.tasks.tables import Table, read_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class CSVRegression(TaskDistribution):
    """Support x [K, inputs], y [K, outputs] and query x [Q, inputs], y [Q, outputs]: different rows of one task."""

    def __init__(  # noqa: PLR0913, PLR0917
        self,
        path: str,
        separator: str,
        task_column: str,
        input_columns: Sequence[str],
        output_columns: Sequence[str],
        split_column: str | None,
        val_tasks: Sequence[str | int] | None,
        test_tasks: Sequence[str | int] | None,
        val_share: float,
        test_share: float,
        split_seed: int,
        num_shots: int,
        num_queries: int,
        train_num_shots: int | None,
        train_num_queries: int | None,
        seed: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.sizes = sizes_by_split(PointSize(num_shots, num_queries), train_num_shots, train_num_queries)
        self.path, self.separator = Path(path).expanduser(), separator
        self.input_columns, self.output_columns = list(input_columns), list(output_columns)
        self.seed, self.device, self.dtype = seed, device, dtype
        self._check_columns(task_column, split_column)
        table = read_table(self.path, separator)
        self.sha256 = table.sha256
        of_task = rows_of_tasks(table, task_column)
        asked = split_as_asked(table, of_task, split_column, val_tasks, test_tasks)
        self.split = asked or split_by_shares(list(of_task), val_share, test_share, split_seed)
        self.rows = {name: [np.array(of_task[task]) for task in tasks] for name, tasks in self.split.items()}
        self._check_sizes()

        inputs = table.numbers(self.input_columns, "task.input_columns")
        outputs = table.numbers(self.output_columns, "task.output_columns")
        self.x, _ = self._standardised(inputs, self.input_columns)
        self.y, self.deviation = self._standardised(outputs, self.output_columns)
        self.spec = TaskSpec((len(self.input_columns),), len(self.output_columns), SQUARED_ERROR)

    def _check_columns(self, task_column: str, split_column: str | None) -> None:
        if not self.input_columns or not self.output_columns:
            raise ValueError("task.input_columns and task.output_columns must each name at least one column.")
        names = [task_column, split_column, *self.input_columns, *self.output_columns]
        if twice := sorted({name for name in names if name is not None and names.count(name) > 1}):
            raise ValueError(
                f"task: the column {twice[0]!r} is named more than once among task_column, split_column, input_columns and "
                "output_columns; each has one place."
            )

    def _check_sizes(self) -> None:
        for split, (shots, queries) in self.sizes.items():
            prefix = "task.train_" if split == "train" and self.sizes["train"] != self.sizes["test"] else "task."
            for task, rows in zip(self.split[split], self.rows[split], strict=True):
                if shots + queries > len(rows):
                    raise DataError(
                        f"{prefix}num_shots + {prefix}num_queries is {shots + queries}, but the task {task!r} of the split "
                        f"{split!r} has only {len(rows)} rows in {self.path}. Lower their sum to at most {len(rows)}, or "
                        "leave that task out of the file."
                    )

    def _standardised(self, values: np.ndarray, names: list[str]) -> tuple[torch.Tensor, np.ndarray]:
        """``values`` [rows, columns] with mean 0 and deviation 1 over training rows, and the deviations they had."""
        training = values[np.concatenate(self.rows["train"])]
        if constant := [name for name, same in zip(names, np.ptp(training, 0) == 0, strict=True) if same]:
            raise DataError(
                f"{self.path}: column {constant[0]!r} has one and the same value in all rows of the training tasks; there "
                "is nothing to learn from it or about it, so leave it out."
            )
        mean, deviation = training.mean(0), training.std(0)
        return torch.from_numpy((values - mean) / deviation).to(self.device, self.dtype), deviation

    def draw(self, split: str, indices: Sequence[int] | np.ndarray) -> Draw:
        """Numbers of tasks in the split [B] and of rows below the header, support [B, K] and query [B, Q]."""
        (shots, queries), rows = self.sizes[split], self.rows[split]
        u = uniform(self.seed, f"csv_regression/{split}", np.asarray(indices), 1 + shots + queries)
        task = np.floor(len(rows) * u[:, 0]).astype(np.int64)
        counts = np.array([len(of_task) for of_task in rows])
        places = without_replacement(u[:, 1:], counts[task])  # [B, K + Q]
        chosen = np.array([rows[t][at] for t, at in zip(task, places, strict=True)]).reshape(places.shape)
        return {"task": task, "support": chosen[:, :shots], "query": chosen[:, shots:]}

    def episodes(self, draw: Draw) -> Episode:
        def batch(rows: np.ndarray) -> Batch:
            at = torch.from_numpy(rows).to(self.device)
            return Batch(self.x[at], self.y[at])

        return Episode(batch(draw["support"]), batch(draw["query"]))

    def further_scores(self, learner: Any, phi: Params, episode: Episode) -> Metrics:
        """Mean absolute error of each output in its own unit, as ``mae_<column>``."""
        x, y = episode.query
        error = (learner.predict(phi, x) - y).abs().mean(0) * y.new_tensor(self.deviation)
        return {f"mae_{name}": value for name, value in zip(self.output_columns, error.unbind(), strict=True)}

    def fingerprint(self) -> str:
        sizes = ", ".join(f"{len(self.split[name])} {name}" for name in SPLITS)
        return f"table: sha256 {self.sha256}, {sizes} tasks"

    def verify(self) -> None:
        """Read the table again; raise DataError unless it is the one that was read."""
        if read_table(self.path, self.separator).sha256 != self.sha256:
            raise DataError(f"{self.path} has changed since it was read.")

    def show(self, split: str, indices: Sequence[int]) -> "Figure":
        """The first output over the first input, in standard units, of some episodes."""
        from metarun.drawing import curves

        draw = self.draw(split, indices)
        names = [
            f"{self.split[split][task]}, episode {index}" for task, index in zip(draw["task"], indices, strict=True)
        ]
        labels = (self.input_columns[0], self.output_columns[0])
        return curves(self.episodes(draw), names, joined=False, labels=labels)


# ---------------------------------------------------------------------------------------------------------- the split


def rows_of_tasks(table: Table, task_column: str) -> dict[str, list[int]]:
    """The rows of each task, tasks in alphabetical order: a file with its lines in another order gives the same split."""
    of_task: dict[str, list[int]] = {}
    for row, name in enumerate(table.column(task_column, "task.task_column")):
        if not name:
            raise DataError(
                f"{table.path}, line {table.lines[row]}: column {task_column!r}, which names the task, is empty. Correct "
                "the line, or leave it out."
            )
        of_task.setdefault(name, []).append(row)
    if len(of_task) < len(SPLITS):
        raise DataError(
            f"{table.path}: task.task_column {task_column!r} has {len(of_task)} different values, but training, validation "
            "and test need a task each: 3 or more."
        )
    return dict(sorted(of_task.items()))


def split_as_asked(
    table: Table,
    of_task: dict[str, list[int]],
    split_column: str | None,
    val_tasks: Sequence[str | int] | None,
    test_tasks: Sequence[str | int] | None,
) -> dict[str, list[str]] | None:
    """The tasks of each split by a column or by their names; None where neither is given. Raises ValueError for both."""
    if split_column is not None:
        if val_tasks is not None or test_tasks is not None:
            raise ValueError("task.split_column decides on the split; set task.val_tasks and task.test_tasks to null.")
        return split_by_column(table, split_column, of_task)
    if val_tasks is not None or test_tasks is not None:
        return split_by_names(list(of_task), val_tasks or [], test_tasks or [])
    return None


def split_by_column(table: Table, split_column: str, of_task: dict[str, list[int]]) -> dict[str, list[str]]:
    """The tasks of each split, by what ``split_column`` says in the rows of each.

    Raises DataError where it is not train, val or test, or not the same in all rows of a task, and ValueError where a
    split has no task.
    """
    entries = table.column(split_column, "task.split_column")
    split: dict[str, list[str]] = {name: [] for name in SPLITS}
    for task, rows in of_task.items():
        for row in rows:
            if entries[row] not in split or entries[row] != entries[rows[0]]:
                raise DataError(
                    f"{table.path}, line {table.lines[row]}: column {split_column!r} says {entries[row]!r} of the task "
                    f"{task!r}; it must be train, val or test, and the same in all rows of a task."
                )
        split[entries[rows[0]]].append(task)
    return _filled(split)


def split_by_names(
    tasks: list[str], val_tasks: Sequence[str | int], test_tasks: Sequence[str | int]
) -> dict[str, list[str]]:
    """The tasks of each split: those listed for validation and test, and all others for training.

    Raises ValueError for a name that is no task or in both lists, and where a split has no task.
    """
    val, test = [str(name) for name in val_tasks], [str(name) for name in test_tasks]
    if both := sorted(set(val) & set(test)):
        raise ValueError(f"task.val_tasks and task.test_tasks both name {both[0]!r}; a task has one place.")
    if unknown := [name for name in (*val, *test) if name not in tasks]:
        raise ValueError(f"task.val_tasks and task.test_tasks name {unknown[0]!r}, which is no task of the table.")
    return _filled({"train": [name for name in tasks if name not in {*val, *test}], "val": val, "test": test})


def split_by_shares(tasks: list[str], val_share: float, test_share: float, split_seed: int) -> dict[str, list[str]]:
    """The tasks of each split by shares, at least one each; ``split_seed`` draws their order, not the run's seed."""
    if min(val_share, test_share) <= 0 or val_share + test_share >= 1:
        raise ValueError(
            f"task.val_share {val_share} and task.test_share {test_share} must be above 0, and below 1 in sum."
        )
    order = np.argsort(uniform(split_seed, "csv_regression/split", np.zeros(1), len(tasks))[0])
    num_val, num_test = (max(1, round(share * len(tasks))) for share in (val_share, test_share))
    shuffled = [tasks[i] for i in order]
    held = num_val + num_test
    return _filled({"train": shuffled[held:], "val": shuffled[:num_val], "test": shuffled[num_val:held]})


def _filled(split: dict[str, list[str]]) -> dict[str, list[str]]:
    if empty := [name for name, tasks in split.items() if not tasks]:
        raise ValueError(
            f"the split leaves no task for {empty[0]}; training, validation and test need at least one each. See "
            "task.split_column, task.val_tasks and task.test_tasks, task.val_share and task.test_share."
        )
    return split
