"""The execution that a new run chooses, and the meta-batches as an execution is to have them."""

from collections.abc import Callable

from metarun.config.experiment import Experiment
from metarun.core import Episode, Params
from metarun.execution.choice import Choice
from metarun.execution.choosing import choose_execution
from metarun.execution.compiled import compiles
from metarun.execution.execution import Execution, Workload
from metarun.execution.update import Update
from metarun.tasks.sizes import Sized
from metarun.training.padding import bucket, num_sizes, padded, pads


def measured(
    experiment: Experiment, theta: Params, update: Update, between: Callable[[], None], busy: Callable[[str], None]
) -> Choice:
    """What ``execution=auto`` finds out on the first meta-batch; another execution is its own choice."""
    episodes = experiment.task.sample("train", range(experiment.meta_batch_size))  # of the largest size
    if experiment.execution.compile is not False and pads(experiment.learner, experiment.task):
        episodes = padded(episodes, [batch.y.shape[1] for batch in episodes[:2]])
    loss, steps = experiment.learner.at(0).meta_loss, experiment.steps
    work = Workload(loss, theta, episodes, update, steps, experiment.changes(), num_sizes(experiment))
    return choose_execution(experiment.execution, work, between, busy)


def fitted(experiment: Experiment, execution: Execution, step: int, episodes: Episode) -> Episode:
    """The meta-batch of ``step`` as ``execution`` is to have it: padded where it makes graphs of shapes."""
    task = experiment.task
    if not (isinstance(task, Sized) and compiles(execution) and pads(experiment.learner, task)):
        return episodes
    return padded(episodes, bucket(task, step))
