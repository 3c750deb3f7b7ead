"""How a function of one task is run over a batch of tasks: all at once (vmap), one by one, or whichever is faster."""

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.func import vmap

from metarun.adaptation import recomputing
from metarun.checkpoint import write_json
from metarun.core import Episode, Metrics, Params
from metarun.models.layers import convolving
from metarun.trees import detach, slice_tasks, stack, tree_flatten, tree_leaves, tree_map, tree_unflatten, zip_map

TaskFunction = Callable[[Params, Episode], Any]
MetaLoss = Callable[[Params, Episode], tuple[Tensor, Metrics]]

MEASURE_SECONDS = 0.4  # of repeated meta-gradients for each candidate, once warm
COMPILE_SECONDS = 60.0  # what a first compilation may cost
OVERHEAD_MS = 50.0  # on a CPU, a slower meta-gradient is spent in kernels that compiling does not speed up


@dataclass(frozen=True)
class Execution(ABC):
    """``threads``: of torch on a CPU; ``auto`` leaves them, but ``Auto`` goes down to one where more do not help (small
    kernels on a busy machine wait for their slowest thread).

    ``inner_memory``: ``stored`` keeps every inner step for the backward pass; ``recomputed`` keeps the params between
    steps and runs each step again, exactly the same meta-gradient in memory that hardly grows with ``inner_steps``;
    ``auto`` stores until the device is out of memory.

    ``compile``: one graph for the whole meta-gradient, by torch.compile, and with ``cuda_graph`` replayed as a CUDA graph;
    ``auto`` compiles where the run is long enough to earn it back, and keeps it if it measures faster.

    ``convolution``: see ``metarun.models.layers.Conv2d``; ``auto`` is native on a CPU, and measured on a GPU.
    """

    threads: int | Literal["auto"] = field(default="auto", kw_only=True)
    inner_memory: Literal["stored", "recomputed", "auto"] = field(default="stored", kw_only=True)
    compile: Literal["auto"] | bool = field(default=False, kw_only=True)
    cuda_graph: bool = field(default=True, kw_only=True)
    convolution: Literal["auto", "native", "slices"] = field(default="auto", kw_only=True)

    def __post_init__(self) -> None:
        if self.threads != "auto" and self.threads < 1:
            raise ValueError(f"execution.threads is {self.threads}; use 1 or more, or auto.")
        if self.compile is True and self.inner_memory == "recomputed":
            raise ValueError(
                "execution.compile=true and execution.inner_memory=recomputed exclude each other: a compiler merges "
                "equal computations, so it would store what is to be recomputed. Set one of them to auto."
            )

    @abstractmethod
    def map(self, fn: TaskFunction, theta: Params, episodes: Episode) -> Any:
        """fn(theta, episode) for every task; results stacked along a leading task axis."""

    @abstractmethod
    def parts(self, num_tasks: int) -> list[slice]:
        """The groups of tasks whose graphs are alive at the same time."""

    @abstractmethod
    def smaller(self, num_tasks: int) -> "Execution | None":
        """The same with less memory; None where there is nothing left to save."""

    def candidates(self) -> list["Execution"]:
        return [self]

    def mean_grad(self, loss_fn: MetaLoss, theta: Params, episodes: Episode) -> tuple[Params, Metrics]:
        """Mean over tasks of the gradient of ``loss_fn`` with respect to theta, and of its metrics."""
        num_tasks = len(tree_leaves(episodes)[0])
        leaves, spec = tree_flatten(tree_map(lambda p: p.detach().requires_grad_(), theta))
        total: list[Tensor] = []
        metrics: list[Metrics] = []
        with recomputing(self.inner_memory == "recomputed"), convolving("slices" if self.sliced else "native"):
            for part in self.parts(num_tasks):
                losses, values = self.map(loss_fn, tree_unflatten(leaves, spec), slice_tasks(episodes, part))
                grads = torch.autograd.grad(losses.sum() / num_tasks, leaves, materialize_grads=True)
                total = [a + g for a, g in zip(total, grads, strict=True)] if total else list(grads)
                metrics.append(tree_map(lambda value: value.detach().sum(0) / num_tasks, values))
        return tree_unflatten(total, spec), zip_map(lambda *rows: sum(rows), *metrics)

    def describe(self) -> str:
        """A name from which ``named`` makes the same execution again."""
        memory = "_recomputed" if self.inner_memory == "recomputed" else ""
        return type(self).__name__.lower() + ("_slices" if self.sliced else "") + memory

    @property
    def sliced(self) -> bool:
        return self.convolution == "slices"


@dataclass(frozen=True)
class Vmapped(Execution):
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
        if self.inner_memory == "auto":
            return replace(self, inner_memory="recomputed")
        size = min(self.chunk or num_tasks, num_tasks)
        return replace(self, chunk=size // 2) if size > 1 else None

    def describe(self) -> str:
        return super().describe().replace("vmapped", f"vmapped_{self.chunk}" if self.chunk else "vmapped")


@dataclass(frozen=True)
class Looped(Execution):
    """One task after the other: least memory, no vectorisation."""

    def map(self, fn: TaskFunction, theta: Params, episodes: Episode) -> Any:
        num_tasks = len(tree_leaves(episodes)[0])
        return stack([fn(theta, slice_tasks(episodes, i)) for i in range(num_tasks)])

    def parts(self, num_tasks: int) -> list[slice]:
        return [slice(i, i + 1) for i in range(num_tasks)]

    def smaller(self, num_tasks: int) -> Execution | None:
        return replace(self, inner_memory="recomputed") if self.inner_memory == "auto" else None


@dataclass(frozen=True)
class Auto(Execution):
    """Times vmapped (whole and in chunks of 8) and looped on the first meta-batch and keeps the fastest.

    The run stores the choice, so a resumed run keeps it.
    """

    chunk: int | None

    def candidates(self) -> list[Execution]:
        shared: dict[str, Any] = {"threads": self.threads, "inner_memory": self.inner_memory}
        shared |= {"compile": self.compile, "cuda_graph": self.cuda_graph, "convolution": self.convolution}
        chunks = [self.chunk] if self.chunk else [None, 8]
        return [*(Vmapped(chunk, **shared) for chunk in chunks), Looped(**shared)]

    def map(self, fn: TaskFunction, theta: Params, episodes: Episode) -> Any:
        return self.candidates()[0].map(fn, theta, episodes)

    def parts(self, num_tasks: int) -> list[slice]:
        return self.candidates()[0].parts(num_tasks)

    def smaller(self, num_tasks: int) -> Execution | None:
        return self.candidates()[0].smaller(num_tasks)


@dataclass
class Choice:
    """What ``settle`` decided: the execution, the milliseconds a meta-gradient of each candidate took, and why."""

    execution: Execution
    milliseconds: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def write(self, path: Path) -> None:
        """Keep the choice, with torch's number of threads, for ``stored``."""
        facts = {"chosen": self.execution.describe(), "threads": torch.get_num_threads()}
        write_json(path, {**facts, "milliseconds": self.milliseconds, "notes": self.notes})


def stored(path: Path, like: Execution) -> Execution:
    """The execution that a choice written to ``path`` names, with its number of threads set; ``like`` without a file."""
    if not path.is_file():
        return like
    facts = json.loads(path.read_text())
    torch.set_num_threads(facts["threads"])
    return named(facts["chosen"], like)


def settle(execution: Execution, loss_fn: MetaLoss, theta: Params, episodes: Episode, steps: int) -> Choice:
    """Choose, by measuring on one meta-batch, what a run of ``steps`` steps will use throughout."""
    if execution.threads != "auto":
        torch.set_num_threads(execution.threads)
    theta, num_tasks = detach(theta), len(tree_leaves(episodes)[0])
    candidates = execution.candidates()
    if tree_leaves(theta)[0].is_cuda and execution.convolution == "auto":
        candidates = [replace(c, convolution=how) for c in candidates for how in ("slices", "native")]
    if len(candidates) == 1 and execution.compile is False:
        return Choice(execution)
    # a chunk of 8 is the whole of a smaller meta-batch: keep the first of candidates that group the tasks alike
    distinct = {(type(c), c.sliced, str(c.parts(num_tasks))): c for c in reversed(candidates)}
    timings = _interleaved(list(distinct.values()), _thread_counts(execution, theta), loss_fn, theta, episodes)
    if not timings:
        return Choice(candidates[-1], notes=["none of the candidates fits into the device's memory as it is"])
    best, threads = _preferred(timings)
    torch.set_num_threads(threads)
    milliseconds = {c.describe(): min(ms for (other, _), ms in timings.items() if other == c) for c, _ in timings}
    choice = Choice(best, milliseconds | {best.describe(): timings[best, threads]}, [f"threads: {threads}"])
    choice.notes += [f"out of memory: {c.describe()}" for c in distinct.values() if c.describe() not in milliseconds]
    if execution.compile is not False:
        _consider_compiling(choice, loss_fn, theta, episodes, steps)
    return choice


def _thread_counts(execution: Execution, theta: Params) -> list[int]:
    """One thread is worth a try where torch would use several: small kernels do not gain from more."""
    threads = torch.get_num_threads()
    on_cpu = tree_leaves(theta)[0].device.type == "cpu"
    return [threads] if execution.threads != "auto" or threads == 1 or not on_cpu else [threads, 1]


def _preferred(timings: dict[tuple[Execution, int], float]) -> tuple[Execution, int]:
    """The fastest; with one thread unless several are more than 10% faster, for a machine may be busier later."""
    fastest = min(timings, key=lambda key: timings[key])
    alone = min((key for key in timings if key[1] == 1), key=lambda key: timings[key], default=fastest)
    return alone if timings[alone] < 1.1 * timings[fastest] else fastest


def named(name: str, like: Execution) -> Execution:
    """The execution that ``describe`` called ``name``, with the other settings of ``like``."""
    kind, *rest = name.split("_")
    memory: Any = "recomputed" if "recomputed" in rest else like.inner_memory
    shared: dict[str, Any] = {"threads": like.threads, "inner_memory": memory, "cuda_graph": like.cuda_graph}
    shared["convolution"] = "slices" if "slices" in rest else like.convolution
    if kind == "auto":
        return like
    chunk = next((int(word) for word in rest if word.isdigit()), None)
    execution = Looped(**shared) if kind == "looped" else Vmapped(chunk, **shared)
    if "compiled" in rest:
        from metarun.engine import Compiled

        return Compiled(execution)
    return execution


def _consider_compiling(choice: Choice, loss_fn: MetaLoss, theta: Params, episodes: Episode, steps: int) -> None:
    """Replace the choice by its compiled form where that is asked for, or earns its time back and measures faster."""
    from metarun.engine import CompilationFailed, Compiled

    eager, milliseconds = choice.execution, choice.milliseconds[choice.execution.describe()]
    seconds = steps * milliseconds / 1e3
    on_gpu = tree_leaves(theta)[0].is_cuda
    if eager.compile == "auto":
        if eager.inner_memory == "recomputed":
            return choice.notes.append(
                "not compiled: a compiler would store what inner_memory=recomputed computes again"
            )
        if seconds < 2 * COMPILE_SECONDS:
            return choice.notes.append(f"not compiled: {seconds:.0f} s of steps do not earn a compilation back")
        if milliseconds > OVERHEAD_MS and not on_gpu:
            return choice.notes.append(f"not compiled: at {milliseconds:.0f} ms a step the time goes into CPU kernels")
    compiled = Compiled(eager)
    start = time.perf_counter()
    try:
        with generators_kept():
            compiled.mean_grad(loss_fn, theta, episodes)
    except CompilationFailed as error:
        return choice.notes.append(f"not compiled: {error}")
    choice.notes.append(f"compiled in {time.perf_counter() - start:.0f} s")
    threads = torch.get_num_threads()
    timings = _interleaved([compiled], [threads], loss_fn, theta, episodes)
    if not timings:
        return choice.notes.append("not compiled: the compiled graph runs out of memory")
    timing = choice.milliseconds[compiled.describe()] = timings[compiled, threads]
    if eager.compile is True or timing < milliseconds:
        choice.execution = compiled
    else:
        choice.notes.append("the compiled graph is not faster and is not used")
    return None


def _interleaved(
    candidates: list[Execution], thread_counts: list[int], loss_fn: MetaLoss, theta: Params, episodes: Episode
) -> dict[tuple[Execution, int], float]:
    """Best milliseconds of each candidate with each number of threads, in turns: a busy machine slows all alike.

    A candidate that does not fit into the device's memory is left out.
    """
    best = {(candidate, threads): float("inf") for candidate in candidates for threads in thread_counts}
    rounds, start = 0, 0.0
    with generators_kept():
        while rounds < 3 or (rounds < 50 and time.perf_counter() - start < MEASURE_SECONDS * len(best)):
            for (candidate, threads), milliseconds in list(best.items()):
                torch.set_num_threads(threads)
                try:
                    seconds = _seconds(candidate, loss_fn, theta, episodes)
                except torch.OutOfMemoryError:
                    del best[candidate, threads]
                    continue
                if rounds:  # the first round warms up
                    best[candidate, threads] = min(milliseconds, seconds * 1e3)
            rounds += 1
            start = start or time.perf_counter()
    return best


def generators_kept() -> Any:
    """A context that leaves torch's generators as they were: measuring and compiling must not move a learner's draws."""
    return torch.random.fork_rng(list(range(torch.cuda.device_count())))


def _seconds(execution: Execution, loss_fn: MetaLoss, theta: Params, episodes: Episode) -> float:
    start = time.perf_counter()
    execution.mean_grad(loss_fn, theta, episodes)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start
