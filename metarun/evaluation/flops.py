"""Floating-point operations of a training step, an adaptation and a prediction, as torch counts them: in matrix products,
convolutions and attention."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from metarun.core import Episode, MetaLearner, Params, TaskDistribution
from metarun.evaluation.eval_mode import eval_mode
from metarun.evaluation.scoring import Subject
from metarun.execution.execution import Looped, generators_kept
from metarun.trees import tree_map

Flops = dict[str, Any]  # numbers by name, and ``notes`` of what could not be counted


def flops_of_evaluation(subject: Subject) -> Flops:
    """``adaptation_flops`` of one task, and ``prediction_flops`` for its query."""
    learner, one = subject.learner, subject.task.sample(subject.split, [0])

    def adapted(theta: Params, episode: Episode) -> Params:
        return learner.adapt(theta, episode.support)

    def scored(theta: Params, episode: Episode) -> Any:
        return learner.query_loss(adapted(theta, episode), episode.query)[1]

    def count() -> dict[str, int]:
        with torch.no_grad(), eval_mode(learner):
            first, both = (counted(partial(Looped().map, fn, subject.theta, one)) for fn in (adapted, scored))
        return {"adaptation_flops": first, "prediction_flops": both - first}

    return _or_a_note("an adaptation", count)


def flops_of_training(
    learner: MetaLearner, theta: Params, task: TaskDistribution, num_tasks: int, context: AbstractContextManager[None]
) -> Flops:
    """``step_flops`` of a meta-gradient of ``num_tasks`` tasks, without the optimizer; ``context``: that of a step."""

    def count() -> dict[str, int]:
        leaves = tree_map(lambda p: p.detach().clone().requires_grad_(), theta)
        with context, torch.enable_grad():
            one = counted(lambda: Looped().mean_grad(learner.meta_loss, leaves, task.sample("train", [0])))
        return {"step_flops": num_tasks * one}

    return _or_a_note("a training step", count)


def counted(compute: Callable[[], Any]) -> int:
    """The operations of ``compute``, which leaves torch's generators as they were."""
    with generators_kept(), FlopCounterMode(display=False) as counter:
        compute()
    return counter.get_total_flops()


def _or_a_note(what: str, count: Callable[[], dict[str, int]]) -> Flops:
    """A network of somebody else can do what the counter does not know; a run does not fail for that."""
    try:
        return count()
    except RuntimeError as error:
        return {"notes": [f"FLOPs of {what} are not counted: {str(error).partition(chr(10))[0]}"]}
