"""Training episodes, drawn for several steps at once in a thread of their own."""

from collections import defaultdict
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from metarun.core import Episode, TaskDistribution
from metarun.trees import slice_tasks, tree_leaves

BLOCK_BYTES = 16 * 2**20  # of episodes drawn ahead: enough to amortise the draw, small beside a meta-gradient
GPU_BLOCK_BYTES = 256 * 2**20  # steps are shorter there, and each block waits for the CPU a few times


def meta_batches(
    task: TaskDistribution, meta_batch_size: int, start: int, stop: int, parts: list[slice] | None = None
) -> Generator[Episode, None, None]:
    """The meta-batches of steps ``start`` to ``stop``; step t holds the episodes t*B ... t*B + B - 1 of ``train``, or of
    these the ``parts``, which are one after another."""
    if start >= stop:
        return
    own = range(parts[0].start, parts[-1].stop) if parts else range(meta_batch_size)
    (first,) = drawn(task, range(start, start + 1), meta_batch_size, own)
    yield first
    leaves = tree_leaves(first)
    largest = first if task.at("train", start) is task else task.sample("train", own)
    num_bytes, on_gpu = sum(leaf.nbytes for leaf in tree_leaves(largest)), leaves[0].is_cuda
    block = max(1, min(256, (GPU_BLOCK_BYTES if on_gpu else BLOCK_BYTES) // max(1, num_bytes)))
    # a stream of their own, or episodes queue behind the steps before them; of a priority that no recording has, for
    # torch hands out the same few streams again and again
    aside = torch.cuda.Stream(leaves[0].device, priority=-1) if on_gpu else None

    def sample(step: int) -> list[Episode]:
        with torch.cuda.stream(aside):  # of None: no effect
            episodes = drawn(task, range(step, min(step + block, stop)), meta_batch_size, own)
        if aside is not None:
            aside.synchronize()
        return episodes

    with ThreadPoolExecutor(1, thread_name_prefix="episodes") as pool:
        pending: Future[list[Episode]] = pool.submit(sample, start + 1)
        for step in range(start + 1, stop, block):
            ready = pending.result()
            if on_gpu:  # its memory must not serve the next block while steps still read it
                for leaf in tree_leaves(ready):
                    leaf.record_stream(torch.cuda.current_stream())
            if step + block < stop:
                pending = pool.submit(sample, step + block)
            yield from ready


def drawn(task: TaskDistribution, steps: range, meta_batch_size: int, own: range) -> list[Episode]:
    """The meta-batches of ``steps``, of each the tasks ``own``; those of one size are drawn together."""
    of_size: dict[TaskDistribution, list[int]] = defaultdict(list)
    for step in steps:
        of_size[task.at("train", step)].append(step)
    found: dict[int, Episode] = {}
    for at, alike in of_size.items():
        episodes = at.sample("train", [step * meta_batch_size + i for step in alike for i in own])
        found |= {step: slice_tasks(episodes, slice(n * len(own), (n + 1) * len(own))) for n, step in enumerate(alike)}
    return [found[step] for step in steps]
