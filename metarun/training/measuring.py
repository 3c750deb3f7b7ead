"""The execution that a new run chooses."""

from collections.abc import Callable

from metarun.config.experiment import Experiment
from metarun.core import Params
from metarun.execution.choice import Choice
from metarun.execution.choosing import choose_execution
from metarun.execution.execution import Workload
from metarun.execution.update import Update


def measured(
    experiment: Experiment, theta: Params, update: Update, between: Callable[[], None], busy: Callable[[str], None]
) -> Choice:
    """What ``execution=auto`` finds out on the first meta-batch; another execution is its own choice."""
    episodes = experiment.task.sample("train", range(experiment.meta_batch_size))
    loss, steps = experiment.learner.at(0).meta_loss, experiment.steps
    work = Workload(loss, theta, episodes, update, steps, experiment.changes())
    return choose_execution(experiment.execution, work, between, busy)
