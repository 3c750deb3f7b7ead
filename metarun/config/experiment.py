"""The objects and numbers of one run."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metarun.core import MetaLearner, Params, TaskDistribution
from metarun.errors import ConfigError
from metarun.evaluation.scoring import Evaluator, Subject
from metarun.evaluation.suite import Suite
from metarun.execution.execution import Execution


@dataclass
class Experiment:
    """The objects and numbers of one run, built and checked."""

    task: TaskDistribution
    learner: MetaLearner
    test_learner: MetaLearner  # with the ways and steps of validation and test
    suite: Suite  # what is validated and tested on
    evaluators: list[Evaluator]  # beside those that every run has
    optimizer: Callable[[list[Any]], torch.optim.Optimizer]
    scheduler: Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler]
    execution: Execution
    clip: Callable[[list[Tensor]], object] | None
    rates: dict[str, float]
    device: torch.device
    seed: int
    steps: int
    meta_batch_size: int
    log_every: int
    profile: bool
    every: int
    num_val_tasks: int
    num_test_tasks: int
    trained_steps: int
    protocol: dict[str, Any]  # what a reader of the score must know
    headline: dict[str, Any]  # what TensorBoard's HParams page shows

    def subject(self, theta: Params, split: str, num_tasks: int, execution: Execution) -> Subject:
        """The learner of evaluation with ``theta``, on the first episodes of a split of the training task."""
        return Subject(self.test_learner, theta, self.task, split, num_tasks, execution)


def optimizer_of(experiment: Experiment, leaves: list[Tensor], names: list[str]) -> torch.optim.Optimizer:
    """The optimizer of theta's leaves, in groups of their own where ``rates`` name the beginning of their names."""
    if not experiment.rates:
        return experiment.optimizer(leaves)

    def part_of(name: str) -> str:
        return next((part for part in experiment.rates if f"{name}.".startswith(f"{part}.")), "")

    parts = [part_of(name) for name in names]
    if unknown := sorted(set(experiment.rates) - set(parts)):
        raise ConfigError(
            [f"rates.{part}: theta has no part of that name; it has {', '.join(names)}." for part in unknown]
        )
    lr = experiment.optimizer(leaves[:1]).param_groups[0]["lr"]
    rates = {"": 1.0, **experiment.rates}
    groups = {part: [leaf for leaf, its in zip(leaves, parts, strict=True) if its == part] for part in rates}
    return experiment.optimizer([{"params": group, "lr": lr * rates[part]} for part, group in groups.items() if group])
