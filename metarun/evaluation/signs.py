"""The signs by which alarms know a run that goes wrong: what the adaptation and the meta-gradient do, on a few tasks.

Nothing is changed: no parameter, buffer or generator.
"""

import math
from collections.abc import Iterable
from dataclasses import replace
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor, nn

from metarun.core import Batch, Episode, FewShotLearner, Params, TaskDistribution
from metarun.evaluation.calibration import CALIBRATION_TASKS
from metarun.evaluation.episodes import tasks_at_a_time
from metarun.evaluation.eval_mode import eval_mode, fixed_draws, modules_of, takes_steps
from metarun.evaluation.scoring import Subject
from metarun.execution.execution import MetaLoss
from metarun.execution.halving import HalvingMap
from metarun.models.norm_state import norms
from metarun.trees import leaf_names, tree_leaves

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)  # whose statistics stay as they are
ADAPTED, DIFFERENTIATED = 8, 4  # tasks at most


class Effect(NamedTuple):
    """Losses of a few validation tasks before and after the inner steps [tasks]; of the support where there are labels."""

    query: tuple[Tensor, Tensor]
    support: tuple[Tensor, Tensor] | None


class Gradient(NamedTuple):
    """The norm of a meta-gradient and of theta, and the parts of theta, of all those there are, whose gradient is zero."""

    norm: float
    theta: float
    zero: list[str]
    parts: int


class Signs(NamedTuple):
    """What was found; None where a learner has no such thing."""

    effect: Effect | None
    gradient: Gradient
    norm_examples: int | None  # the fewest examples that a batch norm takes its statistics from


def signs_of(subject: Subject, meta_loss: MetaLoss, training: TaskDistribution, batch: int) -> Signs:
    """The signs of ``subject``, whose theta is trained by ``meta_loss`` on ``batch`` tasks of ``training`` a step."""
    one = subject.task.sample(subject.split, [0])
    size = min(ADAPTED, subject.num_tasks, tasks_at_a_time(one))
    return Signs(
        effect_of_adaptation(subject, subject.task.sample(subject.split, range(size))),
        meta_gradient(subject, meta_loss, training.sample("train", range(min(DIFFERENTIATED, batch)))),
        examples_of_norms(subject, one),
    )


@torch.no_grad()
def effect_of_adaptation(subject: Subject, episodes: Episode) -> Effect | None:
    """What the inner steps do to the losses; None of a learner that takes none."""
    learner = subject.learner
    if not takes_steps(learner):
        return None
    unadapted = replace(learner, inner_steps=0)  # type: ignore[type-var]

    def losses(theta: Params, episode: Episode) -> list[Tensor]:
        phis = [each.adapt(theta, episode.support) for each in (unadapted, learner)]
        found = [learner.query_loss(phi, episode.query)[0] for phi in phis]
        if isinstance(learner, FewShotLearner) and isinstance(episode.support, Batch):
            x, y = episode.support[:2]
            found += [learner.objective.loss(learner.predict(phi, x), y) for phi in phis]
        return found

    with eval_mode(learner):
        rows = HalvingMap(subject.execution)(losses, subject.theta, episodes)
    columns = [torch.cat(column).double().cpu() for column in zip(*rows, strict=True)]
    return Effect((columns[0], columns[1]), (columns[2], columns[3]) if len(columns) > 2 else None)


def meta_gradient(subject: Subject, meta_loss: MetaLoss, episodes: Episode) -> Gradient:
    """The mean meta-gradient of the training ``episodes``, as a training step has it."""
    with fixed_draws():
        gradient, _ = subject.execution.eager.mean_grad(meta_loss, subject.theta, episodes)
    leaves = tree_leaves(gradient)
    lengths = torch.stack([leaf.detach().double().norm() for leaf in leaves]).tolist()
    zero = [name for name, length in zip(leaf_names(subject.theta), lengths, strict=True) if length == 0]
    return Gradient(math.hypot(*lengths), _length(tree_leaves(subject.theta)), zero, len(leaves))


def examples_of_norms(subject: Subject, one: Episode) -> int | None:
    """The fewest examples that a batch norm of the learner takes its statistics from; 0 where it has never taken any."""
    networks, counts = modules_of(subject.learner), []
    if not (isinstance(one.support, Batch) and isinstance(one.query, Batch)):
        return None
    support, query = len(one.support.y[0]), len(one.query.y[0])
    for mode, count in (("transductive", query), ("support", support), ("running", CALIBRATION_TASKS * query)):
        counts += [count] * any(norms(network, mode) for network in networks)  # type: ignore[arg-type]
    for module in chain.from_iterable(network.modules() for network in networks):
        if isinstance(module, NORMS) and module.running_mean is not None and module.running_var is not None:
            # as torch makes them; their count is 0 in some published networks, too
            counts += [0] * bool((module.running_mean == 0).all() and (module.running_var == 1).all())
    return min(counts, default=None)


def _length(leaves: Iterable[Tensor]) -> float:
    return math.hypot(*(leaf.detach().double().norm().item() for leaf in leaves))
