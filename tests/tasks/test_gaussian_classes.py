import numpy as np
import pytest
import torch

from metarun.errors import ConfigError
from tests.composing import experiment


def problems(name: str, *overrides: str):
    return experiment(f"task={name}", "meta_learner=learned_optimizer", *overrides).task


def test_points_have_the_means_and_covariances_that_were_drawn_and_their_classes():
    task = problems("mlp_problems", "task.num_points=40000", "task.num_dims=2")
    draw = task.draw("test", [0])
    back = torch.from_numpy(draw["order"][0].argsort())
    x, y = (leaf[:, back] for leaf in task.episodes(draw).support[:2])
    u, v = draw["u"][0, :24:2], draw["u"][0, 1:24:2]
    radius = np.sqrt(-2 * np.log1p(-u))
    numbers = np.stack([radius * np.cos(2 * np.pi * v), radius * np.sin(2 * np.pi * v)], -1).ravel()
    means, matrices = 2 * numbers[:8].reshape(4, 2), numbers[8:24].reshape(4, 2, 2) / np.sqrt(2)
    assert (x[0, :, -1] == 1).all()
    for c in range(4):
        points = x[0, c::4, :2].numpy()
        covariance = matrices[c] @ matrices[c].T
        np.testing.assert_allclose(points.mean(0), means[c], atol=5 * np.sqrt(covariance.max() / 10000))
        np.testing.assert_allclose(np.cov(points.T), covariance, atol=5 * covariance.max() * np.sqrt(2 / 10000))
        assert (y[0, c::4] == c % 2).all()


def test_support_and_query_are_one_problem_and_the_score_is_the_loss():
    task = problems("logistic_regression")
    support, query, _ = task.sample("train", [0, 1])
    assert torch.equal(support.x, query.x) and torch.equal(support.y, query.y)
    logits = torch.zeros(100, 2).double()
    torch.testing.assert_close(task.spec.objective.score(logits, support.y[0]), torch.tensor(np.log(2)))
    assert not task.spec.objective.higher_is_better


@pytest.mark.parametrize("name", ["logistic_regression", "mlp_problems"])
def test_gradient_descent_solves_the_problem_with_the_base_learner_that_it_is_for(name):
    """A line tells two Gaussians apart, and not four; a small network does better than the best line."""
    (x, y, _), _, _ = problems(name).sample("test", range(20))

    def least(width: int) -> float:
        torch.manual_seed(0)
        sizes = (20, 4, width), (20, width, 2)
        first, second = (0.5 * torch.randn(*shape).double() for shape in sizes)
        first, second = first.requires_grad_(), second.requires_grad_()
        optimizer = torch.optim.Adam([first, second], lr=0.05)
        for _ in range(400):
            hidden = x @ first
            logits = (hidden.tanh() if width > 2 else hidden) @ second
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return loss.item()

    line, network = least(2), least(8)
    assert line < 0.9 * np.log(2)
    assert network < line if name == "logistic_regression" else network < 0.7 * line


def test_wrong_sizes_are_refused():
    for text, rule in (
        ("num_points=1", "2 clusters"),
        ("num_classes=1", "num_classes 1 2 or more"),
        ("spread=-1", "spread"),
    ):
        with pytest.raises(ConfigError, match=rule):
            problems("logistic_regression", f"task.{text}")
