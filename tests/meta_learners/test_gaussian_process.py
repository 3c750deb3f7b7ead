"""The Gaussian process against scikit-learn's, a mixed-effects model in closed form, and finite differences. float64."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import Kernel
from torch.func import functional_call

from metarun.core import Batch, Episode
from metarun.execution.execution import Vmapped
from metarun.meta_learners.gaussian_process import SMALLEST_DEVIATION, GaussianProcess
from metarun.models.linear import Linear
from metarun.models.mlp import MLP
from metarun.objectives import SQUARED_ERROR
from metarun.trees import stack, tree_leaves, tree_map
from tests.composing import experiment
from tests.helpers import BASES, check_slope, flat, meta_gradient

EXACT = 1e-8
INPUTS, OUTPUTS, SHOTS, QUERIES = 2, 2, 6, 4
KERNELS = [(of, effects) for of in ("inputs", "features") for effects in ("linear", "rbf", "both")]


def learner_of(kernel_of="inputs", effects="both", num_outputs=OUTPUTS):
    torch.manual_seed(0)
    net = MLP((INPUTS,), num_outputs, [5, 4], None, "torch", "tanh").double()
    learner = GaussianProcess(net, SQUARED_ERROR, (INPUTS,), num_outputs, None, kernel_of, effects, 0.7, 0.8, 0.3)
    return learner, tree_map(lambda p: p + 0.2 * torch.randn_like(p), learner.init())


def drawn(num_outputs=OUTPUTS):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(SHOTS + QUERIES, INPUTS, generator=generator).double()
    noise = 0.1 * torch.randn(SHOTS + QUERIES, num_outputs, generator=generator).double()
    y = torch.stack([torch.sin(2 * x[:, 0]) + x[:, 1], x[:, 0] * x[:, 1]], 1)[:, :num_outputs] + noise
    return Episode(Batch(x[:SHOTS], y[:SHOTS]), Batch(x[SHOTS:], y[SHOTS:]))


class OneOutput(Kernel):
    """A product of the first ``width`` columns, and a squared exponential of the others."""

    def __init__(self, width, amplitude):
        self.width, self.amplitude = width, amplitude

    def __call__(self, X, Y=None, eval_gradient=False):
        Y = X if Y is None else Y
        apart = ((X[:, None, self.width :] - Y[None, :, self.width :]) ** 2).sum(-1)
        return X[:, : self.width] @ Y[:, : self.width].T + self.amplitude**2 * np.exp(-apart / 2)

    def diag(self, X):
        return (X[:, : self.width] ** 2).sum(1) + self.amplitude**2

    def is_stationary(self):
        return False


def of_sklearn(learner, theta, output, x, y):
    """Scikit-learn's process of one output, fitted to x and y less the mean, and what turns x into its columns and mean."""

    def seen(x):
        z = functional_call(learner.base_learner.body, theta["body"], (x,))
        mean = functional_call(learner.base_learner.head, theta["head"], (z,))[:, output]
        u = x if learner.kernel_of == "inputs" else z
        linear = torch.cat([u, mean[:, None], torch.ones_like(u[:, :1])], 1)
        columns = [linear @ theta["effects"][output]] if learner.effects != "rbf" else []
        columns += [u / theta["log_length"][output].exp()] if learner.effects != "linear" else []
        return torch.cat(columns, 1).numpy(), mean.numpy()

    columns, mean = seen(x)
    width = theta["effects"].shape[-1] if learner.effects != "rbf" else 0
    amplitude = theta["log_amplitude"][output].exp().item() if learner.effects != "linear" else 0.0
    noise = math.exp(2 * theta["log_noise"][output]) + SMALLEST_DEVIATION**2
    process = GaussianProcessRegressor(OneOutput(width, amplitude), alpha=noise, optimizer=None)
    return process.fit(columns, y[:, output].numpy() - mean), seen, noise


# ---- scikit-learn ----


@pytest.mark.parametrize(("kernel_of", "effects"), KERNELS)
def test_mean_and_deviation_are_those_of_scikit_learn(kernel_of, effects):
    learner, theta = learner_of(kernel_of, effects)
    support, query, _ = drawn()
    phi = learner.adapt(theta, support)
    mean, deviation = learner.posterior(phi, query.x)
    assert torch.equal(learner.predict(phi, query.x), mean)
    for output in range(OUTPUTS):
        process, seen, noise = of_sklearn(learner, theta, output, *support[:2])
        columns, prior = seen(query.x)
        expected, without_noise = process.predict(columns, return_std=True)
        np.testing.assert_allclose(mean[:, output], expected + prior, rtol=EXACT, atol=EXACT)
        np.testing.assert_allclose(deviation[:, output], np.sqrt(without_noise**2 + noise), rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize(("kernel_of", "effects"), KERNELS)
def test_the_meta_loss_is_minus_scikit_learn_s_log_marginal_likelihood(kernel_of, effects):
    learner, theta = learner_of(kernel_of, effects)
    support, query, _ = episode = drawn()
    x, y = torch.cat([support.x, query.x]), torch.cat([support.y, query.y])
    fitted = [of_sklearn(learner, theta, output, x, y)[0] for output in range(OUTPUTS)]
    expected = -sum(process.log_marginal_likelihood_value_ for process in fitted) / y.numel()
    assert learner.meta_loss(theta, episode)[0].item() == pytest.approx(expected, rel=EXACT, abs=EXACT)


@pytest.mark.parametrize(("kernel_of", "effects"), KERNELS)
def test_the_meta_gradient_equals_finite_differences(kernel_of, effects):
    check_slope(*learner_of(kernel_of, effects), drawn(), close=(1e-6, 1e-8))


# ---- closed forms ----


def test_with_linear_effects_on_lines_it_is_a_mixed_effects_model():
    torch.manual_seed(0)
    net = Linear((INPUTS,), 1, 1.0).double()
    learner = GaussianProcess(net, SQUARED_ERROR, (INPUTS,), 1, None, "inputs", "linear", 0.7, 0.8, 0.3)
    theta = learner.init()
    root = torch.randn(INPUTS + 1, INPUTS + 1).double()
    theta["effects"] = torch.zeros_like(
        theta["effects"]
    )  # none of m itself: on lines it is a combination of the others
    theta["effects"][0][np.ix_([0, 1, 3], [0, 1, 3])] = root
    support, query, _ = drawn(1)

    def design(x):
        return np.hstack([x.numpy(), np.ones((len(x), 1))])

    beta = np.append(theta["head"]["weight"].numpy().ravel(), 0)
    noise = math.exp(2 * theta["log_noise"]) + SMALLEST_DEVIATION**2
    # the best linear unbiased prediction: least squares of the residuals, with effects penalised by their covariance
    penalty = noise * np.linalg.inv(root.numpy() @ root.numpy().T)
    z, residual = design(support.x), support.y.numpy().ravel() - design(support.x) @ beta
    effects = np.linalg.solve(z.T @ z + penalty, z.T @ residual)
    predicted = learner.predict(learner.adapt(theta, support), query.x)[:, 0]
    np.testing.assert_allclose(predicted, design(query.x) @ (beta + effects), rtol=EXACT, atol=EXACT)


def lines(num_tasks, covariance, noise):
    """Tasks y = effects . [x, 1] + noise, effects ~ N(0, covariance)."""
    generator = torch.Generator().manual_seed(5)
    root = torch.linalg.cholesky(covariance)
    effects = torch.randn(num_tasks, 1, 2, generator=generator).double() @ root.T
    x = 2 * torch.rand(num_tasks, 10, 1, generator=generator).double() - 1
    y = (torch.cat([x, torch.ones_like(x)], 2) * effects).sum(2, keepdim=True)
    y = y + noise * torch.randn(y.shape, generator=generator).double()
    return Episode(Batch(x[:, :5], y[:, :5]), Batch(x[:, 5:], y[:, 5:]))


def test_the_marginal_likelihood_finds_the_variances_that_tasks_were_drawn_with():
    covariance, noise = torch.tensor([[0.5, 0.3], [0.3, 1.0]]).double(), 0.2
    episodes = lines(400, covariance, noise)
    net = Linear((1,), 1, 0.0).double()
    learner = GaussianProcess(net, SQUARED_ERROR, (1,), 1, None, "inputs", "linear", 0.5, 1.0, 0.5)
    theta = tree_map(lambda p: p.requires_grad_(), learner.init())
    optimizer = torch.optim.Adam(tree_leaves(theta), lr=0.03)
    for _ in range(200):
        gradient, _ = Vmapped(None).mean_grad(learner.meta_loss, theta, episodes)
        for p, g in zip(tree_leaves(theta), tree_leaves(gradient), strict=True):
            p.grad = g
        optimizer.step()
    root = theta["effects"].detach()[0]
    slope = theta["head"]["weight"].detach().item()
    of = torch.tensor([[1, slope, 0], [0, 0, 1]]).double() @ root  # effects of m act on the slope
    # the standard error of a variance v from 400 draws is v sqrt(2 / 400); three of them, of the largest
    torch.testing.assert_close(of @ of.T, covariance, rtol=0, atol=3 * math.sqrt(2 / 400))
    # of a deviation s from 400 * (10 - 2) numbers it is s / sqrt(2 * 3200)
    assert theta["log_noise"].exp().item() == pytest.approx(noise, abs=3 * noise / math.sqrt(6400) + 1e-3)


def test_where_the_model_is_true_predicted_deviations_are_those_of_the_errors():
    learner, theta = learner_of(num_outputs=1)
    torch.manual_seed(4)
    episodes = []
    for _ in range(200):
        x = torch.randn(SHOTS + QUERIES, INPUTS).double()
        prior = learner.prior(theta, Batch(x, x))
        points = learner.points(prior, x)
        factor, _ = learner.whitened(prior, points, x[:, :1])
        y = (points.mean + (factor @ torch.randn(1, len(x), 1).double())[..., 0]).T
        episodes.append(Episode(Batch(x[:SHOTS], y[:SHOTS]), Batch(x[SHOTS:], y[SHOTS:])))

    def squares(theta, episode):
        mean, deviation = learner.posterior(learner.adapt(theta, episode.support), episode.query.x)
        return ((episode.query.y - mean) / deviation).square()

    found = torch.vmap(squares, in_dims=(None, 0))(theta, stack(episodes)).mean()
    # chi-squared of 800 numbers, correlated within a task: at most the error of 200 independent ones
    assert found.item() == pytest.approx(1, abs=3 * math.sqrt(2 / 200))


def test_without_support_it_predicts_the_population_s_curve_and_the_spread_of_tasks():
    learner, theta = learner_of()
    query = drawn().query
    nothing = Batch(torch.zeros(0, INPUTS).double(), torch.zeros(0, OUTPUTS).double())
    mean, deviation = learner.posterior(learner.adapt(theta, nothing), query.x)
    points = learner.points(theta, query.x)
    torch.testing.assert_close(mean, points.mean.T)
    noise = (2 * theta["log_noise"]).exp() + SMALLEST_DEVIATION**2
    variance = learner.kernel(theta, points, points).diagonal(dim1=1, dim2=2) + noise[:, None]
    torch.testing.assert_close(deviation.square(), variance.T)


# ---- what can go wrong ----


def test_measurements_at_one_place_without_noise_have_a_finite_gradient_in_float32():
    learner, theta = learner_of()
    learner = replace(learner, base_learner=learner.base_learner.float())
    theta = tree_map(lambda p: p.float(), theta)
    theta["log_noise"] -= 20
    support, query, _ = tree_map(lambda t: t.float().repeat(10, 1), drawn())
    gradient = flat(meta_gradient(learner, theta, Episode(support, query)))
    assert torch.isfinite(gradient).all()


def test_a_covariance_that_is_none_gives_nan_and_no_exception():
    learner, theta = learner_of(effects="rbf")
    theta["log_amplitude"] = theta["log_amplitude"] + torch.nan
    assert learner.meta_loss(theta, drawn())[0].isnan()


def test_a_task_with_classes_is_refused():
    with pytest.raises(ValueError, match="predicts numbers, but the task has classes; choose protonet or r2d2"):
        GaussianProcess(BASES["mlp"](), SQUARED_ERROR, (1, 16, 16), 2, 2, "inputs", "both", 1.0, 1.0, 1.0)


@pytest.mark.parametrize("name", ["effect_deviation", "length_scale", "noise_deviation"])
def test_a_start_of_zero_is_refused(name):
    with pytest.raises(ValueError, match=rf"{name} is 0\.0; a Gaussian process starts from numbers above 0"):
        replace(learner_of()[0], **{name: 0.0})


def test_each_input_has_a_length_scale_of_its_own():
    learner, theta = learner_of(effects="rbf")
    theta["log_length"][:, 1] = 20
    support, query, _ = drawn()
    theta["head"] = tree_map(torch.zeros_like, theta["head"])
    phi = learner.adapt(theta, support)
    moved = query.x + torch.tensor([0.0, 5.0]).double()
    torch.testing.assert_close(learner.predict(phi, moved), learner.predict(phi, query.x))


def test_its_configuration_starts_from_the_numbers_of_its_file():
    x = experiment("meta_learner=gaussian_process", "task=sinusoid")
    theta = x.theta_0
    assert theta["log_noise"].exp().item() == pytest.approx(x.learner.noise_deviation)
    assert theta["log_amplitude"].exp().item() == pytest.approx(x.learner.effect_deviation)
    assert theta["log_length"].exp().tolist() == [[pytest.approx(x.learner.length_scale)]]
