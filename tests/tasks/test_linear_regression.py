import numpy as np
import pytest
import torch

from metarun.errors import ConfigError
from metarun.inner.solvers import ridge
from metarun.trees import slice_tasks
from tests.composing import experiment


def linear(*overrides: str):
    return experiment("task=linear_regression", *overrides).task


def test_ridge_is_the_posterior_mean_by_conditioning_the_joint_gaussian():
    (x, y, _), (query, _, _), _ = slice_tasks(linear("task.noise_std=0.5").sample("test", [0]), 0)
    joint = x @ x.T + 0.25 * torch.eye(len(x))  # covariance of y; that of f(query) and y is query x'
    expected = query @ x.T @ torch.linalg.inv(joint) @ y
    torch.testing.assert_close(query @ ridge(x, y, 0.25), expected)


def test_weights_and_inputs_are_standard_normal_and_noise_has_its_deviation():
    task = linear("task.noise_std=0.5", "task.num_dims=4", "task.num_shots=30")
    x, y = task.sample("test", range(2000)).support[:2]
    w = torch.linalg.lstsq(x, y).solution[..., 0]
    residual = y - x @ w[..., None]
    assert abs(x.mean()) < 5 / x.numel() ** 0.5 and abs(x.var() - 1) < 5 * (2 / x.numel()) ** 0.5
    spread = 1 + 0.25 / (30 - 4 - 1)  # of the estimate: the prior's variance and that of least squares
    assert abs(w.var() / spread - 1) < 5 * (2 / w.numel()) ** 0.5
    variance = residual.square().sum() / (2000 * (30 - 4))
    assert abs(variance / 0.25 - 1) < 5 * (2 / (2000 * 26)) ** 0.5


@pytest.mark.parametrize("shots", [5, 10, 20])
def test_least_squares_leaves_the_error_that_the_documentation_says(shots):
    task = linear(f"task.num_shots={shots}")
    support, query, _ = task.sample("test", range(400))
    w = torch.linalg.pinv(support.x) @ support.y  # the shortest of the solutions
    scores = [task.spec.objective.score(q @ each, y) for q, each, y in zip(query.x, w, query.y, strict=True)]
    expected, deviation = 1 - shots / 20, np.std(scores) / 20
    assert abs(np.mean(scores) - expected) < 5 * deviation + 1e-9


def test_wrong_settings_are_refused():
    with pytest.raises(ConfigError, match=r"num_dims is 0"):
        linear("task.num_dims=0")
