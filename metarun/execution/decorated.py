"""Executions around another one, parts of which they compute by graphs, and where they keep these."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from metarun.core import Episode, Metrics, Params
from metarun.errors import MetarunError
from metarun.execution.execution import Eager, Execution, MetaLoss, TaskFunction, Workload, generators_kept
from metarun.execution.update import Update
from metarun.models.dropout import current_step
from metarun.trees import tree_flatten, tree_unflatten

Graph = Callable[[list[Tensor]], Any]


class GraphFailed(MetarunError):
    """A graph that could not be traced, compiled or recorded; the message says why in a line."""

    def __init__(self, what: str, error: Exception, fix: str = "") -> None:
        reason = next(iter(str(error).strip().splitlines()), "no message")
        super().__init__(f"{what}: {type(error).__name__}: {reason[:200]}{fix}")


class GraphCache:
    """The graphs that were made so far, each of one function and for tensors of certain shapes."""

    def __init__(self) -> None:
        self.graphs: list[tuple[tuple[Any, ...], Graph]] = []  # a list, for a learner in a key may have no hash

    def __reduce__(self) -> Any:
        return GraphCache, ()  # a graph is of the process that made it

    def graph(self, function: tuple[Any, ...], leaves: list[Tensor], make: Callable[[], Graph]) -> Graph:
        """The graph of what ``function`` names, for tensors like ``leaves``; the first call for it is ``make``."""
        key = (*function, *((leaf.shape, leaf.stride(), leaf.dtype, leaf.device) for leaf in leaves))
        graph = next((graph for known, graph in self.graphs if known == key), None)
        if graph is None:
            with generators_kept():  # tracing draws too, and a resumed run traces at another step
                graph = make()
            self.graphs.append((key, graph))
        return graph


@dataclass(frozen=True)
class Decorated(Execution):
    """``inner``, of which a part is computed by graphs. Everything else (evaluation, calibration) runs as ``inner`` does."""

    inner: Execution

    @property
    def eager(self) -> Eager:
        return self.inner.eager

    def map(self, fn: TaskFunction, theta: Params, episodes: Episode) -> Any:
        return self.inner.map(fn, theta, episodes)

    def parts(self, num_tasks: int) -> list[slice]:
        return self.inner.parts(num_tasks)

    def share(self, loss_fn: MetaLoss, theta: Params, episodes: Episode, num_tasks: int) -> tuple[Params, Metrics]:
        return self.inner.share(loss_fn, theta, episodes, num_tasks)

    def smaller(self, num_tasks: int) -> Execution | None:
        smaller = self.inner.smaller(num_tasks)
        if smaller is None or smaller.eager.inner_memory == "recomputed":
            return smaller
        return replace(self, inner=smaller)

    def update_in_graph(self, update: Update) -> bool:
        return self.inner.update_in_graph(update)

    def apply(self, update: Update, gradient: list[Tensor]) -> None:
        self.inner.apply(update, gradient)

    def train_step(self, loss_fn: MetaLoss, theta: Params, episodes: Episode, update: Update) -> Metrics:
        if self.update_in_graph(update):
            if not update.begun():  # its first step makes its memory
                return self.inner.train_step(loss_fn, theta, episodes, update)
            update.follow_rates()
        return super().train_step(loss_fn, theta, episodes, update)

    def rehearse(self, work: Workload) -> None:
        if work.update is None or not self.update_in_graph(work.update):
            super().rehearse(work)
        else:
            theta = tree_unflatten(work.update.stand_in.leaves, tree_flatten(work.theta)[1])
            self.train_step(work.loss_fn, theta, work.episodes, work.update.stand_in)

    def release(self) -> None:
        """Let go of graphs that keep memory; they are made again when they are needed."""


def dependencies(loss_fn: MetaLoss) -> tuple[Any, ...]:
    """The things besides shapes that a graph depends on: an annealed learner is not another step's, nor are masks."""
    return getattr(loss_fn, "__self__", loss_fn), current_step()
