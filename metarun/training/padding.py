"""Meta-batches padded to a few sizes, so that graphs are made for each of these and not for each size.

A padded row repeats an example, and ``Batch.mask`` says that it is none: for learners that read masks.
"""

from collections.abc import Sequence
from itertools import chain

import torch

from metarun.config.experiment import Experiment
from metarun.core import Batch, Episode, MetaLearner, TaskDistribution
from metarun.evaluation.eval_mode import modules_of
from metarun.models.exact.layers import BatchNorm
from metarun.tasks.sizes import Sized

PIECES = 16  # sizes of all that vary together, at most
STEPS = 1000  # that are looked at for the sizes of a run


def pads(learner: MetaLearner, task: TaskDistribution) -> bool:
    """Whether meta-batches of ``task`` may be padded for ``learner``: not where a batch norm would see the padded rows."""
    varies = isinstance(task, Sized) and task.sizes["train"] != task.sizes.smallest["train"]
    if not (learner.reads_masks and varies):  # asked at every step
        return False
    modules = chain.from_iterable(network.modules() for network in modules_of(learner))
    return not any(isinstance(module, BatchNorm | torch.nn.modules.batchnorm._BatchNorm) for module in modules)


def bucket(task: Sized, step: int) -> tuple[int, int]:
    """The rows of support and query to which the meta-batch of ``step`` is padded.

    The numbers of shots are cut into pieces of one length, and so are those of queries; a size is padded to the largest
    of its piece.
    """
    size, largest, smallest = task.at("train", step).sizes["train"], task.sizes["train"], task.sizes.smallest["train"]
    keys = ("num_shots", "num_queries")
    ranges = [(getattr(smallest, key), getattr(largest, key)) for key in keys]
    vary = sum(low < high for low, high in ranges)
    pieces = int(PIECES ** (1 / max(1, vary)))
    ways = getattr(size, "num_ways", 1)
    rows = []
    for key, (low, high) in zip(keys, ranges, strict=True):
        width = -(-(high - low + 1) // pieces)
        rows.append(ways * (high - (high - getattr(size, key)) // width * width))
    return rows[0], rows[1]


def num_sizes(experiment: Experiment) -> int:
    """How many shapes the meta-batches of a run have, once they are padded, among its first steps."""
    task, steps = experiment.task, range(min(experiment.steps, STEPS))
    if task.at("train", 0) is task and task.at("train", experiment.steps) is task:
        return 1
    if isinstance(task, Sized) and pads(experiment.learner, task):
        return len({(bucket(task, step), task.at("train", step).spec.train_num_ways) for step in steps})
    return len({task.at("train", step) for step in steps})


def padded(episodes: Episode, rows: Sequence[int]) -> Episode:
    """``episodes`` with so many rows of support and query, and masks that tell the examples."""
    support, query = (_padded(batch, n) for batch, n in zip(episodes[:2], rows, strict=True))
    return episodes._replace(support=support, query=query)


def _padded(batch: Batch, rows: int) -> Batch:
    have = batch.y.shape[1]
    places = torch.arange(rows, device=batch.y.device)
    taken = places.where(places < have, 0)
    return Batch(batch.x[:, taken], batch.y[:, taken], (places < have).expand(len(batch.y), -1))
