"""What the rules of the alarms must know of a run, found out from its experiment."""

import math

import torch

from metarun.config.experiment import Experiment
from metarun.evaluation.episodes import by_size
from metarun.output.alarms import Facts
from metarun.output.summary import differences
from metarun.trees import tree_leaves


def facts_of(experiment: Experiment) -> Facts:
    """The facts of a run."""
    objective = experiment.task.spec.objective
    return Facts(
        score=objective.score_name,
        higher_is_better=objective.higher_is_better,
        chance=_chance(experiment) if objective.score_name == "accuracy" else None,
        steps=experiment.steps,
        episodes_a_line=experiment.log_every * experiment.meta_batch_size,
        alike=lambda step: _alike(experiment) and _of_full_size(experiment, step),
    )


def _chance(experiment: Experiment) -> float | None:
    """The accuracy of guessing in the episodes of a validation; None where one of its tasks has no fixed classes."""
    shares = [
        len(indices) / at.spec.num_ways if at.spec.num_ways else math.nan
        for scored in experiment.suite.elsewhere.values() or [experiment.suite.own]
        for at, indices in by_size(scored.task, "val", experiment.num_val_tasks)
    ]
    chance = sum(shares) / experiment.num_val_tasks / max(1, len(experiment.suite.elsewhere))
    return chance if math.isfinite(chance) else None


def _alike(experiment: Experiment) -> bool:
    """Whether the scores of training and validation are of the same learner, on episodes of the same ways and shots."""
    suite, spec = experiment.suite, experiment.task.spec
    return (
        not suite.elsewhere
        and not experiment.learner.needs_train_classes
        and getattr(experiment.test_learner, "inner_steps", 0) == experiment.trained_steps
        and spec.train_num_ways == spec.num_ways
        and not list(differences(*2 * [suite.own.node]))
    )


def _of_full_size(experiment: Experiment, step: int) -> bool:
    """Whether the training episodes of ``step`` are no easier ones of a curriculum."""
    task = experiment.task.at("train", step)
    if task is experiment.task:
        return True
    own, full = (one.sample("train", [0]) for one in (task, experiment.task.for_evaluation().at("train", step)))
    pairs = zip(tree_leaves(own), tree_leaves(full), strict=True)
    return all(a.shape == b.shape and torch.equal(a, b) for a, b in pairs)
