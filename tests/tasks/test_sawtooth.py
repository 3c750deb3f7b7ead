"""Sawtooth waves, and the mixture of processes that has them beside Gaussian ones."""

import numpy as np
import pytest
import torch

from metarun.errors import ConfigError
from tests.composing import experiment


def test_a_sawtooth_rises_by_its_frequency_and_falls_by_one():
    task = experiment("task=sawtooth", "dtype=float64").task
    draw = task.draw("train", range(200))
    x = np.tile(np.linspace(-2, 2, 4001), (200, 1))
    y = task.values(draw, x)
    assert y.min() >= 0 and y.max() < 1
    steps = np.diff(y) / np.diff(x)
    slopes = np.median(steps, 1)
    frequency = 2 + 2 * draw["task"][:, 0]
    np.testing.assert_allclose(np.abs(slopes), frequency, rtol=1e-9)
    assert 0.4 < (slopes > 0).mean() < 0.6  # either direction
    jumps = (np.abs(steps - slopes[:, None]) > 1).sum(1)
    assert (np.abs(jumps - 4 * frequency) <= 1).all()  # a wave a unit and a frequency
    at_zero = task.values(draw, np.zeros((200, 1)))
    assert 0.4 < at_zero.mean() < 0.6 and at_zero.std() > 0.2  # the offset is anywhere in a wave


def test_episodes_of_a_sawtooth_lie_on_their_wave_but_for_the_noise():
    task = experiment("task=sawtooth", "task.noise_std=0.1", "task.num_shots=50", "dtype=float64").task
    draw = task.draw("test", range(40))
    for batch in task.episodes(draw)[:2]:
        noise = batch.y[..., 0].numpy() - task.values(draw, batch.x[..., 0].numpy())
        assert abs(noise.std() / 0.1 - 1) < 0.1


def test_an_episode_of_a_mixture_is_the_one_its_process_makes_of_the_same_choices():
    task = experiment("task=process_mixture", "task.num_shots=5", "task.num_queries=6").task
    draw = task.draw("train", range(40))
    chosen, episodes = task.process_of(draw), task.episodes(draw)
    assert set(chosen) == {0, 1, 2, 3}
    for i, number in enumerate(chosen):
        own = {**{name: values[i : i + 1] for name, values in draw.items()}, "task": draw["task"][i : i + 1, 1:]}
        expected = list(task.processes.values())[number].episodes(own)
        for batch, other in zip(episodes[:2], expected[:2], strict=True):
            assert torch.equal(batch.x[i : i + 1], other.x)
            torch.testing.assert_close(batch.y[i : i + 1], other.y)


def test_wrong_settings_of_a_wave_or_a_mixture_are_refused_with_the_rule():
    with pytest.raises(ConfigError, match=r"task.frequency is \[0, 1\]; give \[lowest, highest\], both above 0"):
        experiment("task=sawtooth", "task.frequency=[0,1]")
    with pytest.raises(ConfigError, match=r"task.processes is \['rbf', 'rbf'\]; name at least one"):
        experiment("task=process_mixture", "task.processes=[rbf,rbf]")
