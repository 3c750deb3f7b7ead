"""Training episodes, drawn for several steps at once in a thread of their own."""

from collections.abc import Generator, Sequence
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

    def numbers(start: int, stop: int) -> Sequence[int]:
        every = range(start * meta_batch_size, stop * meta_batch_size)
        return every if len(own) == meta_batch_size else [i for i in every if i % meta_batch_size in own]

    first = task.sample("train", numbers(start, start + 1))
    yield first
    leaves = tree_leaves(first)
    num_bytes, on_gpu = sum(leaf.nbytes for leaf in leaves), leaves[0].is_cuda
    block = max(1, min(256, (GPU_BLOCK_BYTES if on_gpu else BLOCK_BYTES) // max(1, num_bytes)))
    # a stream of their own, or episodes queue behind the steps before them; of a priority that no recording has, for
    # torch hands out the same few streams again and again
    aside = torch.cuda.Stream(leaves[0].device, priority=-1) if on_gpu else None

    def sample(step: int) -> Episode:
        with torch.cuda.stream(aside):  # of None: no effect
            episodes = task.sample("train", numbers(step, min(step + block, stop)))
        if aside is not None:
            aside.synchronize()
        return episodes

    with ThreadPoolExecutor(1, thread_name_prefix="episodes") as pool:
        pending: Future[Episode] = pool.submit(sample, start + 1)
        for step in range(start + 1, stop, block):
            ready = pending.result()
            if on_gpu:  # its memory must not serve the next block while steps still read it
                for leaf in tree_leaves(ready):
                    leaf.record_stream(torch.cuda.current_stream())
            if step + block < stop:
                pending = pool.submit(sample, step + block)
            for i in range(min(block, stop - step)):
                yield slice_tasks(ready, slice(i * len(own), (i + 1) * len(own)))
