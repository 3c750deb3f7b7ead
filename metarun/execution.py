"""How a function of one task is run over a batch of tasks: all at once (vmap), one by one, or whichever is faster."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from metarun.core import Episode, Metrics, Params
from metarun.trees import detach, slice_tasks, stack, tree_flatten, tree_leaves, tree_map, tree_unflatten, zip_map

TaskFunction = Callable[[Params, Episode], Any]
MetaLoss = Callable[[Params, Episode], tuple[Tensor, Metrics]]


class Execution(ABC):
    @abstractmethod
    def map(self, fn: TaskFunction, theta: Params, episodes: Episode) -> Any:
        """fn(theta, episode) for every task; results stacked along a leading task axis."""

    def mean_grad(self, loss_fn: MetaLoss, theta: Params, episodes: Episode) -> tuple[Params, Metrics]:
        """Mean over tasks of the gradient of ``loss_fn`` with respect to theta, and of its metrics."""
        num_tasks = len(tree_leaves(episodes)[0])
        leaves, spec = tree_flatten(tree_map(lambda p: p.detach().requires_grad_(), theta))
        total: list[Tensor] = []
        metrics: list[Metrics] = []
        for part in self.parts(num_tasks):
            losses, values = self.map(loss_fn, tree_unflatten(leaves, spec), slice_tasks(episodes, part))
            grads = torch.autograd.grad(losses.sum() / num_tasks, leaves, materialize_grads=True)
            total = [a + g for a, g in zip(total, grads, strict=True)] if total else list(grads)
            metrics.append(tree_map(lambda value: value.detach().sum(0) / num_tasks, values))
        return tree_unflatten(total, spec), zip_map(lambda *rows: sum(rows), *metrics)

    @abstractmethod
    def parts(self, num_tasks: int) -> list[slice]:
        """The groups of tasks whose graphs are alive at the same time."""

    def settle(self, loss_fn: MetaLoss, theta: Params, episodes: Episode) -> tuple["Execution", dict[str, float]]:
        """The execution to use for the whole run, and the measurements behind the choice (milliseconds by name)."""
        return self, {}

    def chosen(self, name: str) -> "Execution":
        """The execution that ``settle`` returned in an earlier part of the run, by its ``describe()``."""
        return self

    def describe(self) -> str:
        return type(self).__name__.lower()


@dataclass(frozen=True)
class Vmapped(Execution):
    """All tasks of a chunk in one vectorised call. ``chunk``: tasks at a time; null is the whole meta-batch."""

    chunk: int | None

    def describe(self) -> str:
        return f"vmapped_{self.chunk}" if self.chunk else "vmapped"

    def __post_init__(self) -> None:
        if self.chunk is not None and self.chunk < 1:
            raise ValueError(f"execution.chunk is {self.chunk}; use 1 or more, or null for the whole meta-batch.")

    def map(self, fn: TaskFunction, theta: Params, episodes: Episode) -> Any:
        return vmap(fn, in_dims=(None, 0), randomness="different")(theta, episodes)

    def parts(self, num_tasks: int) -> list[slice]:
        size = self.chunk or num_tasks
        return [slice(start, min(start + size, num_tasks)) for start in range(0, num_tasks, size)]


@dataclass(frozen=True)
class Looped(Execution):
    """One task after the other: least memory, no vectorisation."""

    def map(self, fn: TaskFunction, theta: Params, episodes: Episode) -> Any:
        num_tasks = len(tree_leaves(episodes)[0])
        return stack([fn(theta, slice_tasks(episodes, i)) for i in range(num_tasks)])

    def parts(self, num_tasks: int) -> list[slice]:
        return [slice(i, i + 1) for i in range(num_tasks)]


@dataclass(frozen=True)
class Auto(Execution):
    """Times vmapped (whole and in chunks of 8) and looped on the first meta-batch and keeps the fastest.

    The run stores the choice, so a resumed run keeps it.
    """

    chunk: int | None

    def candidates(self) -> list[Execution]:
        chunks = [self.chunk] if self.chunk else [None, 8]
        return [*map(Vmapped, chunks), Looped()]

    def map(self, fn: TaskFunction, theta: Params, episodes: Episode) -> Any:
        return Vmapped(self.chunk).map(fn, theta, episodes)

    def parts(self, num_tasks: int) -> list[slice]:
        return Vmapped(self.chunk).parts(num_tasks)

    def settle(self, loss_fn: MetaLoss, theta: Params, episodes: Episode) -> tuple[Execution, dict[str, float]]:
        timings = {}
        for candidate in self.candidates():
            with torch.random.fork_rng():
                timings[candidate.describe()] = _milliseconds(candidate, loss_fn, detach(theta), episodes)
        return self.chosen(min(timings, key=lambda name: timings[name])), timings

    def chosen(self, name: str) -> Execution:
        return next(candidate for candidate in self.candidates() if candidate.describe() == name)


def _milliseconds(execution: Execution, loss_fn: MetaLoss, theta: Params, episodes: Episode, repeats: int = 3) -> float:
    """Best of ``repeats`` meta-gradients, after one to warm up."""
    best = float("inf")
    for attempt in range(repeats + 1):
        start = time.perf_counter()
        execution.mean_grad(loss_fn, theta, episodes)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start) if attempt else best
    return best * 1e3
