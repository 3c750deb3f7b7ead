"""Classification of arrays of your own, as windows of EEG: a task is one subject (a machine, a site) with all classes.

The .npz file holds x [n, ...], y [n] and the name of each one's task [n]. Classes are the same in all tasks, label i is
class i by name. Inputs are standardised by their second axis (channels, features) over the training tasks alone; a run
keeps mean and deviation, and other files are measured by them when it is evaluated or applied.

N classes, K shots, Q queries, B episodes
"""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metarun.core import Batch, Draw, Episode, Origin, TaskSpec
from metarun.counter import uniform, without_replacement
from metarun.errors import DataError, DataProblems, MissingDataError, listed
from metarun.objectives import CROSS_ENTROPY
from metarun.paths import usable
from metarun.tasks.array_rows import notes_on_names, notes_on_unread, only_task, without_copies
from metarun.tasks.episodes import ordered, rows_of
from metarun.tasks.reading import Examples, Reader, array_inputs, arrays_in, names_in
from metarun.tasks.repeated import keys_of
from metarun.tasks.sizes import Count, EpisodeSize, Sized, Sizes, sizes_by_split, with_ways
from metarun.tasks.splits import SPLITS
from metarun.tasks.table_rows import Choice

logger = logging.getLogger(__name__)


class NpzClassification(Sized):
    """Support x [B, N * K, ...] and query x [B, N * Q, ...], y their classes: different rows of one task, in any order.

    ``fitted``: classes, means and deviations of a run, by which this file is to be measured.
    """

    x: Tensor
    rows: dict[str, list[np.ndarray]]

    def __init__(  # noqa: PLR0913, PLR0917
        self,
        path: str,
        task_array: str,
        val_tasks: Sequence[str | float | bool] | None,
        test_tasks: Sequence[str | float | bool] | None,
        val_share: float,
        test_share: float,
        split_seed: int,
        split: Mapping[str, str] | None,
        num_shots: Count,
        num_queries: Count,
        train_num_shots: Count | None,
        train_num_queries: Count | None,
        seed: int,
        device: torch.device,
        dtype: torch.dtype,
        fitted: Mapping[str, Any] | None = None,
    ) -> None:
        self.path, self.seed, self.device, self.dtype = usable(path, "task.path"), seed, device, dtype
        self.task_array = task_array
        self._read(task_array, (fitted or {}).get("classes"))
        choice = Choice(split, None, val_tasks, test_tasks, (val_share, test_share), split_seed)
        self.split = choice.of_tasks([*self.rows])
        self.splits = tuple(name for name in SPLITS if self.split[name])
        size = len(self.classes), num_shots, num_queries
        self.sizes = sizes_by_split(EpisodeSize, size, None, train_num_shots, train_num_queries)
        if problems := [p for split in self.splits for p in self.lacks(self.sizes, split)]:
            raise DataProblems(problems)
        self.spec = with_ways(TaskSpec(tuple(self.x.shape[1:]), 0, CROSS_ENTROPY), self.sizes)
        self.scale = self._fit(fitted or {})
        self.x = scaled(self.x, self.scale).to(device, dtype)

    def _read(self, task_array: str, classes: Sequence[str] | None) -> None:
        """The inputs x [n, ...], and the rows of each class of each task."""
        if not self.path.is_file():
            raise MissingDataError(f"task.path is {str(self.path)!r}, but there is no such file. Name an .npz file.")
        arrays = arrays_in(self.path, ("x", "y", task_array))
        with np.load(self.path, allow_pickle=False) as file:
            held = file.files
        shapes = {name: arrays[name].shape for name in ("x", "y", task_array)}
        n, *of_one = shapes["x"] or (0,)
        if not (n and of_one and shapes["y"] == shapes[task_array] == (n,)):
            said = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
            raise DataError(f"{self.path} has the shapes {said}, but must have x [n, ...], y [n] and {task_array} [n].")
        y, tasks = (names_in(self.path, arrays[name]) for name in ("y", task_array))
        if gone := np.flatnonzero((y == "") | (tasks == "")).tolist():
            raise DataError(
                f"{self.path}: rows without a class or a task: {listed([*map(str, gone)])}. Leave them out."
            )
        self.classes = sorted({*y})
        if len(self.classes) < 2:
            raise DataError(
                f"{self.path} holds the class {self.classes[0]!r} alone, but with one class every answer is right."
            )
        if classes is not None and self.classes != [*classes]:
            raise ValueError(
                f"{self.path} has the classes {listed(self.classes)}; the run learned {listed([*classes])}."
            )
        try:
            self.x = array_inputs(
                arrays["x"], TaskSpec(tuple(of_one), 0, CROSS_ENTROPY), torch.device("cpu"), self.dtype
            )
        except DataError as error:
            raise DataError(f"{self.path}: {error}") from error
        kept, notes = without_copies(keys_of(self.x), tasks.tolist(), y.tolist())
        self.num_copies = int((~kept).sum())
        self.rows = {
            t: [np.flatnonzero((tasks == t) & (y == c) & kept) for c in self.classes] for t in sorted({*tasks})
        }
        self.sha256 = hashlib.sha256(self.path.read_bytes()).hexdigest()
        notes = [*notes_on_unread(held, ("x", "y", task_array)), *notes, *notes_on_names(self.rows, self.classes)]
        for note in notes:
            logger.info("%s", f"{self.path}: {note}")

    def lacks(self, sizes: Sizes[EpisodeSize], split: str) -> list[str]:
        """A problem where tasks of the split have too few examples of a class for these sizes."""
        need = sizes[split].num_shots + sizes[split].num_queries
        prefix = "task." if sizes[split] == sizes["test"] else "task.train_"
        small = sorted(
            (len(rows), task, name)
            for task in self.split[split]
            for name, rows in zip(self.classes, self.rows[task], strict=True)
            if len(rows) < need
        )
        said = listed([f"{task!r} has {count} of {name!r}" for count, task, name in small])
        rule = f"Lower their sum to at most {small[0][0]}, or leave out such tasks or classes." if small else ""
        return [f"{prefix}num_shots + {prefix}num_queries is {need}, but in {split} {said}. {rule}"] if small else []

    def _fit(self, fitted: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Mean and deviation of each channel [1, C, 1, ...]."""
        if "classes" in fitted:
            shape = (1, -1, *[1] * (self.x.ndim - 2))
            mean, deviation = (torch.tensor(fitted[name]).view(shape) for name in ("mean", "deviation"))
            if mean.shape[1] != self.x.shape[1]:
                raise ValueError(
                    f"{self.path}: x {list(self.x.shape)} must have the {mean.shape[1]} channels of the run."
                )
            return mean, deviation
        if not self.split["train"]:
            raise DataError(
                "task.split leaves no training task to standardise by: evaluate a run that has been trained."
            )
        train = np.concatenate([rows for task in self.split["train"] for rows in self.rows[task]])
        axes = (0, *range(2, self.x.ndim))
        deviation, mean = torch.std_mean(self.x[train].double(), axes, correction=0, keepdim=True)
        return mean.float(), deviation.where(deviation > 0, 1).float()

    def fitted(self) -> dict[str, Any]:
        mean, deviation = (part.flatten().tolist() for part in self.scale)
        return {"classes": self.classes, "mean": mean, "deviation": deviation}

    def reader(self) -> "ScaledReader":
        return ScaledReader(self.spec, self.device, self.dtype, self.scale, self.task_array)

    def draw(self, split: str, indices: Sequence[int] | np.ndarray) -> Draw:
        """Tasks [B], and rows: support [B, N, K] and query [B, N, Q], with their orders."""
        size, names, stream = self.sizes[split], self.split[split], f"npz_classification/{split}"
        each = size.num_shots + size.num_queries
        u = uniform(self.seed, stream, np.asarray(indices), 1 + size.num_ways * each)
        task = np.floor(len(names) * u[:, 0]).astype(np.int64)
        rows = [self.rows[names[t]] for t in task]
        counts = np.array([[len(of_class) for of_class in of_task] for of_task in rows]).reshape(-1, size.num_ways)
        ranks = without_replacement(u[:, 1:].reshape(-1, size.num_ways, each), counts)
        picks = [[of_class[r] for of_class, r in zip(*pair, strict=True)] for pair in zip(rows, ranks, strict=True)]
        chosen = np.array(picks, dtype=np.int64).reshape(ranks.shape)
        draw = {"task": task, "support": chosen[..., : size.num_shots], "query": chosen[..., size.num_shots :]}
        return ordered(draw, self.seed, stream, indices)

    def episodes(self, draw: Draw) -> Episode:
        def batch(part: str) -> Batch:
            rows, labels = (torch.from_numpy(of).to(self.device) for of in rows_of(draw, part))
            return Batch(self.x[rows], labels)

        return Episode(batch("support"), batch("query"))

    def class_names(self, split: str) -> Sequence[str]:
        return self.split[split]

    def drawn_from(self, split: str, draw: Draw) -> Origin:
        return Origin("tasks", [[self.split[split][task]] for task in draw["task"]])

    def fingerprint(self) -> str:
        sizes = ", ".join(f"{len(self.split[name])} {name}" for name in SPLITS)
        copies = f", without {self.num_copies} copies" if self.num_copies else ""
        return f"npz_classification: sha256 {self.sha256}, {sizes} tasks{copies}"


def scaled(x: Tensor, scale: tuple[Tensor, Tensor]) -> Tensor:
    """Inputs x [n, C, ...] less their mean, in units of their deviation."""
    mean, deviation = (part.to(x) for part in scale)
    return (x - mean) / deviation


class ScaledReader(Reader):
    """Takes arrays in the model's shape, in the user's own units; a file's array ``task_array`` may name their task."""

    def __init__(
        self,
        spec: TaskSpec,
        device: torch.device,
        dtype: torch.dtype,
        scale: tuple[Tensor, Tensor],
        task_array: str,
    ) -> None:
        super().__init__(spec, device, dtype)
        self.scale, self.task_array = scale, task_array

    def noted(self, examples: Any) -> tuple[Tensor, Sequence[str]]:
        return scaled(array_inputs(examples, self.spec, self.device, self.dtype), self.scale), ()

    def read(self, path: Path, labelled: bool) -> Examples:
        found = super().read(path, labelled)
        return found._replace(task=only_task(path, self.task_array))

    def examples(self, path: Path, labelled: bool) -> Examples:
        raise DataError(f"{path} cannot be read: this run was trained on arrays, so name {self.takes}.")
