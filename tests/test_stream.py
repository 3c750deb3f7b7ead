"""Step t trains on the episodes t*B ... t*B + B - 1 of the split "train", however they are drawn ahead."""

import threading
import time

import numpy as np
import pytest
import torch

from metarun.core import Batch, Draw, Episode, TaskDistribution, TaskSpec
from metarun.objectives import SQUARED_ERROR
from metarun.training import stream
from metarun.training.stream import meta_batches
from metarun.trees import tree_leaves
from tests.composing import experiment

EPISODE_BYTES = 4 * 8  # of Numbered below


class Numbered(TaskDistribution):
    """Episode i holds the number i; drawing episode ``broken`` or a later one fails."""

    spec = TaskSpec(input_shape=(1,), num_outputs=1, objective=SQUARED_ERROR)

    def __init__(self, broken: int | None = None) -> None:
        self.broken = broken
        self.sizes: list[int] = []

    def draw(self, split, indices) -> Draw:
        assert split == "train"
        self.sizes.append(len(indices))
        if self.broken is not None and max(indices) >= self.broken:
            raise OSError(f"episode {max(indices)} cannot be read")
        return {"number": np.asarray(indices, dtype=np.float64)[:, None]}

    def episodes(self, draw: Draw) -> Episode:
        number = torch.from_numpy(draw["number"])
        return Episode(Batch(number, number), Batch(number, number))

    def fingerprint(self) -> str:
        return "numbered"


def numbers(episodes: Episode) -> list[float]:
    return episodes.query.y[:, 0].tolist()


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("episodes")]


@pytest.mark.parametrize("ahead", [1, 2, 3, 7, 1000], ids=lambda n: f"{n}_steps_ahead")
@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize(("start", "stop"), [(0, 1), (0, 2), (0, 20), (5, 20), (19, 20), (13, 300)])
def test_every_step_gets_its_own_episodes(start, stop, size, ahead, monkeypatch):
    monkeypatch.setattr(stream, "BLOCK_BYTES", ahead * size * EPISODE_BYTES)
    got = [numbers(batch) for batch in meta_batches(Numbered(), size, start, stop)]
    assert got == [list(range(t * size, (t + 1) * size)) for t in range(start, stop)]


def test_a_meta_batch_is_bitwise_what_the_task_gives_for_its_numbers():
    task = experiment("task=prototypes").task
    for t, batch in enumerate(meta_batches(task, 2, 0, 6)):
        expected = task.sample("train", [2 * t, 2 * t + 1])
        assert all(torch.equal(a, b) for a, b in zip(tree_leaves(batch), tree_leaves(expected), strict=True))


@pytest.mark.parametrize(("start", "stop"), [(4, 4), (5, 4)])
def test_nothing_is_drawn_where_no_step_is_left(start, stop):
    task = Numbered()
    assert list(meta_batches(task, 3, start, stop)) == []
    assert task.sizes == []


@pytest.mark.parametrize("steps", [0, 1, 5])  # 0: before anything was drawn
def test_no_episode_is_drawn_beyond_the_last_step(steps):
    task = Numbered(broken=2 * steps)
    assert len(list(meta_batches(task, 2, 0, steps))) == steps
    assert sum(task.sizes) == 2 * steps


def test_small_episodes_are_drawn_for_many_steps_at_once():
    task = Numbered()
    list(meta_batches(task, 4, 0, 400))
    assert len(task.sizes) == 3  # the first step to know the size, then 256 and the rest
    assert max(task.sizes) == 4 * 256


def test_the_thread_ends_with_the_last_step():
    list(meta_batches(Numbered(), 2, 0, 10))
    assert threads() == []


def test_an_error_of_the_thread_reaches_the_step_that_needs_its_episodes(monkeypatch):
    monkeypatch.setattr(stream, "BLOCK_BYTES", 2 * EPISODE_BYTES)  # one step at a time
    batches = meta_batches(Numbered(broken=10), 2, 0, 20)
    got = [numbers(next(batches)) for _ in range(5)]
    assert got[-1] == [8, 9]
    with pytest.raises(OSError, match="episode 11 cannot be read"):
        next(batches)
    assert threads() == []


@pytest.mark.parametrize("taken", [0, 1, 2, 4])
def test_closing_early_ends_the_thread_without_a_wait(taken):
    batches = meta_batches(Numbered(), 2, 0, 10**6)
    for _ in range(taken):
        next(batches)
    before = time.monotonic()
    batches.close()
    assert time.monotonic() - before < 5  # the block being drawn is waited for: milliseconds
    assert threads() == []
