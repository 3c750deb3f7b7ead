"""Regression on a table of your own: one line a measurement, one task for each value of a column (a subject, a machine).

    y = f_T(x):  x the input columns, y the output columns, K support and Q query rows of one task T

Tasks are split into training, validation and test tasks: by a column that says train, val or test, by lists of names,
or else by shares, in an order drawn from ``split_seed``. Inputs and outputs are standardised with mean and deviation
over the rows of the training tasks alone, so predicting their mean has an ``mse`` of about 1; outputs by those of all
training tasks where ``train_fraction`` leaves some out. ``mae_<column>`` is the mean absolute error in that column's
own unit. A run keeps them: other tables are measured by them when it is evaluated.

B episodes, K support and Q query rows of each
"""

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from metarun.core import Batch, Draw, Episode, Metrics, Origin, Params, TaskSpec
from metarun.counter import uniform, without_replacement
from metarun.errors import DataError, DataProblems, listed
from metarun.objectives import SQUARED_ERROR
from metarun.paths import usable
from metarun.tasks.measurements import Roles
from metarun.tasks.sizes import Count, PointSize, Sized, Sizes, sizes_by_split
from metarun.tasks.splits import SPLITS, train_share
from metarun.tasks.table_columns import Column, Fit, Missing, encoded, fit, from_plain, names_of_inputs
from metarun.tasks.table_reader import Columns, TableReader, refuse_infinite
from metarun.tasks.table_rows import Choice, TaskRows
from metarun.tasks.tables import read_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)


class CSVRegression(Sized):
    """Support x [K, inputs], y [K, outputs] and query x [Q, inputs], y [Q, outputs]: different rows of one task.

    With ``support`` "first" the K rows are the first of the task in the file, and queries are among the later ones.
    ``fitted``: what a run fitted on its training tasks, by which this table is to be measured.
    """

    def __init__(  # noqa: PLR0913, PLR0917
        self,
        path: str,
        separator: str,
        task_column: str,
        input_columns: Sequence[str],
        output_columns: Sequence[str],
        split_column: str | None,
        val_tasks: Sequence[str | float | bool] | None,
        test_tasks: Sequence[str | float | bool] | None,
        val_share: float,
        test_share: float,
        split_seed: int,
        num_shots: Count,
        num_queries: Count,
        train_num_shots: Count | None,
        train_num_queries: Count | None,
        seed: int,
        device: torch.device,
        dtype: torch.dtype,
        category_columns: Sequence[str] = (),  # runs of an earlier metarun do not say these
        log_columns: Sequence[str] = (),
        group_column: str | None = None,
        missing: Missing = "refuse",
        min_rows: int | None = None,
        support: Literal["random", "first"] = "random",
        split: Mapping[str, str] | None = None,
        fitted: Mapping[str, Any] | None = None,
        train_fraction: float = 1.0,
    ) -> None:
        """Read the table, choose the splits, and measure all of it by the training tasks."""
        self.sizes = sizes_by_split(PointSize, (num_shots, num_queries), train_num_shots, train_num_queries)
        self.path, self.separator, self.support = usable(path, "task.path"), separator, support
        self.input_columns, self.output_columns = list(input_columns), list(output_columns)
        self.task_column, self.log_columns, self.missing = task_column, log_columns, missing
        self.seed, self.device, self.dtype = seed, device, dtype
        roles = Roles(task_column, input_columns, output_columns, category_columns, log_columns, group_column)
        choice = Choice(split, split_column, val_tasks, test_tasks, (val_share, test_share), split_seed)
        self._read(roles, choice, min_rows, train_fraction, fitted or {})

    def _read(
        self, roles: Roles, choice: Choice, min_rows: int | None, train_fraction: float, fitted: Mapping[str, Any]
    ) -> None:
        table = read_table(self.path, self.separator)
        self.sha256 = table.sha256
        roles.check(table, None if choice.all_in else choice.column)
        fits = self._fits_of(fitted)
        columns, of_task, groups, self.notes = roles.read(table, self.missing, fits[0] if fits else (), choice)
        rows = {task: TaskRows.of(of_rows, groups) for task, of_rows in of_task.items() if of_rows}
        few = [task for task in of_task if task not in rows or (min_rows is not None and len(rows[task]) < min_rows)]
        self._leave_out(few, of_task, min_rows)
        self.split = choice.of(table, {task: of_task[task] for task in of_task if task not in few}, few)
        every = [rows[task] for task in self.split["train"]]
        kept = train_share(self.split["train"], train_fraction)
        self.split["train"] = [task for task in self.split["train"] if task in kept]
        self.splits = tuple(name for name in SPLITS if self.split[name])
        self.rows = {name: [rows[task] for task in tasks] for name, tasks in self.split.items()}
        self.rows_are = "row" if groups is None else "group"
        self._check_sizes()
        self._standardise(columns, fits, every)
        refuse_infinite(table.path, table.lines, torch.cat([self.x, self.y], 1))
        for note in self.notes:
            logger.info("%s", note)

    def _fits_of(self, fitted: Mapping[str, Any]) -> tuple[list[Fit], list[Fit]] | None:
        if "inputs" not in fitted:  # nothing, or what a run on sentences fitted
            return None
        inputs = from_plain(fitted["inputs"], self.input_columns, self.log_columns, "task.input_columns")
        return inputs, from_plain(fitted["outputs"], self.output_columns, self.log_columns, "task.output_columns")

    def _leave_out(self, few: list[str], of_task: dict[str, list[int]], min_rows: int | None) -> None:
        if few:
            said = listed([f"{task} ({len(of_task[task])})" for task in few], most=20)
            why = "without a usable row" if min_rows is None else f"with fewer than {min_rows} rows"
            self.notes.append(f"tasks {why} are left out ({len(few)} of {len(of_task)}): {said}.")

    def lacks(self, sizes: Sizes[PointSize], split: str) -> list[str]:
        return self._too_few(sizes, "task.", [split])

    def _check_sizes(self) -> None:
        """Raise DataProblems where tasks have fewer rows, or groups of them, than an episode takes."""
        same = self.sizes["train"] == self.sizes["test"]
        parts = {"task.": SPLITS} if same else {"task.train_": SPLITS[:1], "task.": SPLITS[1:]}
        if problems := [p for prefix, splits in parts.items() for p in self._too_few(self.sizes, prefix, splits)]:
            raise DataProblems(problems)

    def _too_few(self, sizes: Sizes[PointSize], prefix: str, splits: Sequence[str]) -> list[str]:
        """A message where tasks of these ``splits`` are too small for their size; ``prefix``: of the keys that say it."""
        need = sum(sizes[splits[0]])
        small = [
            (len(rows), task, split)
            for split in splits
            for task, rows in zip(self.split[split], self.rows[split], strict=True)
            if len(rows) < need
        ]
        if not small:
            return []
        least, task, split = min(small)
        others = [f"{name} ({count})" for count, name, _ in sorted(small)[1:]]
        also = f"; {len(others)} more have too few: {listed(others, most=20)}" if others else ""
        return [
            f"{prefix}num_shots + {prefix}num_queries is {need}, but the task {task!r} of the split {split!r} has "
            f"only {least} {self.rows_are}s in {self.path}{also}. Lower their sum to at most {least}, or leave "
            f"{'these tasks' if others else 'that task'} out: task.min_rows={need}."
        ]

    def _standardise(
        self,
        columns: tuple[list[Column], list[Column]],
        fits: tuple[list[Fit], list[Fit]] | None,
        every: list[TaskRows],
    ) -> None:
        """Measure inputs by the training tasks, and outputs by ``every`` one, also those outside ``train_fraction``."""
        if fits is None:
            if not self.rows["train"]:
                raise DataError(
                    "task.split leaves no training task, and means and deviations are those of the training tasks: evaluate "
                    "a run that has been trained (metarun evaluate RUN ...), or give a split with training tasks."
                )
            by = self.rows["train"], every  # scores of all shares have one unit
            of = (np.concatenate([task.rows for task in tasks]) for tasks in by)
            inputs, outputs = (fit(part, rows, str(self.path)) for part, rows in zip(columns, of, strict=True))
        else:
            inputs, outputs = fits
        self.fits = inputs, outputs
        x, y = (encoded(part, found, self.notes) for part, found in zip(columns, self.fits, strict=True))
        self.x, self.y = (torch.from_numpy(part).to(self.device, self.dtype) for part in (x, y))
        self.spec = TaskSpec((x.shape[1],), len(self.output_columns), SQUARED_ERROR)

    def fitted(self) -> dict[str, Any]:
        inputs, outputs = ([found.plain() for found in part] for part in self.fits)
        return {"inputs": inputs, "outputs": outputs}

    def reader(self) -> TableReader:
        columns = Columns(self.task_column, self.log_columns, self.missing, self.separator, *self.fits)
        return TableReader(self.spec, self.device, self.dtype, columns)

    def draw(self, split: str, indices: Sequence[int] | np.ndarray) -> Draw:
        """Numbers of tasks in the split [B] and of rows below the header, support [B, K] and query [B, Q].

        Of a group there is one row at most: no two rows of it are in the support and in the query. Where the support is
        "first", it is of the first groups, and every query stands below all of it.
        """
        (shots, queries), rows, numbers = self.sizes[split], self.rows[split], np.asarray(indices)
        u = uniform(self.seed, f"csv_regression/{split}", numbers, 1 + shots + queries)
        task = np.floor(len(rows) * u[:, 0]).astype(np.int64)
        counts = np.array([len(of_task) for of_task in rows])[task]
        num_first = shots * (self.support == "first")
        if not num_first:
            places = without_replacement(u[:, 1:], counts)  # [B, K + Q]
        else:
            later = shots + without_replacement(u[:, 1 + shots :], counts - shots)
            places = np.concatenate([np.tile(np.arange(shots), (len(later), 1)), later], 1)
        within = uniform(self.seed, f"csv_regression/{split}/groups", numbers, shots + queries)
        picks = [rows[t].at(at, v, num_first) for t, at, v in zip(task, places, within, strict=True)]
        chosen = np.array(picks).reshape(places.shape)
        return {"task": task, "support": chosen[:, :shots], "query": chosen[:, shots:]}

    def class_names(self, split: str) -> Sequence[str]:
        return self.split[split]

    def drawn_from(self, split: str, draw: Draw) -> Origin:
        return Origin("tasks", [[self.split[split][task]] for task in draw["task"]])

    def episodes(self, draw: Draw) -> Episode:
        def batch(rows: np.ndarray) -> Batch:
            at = torch.from_numpy(rows).to(self.device)
            return Batch(self.x[at], self.y[at])

        return Episode(batch(draw["support"]), batch(draw["query"]))

    def further_scores(self, learner: Any, phi: Params, episode: Episode) -> Metrics:
        """Mean absolute error of each output in its own unit, as ``mae_<column>``."""
        x, y = episode.query[:2]
        outputs, scales = learner.predict(phi, x), self.fits[1]
        error = (outputs - y).abs().mean(0) * y.new_tensor([scale.deviation[0] for scale in scales])
        scores = {f"mae_{name}": value for name, value in zip(self.output_columns, error.unbind(), strict=True)}
        for i, (mean, deviation) in enumerate((scale.mean[0], scale.deviation[0]) for scale in scales):
            if scales[i].log:
                a, b = ((values[:, i] * deviation + mean).exp() for values in (outputs, y))
                scores[f"mae_{self.output_columns[i]}"] = (a - b).abs().mean()
        return scores

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
        labels = (names_of_inputs(self.fits[0])[0], self.output_columns[0])
        return curves(self.episodes(draw), names, joined=False, labels=labels)
