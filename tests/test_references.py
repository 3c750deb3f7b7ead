"""Methods of statistics beside a learner, against numpy, scikit-learn and the conditions of their minimum. float64."""

import numpy as np
import pytest
import torch

from metarun.core import Batch
from metarun.evaluation.references import REFERENCES, GreedyTree, lasso
from metarun.evaluation.scoring import Subject
from metarun.execution.execution import Looped
from metarun.objectives import SQUARED_ERROR
from metarun.output.ledger import OF_OTHERS
from metarun.output.summary import references_over_shots
from tests.composing import experiment, train
from tests.running import read

EXACT = 1e-10


def points(num_points: int, num_dims: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(num_points, num_dims)), rng.normal(size=(num_points, 1)), rng.normal(size=(30, num_dims))


def predicted(name: str, x: np.ndarray, y: np.ndarray, query: np.ndarray) -> np.ndarray:
    learner = REFERENCES[name](SQUARED_ERROR)
    support = Batch(torch.from_numpy(x), torch.from_numpy(y))
    return learner.predict(learner.adapt({}, support), torch.from_numpy(query)).numpy()


@pytest.mark.parametrize("num_points", [1, 4, 6, 20])
def test_least_squares_is_that_of_numpy_with_few_and_many_points(num_points):
    x, y, query = points(num_points, 6)
    x[:, 5] = 0  # a coordinate that is not used
    expected = query @ np.linalg.lstsq(x, y, rcond=None)[0]
    np.testing.assert_allclose(predicted("least_squares", x, y, query), expected, rtol=0, atol=EXACT)


def test_averaging_is_the_mean_of_inputs_times_targets():
    x, y, query = points(9, 4)
    expected = query @ np.mean([a * b for a, b in zip(x, y, strict=True)], 0)
    np.testing.assert_allclose(predicted("averaging", x, y, query)[:, 0], expected, rtol=0, atol=EXACT)


@pytest.mark.parametrize("num_points", [2, 15])
def test_the_nearest_three_points_are_averaged_or_all_where_there_are_fewer(num_points):
    x, y, query = points(num_points, 4)
    near = [np.argsort(((x - q) ** 2).sum(1))[:3] for q in query]
    np.testing.assert_allclose(predicted("nearest_3", x, y, query), [y[n].mean(0) for n in near], rtol=0, atol=EXACT)


@pytest.mark.parametrize("num_points", [10, 40])
def test_lasso_satisfies_the_conditions_of_its_minimum(num_points):
    x, _, _ = points(num_points, 20)
    w = np.zeros((20, 1))
    w[[3, 8, 15]] = [[1.0], [-0.5], [2.0]]
    found = lasso(torch.from_numpy(x), torch.from_numpy(x @ w)).numpy()
    slope = x.T @ (x @ (w - found)) / num_points  # of the squared error, downwards
    zero = found == 0
    assert zero.sum() >= 5
    np.testing.assert_allclose(slope[~zero], 0.01 * np.sign(found[~zero]), rtol=0, atol=1e-5)
    assert (np.abs(slope[zero]) <= 0.01 + 1e-5).all()


@pytest.mark.parametrize(("num_points", "depth"), [(1, 4), (2, 4), (12, 2), (60, 4)])
@pytest.mark.parametrize("num_dims", [1, 5])
def test_a_greedy_tree_is_that_of_scikit_learn(num_points, depth, num_dims):
    tree = pytest.importorskip("sklearn.tree")
    x, y, query = points(num_points, num_dims)
    x[:, 1:2] = 0  # a coordinate that is not used
    if num_dims > 1:
        query = x  # there, where several questions tell the same points apart, scikit-learn takes any of them
    expected = tree.DecisionTreeRegressor(max_depth=depth).fit(x, y).predict(query)
    learner = GreedyTree(SQUARED_ERROR, depth)
    phi = learner.adapt({}, Batch(torch.from_numpy(x), torch.from_numpy(y)))
    np.testing.assert_allclose(learner.predict(phi, torch.from_numpy(query))[:, 0], expected, rtol=0, atol=EXACT)


@pytest.mark.parametrize("family", ["linear", "sparse", "relu_network", "decision_tree"])
def test_references_are_scored_on_the_episodes_of_the_score(family):
    x = experiment(
        "task=linear_regression", f"task.family={family}", "task.num_dims=6", "task.num_shots=9", "dtype=float64"
    )
    subject = Subject(x.test_learner, x.theta_0, x.task, "test", 30, Looped())
    found = {name: values for each in x.evaluators for name, values in each.episode_scores(subject).items()}
    episodes = x.task.sample("test", range(30))
    for name in x.task.references:
        scores = found[f"{name}_mse_per_dimension"]
        for i in (0, 29):
            (support, query), objective = (
                [(b.x[i].numpy(), b.y[i].numpy()) for b in episodes[:2]],
                x.task.spec.objective,
            )
            outputs = torch.from_numpy(predicted(name, *support, query[0]))
            assert float(objective.score(outputs, episodes.query.y[i])) == pytest.approx(float(scores[i]), abs=1e-9)


def test_another_family_is_scored_in_its_own_unit():
    x = experiment("task=linear_regression", "evaluation.task={trees: linear_regression}",
                   "evaluation.task.trees.family=decision_tree")  # fmt: skip
    assert x.suite.elsewhere["trees"].learner.objective == x.suite.elsewhere["trees"].task.spec.objective


def test_results_of_a_run_hold_the_references_beside_the_score(tmp_path):
    run = [
        "steps=1",
        "meta_batch_size=2",
        "evaluation.every=1",
        "evaluation.num_val_tasks=2",
        "evaluation.num_tasks=12",
    ]
    train(tmp_path / "run", "task=linear_regression", *run)
    results = read(tmp_path / "run" / "results.json")
    assert results["test/least_squares_mse_per_dimension"]["n"] == 12
    assert "val/least_squares_mse_per_dimension" not in (tmp_path / "run" / "metrics.jsonl").read_text()


def test_references_are_scored_over_shots_on_the_episodes_of_the_learner(tmp_path):
    few = ["task=linear_regression", "task.num_dims=3", "task.num_shots=4", "evaluation.num_tasks=6"]
    run = [*few, "steps=1", "meta_batch_size=2", "evaluation.every=1", "evaluation.num_val_tasks=2"]
    train(tmp_path / "run", *run, "evaluation.shots=[1,2,4]")
    results = read(tmp_path / "run" / "results.json")
    for k in (1, 2, 4):
        task = experiment(*few, f"task.num_shots={k}").task
        support, query = task.sample("test", range(6))[:2]
        w = torch.linalg.pinv(support.x) @ support.y
        scores = [task.spec.objective.score(x @ v, y) for x, v, y in zip(query.x, w, query.y, strict=True)]
        found = results[f"test/least_squares_mse_per_dimension_shots_{k}"]["mean"]
        assert found == pytest.approx(float(np.mean(scores)), abs=1e-5)
    assert (tmp_path / "run" / "shots.png").is_file()
    scores = {f"t/{name}_mse_shots_{k}": k for name in ("lasso", "nearest_3") for k in (1, 2)} | {"t/mse_shots_1": 0}
    expected = {"lasso": {1: 1, 2: 2}, "nearest_3": {1: 1, 2: 2}}
    assert references_over_shots(scores, "t/mse") == expected


def test_no_method_without_training_is_taken_for_a_score_of_the_model():
    assert {f"{name}_" for name in REFERENCES} <= {*OF_OTHERS}
