"""A training step as one graph: traced once for each shape, compiled, and on a GPU replayed as a CUDA graph.

The trace is taken below vmap and autograd, so whatever a learner does in between (inner gradients, surrogates, custom
functions) ends up as one flat list of tensor operations; there is nothing in it that the compiler could refuse to follow.
"""

import logging
import math
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from metarun.core import Episode, Metrics, Params
from metarun.errors import MetarunError
from metarun.execution.cuda_graph import Recorded, sum_abreast
from metarun.execution.execution import Execution, MetaLoss, TaskFunction, generators_kept
from metarun.execution.update import Update
from metarun.models.dropout import current_step
from metarun.models.exact.layers import composing
from metarun.trees import slice_tasks, tree_flatten, tree_leaves, tree_unflatten

Graph = tuple[tuple[Any, ...], Callable[..., Any]]  # by what it is of, and the shapes that it is for

SECONDS_A_GRAPH, SECONDS_A_NODE = 10.0, 0.035  # to compile; measured on 2 cores, of graphs of 322 and 1149 nodes


class CompilationFailed(MetarunError):
    """The graph could not be traced, compiled or recorded; the message says why in a line."""


@dataclass(frozen=True)
class Compiled(Execution):
    """``inner``, with its meta-gradient compiled, or with ``whole`` the whole training step: clipping and optimizer too.

    On a GPU it is also recorded as a CUDA graph; without ``compiler`` that is all. Everything else (evaluation,
    calibration) runs as ``inner`` does.
    """

    inner: Execution
    whole: bool = False
    compiler: bool = True
    budget: float = field(default=math.inf, compare=False)  # seconds that compiling a graph may take, by its size
    graphs: list[Graph] = field(default_factory=list, repr=False, compare=False)
    recordings: list[Graph] = field(default_factory=list, repr=False, compare=False)

    def map(self, fn: TaskFunction, theta: Params, episodes: Episode) -> Any:
        return self.inner.map(fn, theta, episodes)

    def parts(self, num_tasks: int) -> list[slice]:
        return self.inner.parts(num_tasks)

    def smaller(self, num_tasks: int) -> Execution | None:
        smaller = self.inner.smaller(num_tasks)
        if smaller is None or smaller.inner_memory == "recomputed":
            return smaller
        return replace(self, inner=smaller, graphs=[], recordings=[])

    def describe(self) -> str:
        return self.inner.describe() + ("_compiled" if self.compiler else "_recorded") + ("_step" if self.whole else "")

    def settings(self) -> str:
        return self.inner.settings()

    def mean_grad(self, loss_fn: MetaLoss, theta: Params, episodes: Episode) -> tuple[Params, Metrics]:
        fn = partial(self._mean_grad, loss_fn)
        return self._recorded(("gradient", *self._key(loss_fn)), fn, None, theta, episodes)

    def _mean_grad(self, loss_fn: MetaLoss, theta: Params, episodes: Episode) -> tuple[Params, Metrics]:
        num_tasks = len(tree_leaves(episodes)[0])
        parts = self.parts(num_tasks)
        if len(parts) == 1 or not (self.inner.cuda_graph and tree_leaves(theta)[0].is_cuda):
            return super().mean_grad(loss_fn, theta, episodes)
        return sum_abreast(partial(self.share, loss_fn, theta, slice_tasks(episodes, p), num_tasks) for p in parts)

    def earned(self) -> str:
        """Why it may take so long."""
        return "" if self.budget == math.inf else f", for what would take {2 * self.budget:.0f} s without"

    def share(self, loss_fn: MetaLoss, theta: Params, episodes: Episode, num_tasks: int) -> tuple[Params, Metrics]:
        """As ``inner`` gives it, to float rounding; the first call for a shape compiles. Raises CompilationFailed then.

        Parts of one shape have one graph: compiling takes no longer for more of them.
        """
        fn = partial(self.inner.share, loss_fn, num_tasks=num_tasks)
        if not self.compiler:
            return fn(theta, episodes)
        return self._run(("share", num_tasks, *self._key(loss_fn)), fn, theta, episodes)

    def train_step(self, loss_fn: MetaLoss, theta: Params, episodes: Episode, update: Update) -> Metrics:
        if not self.whole or not update.as_made():
            return super().train_step(loss_fn, theta, episodes, update)
        if not update.begun():
            return self.inner.train_step(loss_fn, theta, episodes, update)
        metrics = self._step(loss_fn, tree_flatten(theta)[1], episodes, update)
        update.counted()
        return metrics

    def rehearse(self, loss_fn: MetaLoss, theta: Params, episodes: Episode, update: Update | None) -> None:
        if self.whole and update is not None:
            self._step(loss_fn, tree_flatten(theta)[1], episodes, update.stand_in)
        else:
            self.mean_grad(loss_fn, theta, episodes)

    def _step(self, loss_fn: MetaLoss, structure: Any, episodes: Episode, update: Update) -> Metrics:
        """A step from the leaves of ``update``, which form a theta of this structure, into them."""

        def step(episodes: Episode) -> Metrics:
            leaves, memory, rates = update.inputs()
            gradient, metrics = self._mean_grad(loss_fn, tree_unflatten(leaves, structure), episodes)
            update.take(*self._run(("update",), update.functional, leaves, memory, rates, tree_leaves(gradient)))
            return metrics

        update.follow_rates()
        return self._recorded(("step", update, *self._key(loss_fn)), step, update, episodes)

    def _key(self, loss_fn: MetaLoss) -> tuple[Any, ...]:
        """What else than shapes a graph depends on: an annealed learner is not equal to another step's, nor are masks."""
        return getattr(loss_fn, "__self__", loss_fn), current_step()

    def _run(self, what: tuple[Any, ...], fn: Callable[..., Any], *arguments: Any) -> Any:
        """fn(*arguments), from the graph for these shapes."""
        leaves, structure = tree_flatten(arguments)
        return self._known(self.graphs, what, leaves, lambda: self._compiled(what[0], fn, leaves, structure))

    def _recorded(self, what: tuple[Any, ...], fn: Callable[..., Any], update: Update | None, *arguments: Any) -> Any:
        """fn(*arguments), replayed as a CUDA graph where that is wanted.

        Recording calls ``fn`` once, of which ``update`` keeps nothing.
        """
        leaves = tree_leaves(arguments)
        if not self.inner.cuda_graph or not all(leaf.is_cuda for leaf in leaves):
            return fn(*arguments)

        def record() -> Recorded:
            self.recordings.clear()  # each keeps its memory
            try:
                with update.undone() if update else nullcontext():
                    return Recorded(fn, arguments)
            except (torch.OutOfMemoryError, CompilationFailed):
                raise
            except Exception as error:  # a kernel that waits for the CPU, say; torch has no error of its own for it
                fix = "execution.cuda_graph=false does not try"
                raise CompilationFailed(f"no CUDA graph could be recorded ({_line(error)}); {fix}") from error

        return self._known(self.recordings, what, leaves, record)

    def _known(
        self, graphs: list[Graph], what: tuple[Any, ...], leaves: list[Tensor], make: Callable[[], Callable[..., Any]]
    ) -> Any:
        """Call the graph of ``what`` for leaves like these with them; it is made at first."""
        leaves = [leaf.detach() for leaf in leaves]
        key = (*what, *((leaf.shape, leaf.stride(), leaf.dtype, leaf.device) for leaf in leaves))
        graph = next((graph for known, graph in graphs if known == key), None)
        if graph is None:
            with generators_kept():  # tracing draws too, and a resumed run traces at another step
                graph = make()
            graphs.append((key, graph))
        return graph(leaves)

    def _compiled(
        self, what: str, fn: Callable[..., Any], leaves: list[Tensor], structure: Any
    ) -> Callable[[list[Tensor]], Any]:
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
            merge_equal(graph.graph)
            graph.recompile()
            seconds = SECONDS_A_GRAPH + len(graph.graph.nodes) * SECONDS_A_NODE
            if seconds * (1 + len(self.graphs)) > self.budget:
                raise TimeoutError(f"compiling would take about {seconds:.0f} s, which the steps do not earn back")
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # inductor's advice is for who wrote the code, not for who runs it
                compiled = self._lowered(what, graph, leaves)
                compiled(*leaves)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a compiler fails in as many ways as there are programs; the run can go on without
            raise CompilationFailed(_line(error)) from error

        @torch.no_grad()
        def call(leaves: list[Tensor]) -> Any:
            return tree_unflatten(compiled(*leaves), result[0])

        return call

    def _lowered(self, what: str, graph: torch.fx.GraphModule, leaves: list[Tensor]) -> Callable[..., list[Tensor]]:
        # it warns of a missing GPU on machines that have CUDA's compiler, which is no news to who trains on a CPU
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
        from torch._inductor import standalone_compile  # seconds, which only who compiles should wait

        # The graph is flat already, so Dynamo is left out. On a CPU, one C++ program instead of one for each kernel compiles
        # a fifth sooner, and calls small kernels twice as fast; and by default every convolution gets its channels last,
        # which costs the grouped ones of vmapped tasks 1.5 times.
        on_gpu = {"combo_kernels": True} if what == "update" else {}  # small kernels side by side in one
        options = on_gpu if leaves[0].is_cuda else {"layout_optimization": False, "cpp_wrapper": True}
        patches = {"config_patches": options}
        return standalone_compile(graph, [*leaves], dynamic_shapes="from_example_inputs", options=patches)


def _line(error: Exception) -> str:
    reason = next(iter(str(error).strip().splitlines()), "no message")
    return f"{type(error).__name__}: {reason[:200]}"


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
