import re

import numpy as np
import pytest
import torch

from metarun.commands.evaluate import for_split
from metarun.counter import normal
from metarun.errors import ConfigError
from metarun.evaluation.episodes import by_size, manifest
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


# ---- families of functions, shifts of inputs, the curriculum ----


def plain_tree(u: np.ndarray, x: np.ndarray, depth: int) -> float:
    """The value of a tree at x, question by question."""
    leaves, place = normal(u[2**depth - 1 :]), 0
    for _ in range(depth):
        place = 2 * place + (2 if x[int(u[place] * len(x))] > 0 else 1)
    return leaves[place - (2**depth - 1)]


def test_trees_ask_their_questions_from_the_root_to_a_leaf():
    task = linear("task.family=decision_tree", "task.num_dims=5", "task.family_size=3", "dtype=float64")
    draw = task.draw("test", range(4))
    support = task.episodes(draw).support
    for u, x, y in zip(draw["task"], support.x.numpy(), support.y[..., 0].numpy(), strict=True):
        np.testing.assert_array_equal(y, [plain_tree(u, point, 3) for point in x])


def test_networks_are_two_layers_of_normal_weights_with_a_relu_between():
    task = linear("task.family=relu_network", "task.num_dims=3", "task.family_size=7", "dtype=float64")
    draw = task.draw("test", range(4))
    support = task.episodes(draw).support
    for u, x, y in zip(draw["task"], support.x.numpy(), support.y[..., 0].numpy(), strict=True):
        weights = normal(u).reshape(4, 7)
        np.testing.assert_allclose(y, (2 / 7) ** 0.5 * np.maximum(x @ weights[:3], 0) @ weights[3], rtol=0, atol=1e-12)


def test_sparse_functions_have_so_many_weights_at_any_places_of_the_first():
    overrides = ["task.num_dims=6", "task.used_dims=5", "task.family_size=2", "task.num_shots=8"]
    x, y = linear("task.family=sparse", "dtype=float64", *overrides).sample("test", range(300)).support[:2]
    assert (x[..., 5] == 0).all()
    w = torch.linalg.lstsq(x[..., :5], y).solution[..., 0]
    chosen = w.abs() > 1e-9
    assert (chosen.sum(1) == 2).all()
    pairs = {tuple(np.flatnonzero(row)) for row in chosen.numpy()}
    assert len(pairs) == 10  # all choices of 2 among 5


@pytest.mark.parametrize("family", ["linear", "sparse", "relu_network", "decision_tree"])
@pytest.mark.parametrize("used", [5, 8])
def test_predicting_zero_has_the_error_one_in_each_family(family, used):
    task = linear(f"task.family={family}", "task.num_dims=8", f"task.used_dims={used}", "task.num_queries=50")
    y = task.sample("test", range(1000)).query.y
    scores = np.array([float(task.spec.objective.score(torch.zeros_like(each), each)) for each in y])
    assert abs(scores.mean() - 1) < 5 * scores.std() / 1000**0.5


SHIFTED = ["task.num_dims=6", "task.num_shots=4", "task.num_queries=5", "dtype=float64"]


@pytest.mark.parametrize("shift", ["skewed", "subspace", "orthants", "orthogonal", "repeated"])
def test_shifted_inputs_have_the_mean_square_of_the_others_and_the_same_functions(shift):
    usual, moved = linear(*SHIFTED), linear(*SHIFTED, f"task.shift={shift}")
    draw = moved.draw("test", range(2000))
    assert all(np.array_equal(draw[name], values) for name, values in usual.draw("test", range(2000)).items())
    for one in moved.episodes(draw)[:2]:
        squares = one.x.square().sum(-1).mean(1)
        assert abs(squares.mean() - 6) < 5 * squares.std() / 2000**0.5
        w = torch.from_numpy(normal(draw["task"])[:, :6, None])
        torch.testing.assert_close(one.y, one.x @ w, rtol=0, atol=1e-10)


def test_skewed_inputs_have_deviations_that_fall_as_one_over_their_number():
    task = linear("task.num_dims=4", "task.num_shots=4000", "task.shift=skewed", "dtype=float64")
    x = task.sample("test", range(3)).support.x
    deviations = torch.linalg.eigvalsh(x.transpose(1, 2) @ x / 4000).flip(1).sqrt()
    expected = (1 / torch.arange(1, 5).double()).expand(3, -1)
    torch.testing.assert_close(deviations / deviations[:, :1], expected, rtol=0.1, atol=0)


def test_subspace_inputs_lie_in_half_of_the_dimensions():
    x = linear(*SHIFTED, "task.shift=subspace", "task.num_shots=9").sample("test", range(3))
    for both in torch.cat([x.support.x, x.query.x], 1):
        assert int((torch.linalg.svdvals(both) > 1e-9).sum()) == 3


def test_orthants_orthogonal_and_repeated_points_are_what_they_say():
    one, other, same = (
        linear(*SHIFTED, f"task.shift={shift}").sample("test", range(50))
        for shift in ("orthants", "orthogonal", "repeated")
    )
    assert (one.support.x.sign() == one.support.x[:, :1].sign()).all()
    assert len(one.query.x.sign().flatten(0, 1).unique(dim=0)) > 32
    assert (other.query.x @ other.support.x.transpose(1, 2)).abs().max() < 1e-10
    assert ((same.query.x[:, :, None] == same.support.x[:, None]).all(-1).sum(2) == 1).all()


def test_scales_multiply_inputs_and_functions():
    usual, scaled = linear(*SHIFTED), linear(*SHIFTED, "task.x_scale=3", "task.y_scale=0.5")
    one, other = (task.sample("test", range(3)).query for task in (usual, scaled))
    torch.testing.assert_close(other.x, 3 * one.x)
    torch.testing.assert_close(other.y, 1.5 * one.y)


CURRICULUM = ["task.num_shots=40", "task.grow_dims=[5,1,2000]", "task.grow_shots=[10,2,2000]"]


@pytest.mark.parametrize(
    ("step", "dims", "shots"),
    [(0, 5, 10), (1999, 5, 10), (2000, 6, 12), (29_999, 19, 38), (30_000, 20, 40), (10**6, 20, 40)],
)
def test_the_curriculum_is_that_of_the_released_code_at_each_step(step, dims, shots):
    task = linear(*CURRICULUM, "task.train_num_queries=1")
    x = task.at("train", step).sample("train", [7]).support.x
    assert x.shape == (1, shots, 20)
    assert (x[..., dims:] == 0).all() and (x[..., :dims] != 0).all()
    assert torch.equal(x[..., :dims], task.sample("train", [7]).support.x[:, :shots, :dims])  # a part of the whole
    for split in ("val", "test"):
        assert task.at(split, step).sample(split, [7]).support.x.shape == (1, 40, 20)


def test_training_tasks_are_evaluated_at_full_size():
    x, plain = experiment("task=linear_regression", *CURRICULUM), linear(CURRICULUM[0])
    growing = for_split(x, "train").suite.first.task
    assert manifest(growing, "train", 45) == manifest(plain, "train", 45)
    (at, indices), *others = by_size(growing, "train", 45)
    assert not others and torch.equal(at.sample("train", indices).query.x, plain.sample("train", indices).query.x)
    varied = linear(CURRICULUM[1], "task.num_shots=40", "task.train_num_shots=[20,30]")
    assert (varied.at("train", 0).sample("train", [0]).query.x[..., 5:] == 0).all()
    full = [at for at, _ in by_size(varied.for_evaluation(), "train", 60)]
    assert all((at.sample("train", [0]).query.x != 0).all() for at in full)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task.family_size=3"], "linear functions have no size"),
        (
            ["task.family=sparse", "task.family_size=6", "task.grow_dims=[5,1,10]"],
            "family_size of sparse is 6; use 1 to 5",
        ),
        (["task.family=decision_tree", "task.family_size=17"], "use 1 to 16"),
        (["task.used_dims=21"], "use 1 to task.num_dims, 20"),
        (
            ["task.shift=orthogonal", "task.num_shots=20"],
            "points orthogonal to 20 others do not exist in 20 dimensions",
        ),
        (["task.grow_shots=[11,1,5]"], "first at most the full size, 10"),
        (["task.grow_dims=[5,0,5]"], "all 1 or more"),
        (["task.shift=sideways"], "shift"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(overrides, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        linear(*overrides)
