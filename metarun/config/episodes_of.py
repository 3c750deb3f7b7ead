"""The episodes of a task distribution of somebody else: numbered as metarun needs them, and of the shapes that it says."""

from typing import Any

import torch
from torch import Tensor

from metarun.config.returned import is_foreign
from metarun.config.targets import raised
from metarun.core import Batch, Episode, TaskDistribution, TaskSpec
from metarun.errors import ConfigError, DataError, MetarunError
from metarun.objectives import CROSS_ENTROPY, SQUARED_ERROR
from metarun.trees import slice_tasks, tree_leaves

NUMBERS = (0, 1, 2)
FIX = "A draw follows from the seed, the split and the number alone: take metarun.counter.uniform(seed, split, indices, n)."


def check_episodes(task: TaskDistribution) -> None:
    """Raise ConfigError where a task of somebody else does not draw numbered episodes, or draws what its spec does not say.

    The test split is left alone, for nothing reads it before the final test.
    """
    if not is_foreign(task):
        return
    for split in task.splits:
        if split == "test":
            continue
        try:
            problem = _problem_of(task.at(split, 0), split)
        except (MetarunError, DataError):
            raise
        except Exception as error:  # of somebody's code: where it was raised is what he must know
            problem = f"{raised(error)}."
        if problem:
            raise ConfigError([f"task: episodes of {type(task).__name__}, split {split}: {problem}"])


def _problem_of(task: TaskDistribution, split: str) -> str:
    """What is wrong with the first episodes of ``split``; empty where nothing is."""
    together = task.sample(split, NUMBERS)
    if problem := _problem(together, task.spec, split):
        return problem
    for others in (NUMBERS, NUMBERS[:0:-1]):  # drawn again; in other company
        again = task.sample(split, others)
        if not all(_same(slice_tasks(again, i), slice_tasks(together, number)) for i, number in enumerate(others)):
            what = "they are others each time they are drawn, or beside others, so no run could be repeated or resumed."
            return f"{what} {FIX}"
    return ""


def _same(one: Any, other: Any) -> bool:
    return all(map(torch.equal, tree_leaves(one), tree_leaves(other)))


def _problem(episodes: Episode, spec: TaskSpec, split: str) -> str:
    """What is wrong with a batch of episodes; empty where nothing is, or where they are no labelled examples."""
    ways = spec.train_num_ways if split == "train" else spec.num_ways
    for name, batch in (("support", episodes.support), ("query", episodes.query)):
        if not isinstance(batch, Batch):
            continue
        targets = _of_targets(batch.y, spec) if ways is None else _of_labels(batch.y, spec, ways)
        if problem := _of_examples(batch.x, batch.y, spec) or targets:
            return f"{name}{problem}"
    return ""


def _of_examples(x: Tensor, y: Tensor, spec: TaskSpec) -> str:
    if len(x) != len(NUMBERS):
        return f".x of {len(NUMBERS)} episodes has the shape {[*x.shape]}, but must lead with the task axis."
    if [*x.shape[2:]] != [*spec.input_shape]:
        return f".x of a task has the shape {[*x.shape[1:]]}, but spec.input_shape is {[*spec.input_shape]}."
    if y.shape[:2] != x.shape[:2]:
        return f" has {[*x.shape[:2]]} inputs and {[*y.shape[:2]]} targets (tasks, examples)."
    finite = bool(x.isfinite().all()) and bool(y.isfinite().all())
    return "" if finite else " holds numbers that are not finite."


def _of_targets(y: Tensor, spec: TaskSpec) -> str:
    wanted = f"[examples, {spec.num_outputs}] (spec.num_outputs)"
    if spec.objective is not SQUARED_ERROR:
        return ""
    right = y.ndim == 3 and y.shape[2] == spec.num_outputs
    return "" if right else f".y of a task has the shape {[*y.shape[1:]]}, but must have {wanted}."


def _of_labels(y: Tensor, spec: TaskSpec, ways: int) -> str:
    if spec.objective is not CROSS_ENTROPY:
        return ""
    if y.ndim != 2 or y.dtype != torch.int64:
        kind = f"{str(y.dtype).removeprefix('torch.')} of the shape {[*y.shape[1:]]}"
        return f".y of a task is {kind}, but classes are int64 of the shape [examples]: y.long()."
    lowest, highest = int(y.min()), int(y.max())
    return (
        "" if 0 <= lowest <= highest < ways else f".y has labels {lowest} to {highest}, but must have 0 to {ways - 1}."
    )
