"""Learners that take the parts of a network, body and head, for the whole: whether forward does nothing besides."""

from contextlib import ExitStack

import torch
from torch import Tensor, nn
from torch.func import functional_call

from metarun.config.experiment import Experiment
from metarun.config.probe import SAME, networks_of
from metarun.config.returned import is_foreign
from metarun.core import Episode, FewShotLearner, Params, TaskDistribution, trainable
from metarun.evaluation.eval_mode import eval_mode
from metarun.execution.execution import generators_kept
from metarun.models.norm_state import evaluating
from metarun.models.parts import body_of, head_of
from metarun.trees import slice_tasks, under

PARTS = ("body", "head")


def taken_apart(experiment: Experiment) -> list[str]:
    """A problem where the learner takes head(body(x)), or body(x), for what a network's forward does otherwise."""
    learner, task = experiment.learner, experiment.task
    net = networks_of(learner).get("base_learner")
    if net is None or not is_foreign(net) or not isinstance(learner, FewShotLearner):
        return []
    parts, name = dict(net.named_children()), type(net).__name__
    if "body" not in parts:
        return []
    episode = slice_tasks(task.sample(first_split(task), [0]), 0)
    alone = taken_alone(learner, experiment.theta_0, episode)
    fix = "or choose a learner of whole networks, such as maml."
    if "head" in alone:
        what = f"base_learner: {type(learner).__name__} takes head(body(x)) for the network, but"
        if {*parts["body"].parameters()} & {*parts["head"].parameters()}:
            return [f"{what} body and head of {name} share a parameter, which would become two. Untie it, {fix}"]
        if not is_head_of_body(net, episode.support.x):
            return [
                f"{what} forward of {name} gives something else. Move what it does besides into body or head, {fix}"
            ]
    elif "body" in alone and not gives_features_of_body(net, episode.support.x):
        what = f"base_learner: {type(learner).__name__} takes body(x) for the features of the network, but"
        return [f"{what} forward of {name} has other ones. Move what it does before or after body into body, {fix}"]
    return []


def first_split(task: TaskDistribution) -> str:
    """The split of training, or where all classes are for a test another."""
    return next((split for split in task.splits if split == "train"), task.splits[0])


@torch.no_grad()
def taken_alone(learner: FewShotLearner, theta: Params, episode: Episode) -> set[str]:
    """The parts of its base learner, ``body`` or ``head``, that the learner calls outside of the network's forward."""
    net, inside, alone = learner.base_learner, list[bool](), set[str]()
    with eval_mode(learner), ExitStack() as hooks:
        hooks.callback(net.register_forward_pre_hook(lambda *_: inside.append(True)).remove)
        hooks.callback(net.register_forward_hook(lambda *_: inside.clear()).remove)
        for name, part in net.named_children():
            if name in PARTS:
                hook = part.register_forward_pre_hook(lambda *_, name=name: None if inside else alone.add(name))
                hooks.callback(hook.remove)
        learner.query_loss(learner.adapt(theta, episode.support), episode.query)
    return alone


@torch.no_grad()
def is_head_of_body(net: nn.Module, x: Tensor) -> bool:
    """Whether ``net`` gives for x what its head gives for the features of its body, under weights drawn anew."""
    with generators_kept(), evaluating(net):
        weights = _drawn_anew(net, x)
        torch.manual_seed(0)  # whoever draws noise draws the same again
        whole = functional_call(net, weights, (x,))
        torch.manual_seed(0)
        z = functional_call(body_of(net), under(weights, "body"), (x,))
        parts = functional_call(head_of(net), under(weights, "head"), (z,))
    return _same(whole, parts)


@torch.no_grad()
def gives_features_of_body(net: nn.Module, x: Tensor) -> bool:
    """Whether the features of ``net``, what its forward gives its head or, without one, gives, are those of its body for x,
    under weights drawn anew. True of one whose forward calls its head otherwise, for then it cannot be told."""
    given: list[Tensor] = []
    with generators_kept(), evaluating(net):
        weights, head = _drawn_anew(net, x), dict(net.named_children()).get("head")
        hook = head and head.register_forward_pre_hook(lambda _, inputs: given.extend(inputs[:1]))
        torch.manual_seed(0)
        whole = functional_call(net, weights, (x,))
        if hook:
            hook.remove()
        torch.manual_seed(0)
        z = functional_call(body_of(net), under(weights, "body"), (x,))
    features = given if head else [whole]
    return not features or _same(features[0], z)


def _drawn_anew(net: nn.Module, x: Tensor) -> Params:
    """Weights of ``net`` by name; what body and head share stands under both."""
    drawn = {p: torch.randn(p.shape, dtype=p.dtype).to(x.device) for p in trainable(net).values()}
    names = net.named_parameters(remove_duplicate=False)
    return {name: drawn[p] for name, p in names if p in drawn}


def _same(whole: Tensor, parts: Tensor) -> bool:
    off = SAME[torch.float32] * whole.norm()
    return whole.shape == parts.shape and not (whole - parts).norm() > off  # NaN, of what overflows, tells nothing
