"""One meta-gradient as one graph: traced once for each shape, compiled, and on a GPU replayed as a CUDA graph.

The trace is taken below vmap and autograd, so whatever a learner does in between (inner gradients, surrogates, custom
functions) ends up as one flat list of tensor operations; there is nothing in it that the compiler could refuse to follow.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from metarun.core import Episode, Metrics, Params
from metarun.errors import MetarunError
from metarun.execution import Execution, MetaLoss, TaskFunction, generators_kept
from metarun.models.dropout import current_step
from metarun.trees import tree_flatten, tree_unflatten


class CompilationFailed(MetarunError):
    """The graph could not be traced or compiled; the message says why in a line."""


@dataclass(frozen=True)
class Compiled(Execution):
    """``inner``, with its meta-gradient compiled; everything else (evaluation, calibration) runs as ``inner`` does."""

    inner: Execution
    graphs: list[tuple[Any, Callable[..., Any]]] = field(default_factory=list, repr=False, compare=False)

    def map(self, fn: TaskFunction, theta: Params, episodes: Episode) -> Any:
        return self.inner.map(fn, theta, episodes)

    def parts(self, num_tasks: int) -> list[slice]:
        return self.inner.parts(num_tasks)

    def smaller(self, num_tasks: int) -> Execution | None:
        smaller = self.inner.smaller(num_tasks)
        return Compiled(smaller) if smaller and smaller.inner_memory != "recomputed" else smaller

    def describe(self) -> str:
        return self.inner.describe() + "_compiled"

    def mean_grad(self, loss_fn: MetaLoss, theta: Params, episodes: Episode) -> tuple[Params, Metrics]:
        """As ``inner`` gives it, to float rounding; the first call for a shape compiles. Raises CompilationFailed then."""
        leaves, structure = tree_flatten((theta, episodes))
        leaves = [leaf.detach() for leaf in leaves]
        # an annealed learner is not equal and needs a graph of its own, as the masks of every step do
        learner = getattr(loss_fn, "__self__", loss_fn)
        key = (learner, current_step(), *((leaf.shape, leaf.dtype, leaf.device) for leaf in leaves))
        graph = next((graph for known, graph in self.graphs if known == key), None)
        if graph is None:
            with generators_kept():  # tracing draws too, and a resumed run traces at another step
                graph = self._compiled(loss_fn, leaves, structure)
            self.graphs.append((key, graph))
        torch.compiler.cudagraph_mark_step_begin()
        return graph(leaves)

    def _compiled(self, loss_fn: MetaLoss, leaves: list[Tensor], structure: Any) -> Callable[[list[Tensor]], Any]:
        result: list[Any] = []

        def flat(*values: Tensor) -> list[Tensor]:
            theta, episodes = tree_unflatten(values, structure)
            out, spec = tree_flatten(self.inner.mean_grad(loss_fn, theta, episodes))
            result[:] = [spec]
            return out

        try:
            graph = make_fx(flat)(*leaves)
            graph.graph.eliminate_dead_code()
            graph.recompile()
            on_gpu = leaves[0].is_cuda
            compiled = torch.compile(
                graph,
                fullgraph=True,
                dynamic=False,
                options={"triton.cudagraphs": True} if on_gpu and self.inner.cuda_graph else None,
            )
            with torch.no_grad():
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
