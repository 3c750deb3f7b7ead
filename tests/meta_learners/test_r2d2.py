"""R2-D2 against numpy's least squares and finite differences. float64; EXACT is rounding through one linear system."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.func import functional_call

from metarun.core import Batch, Episode
from metarun.meta_learners.r2d2 import R2D2
from metarun.models.mlp import MLP
from metarun.objectives import CROSS_ENTROPY, SQUARED_ERROR
from metarun.trees import tree_map
from tests.composing import train
from tests.helpers import BASES, WAYS, check_slope, moved, one_episode, relative_error

EXACT = 1e-9


def classifier(base: str = "stride_transductive"):
    torch.manual_seed(0)
    learner = R2D2(BASES[base]().double(), CROSS_ENTROPY, WAYS, 0.7, 3.0)
    return moved(learner)


def regressor(num_shots: int):
    torch.manual_seed(0)
    learner = R2D2(MLP((1,), 1, [8, 6], None, "torch").double(), SQUARED_ERROR, None, 0.7, 1.0)
    theta = tree_map(lambda p: p + 0.1 * torch.randn_like(p), learner.init())
    x = torch.randn(num_shots + 5, 1).double()
    y = torch.sin(3 * x) + 2
    return learner, theta, Episode(Batch(x[:num_shots], y[:num_shots]), Batch(x[num_shots:], y[num_shots:]))


def least_squares(learner, theta, support, targets, x):
    """Outputs at x, from numpy's least squares with the regulariser as more rows."""

    def features(x):
        z = functional_call(learner.base_learner.body, theta["embedding"], (x,)).detach().numpy()
        return np.hstack([z, np.ones((len(z), 1))])

    z = features(support.x)
    more = np.sqrt(np.exp(theta["log_regulariser"].item())) * np.eye(z.shape[1])
    w, *_ = np.linalg.lstsq(np.vstack([z, more]), np.vstack([targets, np.zeros((len(more), targets.shape[1]))]), None)
    return torch.from_numpy(theta["scale"].item() * features(x) @ w + theta["bias"].item())


@pytest.mark.parametrize("base", ["mlp", "stride_transductive"])  # 7 and 4 columns on 6 examples: both systems
def test_logits_are_those_of_a_regularised_least_squares_on_one_hot_labels(base):
    learner, theta = classifier(base)
    support, query, _ = one_episode()
    expected = least_squares(learner, theta, support, np.eye(WAYS)[support.y.numpy()], query.x)
    logits = learner.predict(learner.adapt(theta, support), query.x)
    torch.testing.assert_close(logits, expected, rtol=EXACT, atol=EXACT)


def test_a_regulariser_per_example_divides_features_and_labels_as_the_released_code():
    learner, theta = classifier("mlp")
    support, _, _ = one_episode()
    z = functional_call(learner.base_learner.body, theta["embedding"], (support.x,)).detach()
    x = torch.cat([z, torch.ones(len(z), 1).double()], 1) / len(z) ** 0.5
    y = torch.eye(WAYS).double()[support.y] / len(z) ** 0.5
    expected = torch.linalg.solve(x.T @ x + 0.7 * torch.eye(x.shape[1]).double(), x.T @ y)
    theta["log_regulariser"] = torch.tensor(0.7, dtype=torch.float64).log()
    weight = replace(learner, per_example=True).adapt(theta, support)["weight"]
    torch.testing.assert_close(weight, expected, rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("num_shots", [4, 12])  # below and above the 7 columns
def test_on_a_regression_task_the_targets_are_fitted_themselves(num_shots):
    learner, theta, (support, query, _) = regressor(num_shots)
    expected = least_squares(learner, theta, support, support.y.numpy(), query.x)
    torch.testing.assert_close(
        learner.predict(learner.adapt(theta, support), query.x), expected, rtol=EXACT, atol=EXACT
    )


@pytest.mark.parametrize("num_shots", [4, 12])
def test_meta_gradient_of_regression_equals_finite_differences(num_shots):
    learner, theta, episode = regressor(num_shots)
    check_slope(learner, theta, episode)


@pytest.mark.parametrize("base", ["mlp_support", "stride_transductive", "max_pool_transductive"])
def test_meta_gradient_of_classification_equals_finite_differences(base):
    check_slope(*classifier(base), one_episode())


def test_regulariser_scale_and_bias_start_where_the_settings_say():
    learner, _ = classifier()
    theta = replace(learner, base_learner=BASES["mlp"]().double(), regulariser=50.0).init()
    assert theta["log_regulariser"].exp().item() == pytest.approx(50, rel=1e-12)
    assert (theta["scale"].item(), theta["bias"].item()) == (3.0, 0.0)


def test_a_regulariser_of_zero_is_refused():
    with pytest.raises(ValueError, match=r"regulariser is 0\.0; it must be above 0"):
        R2D2(BASES["mlp"](), CROSS_ENTROPY, WAYS, 0.0, 1.0)


def test_more_ways_in_training_than_at_the_test_need_no_other_theta():
    learner, theta = classifier("mlp")
    support, query, _ = one_episode()
    logits = replace(learner, num_ways=4).adapt(theta, support)
    assert torch.equal(logits["weight"][:, 2:], torch.zeros(7, 2).double())  # classes without examples
    two = learner.predict(learner.adapt(theta, support), query.x)
    assert relative_error(learner.predict(logits, query.x)[:, :2], two) < EXACT


@pytest.mark.slow
def test_r2d2_learns_features_in_which_sinusoids_are_linear(tmp_path):
    few = ["task=sinusoid", "meta_learner=r2d2", "meta_learner.regulariser=1", "meta_learner.scale=1"]
    few += ["dtype=float32", "execution=vmapped", "evaluation.every=2000", "evaluation.num_tasks=100", "log_every=100"]
    before = train(tmp_path / "before", *few, "steps=1", "optimizer.lr=1e-9")
    after = train(tmp_path / "after", *few, "steps=300", "optimizer.lr=0.003")
    assert after < 0.5 * before
