"""How a function of one task is run over a batch of tasks, and a training step with it, as they stand: without a graph."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.func import vmap

from metarun.core import Episode, Metrics, Params
from metarun.execution.failures import missing_derivatives
from metarun.execution.update import Update
from metarun.inner.loops import recomputing
from metarun.models.exact.layers import convolving
from metarun.modes import Convolution
from metarun.trees import slice_tasks, stack, tree_flatten, tree_leaves, tree_map, tree_unflatten, zip_map

TaskFunction = Callable[[Params, Episode], Any]
MetaLoss = Callable[[Params, Episode], tuple[Tensor, Metrics]]
Changes = Literal["never", "seldom", "always"]


@dataclass(frozen=True, eq=False)
class Workload:
    """What a run computes: the meta-gradient of ``loss_fn`` at ``theta`` on meta-batches like ``episodes``, ``steps`` times.

    ``update`` is what a step does with a meta-gradient. ``changes``: ``loss_fn`` is that of the first step, and may be
    another at every step (fresh draws), or seldom (annealing). ``sizes``: how many shapes the meta-batches have.
    """

    loss_fn: MetaLoss
    theta: Params
    episodes: Episode
    update: Update | None = None
    steps: int = 1
    changes: Changes = "never"
    sizes: int = 1

    @property
    def num_tasks(self) -> int:
        """The number of tasks in a meta-batch."""
        return len(tree_leaves(self.episodes)[0])

    @property
    def on_gpu(self) -> bool:
        """Whether theta is on a GPU."""
        return bool(tree_leaves(self.theta)[0].is_cuda)


class Execution(ABC):
    """A way of running a function of one task over a batch of tasks, and of making a training step of a meta-loss."""

    @property
    @abstractmethod
    def eager(self) -> "Eager":
        """This execution without any graph."""

    @abstractmethod
    def map(self, fn: TaskFunction, theta: Params, episodes: Episode) -> Any:
        """fn(theta, episode) for every task; results stacked along a leading task axis."""

    @abstractmethod
    def parts(self, num_tasks: int) -> list[slice]:
        """The groups of tasks whose autograd graphs are alive at the same time."""

    @abstractmethod
    def share(self, loss_fn: MetaLoss, theta: Params, episodes: Episode, num_tasks: int) -> tuple[Params, Metrics]:
        """The share of ``mean_grad`` that one of the ``parts`` of ``num_tasks`` tasks adds."""

    @abstractmethod
    def smaller(self, num_tasks: int) -> "Execution | None":
        """The same with less memory, which may not be enough yet; None where there is nothing left to save."""

    @abstractmethod
    def describe(self) -> str:
        """A short name, for people."""

    def spread(self, jobs: Sequence[Any], work: Callable[[Any], Any]) -> list[Any]:
        """``work(job)`` of each, in their order."""
        return [work(job) for job in jobs]

    def mean_grad(self, loss_fn: MetaLoss, theta: Params, episodes: Episode) -> tuple[Params, Metrics]:
        """Mean over tasks of the gradient of ``loss_fn`` with respect to theta, and of its metrics."""
        num_tasks = len(tree_leaves(episodes)[0])
        total: Any = None
        for part in self.parts(num_tasks):
            share = self.share(loss_fn, theta, slice_tasks(episodes, part), num_tasks)
            total = share if total is None else zip_map(torch.add, total, share)
        return total

    def train_step(self, loss_fn: MetaLoss, theta: Params, episodes: Episode, update: Update) -> Metrics:
        """One step of meta-training: ``update`` theta, whose leaves it holds, by the mean meta-gradient; its metrics."""
        gradient, metrics = self.mean_grad(loss_fn, theta, episodes)
        self.apply(update, tree_leaves(gradient))
        return metrics

    def apply(self, update: Update, gradient: list[Tensor]) -> None:
        """Let ``update`` move theta by the mean meta-gradient."""
        update(gradient)

    def update_in_graph(self, update: Update) -> bool:
        """Whether ``apply`` does nothing but operations on tensors, which a graph can hold."""
        return False

    def rehearse(self, work: Workload) -> None:
        """Compute what a step computes, and change nothing."""
        self.mean_grad(work.loss_fn, work.theta, work.episodes)


@dataclass(frozen=True)
class Eager(Execution):
    """An execution without graphs, and the settings of any.

    ``threads``: of torch on a CPU; ``auto`` leaves them, but ``Auto`` goes down to one where more do not help (small
    kernels on a busy machine wait for their slowest thread).

    ``inner_memory``: ``stored`` keeps every inner step for the backward pass; ``recomputed`` keeps the params between
    steps and runs each step again, exactly the same meta-gradient in memory that hardly grows with ``inner_steps``;
    ``auto`` stores until the device is out of memory.

    ``compile``: one graph for the whole meta-gradient, by torch's compiler; on a GPU for the whole step, clipping and
    optimizer too. ``auto`` compiles where the run is long enough to earn it back, and keeps it if it measures faster.

    ``cuda_graph``: on a GPU, let ``Auto`` try meta-gradients recorded as CUDA graphs, and record what is compiled.

    ``convolution``: see ``metarun.models.exact.layers.Conv2d``; ``auto`` is native on a CPU, and measured on a GPU.
    """

    threads: int | Literal["auto"] = field(default="auto", kw_only=True)
    inner_memory: Literal["stored", "recomputed", "auto"] = field(default="stored", kw_only=True)
    compile: Literal["auto"] | bool = field(default=False, kw_only=True)
    cuda_graph: bool = field(default=True, kw_only=True)
    convolution: Literal["auto"] | Convolution = field(default="auto", kw_only=True)

    def __post_init__(self) -> None:
        if self.threads != "auto" and self.threads < 1:
            raise ValueError(f"execution.threads is {self.threads}; use 1 or more, or auto.")
        if self.compile is True and self.inner_memory == "recomputed":
            raise ValueError(
                "execution.compile=true and execution.inner_memory=recomputed exclude each other: a compiler merges "
                "equal computations, so it would store what is to be recomputed. Set one of them to auto."
            )

    @property
    def eager(self) -> "Eager":
        return self

    @property
    def num_threads(self) -> int:
        """The number of threads that torch is to use; with ``auto`` the one that it uses now."""
        return torch.get_num_threads() if self.threads == "auto" else self.threads

    @property
    def formulation(self) -> Convolution:
        """How convolutions are computed; ``auto`` is native until something else is chosen."""
        return "native" if self.convolution == "auto" else self.convolution

    def candidates(self) -> list["Eager"]:
        """The executions to measure and choose from: itself alone, except of ``Auto``."""
        return [self]

    def share(self, loss_fn: MetaLoss, theta: Params, episodes: Episode, num_tasks: int) -> tuple[Params, Metrics]:
        leaves, spec = tree_flatten(tree_map(lambda p: p.detach().requires_grad_(), theta))
        with recomputing(self.inner_memory == "recomputed"), convolving(self.formulation), missing_derivatives():
            losses, metrics = self.map(loss_fn, tree_unflatten(leaves, spec), episodes)
            grads = torch.autograd.grad(losses.sum() / num_tasks, leaves, materialize_grads=True)
        return tree_unflatten(grads, spec), tree_map(lambda value: value.detach().sum(0) / num_tasks, metrics)

    def describe(self) -> str:
        memory = "_recomputed" if self.inner_memory == "recomputed" else ""
        convolution = "" if self.formulation == "native" else f"_{self.formulation}"
        return type(self).__name__.lower() + convolution + memory

    def settings(self) -> str:
        """The words of a command line that begins with this execution."""
        return f"execution={type(self).__name__.lower()} execution.inner_memory={self.inner_memory}"


@dataclass(frozen=True)
class Chunked(Eager, ABC):
    """All tasks of a chunk in one vectorised call. ``chunk``: tasks at a time; null is the whole meta-batch."""

    chunk: int | None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.chunk is not None and self.chunk < 1:
            raise ValueError(f"execution.chunk is {self.chunk}; use 1 or more, or null for the whole meta-batch.")

    def map(self, fn: TaskFunction, theta: Params, episodes: Episode) -> Any:
        return vmap(fn, in_dims=(None, 0), randomness="different", chunk_size=self.chunk)(theta, episodes)

    def parts(self, num_tasks: int) -> list[slice]:
        size = self.chunk or num_tasks
        return [slice(start, min(start + size, num_tasks)) for start in range(0, num_tasks, size)]

    def smaller(self, num_tasks: int) -> Execution | None:
        size = min(self.chunk or num_tasks, num_tasks)
        # not first: half of the tasks at a time costs less
        if self.inner_memory == "auto" and size < max(2, num_tasks):
            return replace(self, inner_memory="recomputed", compile=False)
        return replace(self, chunk=size // 2) if size > 1 else None

    def settings(self) -> str:
        return f"{super().settings()} execution.chunk={'null' if self.chunk is None else self.chunk}"


@dataclass(frozen=True)
class Vmapped(Chunked):
    """The tasks of a meta-batch vectorised, ``chunk`` at a time."""

    def describe(self) -> str:
        return super().describe().replace("vmapped", f"vmapped_{self.chunk}" if self.chunk else "vmapped")


@dataclass(frozen=True)
class Looped(Eager):
    """One task after the other: least memory, no vectorisation."""

    def map(self, fn: TaskFunction, theta: Params, episodes: Episode) -> Any:
        num_tasks = len(tree_leaves(episodes)[0])
        return stack([fn(theta, slice_tasks(episodes, i)) for i in range(num_tasks)])

    def parts(self, num_tasks: int) -> list[slice]:
        return [slice(i, i + 1) for i in range(num_tasks)]

    def smaller(self, num_tasks: int) -> Eager | None:
        return replace(self, inner_memory="recomputed", compile=False) if self.inner_memory == "auto" else None


@dataclass(frozen=True)
class Auto(Chunked):
    """The fastest of vmapped (whole and in chunks of 8) and looped, once they are timed on the first meta-batch.

    The run stores the choice, so a resumed run keeps it. Before, it is as vmapped.
    """

    def candidates(self) -> list[Eager]:
        shared: dict[str, Any] = {setting.name: getattr(self, setting.name) for setting in fields(Eager)}
        chunks = [None, 8] if self.chunk is None else [self.chunk]
        return [*(Vmapped(chunk, **shared) for chunk in chunks), Looped(**shared)]


def generators_kept() -> Any:
    """A context that leaves torch's generators as they were: measuring and compiling must not move a learner's draws."""
    return torch.random.fork_rng(list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else [])
