"""The objects and numbers of one run."""

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from metarun.core import MetaLearner, Params, TaskDistribution, trainable
from metarun.errors import ConfigError, memory_refusal
from metarun.evaluation.eval_mode import modules_of
from metarun.evaluation.scoring import Evaluator, Subject
from metarun.evaluation.suite import Suite, with_ways
from metarun.execution.execution import Changes, Eager, Execution
from metarun.execution.update import MULTIPLE
from metarun.models.dropout import dropping, drops
from metarun.output.sink import Sink
from metarun.trees import leaf_names, tree_leaves


@dataclass
class Experiment:
    """The objects and numbers of one run, built and checked."""

    task: TaskDistribution
    learner: MetaLearner
    theta_0: Params  # taken out of the learner's networks
    test_learner: MetaLearner  # with the ways and steps of validation and test
    suite: Suite  # what is validated and tested on
    evaluators: list[Evaluator]  # the baselines, and those of the configuration
    optimizer: Callable[[list[Any]], torch.optim.Optimizer]
    scheduler: Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler]
    execution: Eager
    loggers: dict[str, Callable[..., Sink]]  # by key, what makes them
    clip: Callable[[list[Tensor]], object] | None
    rates: dict[str, float]
    device: torch.device
    seed: int
    steps: int
    meta_batch_size: int
    log_every: int
    checkpoint_minutes: float | None
    profile: bool
    devices: int
    exact: bool
    every: int
    num_val_tasks: int
    num_test_tasks: int
    trained_steps: int
    protocol: dict[str, Any]  # what a reader of the score must know
    headline: dict[str, Any]  # what TensorBoard's HParams page shows
    notes: list[str] = field(default_factory=list)  # what building did to networks of somebody else, and why

    def next_checkpoint(self) -> float:
        """When the next checkpoint by the clock is due, if none is written before, as time.monotonic() counts."""
        return time.monotonic() + 60 * (self.checkpoint_minutes or math.inf)

    def changes(self) -> Changes:
        """How often a training step computes something else: by an annealed learner, or new draws of its dropout."""
        first, last = self.learner.at(0), self.learner.at(self.steps)
        each_step = first != self.learner.at(1) or drops(modules_of(first))
        return "always" if each_step else "seldom" if first != last else "never"

    def learner_of(self, step: int) -> MetaLearner:
        """The learner of training step ``step``, with the ways of its episodes."""
        return with_ways(self.learner.at(step), self.task.at("train", step), "train")

    def dropping(self, step: int) -> AbstractContextManager[None]:
        """A context in which the networks' dropout is that of a training step."""
        return dropping(modules_of(self.learner), self.seed, step)

    def subject(self, theta: Params, split: str, num_tasks: int, execution: Execution) -> Subject:
        """The learner of evaluation with ``theta``, on the first episodes of a split of the training task."""
        return Subject(self.test_learner, theta, self.task, split, num_tasks, execution)


def optimizer_of(experiment: Experiment, leaves: list[Tensor], names: list[str]) -> torch.optim.Optimizer:
    """The optimizer of theta's leaves, in groups of their own where ``rates`` name the beginning of their names.

    All have the schedule's learning rate; ``Update`` multiplies it, for schedulers go on from what they find.
    """
    if not experiment.rates:
        return experiment.optimizer(leaves)

    def part_of(name: str) -> str:
        return next((part for part in experiment.rates if f"{name}.".startswith(f"{part}.")), "")

    parts = [part_of(name) for name in names]
    if unknown := sorted(set(experiment.rates) - set(parts)):
        raise ConfigError(
            [f"rates.{part}: theta has no part of that name; it has {', '.join(names)}." for part in unknown]
        )
    rates = {"": 1.0, **experiment.rates}
    groups = {part: [leaf for leaf, its in zip(leaves, parts, strict=True) if its == part] for part in rates}
    return experiment.optimizer([{"params": group, MULTIPLE: rates[part]} for part, group in groups.items() if group])


def check_rates(experiment: Experiment) -> None:
    """Raise ConfigError where the ``rates`` or their optimizer do not fit theta: now, before there is a run folder."""
    if not experiment.rates:
        return
    try:
        optimizer_of(experiment, tree_leaves(experiment.theta_0), leaf_names(experiment.theta_0))
    except ValueError as error:
        raise ConfigError([f"optimizer: with rates, {error}"]) from error


def take_theta(learner: MetaLearner) -> Params:
    """Take theta_0 out of a learner: its networks' parameters, but for those ``outside_theta``, move to the meta device.

    A forward pass that forgets ``functional_call`` then raises, instead of silently using stale weights. Buffers and frozen
    parameters stay. A parameter that stands in several places is still one afterwards. Raises ConfigError where ``init``
    refuses the learner's settings, or there is no memory for them.
    """
    try:
        theta = learner.init()
    except (ValueError, RuntimeError) as error:
        no_memory = memory_refusal(error)
        if not (no_memory or isinstance(error, ValueError)):
            raise
        told = f"out of memory: {no_memory}. Take smaller sizes." if no_memory else str(error)
        raise ConfigError([told if "meta_learner" in told else f"meta_learner: {told}"]) from error
    outside = [getattr(learner, name) for name in learner.outside_theta]
    networks = [network for network in modules_of(learner) if network not in outside]
    left = {p: _moved(p) for network in networks for p in trainable(network).values()}
    for child in (child for network in networks for child in network.modules()):
        for name, p in child.named_parameters(recurse=False, remove_duplicate=False):
            setattr(child, name, left.get(p, p))
    return theta


def _moved(p: nn.Parameter) -> nn.Parameter:
    """The parameter on the meta device: the object itself, so that it is there for a list that a network keeps beside it
    too; a new one where torch must keep the old, as recurrent networks and graphs do."""
    there = nn.Parameter(p.to("meta"))
    try:
        torch.utils.swap_tensors(p, there)
    except RuntimeError:
        return there
    return p
