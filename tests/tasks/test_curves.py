import numpy as np
import pytest
import torch

from metarun.errors import ConfigError
from metarun.tasks.curves import FAMILIES
from tests.composing import experiment


def curves(*overrides: str):
    return experiment("task=mixed_curves", *overrides).task


def formula(family: str, u: np.ndarray, x: float) -> float:  # noqa: PLR0911 (one line a family)
    """The curve by scalars, from the table in the module's documentation."""

    def at(low, high, i):
        return low + (high - low) * u[i]

    def gaussians(u, v):
        radius = np.sqrt(-2 * np.log(1 - u))
        return radius * np.cos(2 * np.pi * v), radius * np.sin(2 * np.pi * v)

    if family == "sine":
        return at(0.1, 5, 0) * np.sin(x - at(0, np.pi, 1))
    if family == "line":
        return at(-3, 3, 0) * x + at(-3, 3, 1)
    if family == "quadratic":
        return (-1 if u[3] < 0.5 else 1) * at(0.02, 0.15, 0) * (x - at(-3, 3, 1)) ** 2 + at(-3, 3, 2)
    if family == "tanh":
        return at(-3, 3, 0) * np.tanh(x - at(-3, 3, 1)) + at(-3, 3, 2)
    if family == "absolute":
        return at(-3, 3, 0) * abs(x - at(-3, 3, 1)) + at(-3, 3, 2)
    if family == "step":
        return at(-3, 3, 1) if x < at(-3, 3, 0) else at(-3, 3, 2)
    a, b = gaussians(u[0], u[1])
    w, first, second = at(5, 7, 2), at(0, 2 * np.pi, 3), at(0, 2 * np.pi, 4)
    return a * np.sin(w * x + first) + b * np.sin(2 * w * x + second)


@pytest.mark.parametrize("family", FAMILIES)
def test_targets_are_the_formula_of_the_family_at_the_inputs(family):
    task = curves(f"task.families=[{family}]", "task.noise_std=0")
    draw = task.draw("train", range(10))
    for x, y, _ in task.episodes(draw)[:2]:
        for b in range(10):
            expected = [formula(family, draw["task"][b, 2:], value) for value in x[b, :, 0].tolist()]
            np.testing.assert_allclose(y[b, :, 0], expected, rtol=0, atol=1e-12)


def test_each_family_is_as_likely_as_another():
    task = curves()
    counts = np.bincount(task.family_of(task.draw("test", range(5000))), minlength=5)
    assert ((counts - 1000) ** 2 / 1000).sum() < 4 + 5 * np.sqrt(8)  # chi-square of 5 cells, five deviations


def test_noise_has_its_deviation_and_is_not_that_of_other_points():
    task, exact = curves(), curves("task.noise_std=0")
    noise = (task.sample("test", range(400)).query.y - exact.sample("test", range(400)).query.y)[..., 0]  # [400, Q]
    assert abs(noise.std() / 0.3 - 1) < 5 / np.sqrt(2 * noise.numel())
    assert abs(torch.corrcoef(noise.T) - torch.eye(noise.shape[1])).max() < 6 / 20


def test_local_inputs_lie_around_a_point_of_each_task():
    task = experiment("task=harmonics", "task.num_queries=400").task
    x = task.sample("test", range(500)).query.x[..., 0]
    assert (x.std(1) - 1).abs().max() < 0.25
    centre = x.mean(1)
    assert -4.2 < centre.min() < -3.8 and 3.8 < centre.max() < 4.2 and abs(centre.mean()) < 5 * 8 / np.sqrt(12 * 500)


def test_no_family_and_a_family_twice_are_refused():
    with pytest.raises(ConfigError, match=r"name at least one of sine"):
        curves("task.families=[]")
    with pytest.raises(ConfigError, match=r"once each"):
        curves("task.families=[sine,sine]")
    with pytest.raises(ConfigError, match=r"task.families"):
        curves("task.families=[cosine]")
    with pytest.raises(ConfigError, match=r"noise_std is -1"):
        curves("task.noise_std=-1")
