"""One run on several devices: each process computes its tasks of every meta-batch, and all of them take the same step.

The shares of the chunks are gathered, and added in the order of the chunks, as a process alone adds them: the same bits.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from metarun.core import Episode, Metrics, Params
from metarun.errors import ConfigError, MetarunError
from metarun.execution.cuda_graph import CudaGraphed
from metarun.execution.decorated import Decorated
from metarun.execution.devices import DRAWS, Devices, drawn
from metarun.execution.execution import Chunked, Eager, Execution, MetaLoss
from metarun.execution.update import Update
from metarun.trees import slice_tasks, tree_leaves


@dataclass(frozen=True)
class Sharded(Decorated):
    """``inner`` for the tasks of one of several processes, of the ``num_tasks`` of a meta-batch.

    Episodes of a training step are those of its own tasks alone.
    """

    devices: Devices
    num_tasks: int

    def describe(self) -> str:
        return self.inner.describe()

    def mean_grad(self, loss_fn: MetaLoss, theta: Params, episodes: Episode) -> tuple[Params, Metrics]:
        own = self.devices.own(self.inner.parts(self.num_tasks))
        within = [slice(part.start - own[0].start, part.stop - own[0].start) for part in own]

        def shares() -> list[tuple[Params, Metrics]]:
            return [self.inner.share(loss_fn, theta, slice_tasks(episodes, part), self.num_tasks) for part in within]

        return self.devices.total(self.devices.together(shares))

    def train_step(self, loss_fn: MetaLoss, theta: Params, episodes: Episode, update: Update) -> Metrics:
        gradient, metrics = self.mean_grad(loss_fn, theta, episodes)
        if self.update_in_graph(update) and update.begun():
            update.follow_rates()
            self.apply(update, tree_leaves(gradient))
        else:
            update(tree_leaves(gradient))
        return metrics

    def spread(self, jobs: Sequence[Any], work: Callable[[Any], Any]) -> list[Any]:
        devices, before = self.devices, drawn(self.devices.device)
        # who has no job in the last round does the last one too, for all ask each other in ``work`` whether to stop
        mine = [work(jobs[min(i + devices.rank, len(jobs) - 1)]) for i in range(0, len(jobs), devices.count)]
        told = devices.gathered((mine, drawn(devices.device) != before))
        if any(drew for _, drew in told):
            raise MetarunError(DRAWS)
        return [told[i % devices.count][0][i // devices.count] for i in range(len(jobs))]

    def smaller(self, num_tasks: int) -> Execution | None:
        smaller = self.inner.smaller(num_tasks)
        while smaller is not None and self._split(smaller) != self._split(self.inner):
            smaller = smaller.smaller(num_tasks)  # the episodes that each process draws stay the same
        return None if smaller is None else replace(self, inner=smaller)

    def _split(self, execution: Execution) -> list[int] | None:
        """Where the tasks of each process begin; None where the processes do not divide the chunks."""
        parts, count = execution.parts(self.num_tasks), self.devices.count
        return None if len(parts) % count else [part.start for part in parts[:: len(parts) // count]]


def divided(execution: Eager, num_tasks: int, count: int) -> Eager:
    """``execution`` for ``count`` processes, with those of its candidates whose chunks they divide. Raises ConfigError
    where there are none: the chunks decide on the bits of a result, so they are those of the configuration."""
    if count == 1:
        return execution
    execution, chunk = replace(execution, cuda_graph=False), execution.chunk if isinstance(execution, Chunked) else 1
    fitting = [c for c in execution.candidates() if len(c.parts(num_tasks)) % count == 0]
    if chunk is not None and fitting:
        return execution if len(fitting) == len(execution.candidates()) else fitting[0]
    chunks = -(-num_tasks // chunk) if chunk else 1
    sizes = [size for size in range(1, num_tasks + 1) if -(-num_tasks // size) % count == 0]
    each = -(-num_tasks // count)  # tasks of a process
    best = max(sizes, key=lambda size: (num_tasks % size == 0, size <= each, size), default=None)
    kind = "" if isinstance(execution, Chunked) else "execution=vmapped "
    fixes = [f"{kind}execution.chunk={best}"] if best else []
    fixes += [f"devices={max(n for n in range(1, count + 1) if chunks % n == 0)}"]
    why = "execution.chunk is null: all tasks in one" if chunk is None else f"{num_tasks} tasks, {chunk} at a time"
    raise ConfigError(
        [f"devices={count} does not divide the chunks of a step, which are {chunks} ({why}). Set {' or '.join(fixes)}."]
    )


def around(devices: Devices, execution: Execution, num_tasks: int) -> Execution:
    """``execution`` for a part of ``num_tasks`` tasks a step; alone itself. Raises ConfigError where it has none."""
    if devices.count == 1:
        return execution
    inner = execution.inner if isinstance(execution, CudaGraphed) else execution
    if (chunks := len(inner.parts(num_tasks))) % devices.count:
        raise ConfigError(
            [
                f"devices={devices.count} does not divide the {chunks} chunks ({inner.describe()}) in which this run has "
                "computed its meta-batches so far (execution.json); continue it with devices=1."
            ]
        )
    return Sharded(inner, devices, num_tasks)
