"""The numbered episodes of a split, in chunks, and the hash of their random choices."""

import hashlib

import numpy as np

from metarun.core import Draw, Episode, TaskDistribution
from metarun.trees import num_elements, tree_leaves

BLOCK = 20  # episodes that share a size, one after another, where sizes vary
CHUNK, GPU_CHUNK = 25, 200  # evaluation tasks at a time, or fewer where the numbers in them exceed these:
CPU_ELEMENTS, GPU_ELEMENTS = 2**20, 2**24  # 25 tasks of 60 ways took Conv-4 7 GB, and no less time


Chunk = tuple[TaskDistribution, range]  # numbers of episodes of one size, and the distribution that has this size


def chunks_of(task: TaskDistribution, split: str, num_tasks: int) -> list[Chunk]:
    """Episodes 0 ... ``num_tasks`` - 1 of a split, in chunks that are evaluated at a time, each of one size."""
    size = tasks_at_a_time(task.sample(split, [0]))
    return [
        (at, indices[start : start + size])
        for at, indices in by_size(task, split, num_tasks)
        for start in range(0, len(indices), size)
    ]


def by_size(task: TaskDistribution, split: str, num_tasks: int) -> list[Chunk]:
    """Episodes 0 ... ``num_tasks`` - 1 of a split, in the longest ranges that share a size."""
    found: list[Chunk] = []
    for start in range(0, num_tasks, BLOCK):
        at, stop = task.at(split, start // BLOCK), min(start + BLOCK, num_tasks)
        if found and found[-1][0] is at:
            start = found.pop()[1].start  # noqa: PLW2901
        found.append((at, range(start, stop)))
    return found


def block_of(task: TaskDistribution, split: str, index: int) -> TaskDistribution:
    """The distribution that has the size of episode ``index`` of a split."""
    return task.at(split, index // BLOCK)


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
    for at, indices in by_size(task, split, num_tasks):
        draw = at.draw(split, indices)
        for name in sorted(draw):
            digest.update(_described(name, draw[name]))
    return digest.hexdigest()
