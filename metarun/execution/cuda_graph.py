"""Meta-gradients and whole steps on a GPU, recorded once as CUDA graphs and then launched by one call."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import cache, partial, reduce
from typing import Any

import torch
from torch import Tensor

from metarun.core import Episode, Metrics, Params
from metarun.execution.decorated import Decorated, GraphCache, GraphFailed, dependencies
from metarun.execution.execution import MetaLoss
from metarun.execution.update import Update
from metarun.trees import by_dtype, slice_tasks, tree_flatten, tree_leaves, tree_map, tree_unflatten, zip_map

STREAMS = 4  # parts of a meta-batch that a recording runs side by side


@dataclass(frozen=True)
class CudaGraphed(Decorated):
    """``inner``, with its meta-gradient recorded as a CUDA graph, and the update too where ``inner`` has it in a graph.

    On a CPU it is ``inner``.
    """

    cache: GraphCache = field(default_factory=GraphCache, init=False, repr=False, compare=False)

    def describe(self) -> str:
        return f"{self.inner.describe()}_recorded"

    def mean_grad(self, loss_fn: MetaLoss, theta: Params, episodes: Episode) -> tuple[Params, Metrics]:
        if not _on_gpu((theta, episodes)):
            return self.inner.mean_grad(loss_fn, theta, episodes)
        fn = partial(self._mean_grad, loss_fn)
        return self._recording(("gradient", *dependencies(loss_fn)), fn, nullcontext(), theta, episodes)()

    def train_step(self, loss_fn: MetaLoss, theta: Params, episodes: Episode, update: Update) -> Metrics:
        if not (self.update_in_graph(update) and update.begun() and _on_gpu(episodes)):
            return super().train_step(loss_fn, theta, episodes, update)

        def step(episodes: Episode) -> Metrics:
            gradient, metrics = self._mean_grad(loss_fn, theta, episodes)
            self.apply(update, tree_leaves(gradient))
            return metrics

        update.follow_rates()  # a recording reads them where they are, as it does theta and the optimizer's memory
        replay = self._recording(("step", update, *dependencies(loss_fn)), step, update.undone(), episodes)
        update.begins()
        return replay()

    def release(self) -> None:
        self.cache.graphs.clear()

    def _mean_grad(self, loss_fn: MetaLoss, theta: Params, episodes: Episode) -> tuple[Params, Metrics]:
        """The mean meta-gradient that ``inner`` gives, with the parts of the meta-batch side by side."""
        num_tasks = len(tree_leaves(episodes)[0])
        parts = self.parts(num_tasks)
        if len(parts) == 1:
            return self.inner.mean_grad(loss_fn, theta, episodes)
        return sum_abreast(partial(self.share, loss_fn, theta, slice_tasks(episodes, p), num_tasks) for p in parts)

    def _recording(
        self, function: tuple[Any, ...], fn: Callable[..., Any], undone: AbstractContextManager[None], *arguments: Any
    ) -> Callable[[], Any]:
        """A call that replays fn(*arguments). Recording calls ``fn`` within ``undone``, which takes back what it does."""

        def record() -> Recorded:
            self.release()  # each recording keeps its memory
            try:
                with undone:
                    return Recorded(fn, arguments)
            except (torch.OutOfMemoryError, GraphFailed):
                raise
            except Exception as error:  # a kernel that waits for the CPU, say; torch has no error of its own for it
                fix = "; execution.cuda_graph=false does not try"
                raise GraphFailed("not recorded as a CUDA graph", error, fix) from error

        leaves = [leaf.detach() for leaf in tree_leaves(arguments)]
        return partial(self.cache.graph(function, leaves, record), leaves)


def _on_gpu(tensors: Any) -> bool:
    return all(leaf.is_cuda for leaf in tree_leaves(tensors))


class Recorded:
    """``fn(*arguments)``, whose kernels must depend on the shapes of ``arguments`` alone; made, it has been called once."""

    def __init__(self, fn: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        leaves, structure = tree_flatten(arguments)
        self.inputs = [leaf.detach().clone() for leaf in leaves]
        mine = tree_unflatten(self.inputs, structure)
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        try:
            with torch.cuda.stream(aside):
                fn(*mine)  # libraries load and kernels compile on a first call, which cannot be recorded
        finally:
            torch.cuda.current_stream().wait_stream(aside)
        self.graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
        device, stream, error = torch.cuda.current_device(), torch.cuda.current_stream(), None
        try:
            # episodes are drawn in another thread meanwhile, which may allocate
            with torch.cuda.graph(self.graph, pool, aside, capture_error_mode="thread_local"):
                try:
                    self.result = fn(*mine)
                except Exception as first:  # what torch raises at the end of a broken recording hides it
                    error = first
                    raise
        except Exception as last:
            recover(device, stream, pool)
            try:
                raise error or last from None
            finally:
                error = None  # it holds this frame, which would hold it, and the memory of both

    def __call__(self, leaves: list[Tensor]) -> Any:
        """The result for arguments with these leaves, of the shapes that were recorded; it is a copy."""
        for mine, given in by_dtype(self.inputs, leaves):
            torch._foreach_copy_(mine, given)
        self.graph.replay()
        return tree_map(torch.clone, self.result)  # the next call writes over it


def recover(device: int, stream: torch.cuda.Stream, pool: Any) -> None:
    """Undo what a recording that failed leaves behind: its stream, its memory pool and its hold on torch's generator."""
    torch.cuda.set_stream(stream)
    with suppress(Exception):  # private, and in newer torch done already
        torch._C._cuda_endAllocateToPool(device, pool)
    generator = torch.cuda.default_generators[device]
    generator.graphsafe_set_state(generator.clone_state())


@cache
def side_streams(device: int) -> list[torch.cuda.Stream]:
    """The same ones each time: cuBLAS keeps tens of megabytes for every stream that it has seen."""
    return [torch.cuda.Stream(device) for _ in range(STREAMS)]


def sum_abreast(calls: Iterator[Callable[[], Any]]) -> Any:
    """The sum of the trees that the calls return, run on a few streams, so that small kernels fill the GPU together."""
    current, streams = torch.cuda.current_stream(), side_streams(torch.cuda.current_device())
    totals: list[Any] = []
    for i, call in enumerate(calls):
        stream = streams[i % STREAMS]
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            share = call()
            if i < STREAMS:
                totals.append(share)
            else:
                totals[i % STREAMS] = zip_map(torch.add, totals[i % STREAMS], share)
    for stream in streams[: len(totals)]:
        current.wait_stream(stream)
    return reduce(partial(zip_map, torch.add), totals)
