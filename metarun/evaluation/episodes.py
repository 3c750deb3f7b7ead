"""The numbered episodes of a split, a chunk at a time, and the hash of their random choices."""

import hashlib
from collections.abc import Iterator

import numpy as np

from metarun.core import Draw, Episode, TaskDistribution
from metarun.trees import num_elements, tree_leaves

CHUNK, GPU_CHUNK = 25, 200  # evaluation tasks at a time, or fewer where the numbers in them exceed these:
CPU_ELEMENTS, GPU_ELEMENTS = 2**20, 2**24  # 25 tasks of 60 ways took Conv-4 7 GB, and no less time


def chunks(task: TaskDistribution, split: str, num_tasks: int) -> Iterator[Episode]:
    """Episodes 0 ... ``num_tasks`` - 1 of a split, a chunk at a time."""
    for indices in chunks_of(task, split, num_tasks):
        yield task.sample(split, indices)


def chunks_of(task: TaskDistribution, split: str, num_tasks: int) -> list[range]:
    """The numbers of the episodes in each of the ``chunks``."""
    size = tasks_at_a_time(task.sample(split, [0]))
    return [range(start, min(start + size, num_tasks)) for start in range(0, num_tasks, size)]


def tasks_at_a_time(one: Episode) -> int:
    """The number of tasks like the single one in ``one`` that are evaluated together."""
    on_cpu = tree_leaves(one)[0].device.type == "cpu"
    most, elements = (CHUNK, CPU_ELEMENTS) if on_cpu else (GPU_CHUNK, GPU_ELEMENTS)
    return max(1, min(most, elements // num_elements(one)))


def hashes(draw: Draw) -> list[str]:
    """A short sha256 of the random choices behind each episode of ``draw``."""
    digests = [hashlib.sha256() for _ in next(iter(draw.values()))]
    for name in sorted(draw):
        for digest, choices in zip(digests, draw[name], strict=True):
            digest.update(_described(name, choices))
    return [digest.hexdigest()[:16] for digest in digests]


def _described(name: str, choices: np.ndarray) -> bytes:
    array = np.ascontiguousarray(choices)
    return f"{name}{array.dtype.str}{array.shape}".encode() + array.astype(array.dtype.newbyteorder("<")).tobytes()


def manifest(task: TaskDistribution, split: str, num_tasks: int) -> str:
    """sha256 of the random choices behind episodes 0 ... ``num_tasks`` - 1: equal hash, equal episodes."""
    digest = hashlib.sha256()
    draw = task.draw(split, range(num_tasks))
    for name in sorted(draw):
        digest.update(_described(name, draw[name]))
    return digest.hexdigest()
