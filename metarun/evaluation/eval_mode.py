"""The state in which learners are evaluated: modules in evaluation mode, and draws that are the same each time."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import fields

import torch
from torch import nn

from metarun.core import MetaLearner, hyperparameters
from metarun.execution.execution import generators_kept
from metarun.models.norm_state import evaluating


def modules_of(learner: MetaLearner) -> list[nn.Module]:
    """The torch modules among the fields of ``learner``."""
    values = (getattr(learner, field.name) for field in fields(learner))  # type: ignore[arg-type]
    return [value for value in values if isinstance(value, nn.Module)]


@contextmanager
def fixed_draws() -> Iterator[None]:
    """A context in which a learner that draws gives the same score each time; it leaves the generators as they were."""
    with generators_kept():
        torch.manual_seed(0)
        yield


@contextmanager
def eval_mode(learner: MetaLearner) -> Iterator[None]:
    """A context with the modules of ``learner`` in evaluation mode, and generators that are set back on leaving."""
    with fixed_draws(), ExitStack() as stack:
        for module in modules_of(learner):
            stack.enter_context(evaluating(module))
        yield


def takes_steps(learner: MetaLearner) -> bool:
    """Whether the learner adapts by steps, of which it takes one or more."""
    return "inner_steps" in hyperparameters(learner) and getattr(learner, "inner_steps", 0) > 0
