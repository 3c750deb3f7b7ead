"""A score without training beside every trained one: what it is, where it stands, and what a run says of it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from metarun.core import Batch, TaskSpec
from metarun.evaluation.baselines import RIDGE, ClassMeans, RawBaseline, Ridge, raw_baseline
from metarun.evaluation.estimates import estimate
from metarun.evaluation.scoring import Subject, evaluate
from metarun.execution.execution import Looped
from metarun.objectives import CROSS_ENTROPY, SQUARED_ERROR
from tests.composing import experiment, train
from tests.running import read

RUN = ["steps=2", "meta_batch_size=2", "evaluation.every=2", "evaluation.num_val_tasks=2", "evaluation.num_tasks=12"]


def test_an_image_gets_the_class_with_the_nearest_mean_of_raw_pixels():
    x = torch.from_numpy(np.random.default_rng(0).normal(100, 1, (14, 2, 3, 3)))  # an offset that the means share
    y = torch.tensor([0, 1, 2, 0, 1, 2])
    learner = ClassMeans(CROSS_ENTROPY, 3)
    logits = learner.predict(learner.adapt({}, Batch(x[:6], y)), x[6:])
    means = torch.stack([x[:6][y == n].mean(0) for n in range(3)])
    distances = ((x[6:, None] - means) ** 2).flatten(2).sum(2)
    torch.testing.assert_close(logits - logits[:, :1], distances[:, :1] - distances)


@pytest.mark.parametrize("num_points", [4, 9])
def test_ridge_regression_minimises_its_penalised_squared_error(num_points):
    rng = np.random.default_rng(1)
    x, y = (torch.from_numpy(rng.normal(3, 2, (num_points, d))) for d in (6, 2))
    learner = Ridge(SQUARED_ERROR)
    phi = learner.adapt({}, Batch(x, y))
    penalty = RIDGE * num_points * x.var(0, unbiased=False).mean()
    w, offset = phi["w"].requires_grad_(), learner.predict(phi, torch.zeros(1, 6).double())[0].detach().requires_grad_()
    (((x @ w + offset - y) ** 2).sum() + penalty * (w * w).sum()).backward()
    torch.testing.assert_close(w.grad, torch.zeros_like(w), atol=1e-9, rtol=0)
    torch.testing.assert_close(offset.grad, torch.zeros_like(offset), atol=1e-9, rtol=0)


def test_ridge_regression_predicts_the_same_in_other_units_of_the_inputs():
    x, y = torch.randn(5, 3).double(), torch.randn(5, 1).double()
    learner = Ridge(SQUARED_ERROR)
    one, other = (learner.predict(learner.adapt({}, Batch(x[:4] * unit, y[:4])), x * unit) for unit in (1, 1000))
    torch.testing.assert_close(one, other)


def test_ridge_regression_of_a_single_point_is_its_value():
    learner = Ridge(SQUARED_ERROR)
    phi = learner.adapt({}, Batch(torch.ones(1, 2), torch.tensor([[7.0]])))
    assert learner.predict(phi, torch.tensor([[3.0, 4.0]])).tolist() == [[7.0]]


@pytest.mark.parametrize(
    ("task", "score"),
    [
        ("sinusoid", "baseline_mse"),
        ("linear_regression", "baseline_mse_per_dimension"),
        ("gaussian_process", "baseline_mse"),
    ],
)
@pytest.mark.parametrize("split", ["train", "test"])
def test_regression_has_a_baseline_on_the_episodes_of_the_score(task, score, split):
    x = experiment(f"task={task}")
    subject = Subject(x.test_learner, x.theta_0, x.task, split, 30, Looped())
    alone = replace(subject, learner=Ridge(x.task.spec.objective), theta={})
    found = {name: estimate(values) for name, values in RawBaseline().episode_scores(subject).items()}
    assert found.keys() == {score}
    assert found[score] == pytest.approx(evaluate(alone)[score.removeprefix("baseline_")])


@pytest.mark.parametrize("task", ["quadratics", "logistic_regression", "mlp_problems"])
def test_problems_for_optimizers_have_no_baseline(task):
    assert raw_baseline(experiment(f"task={task}", "meta_learner=learned_optimizer").task, "test") is None


def test_words_have_no_baseline_of_raw_inputs():
    task = experiment("task=prototypes").task
    assert raw_baseline(task, "test") == ClassMeans(CROSS_ENTROPY, task.spec.num_ways)
    task.spec = TaskSpec((4,), 2, CROSS_ENTROPY, num_ways=2, num_tokens=10)
    assert raw_baseline(task, "test") is None


def test_results_of_a_run_hold_the_baseline_beside_each_score(tmp_path):
    train(tmp_path / "run", "task=prototypes", *RUN)
    results = read(tmp_path / "run" / "results.json")
    assert results["test/baseline_accuracy"]["n"] == results["test/accuracy"]["n"] == 12
    lines = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert "test/baseline_accuracy" in lines and "val/baseline_accuracy" not in lines
