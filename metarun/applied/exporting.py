"""A trained model for those who have no metarun: its weights, and adapting and predicting as one program of torch.export.

S support and Q query examples, N ways, P outputs
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import vmap

from metarun.applied.model import Model
from metarun.core import Batch, FewShotLearner, Params
from metarun.errors import MetarunError
from metarun.evaluation.eval_mode import eval_mode
from metarun.execution.compiled import traced
from metarun.trees import leaf_names, tree_flatten, tree_leaves

TOLERANCE = 1e-5  # of the program's outputs from those of metarun


class Inputs(NamedTuple):
    """What a program is made for: a support set of N classes (None: regression), and as many queries."""

    support: Batch
    query_x: Tensor
    num_ways: int | None


class NoProgram(MetarunError):
    """A model of which torch.export makes no program, or not the same."""


def adapting(learner: FewShotLearner, num_ways: int | None) -> Callable[..., tuple[Tensor, ...]]:
    """A function of theta, support x and y, and query x: the probabilities [Q, N], or mean [Q, P] and deviation, where
    the learner has one."""

    def function(theta: Params, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> tuple[Tensor, ...]:
        phi = learner.adapt(theta, Batch(support_x, support_y))
        if num_ways is None:
            return tuple(value for value in learner.posterior(phi, query_x) if value is not None)
        own = learner.probabilities(phi, query_x)[:, :num_ways]  # a head may have more
        return (own / own.sum(1, keepdim=True),)

    return function


def _of_one_task(function: Callable[..., tuple[Tensor, ...]]) -> Callable[..., tuple[Tensor, ...]]:
    """``function`` by way of vmap over one task: there torch's one_hot reads no value, which no trace could follow."""

    def one(theta: Params, *arguments: Tensor) -> tuple[Tensor, ...]:
        mapped = vmap(function, in_dims=(None, 0, 0, 0), randomness="same")
        return tuple(output[0] for output in mapped(theta, *(argument[None] for argument in arguments)))

    return one


class Program(nn.Module):
    """The operations of ``adapting`` for inputs of fixed shapes, with theta and other constants among its buffers."""

    def __init__(self, graph: torch.fx.GraphModule, theta: Params) -> None:
        super().__init__()
        values = {f"constant_{i}": value for i, value in enumerate(_constants_out_of(graph))}
        leaves = zip(leaf_names(theta), tree_leaves(theta), strict=True)
        values |= {f"theta_{name.replace('.', '_')}": leaf for name, leaf in leaves}
        for name, value in values.items():
            self.register_buffer(name, value.detach().clone())
        self.graph, self.names = graph, list(values)

    def forward(self, support_x: Tensor, support_y: Tensor, query_x: Tensor) -> tuple[Tensor, ...]:
        values = [getattr(self, name) for name in self.names]
        return tuple(self.graph(*values, support_x, support_y, query_x))


def _constants_out_of(graph: torch.fx.GraphModule) -> list[Tensor]:
    """Make the tensors that the trace met, as the statistics of norms, the first arguments of the graph; return them."""
    first = next(iter(graph.graph.nodes))
    found: dict[str, torch.fx.Node] = {}
    for node in [node for node in graph.graph.nodes if node.op == "get_attr"]:
        if node.target not in found:
            with graph.graph.inserting_before(first):
                found[node.target] = graph.graph.placeholder(f"constant{len(found)}")
        node.replace_all_uses_with(found[node.target])
        graph.graph.erase_node(node)
    graph.recompile()
    values = [getattr(graph, name) for name in found]
    for name in found:  # torch.export trips over buffers that nothing reads
        delattr(graph, name)
    return values


@torch.no_grad()
def program_of(model: Model, learner: FewShotLearner, inputs: Inputs) -> torch.export.ExportedProgram:
    """The exported program; raises NoProgram where there is none, or its outputs are not those of metarun to 1e-5."""
    function, arguments = adapting(learner, inputs.num_ways), (*inputs.support[:2], inputs.query_x)
    leaves, structure = tree_flatten((model.run.theta, *arguments))
    with eval_mode(learner):
        expected = function(model.run.theta, *arguments)
        try:
            graph, _ = traced(_of_one_task(function), leaves, structure)
            program = torch.export.export(Program(graph, model.run.theta), arguments)
            found = program.module()(*arguments)
        except Exception as error:  # tracing fails in as many ways as there are learners; the weights are there without
            reason = (str(error).splitlines() or [""])[0]
            raise NoProgram(f"torch.export cannot follow {type(learner).__name__}: {reason}") from error
    for a, b in zip(found, expected, strict=True):
        if not torch.allclose(a, b, rtol=TOLERANCE, atol=TOLERANCE):
            off = (a - b).abs().max().item()
            raise NoProgram(f"the program of {type(learner).__name__} gives other outputs than metarun, by {off:.2g}")
    return program


def flat_tensors(tree: Params) -> dict[str, Tensor]:
    """The leaves of theta or phi by their dotted names, each with memory of its own."""
    pairs: list[tuple[str, Any]] = list(zip(leaf_names(tree), tree_leaves(tree), strict=True))
    return {name or "value": leaf.detach().cpu().contiguous().clone() for name, leaf in pairs}
