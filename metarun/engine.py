"""A training step as one graph: traced once for each shape, compiled, and on a GPU replayed as a CUDA graph.

The trace is taken below vmap and autograd, so whatever a learner does in between (inner gradients, surrogates, custom
functions) ends up as one flat list of tensor operations; there is nothing in it that the compiler could refuse to follow.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from metarun.core import Episode, Metrics, Params
from metarun.errors import MetarunError
from metarun.execution import Execution, MetaLoss, TaskFunction, generators_kept
from metarun.models.dropout import current_step
from metarun.models.layers import composing
from metarun.trees import tree_flatten, tree_leaves, tree_unflatten
from metarun.update import Update

SECONDS_A_NODE = 0.04  # of a graph; measured on 2 cores, 1250 nodes


class CompilationFailed(MetarunError):
    """The graph could not be traced or compiled; the message says why in a line."""


@dataclass(frozen=True)
class Compiled(Execution):
    """``inner``, with its meta-gradient compiled, or with ``whole`` the whole training step: clipping and optimizer too.

    Everything else (evaluation, calibration) runs as ``inner`` does.
    """

    inner: Execution
    whole: bool = False
    budget: float = field(default=math.inf, compare=False)  # seconds that compiling a graph may take, by its size
    graphs: list[tuple[Any, Callable[..., Any]]] = field(default_factory=list, repr=False, compare=False)

    def map(self, fn: TaskFunction, theta: Params, episodes: Episode) -> Any:
        return self.inner.map(fn, theta, episodes)

    def parts(self, num_tasks: int) -> list[slice]:
        return self.inner.parts(num_tasks)

    def smaller(self, num_tasks: int) -> Execution | None:
        smaller = self.inner.smaller(num_tasks)
        return replace(self, inner=smaller) if smaller and smaller.inner_memory != "recomputed" else smaller

    def describe(self) -> str:
        return self.inner.describe() + "_compiled" + ("_step" if self.whole else "")

    def share(self, loss_fn: MetaLoss, theta: Params, episodes: Episode, num_tasks: int) -> tuple[Params, Metrics]:
        """As ``inner`` gives it, to float rounding; the first call for a shape compiles. Raises CompilationFailed then.

        Parts of one shape have one graph: compiling takes no longer for more of them.
        """
        fn = partial(self.inner.share, loss_fn, num_tasks=num_tasks)
        return self._run(f"gradient of {num_tasks}", fn, loss_fn, theta, episodes)

    def train_step(self, loss_fn: MetaLoss, theta: Params, episodes: Episode, update: Update) -> Metrics:
        if not self.whole or len(self.parts(len(tree_leaves(episodes)[0]))) > 1:
            return super().train_step(loss_fn, theta, episodes, update)
        if not update.begun():
            return self.inner.train_step(loss_fn, theta, episodes, update)
        leaves, memory, metrics = self._step(loss_fn, theta, episodes, update)
        update.take(leaves, memory)
        return metrics

    def rehearse(self, loss_fn: MetaLoss, theta: Params, episodes: Episode, update: Update | None) -> None:
        if self.whole and update is not None:
            self._step(loss_fn, theta, episodes, update)
        else:
            self.mean_grad(loss_fn, theta, episodes)

    def _step(self, loss_fn: MetaLoss, theta: Params, episodes: Episode, update: Update) -> Any:
        structure = tree_flatten(theta)[1]

        def step(leaves: list[Tensor], memory: list[Tensor], rates: list[Tensor], episodes: Episode) -> Any:
            gradient, metrics = self.inner.mean_grad(loss_fn, tree_unflatten(leaves, structure), episodes)
            return *update.functional(leaves, memory, rates, tree_leaves(gradient)), metrics

        return self._run("step", step, loss_fn, *update.inputs(), episodes)

    def _run(self, what: str, fn: Callable[..., Any], loss_fn: MetaLoss, *arguments: Any) -> Any:
        """fn(*arguments), from the graph for these shapes."""
        leaves, structure = tree_flatten(arguments)
        leaves = [leaf.detach() for leaf in leaves]
        # an annealed learner is not equal and needs a graph of its own, as the masks of every step do
        learner = getattr(loss_fn, "__self__", loss_fn)
        layouts = ((leaf.shape, leaf.stride(), leaf.dtype, leaf.device) for leaf in leaves)
        key = (what, learner, current_step(), *layouts)
        graph = next((graph for known, graph in self.graphs if known == key), None)
        if graph is None:
            with generators_kept():  # tracing draws too, and a resumed run traces at another step
                graph = self._compiled(fn, leaves, structure)
            self.graphs.append((key, graph))
        torch.compiler.cudagraph_mark_step_begin()
        return graph(leaves)

    def _compiled(self, fn: Callable[..., Any], leaves: list[Tensor], structure: Any) -> Callable[[list[Tensor]], Any]:
        result: list[Any] = []

        def flat(*values: Tensor) -> list[Tensor]:
            out, spec = tree_flatten(fn(*tree_unflatten(values, structure)))
            result[:] = [spec]
            return out

        try:
            with composing():
                graph = make_fx(flat)(*leaves)
            for node in reversed(graph.graph.nodes):
                if str(node.target).startswith("profiler."):  # marks of an optimizer, no tensors
                    graph.graph.erase_node(node)
            graph.graph.eliminate_dead_code()
            graph.recompile()
            if (seconds := len(graph.graph.nodes) * SECONDS_A_NODE) > self.budget:
                raise TimeoutError(f"compiling would take about {seconds:.0f} s, which the steps do not earn back")
            with torch.no_grad():
                compiled = self._lowered(graph, leaves)
                compiled(*leaves)
        except (
            Exception
        ) as error:  # a compiler fails in as many ways as there are programs; the run can go on without it
            reason = next(iter(str(error).strip().splitlines()), "no message")
            raise CompilationFailed(f"{type(error).__name__}: {reason[:200]}") from error

        @torch.no_grad()
        def call(leaves: list[Tensor]) -> Any:
            return tree_unflatten(compiled(*leaves), result[0])

        return call

    def _lowered(self, graph: torch.fx.GraphModule, leaves: list[Tensor]) -> Callable[..., list[Tensor]]:
        if leaves[0].is_cuda:
            cuda_graph: Any = {"triton.cudagraphs": self.inner.cuda_graph}
            return torch.compile(graph, fullgraph=True, dynamic=False, options=cuda_graph)
        from torch._inductor import standalone_compile  # seconds, which only who compiles should wait

        # The graph is flat already, so Dynamo is left out. One C++ program instead of one for each kernel compiles a fifth
        # sooner, and calls small kernels twice as fast. By default every convolution gets its channels last, which costs the
        # grouped ones of vmapped tasks 1.5 times.
        patches = {"config_patches": {"layout_optimization": False, "cpp_wrapper": True}}
        return standalone_compile(graph, [*leaves], dynamic_shapes="from_example_inputs", options=patches)
