"""A function of tensors on a GPU, recorded once as a CUDA graph and then launched by one call."""

from collections.abc import Callable, Iterator
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor

from metarun.trees import by_dtype, tree_flatten, tree_unflatten, zip_map

STREAMS = 4  # parts of a meta-batch that a recording runs side by side


class Recorded:
    """``fn(*arguments)``, whose kernels must depend on the shapes of ``arguments`` alone; made, it has been called once.

    What a call returns is overwritten by the next.
    """

    def __init__(self, fn: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        leaves, structure = tree_flatten(arguments)
        self.inputs = [leaf.detach().clone() for leaf in leaves]
        mine = tree_unflatten(self.inputs, structure)
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            fn(*mine)  # libraries load and kernels compile on a first call, which cannot be recorded
        torch.cuda.current_stream().wait_stream(aside)
        self.graph = torch.cuda.CUDAGraph()
        # episodes are drawn in another thread meanwhile, which may allocate
        try:
            with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
                self.result = fn(*mine)
        except Exception:  # torch's generator goes on as if it were recorded, and refuses to draw
            generator = torch.cuda.default_generators[torch.cuda.current_device()]
            generator.graphsafe_set_state(generator.clone_state())
            raise

    def __call__(self, leaves: list[Tensor]) -> Any:
        for mine, given in by_dtype(self.inputs, leaves):
            torch._foreach_copy_(mine, given)
        self.graph.replay()
        return self.result


def sum_abreast(calls: Iterator[Callable[[], Any]]) -> Any:
    """The sum of the trees that the calls return, run on a few streams, so that small kernels fill the GPU together."""
    current, streams = torch.cuda.current_stream(), [torch.cuda.Stream() for _ in range(STREAMS)]
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
