"""ES-MAML's estimate: exact where its algebra is, and with the bias and variance that theory gives it.

float64. On a quadratic F the difference of an antithetic pair is exactly 2 sigma <gradient, e>, so the estimate is
mean(e e') gradient; EXACT leaves room for rounding divided by 2 sigma. The statistical tests draw many directions of one
fixed seed, so they pass always or never; five standard errors is what a right estimator passes but one time in 10^6.
"""

from dataclasses import replace

import pytest
import torch

from metarun.config.experiment import take_theta
from metarun.core import Batch, Episode
from metarun.meta_learners.es_maml import ESMAML, directions
from metarun.meta_learners.maml import MAML
from metarun.objectives import CROSS_ENTROPY, SQUARED_ERROR, Objective
from metarun.trees import ravel
from tests.helpers import BASES, flat, meta_gradient, one_episode, relative_error
from tests.test_oracles import LinearModel, quadratic

EXACT = 1e-8


def on_quadratic(num_pairs: int, seed: int, sigma: float = 0.3) -> tuple[torch.Tensor, torch.Tensor]:
    """The estimate, and the exact meta-gradient (I - lr H) query gradient."""
    problem = quadratic(1)
    learner = ESMAML(LinearModel(4).double(), SQUARED_ERROR, problem.lr, problem.steps, sigma, num_pairs, seed)
    take_theta(learner)
    estimate = meta_gradient(learner, {"head.weight": problem.theta[None]}, problem.episode)["head.weight"][0]
    return estimate, problem.jacobian.T @ problem.query_gradient


@pytest.mark.parametrize("sigma", [0.01, 1.0])
def test_on_a_quadratic_the_estimate_is_the_mean_of_e_e_t_times_the_meta_gradient(sigma):
    estimate, exact = on_quadratic(16, seed=3, sigma=sigma)
    e = torch.from_numpy(directions(3, 16, 4))
    assert relative_error(estimate, e.T @ e / 16 @ exact) < EXACT


def test_on_a_quadratic_there_is_no_bias():
    n, d = 20000, 4
    estimate, exact = on_quadratic(n, seed=0)
    deviation = ((d + 1) / n) ** 0.5 * exact.norm()
    assert (estimate - exact).norm() < 5 * deviation / d**0.5


def test_on_a_quadratic_the_variance_is_d_plus_1_over_n_times_the_squared_gradient():
    n, d, repeats = 10, 4, 100
    estimates = [on_quadratic(n, seed)[0] for seed in range(repeats)]
    exact = on_quadratic(n, 0)[1]
    squared = torch.stack([(g - exact) @ (g - exact) for g in estimates])
    expected = (d + 1) / n * exact @ exact
    assert abs(squared.mean() - expected) < 5 * squared.std() / repeats**0.5
    assert squared.std() / repeats**0.5 < 0.2 * expected  # the test would notice a factor of two


@pytest.mark.parametrize("sigma", [0.6, 1.0])
def test_the_bias_is_that_of_a_gaussian_smoothing(sigma):
    """The smoothing of cos(theta) is exp(-sigma^2 / 2) cos(theta): the bias grows as sigma^2."""
    cosine = Objective(lambda out, y: out.cos().mean(), lambda out, y: out.mean(), "mse", higher_is_better=False)
    n, theta = 40000, torch.tensor([[0.8]], dtype=torch.float64)
    learner = ESMAML(LinearModel(1).double(), cosine, 0.0, 0, sigma, n, 1)
    take_theta(learner)
    one = torch.ones(1, 1).double()
    estimate = meta_gradient(learner, {"head.weight": theta}, Episode(Batch(one, one), Batch(one, one)))
    smoothed = -(theta.sin()) * torch.exp(torch.tensor(-(sigma**2) / 2))
    e = torch.from_numpy(directions(1, n, 1))
    samples = ((theta + sigma * e).cos() - (theta - sigma * e).cos()) / (2 * sigma) * e
    assert abs(estimate["head.weight"] - smoothed) < 5 * samples.std() / n**0.5
    assert abs(smoothed + theta.sin()) > 10 * samples.std() / n**0.5  # so the bias is seen, not lost in the noise


def test_a_narrow_estimate_of_a_network_is_mamls_gradient_along_the_directions():
    torch.manual_seed(0)
    net = BASES["mlp_transductive"]().double()
    learner = ESMAML(net, CROSS_ENTROPY, 0.3, 2, 1e-5, 8, 0)
    theta = learner.init()
    exact = flat(meta_gradient(MAML(net, CROSS_ENTROPY, 0.3, 2, False, "all", "sgd"), theta, one_episode()))
    e = torch.from_numpy(directions(0, 8, len(exact)))
    estimate = ravel(meta_gradient(learner, theta, one_episode()))[0]
    assert relative_error(estimate, e.T @ (e @ exact) / 8) < 1e-4  # sigma^2, and kinks of the ReLU


def test_every_step_and_every_seed_has_directions_of_its_own():
    learner = ESMAML(LinearModel(4), SQUARED_ERROR, 0.1, 1, 0.1, 1, 0)
    seeds = {replace(learner, seed=run).at(step).seed for run in range(3) for step in range(5)}
    assert len(seeds) == 15
    drawn = [directions(learner.at(step).seed, 3, 5) for step in (0, 1, 0)]
    assert (drawn[0] == drawn[2]).all()
    assert (drawn[0] != drawn[1]).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"sigma": 0.0}, r"sigma is 0.0; differences are divided by it"), ({"num_pairs": 0}, r"num_pairs is 0; use 1")],
)
def test_wrong_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(ESMAML(LinearModel(4), SQUARED_ERROR, 0.1, 1, 0.1, 1, 0), **changes)
