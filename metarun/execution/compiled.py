"""A meta-gradient, and the update that follows, as graphs: each traced once for its shapes, and compiled.

The trace is taken below vmap and autograd, so whatever a learner does in between (inner gradients, surrogates, custom
functions) ends up as one flat list of tensor operations; there is nothing in it that the compiler could refuse to follow.
"""

import logging
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from metarun.core import Episode, Metrics, Params
from metarun.execution.decorated import Decorated, Graph, GraphCache, GraphFailed, dependencies
from metarun.execution.execution import Execution, MetaLoss
from metarun.execution.update import Update
from metarun.models.exact.layers import composing
from metarun.trees import tree_flatten, tree_unflatten

MOST_GRAPHS = 100  # of a run; what asks for more, asks for one at every step
SECONDS_A_GRAPH, SECONDS_A_NODE = 10.0, 0.035  # to compile; measured on 2 cores, of graphs of 322 and 1149 nodes


@dataclass(frozen=True)
class Compiled(Decorated):
    """``inner``, with its meta-gradient compiled, and with ``whole`` what follows it: clipping and the optimizer's step."""

    whole: bool = False
    sizes: int = field(default=1, compare=False)  # of which graphs are to be made
    budget: float = field(default=math.inf, compare=False)  # seconds that compiling the graphs may take, by their size
    cache: GraphCache = field(default_factory=GraphCache, init=False, repr=False, compare=False)

    def describe(self) -> str:
        return self.inner.describe() + "_compiled" + "_step" * self.whole

    def share(self, loss_fn: MetaLoss, theta: Params, episodes: Episode, num_tasks: int) -> tuple[Params, Metrics]:
        """The share that ``inner`` gives, to float rounding; the first call for a shape compiles. Raises GraphFailed then.

        Parts of one shape have one graph: compiling takes no longer for more of them.
        """
        fn = partial(self.inner.share, loss_fn, num_tasks=num_tasks)
        return self._run(("share", num_tasks, *dependencies(loss_fn)), fn, theta, episodes)

    def update_in_graph(self, update: Update) -> bool:
        return self.whole and update.as_made()

    def apply(self, update: Update, gradient: list[Tensor]) -> None:
        if self.update_in_graph(update):
            update.take(*self._run(("update",), update.functional, *update.inputs(), gradient))
        else:
            update(gradient)

    def _run(self, function: tuple[Any, ...], fn: Callable[..., Any], *arguments: Any) -> Any:
        """fn(*arguments), from the graph for these shapes."""
        leaves, structure = tree_flatten(arguments)
        graph = self.cache.graph(function, leaves, lambda: self._compiled(function[0], fn, leaves, structure))
        return graph([leaf.detach() for leaf in leaves])

    def _compiled(self, name: str, fn: Callable[..., Any], leaves: list[Tensor], structure: Any) -> Graph:
        try:
            if len(self.cache.graphs) >= MOST_GRAPHS:
                raise RuntimeError(f"there would be more than {MOST_GRAPHS} graphs, of as many shapes or learners")
            graph, out_structure = traced(fn, leaves, structure)
            seconds = SECONDS_A_GRAPH + len(graph.graph.nodes) * SECONDS_A_NODE
            if seconds * max(self.sizes, 1 + len(self.cache.graphs)) > self.budget:
                raise TimeoutError(f"compiling would take about {seconds:.0f} s, longer than it would save")
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # inductor's advice is for who wrote the code, not for who runs it
                compiled = lowered(graph, leaves, combined=name == "update")
                compiled(*leaves)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a compiler fails in as many ways as there are programs; the run can go on without
            raise GraphFailed("not compiled", error) from error

        @torch.no_grad()
        def call(leaves: list[Tensor]) -> Any:
            return tree_unflatten(compiled(*leaves), out_structure)

        return call


def compiles(execution: Execution) -> bool:
    """Whether the execution makes a graph for each shape of meta-batches."""
    while isinstance(execution, Decorated) and not isinstance(execution, Compiled):
        execution = execution.inner
    return isinstance(execution, Compiled)


def traced(fn: Callable[..., Any], leaves: list[Tensor], structure: Any) -> tuple[torch.fx.GraphModule, Any]:
    """The operations of ``fn`` on arguments of these leaves and this structure, and the structure of what it returns."""
    structures: list[Any] = []

    def flat(*values: Tensor) -> list[Tensor]:
        out, spec = tree_flatten(fn(*tree_unflatten(values, structure)))
        structures[:] = [spec]
        return out

    with composing():
        graph = make_fx(flat)(*leaves)
    for node in reversed(graph.graph.nodes):
        if str(node.target).startswith("profiler."):  # marks of an optimizer, no tensors
            graph.graph.erase_node(node)
    graph.graph.eliminate_dead_code()
    merge_equal(graph.graph)
    graph.recompile()
    return graph, structures[0]


def lowered(graph: torch.fx.GraphModule, leaves: list[Tensor], combined: bool) -> Callable[..., list[Tensor]]:
    """The program that torch's compiler makes of ``graph``; with ``combined``, small kernels are put side by side in one."""
    # it warns of a missing GPU on machines that have CUDA's compiler, which is no news to who trains on a CPU
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    from torch._inductor import standalone_compile  # seconds, which only who compiles should wait

    # The graph is flat already, so Dynamo is left out. On a CPU, one C++ program instead of one for each kernel compiles
    # a fifth sooner, and calls small kernels twice as fast; and by default every convolution gets its channels last,
    # which costs the grouped ones of vmapped tasks 1.5 times.
    on_gpu = {"combo_kernels": True} if combined else {}
    options = on_gpu if leaves[0].is_cuda else {"layout_optimization": False, "cpp_wrapper": True}
    patches = {"config_patches": options}
    return standalone_compile(graph, [*leaves], dynamic_shapes="from_example_inputs", options=patches)


def merge_equal(graph: torch.fx.Graph) -> None:
    """Compute once what the graph computes several times, as derivatives of derivatives do; inductor would not."""
    calls = [node for node in graph.nodes if isinstance(node.target, torch._ops.OpOverload)]
    if any(node.target._schema.is_mutable for node in calls):
        return
    seen: dict[Any, torch.fx.Node] = {}
    for node in calls:
        if torch.Tag.nondeterministic_seeded in node.target.tags:
            continue
        values, structure = tree_flatten((node.args, node.kwargs))
        key = (node.target, structure, *((type(value), value) for value in values))
        if (first := seen.setdefault(key, node)) is not node:
            node.replace_all_uses_with(first)
            graph.erase_node(node)
