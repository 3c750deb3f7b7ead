import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal, norm
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ExpSineSquared, Matern

from metarun.errors import ConfigError
from tests.composing import experiment

REFERENCE = {
    "rbf": lambda length, period: RBF(length),
    "matern12": lambda length, period: Matern(length, nu=0.5),
    "matern32": lambda length, period: Matern(length, nu=1.5),
    "matern52": lambda length, period: Matern(length, nu=2.5),
    "periodic": ExpSineSquared,
    "weakly_periodic": lambda length, period: RBF(length) * ExpSineSquared(1.0, period),
}


def process(kernel: str, *overrides: str):
    period = ["task.period=[0.5,1.5]"] if "periodic" in kernel else []
    return experiment("task=gaussian_process", f"task.kernel={kernel}", *period, *overrides).task


def hyperparameters(task, draw):
    low, high = np.array(list(task.ranges.values())).T
    return low + (high - low) * draw["task"]  # length, scale, period [B, 3]


@pytest.mark.parametrize("kernel", REFERENCE)
def test_the_covariance_is_that_of_scikit_learns_kernel(kernel):
    task = process(kernel)
    draw = task.draw("train", range(5))
    x = torch.linspace(-2, 2, 17).double().expand(5, -1)
    for mine, (length, scale, period) in zip(task.covariance(draw, x), hyperparameters(task, draw), strict=True):
        expected = scale**2 * REFERENCE[kernel](length, period)(x[0][:, None]) + (0.02**2 + 1e-9 * scale**2) * np.eye(
            17
        )
        np.testing.assert_allclose(mine, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kernel", REFERENCE)
def test_draws_have_the_kernels_covariance(kernel):
    fixed = ["task.length_scale=[0.4,0.4]", "task.scale=[0.8,0.8]", "task.noise_std=0.1"]
    fixed += ["task.period=[1,1]"] if "periodic" in kernel else []
    task = process(kernel, *fixed, "task.num_queries=6", "task.num_shots=2")
    draw = task.draw("test", range(20000))
    support, query, _ = task.episodes(draw)
    x, y = (
        torch.cat([a, b], 1)[..., 0] for a, b in zip(query[:2], support[:2], strict=True)
    )  # [B, 8], in the order drawn
    factor = torch.linalg.cholesky(task.covariance(draw, x))
    white = torch.linalg.solve_triangular(factor, y[..., None], upper=False)[..., 0]  # N(0, I), if the law is right
    assert white.mean(0).abs().max() < 5 / 20000**0.5
    assert (torch.cov(white.T) - torch.eye(8)).abs().max() < 5 * 2**0.5 / 20000**0.5
    products, expected = (y[:, 0] * y[:, 1]), task.covariance(draw, x)[:, 0, 1]  # and without the factor
    assert abs((products - expected).mean()) < 5 * (products - expected).std() / 20000**0.5


def test_smooth_and_periodic_draws_without_noise_still_have_a_factor():
    for kernel in ("rbf", "periodic"):
        episode = process(kernel, "task.noise_std=0", "task.num_queries=200").sample("train", range(30))
        assert all(torch.isfinite(t).all() for batch in episode[:2] for t in batch[:2])


@pytest.mark.parametrize("kernel", REFERENCE)
def test_the_oracle_is_scikit_learns_regressor_with_the_true_hyperparameters(kernel):
    task = process(kernel, "task.noise_std=0.1", "task.num_shots=7", "task.num_queries=5", "dtype=float64")
    draw = task.draw("test", range(4))
    support, query, _ = task.episodes(draw)
    scores = task.oracle(draw)
    for i, (length, scale, period) in enumerate(hyperparameters(task, draw)):
        kernel_of = scale**2 * REFERENCE[kernel](length, period)
        noise = 0.1**2 + 1e-9 * scale**2
        regressor = GaussianProcessRegressor(kernel_of, alpha=noise, optimizer=None).fit(
            support.x[i], support.y[i, :, 0]
        )
        mean, covariance = regressor.predict(query.x[i], return_cov=True)
        covariance += noise * np.eye(5)
        y = query.y[i, :, 0].numpy()
        alone = norm.logpdf(y, mean, covariance.diagonal() ** 0.5).mean()
        joint = multivariate_normal.logpdf(y, mean, covariance) / 5
        np.testing.assert_allclose(scores["negative_log_likelihood"][i], -alone, rtol=0, atol=1e-7)
        np.testing.assert_allclose(scores["joint_negative_log_likelihood"][i], -joint, rtol=0, atol=1e-7)
        np.testing.assert_allclose(scores["mse"][i], ((y - mean) ** 2).mean(), rtol=0, atol=1e-7)


def test_the_joint_density_of_the_oracle_is_that_of_all_points_over_the_supports():
    task = process("rbf", "task.num_shots=7", "task.num_queries=5")
    draw = task.draw("test", range(4))
    _, y, covariance = task.points(draw)

    def log_density(rows):
        part = covariance[:, rows, rows]
        quadratic = (y[:, None, rows] @ torch.linalg.solve(part, y[:, rows, None]))[:, 0, 0]
        return -(quadratic + torch.linalg.slogdet(part)[1] + part.shape[1] * np.log(2 * np.pi)) / 2

    expected = -(log_density(slice(None)) - log_density(slice(5, None))) / 5
    torch.testing.assert_close(task.oracle(draw)["joint_negative_log_likelihood"], expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize(("preset", "ceiling"), [("gp_rbf", 1.54), ("gp_matern52", 1.13)])
def test_the_presets_of_the_literature_have_the_ceilings_found_elsewhere(preset, ceiling):
    task, found = experiment(f"task={preset}").task, []
    for num_shots in range(3, 47):  # as likely as each other
        sized = task.with_shots("test", num_shots)
        others = range(60 * num_shots, 60 * num_shots + 60)
        found.append(sized.oracle(sized.draw("test", others))["negative_log_likelihood"].mean())
    assert abs(-torch.stack(found).mean() - ceiling) < 0.04  # both are sure to 0.02


def test_without_noise_there_is_no_density_to_compare_with():
    task = process("rbf", "task.noise_std=0")
    assert task.oracle(task.draw("test", range(2))) == {}


def test_wrong_settings_are_refused_with_the_rule():
    with pytest.raises(ConfigError, match=r"task.period is None; give the periodic kernel"):
        experiment("task=gaussian_process", "task.kernel=periodic")
    with pytest.raises(ConfigError, match=r"task.length_scale is \[0, 1\]; .* both above 0"):
        process("rbf", "task.length_scale=[0,1]")
    with pytest.raises(ConfigError, match=r"x_range"):
        process("rbf", "task.x_range=[1,1]")
