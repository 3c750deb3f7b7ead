"""What is seen of one task while a learner adapts to it: losses, parameters, activations, gradients, predictions.

K adaptation steps, Q query examples, N ways
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from metarun.core import Batch, Episode, FewShotLearner, MetaLearner, Params
from metarun.evaluation.eval_mode import eval_mode, modules_of, takes_steps
from metarun.evaluation.explaining.numbers import linear_cka, relative_change
from metarun.evaluation.scoring import Subject
from metarun.meta_learners.base import GradientLearner
from metarun.models.norm_state import norms
from metarun.trees import leaf_names, slice_tasks, tree_flatten, tree_leaves, tree_unflatten

BODY = "body"  # the part of a base learner that makes the features
Layers = dict[str, Tensor]  # outputs of layers [Q, ...] by name


class Predictions(NamedTuple):
    """What is predicted of the queries: probabilities of the classes [Q, N], or means [Q, ...] with the probability of
    less than what is true, None where the learner knows no distribution; and what is true [Q, ...]."""

    outputs: Tensor
    below: Tensor | None
    y: Tensor


@dataclass(frozen=True)
class Observed:
    """One task: by step the scores of support and query; by layer the change of its parameters and the similarity of its
    outputs before and after; the cosine of the gradients of support and query at the start; the predictions.

    None, or nothing, where a learner has no such thing.
    """

    steps: list[dict[str, float]]
    change: dict[str, float]
    sizes: dict[str, int]
    similarity: dict[str, float]
    alignment: float | None
    predictions: Predictions | None


def observe(subject: Subject) -> Iterator[Observed]:
    """Look at one task after the other: the activations of many would take much memory."""
    for index in range(subject.num_tasks):
        subject.between()
        with eval_mode(subject.learner):
            yield observed(subject.learner, subject.theta, episode_of(subject, index))


def episode_of(subject: Subject, index: int) -> Episode:
    """Episode ``index``, without a task axis."""
    episode: Episode = slice_tasks(subject.task.sample(subject.split, [index]), 0)
    return episode


@torch.no_grad()
def observed(learner: MetaLearner, theta: Params, episode: Episode) -> Observed:
    """Adapt to one task and look."""
    phis = phis_of(learner, theta, episode)
    first, last = phis[0], phis[-1]
    groups = by_layer(learner, first, last) if len(phis) > 1 else {}
    similarity: dict[str, float] = {}
    predicted = None
    if isinstance(learner, FewShotLearner) and isinstance(episode.query, Batch):
        predicted = predictions(learner, last, episode.query)
        if len(phis) > 1:
            before, after = (layers_of(learner, phi, episode.query.x) for phi in (first, last))
            similarity = {name: linear_cka(before[name], after[name]) for name in before if name in after}
    return Observed(
        [scores(learner, phi, episode) for phi in phis],
        {name: relative_change(*pair) for name, pair in groups.items()},
        {name: sum(leaf.numel() for leaf in pair[0]) for name, pair in groups.items()},
        similarity,
        gradient_cosine(learner, first, last, episode) if len(phis) > 1 else None,
        predicted,
    )


def phis_of(learner: MetaLearner, theta: Params, episode: Episode) -> list[Params]:
    """phi after 0, 1, ..., K steps; phi alone of a learner that takes none."""
    if not takes_steps(learner):
        return [learner.adapt(theta, episode.support)]
    return list(learner.trajectory(theta, episode.support, learner.inner_steps))  # type: ignore[attr-defined]


def scores(learner: MetaLearner, phi: Params, episode: Episode) -> dict[str, float]:
    """The metrics of phi on query and support, as query_<name> and support_<name>."""
    parts = {"query": episode.query, "support": episode.support}
    found = {part: learner.query_loss(phi, batch)[1] for part, batch in parts.items()}
    return {f"{part}_{name.removeprefix('query_')}": v.item() for part, ms in found.items() for name, v in ms.items()}


def by_layer(learner: MetaLearner, before: Params, after: Params) -> dict[str, tuple[list[Tensor], list[Tensor]]]:
    """The parameters in phi before and after, by layer, and those of the whole body."""
    later = dict(zip(leaf_names(after), tree_leaves(after), strict=True))
    groups: dict[str, tuple[list[Tensor], list[Tensor]]] = {}
    leaves = zip(leaf_names(before), tree_leaves(before), are_parameters(learner, before), strict=True)
    for name, leaf, is_parameter in leaves:
        other = later.get(name)
        if not is_parameter or other is None or other.shape != leaf.shape:
            continue
        whole = [BODY] if name.startswith(f"{BODY}.") else []
        for group in (name.rpartition(".")[0] or name or "phi", *whole):
            first, last = groups.setdefault(group, ([], []))
            first.append(leaf)
            last.append(other)
    return groups


def are_parameters(learner: MetaLearner, phi: Params) -> list[bool]:
    """Of each leaf of phi whether it is a parameter, and not a number or a statistic that norms in mode ``support`` keep."""
    kept = [
        f"{norm}.{part}" for net in modules_of(learner) for norm in norms(net, "support") for part in ("mean", "var")
    ]
    return [
        leaf.is_floating_point()
        and not any(name == one or name.endswith(f".{one}") or one.endswith(f".{name}") for one in kept)
        for name, leaf in zip(leaf_names(phi), tree_leaves(phi), strict=True)
    ]


def layers_of(learner: FewShotLearner, phi: Params, x: Tensor) -> Layers:
    """What the layers with parameters of their own put out for the inputs x [Q, ...], for each of them; and the ``body``.

    Of a layer that is called several times, its outputs side by side. Layers that see something else than one row for
    each input are left out.
    """
    found: dict[str, list[Tensor]] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            leaves = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
            found.setdefault(name, []).append(leaves[0].detach())

        return hook

    with hooks({name: keep(name) for name in _layers(learner.base_learner)}, learner.base_learner):
        learner.predict(phi, x)
    whole = {name: all(out.dim() > 1 and len(out) == len(x) for out in outs) for name, outs in found.items()}
    return {name: torch.cat([out.flatten(1) for out in outs], 1) for name, outs in found.items() if whole[name]}


def _layers(net: nn.Module) -> list[str]:
    """The names of layers with parameters, and of the body after its own."""
    own = [name for name, module in net.named_modules() if name and list(module.parameters(recurse=False))]
    body = [name for name, _ in net.named_children() if name == BODY]
    inside = [name for name in own if name.startswith(f"{BODY}.")]
    return list(dict.fromkeys([*inside, *body, *own]))


@contextmanager
def hooks(by_name: dict[str, Callable[..., None]], net: nn.Module) -> Iterator[None]:
    """A context in which the modules of ``net`` have these forward hooks."""
    with ExitStack() as stack:
        for name, hook in by_name.items():
            stack.callback(net.get_submodule(name).register_forward_hook(hook).remove)
        yield


def gradient_cosine(learner: MetaLearner, first: Params, last: Params, episode: Episode) -> float | None:
    """The cosine of the gradients of the support's and the query's loss at the ``first`` phi, for the parameters that
    adaptation moves; statistics of the support follow them. None where it moves nothing, or a gradient is zero."""
    leaves, spec = tree_flatten(first)
    moves = [
        is_parameter and a.shape == b.shape and not torch.equal(a, b)
        for is_parameter, a, b in zip(are_parameters(learner, first), leaves, tree_leaves(last), strict=False)
    ]
    if not any(moves):
        return None
    leaves = [leaf.detach().requires_grad_(moved) for leaf, moved in zip(leaves, moves, strict=True)]
    moved = [leaf for leaf in leaves if leaf.requires_grad]
    with torch.enable_grad():
        phi = tree_unflatten(leaves, spec)
        phi = learner.ended(phi, episode.support) if isinstance(learner, GradientLearner) else phi
        losses = [learner.query_loss(phi, batch)[0] for batch in episode[:2]]
        gradients = [torch.autograd.grad(loss, moved, materialize_grads=True, retain_graph=True) for loss in losses]
    a, b = (torch.cat([g.flatten().double() for g in gradient]) for gradient in gradients)
    size = (a.norm() * b.norm()).item()
    return (a @ b).item() / size if size else None


def predictions(learner: FewShotLearner, phi: Params, query: Batch) -> Predictions:
    """What phi predicts of the query."""
    if not query.y.is_floating_point():  # classes
        return Predictions(learner.probabilities(phi, query.x).cpu(), None, query.y.cpu())
    mean, below = learner.posterior(phi, query.x)[0], learner.below(phi, query.x, query.y)
    return Predictions(mean.cpu(), None if below is None else below.cpu(), query.y.cpu())
