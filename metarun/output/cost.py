"""What a run's learner costs: parameters, time of an adaptation, floating-point operations."""

from typing import Any

from metarun.config.experiment import Experiment
from metarun.evaluation.flops import flops_of_evaluation, flops_of_training
from metarun.evaluation.scoring import Complexity, Subject
from metarun.output.results import numbers


def cost_of_evaluation(experiment: Experiment, subject: Subject) -> dict[str, Any]:
    """``complexity`` of results.json, of what is evaluated first."""
    first = subject.on(experiment.suite.first)
    return numbers(Complexity().estimates(first)) | flops_of_evaluation(first)


def cost_of_run(experiment: Experiment, subject: Subject) -> dict[str, Any]:
    """The same with the operations of the last training step."""
    step = max(0, experiment.steps - 1)
    training = flops_of_training(
        experiment.learner.at(step),
        subject.theta,
        experiment.task,
        experiment.meta_batch_size,
        experiment.dropping(step),
    )
    evaluation = cost_of_evaluation(experiment, subject)
    notes = [note for part in (evaluation, training) for note in part.get("notes", [])]
    return evaluation | training | ({"notes": notes} if notes else {})
