"""The numbers of ``metarun explain`` against plain NumPy, closed forms and invariances."""

import math

import numpy as np
import pytest
import torch

from metarun.evaluation.explaining.numbers import (
    Guesses,
    Pair,
    between,
    confused,
    cosines,
    coverage,
    linear_cka,
    plane,
    recalled,
    relative_change,
    reliability,
)

RNG = np.random.default_rng(0)


def normal(*shape: int) -> torch.Tensor:
    return torch.from_numpy(RNG.normal(size=shape))


def rotation(size: int) -> torch.Tensor:
    return torch.linalg.qr(normal(size, size)).Q


# ---- how far parameters move ----


def test_the_relative_change_is_that_of_all_tensors_as_one_vector():
    before, after = [normal(3, 4), normal(4)], [normal(3, 4), normal(4)]
    a, b = (np.concatenate([x.numpy().ravel() for x in tensors]) for tensors in (before, after))
    expected = np.linalg.norm(b - a) / np.linalg.norm(a)
    assert relative_change(before, after) == pytest.approx(expected, rel=1e-12)


def test_what_stays_changes_by_nothing_and_what_comes_of_nothing_without_bound():
    zero, one = torch.zeros(3), torch.ones(3)
    assert relative_change([one], [one]) == relative_change([zero], [zero]) == 0
    assert relative_change([zero], [one]) == math.inf


# ---- how alike representations are ----


def test_linear_cka_is_the_formula_over_features_of_kornblith_et_al():
    x, y = normal(20, 6), normal(20, 9)
    a, b = (z.numpy() - z.numpy().mean(0) for z in (x, y))
    expected = np.linalg.norm(b.T @ a) ** 2 / (np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b))
    assert linear_cka(x, y) == pytest.approx(expected, rel=1e-12)
    assert linear_cka(y, x) == pytest.approx(expected, rel=1e-12)


def test_linear_cka_ignores_rotation_scale_and_shift_and_nothing_else():
    x, y = normal(20, 6), normal(20, 6)
    moved = 1e-9 * (x @ rotation(6)) + 3e-9
    assert linear_cka(x, moved) == pytest.approx(1, abs=1e-7)
    assert linear_cka(moved, y) == pytest.approx(linear_cka(x, y), abs=1e-7)
    stretched = x * torch.tensor([30.0, 1, 1, 1, 1, 1])
    assert linear_cka(x, stretched) < 0.8


def test_linear_cka_of_maps_is_that_of_their_numbers_side_by_side():
    x, y = normal(8, 3, 2, 2), normal(8, 5)
    assert linear_cka(x, y) == linear_cka(x.flatten(1), y)


def test_linear_cka_of_unrelated_features_of_many_examples_is_near_zero():
    assert linear_cka(normal(4000, 3), normal(4000, 3)) < 0.01


def test_linear_cka_of_a_representation_that_says_nothing_is_unknown():
    assert math.isnan(linear_cka(normal(5, 2), torch.ones(5, 2)))


# ---- alignment ----


def test_cosines_are_those_of_each_two_rows():
    rows = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0], [-1.0, -1.0]])
    found = cosines(rows)
    root = math.sqrt(0.5)
    assert found[0].tolist() == pytest.approx([1, 1, 0, -root])
    assert between(found).tolist() == pytest.approx([1, 0, -root, 0, -root, -root])


def test_the_cosine_with_a_zero_row_is_unknown():
    assert between(cosines(torch.tensor([[1.0, 0.0], [0.0, 0.0]]))).isnan().all()


# ---- calibration ----


def sure(confidence: float, right: int, wrong: int, ways: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Predictions of class 0 with that confidence, so many of them right."""
    rest = (1 - confidence) / (ways - 1)
    probabilities = torch.tensor([[confidence, *[rest] * (ways - 1)]] * (right + wrong), dtype=torch.float64)
    return probabilities, torch.tensor([0] * right + [1] * wrong)


def test_predictions_as_right_as_they_are_sure_have_no_calibration_error():
    assert reliability(*sure(0.75, 3, 1)).error == pytest.approx(0)
    assert reliability(*sure(1.0, 5, 0)).error == 0


def test_the_calibration_error_of_one_bin_is_confidence_less_accuracy():
    found = reliability(*sure(0.8, 3, 2))
    assert found.error == pytest.approx(0.2)
    assert found.counts[11] == 5 and sum(found.counts) == 5  # (11/15, 12/15]
    assert (found.confidence[11], found.accuracy[11]) == pytest.approx((0.8, 0.6))
    assert math.isnan(found.accuracy[0])


def test_errors_of_opposite_sign_in_two_bins_do_not_cancel():
    parts = [sure(0.9, 1, 1), sure(0.5, 9, 1)]
    probabilities, y = (torch.cat(columns) for columns in zip(*parts, strict=True))
    assert reliability(probabilities, y).error == pytest.approx((2 * 0.4 + 10 * 0.4) / 12)


def test_the_calibration_error_is_that_of_a_loop_over_bins_in_numpy():
    probabilities, y = normal(500, 5).mul(2).softmax(1), torch.from_numpy(RNG.integers(0, 5, 500))
    p, labels, error = probabilities.numpy(), y.numpy(), 0.0
    for b in range(15):
        inside = (p.max(1) > b / 15) & (p.max(1) <= (b + 1) / 15)
        if inside.any():
            right = (p.argmax(1) == labels)[inside].mean()
            error += inside.mean() * abs(right - p.max(1)[inside].mean())
    assert reliability(probabilities, y).error == pytest.approx(error, rel=1e-9)


def test_intervals_cover_what_lies_within_them():
    below = torch.special.ndtr(torch.tensor([[0.5], [-1.5], [1.95], [-1.97]]))
    assert coverage(below, [0.5, 0.9, 0.95]) == [0.25, 0.5, 0.75]


def test_intervals_of_a_true_deviation_cover_their_level():
    levels = [0.1, 0.5, 0.9]
    found = coverage(torch.special.ndtr(normal(20000, 1)), levels)
    assert found == pytest.approx(levels, abs=0.015)  # four standard errors


# ---- confusion ----

EPISODES = [
    Guesses([0, 0, 1, 1], [0, 1, 1, 1], ["ant", "bee"]),
    Guesses([0, 0, 1, 1], [1, 1, 1, 1], ["cat", "ant"]),
    Guesses([0, 1], [0, 1], ["bee", "ant"]),
]


def test_a_mistake_is_counted_in_the_episodes_that_had_both_classes():
    assert confused(EPISODES) == [Pair("cat", "ant", 2, 2), Pair("ant", "bee", 1, 3)]


def test_the_hardest_class_comes_first_with_how_often_it_was_recognised():
    assert recalled(EPISODES) == [("cat", 0, 2), ("ant", 4, 5), ("bee", 3, 3)]


# ---- a plane ----


def test_the_plane_is_that_of_the_largest_eigenvalues_of_the_covariance():
    x = normal(40, 6) * torch.tensor([5.0, 3, 1, 1, 0.5, 0.1]) @ rotation(6) + 7
    mean, axes, share = plane(x)
    sizes, vectors = np.linalg.eigh(np.cov(x.numpy().T))
    assert np.allclose(mean, x.numpy().mean(0))
    assert np.allclose(np.abs(axes.numpy().T @ vectors[:, [-1, -2]]), np.eye(2), atol=1e-9)
    assert share == pytest.approx(sizes[-2:].sum() / sizes.sum())


def test_points_of_a_plane_lie_in_it():
    x = normal(10, 2) @ normal(2, 5)
    mean, axes, share = plane(x)
    assert share == pytest.approx(1)
    assert torch.allclose((x - mean) @ axes @ axes.T + mean, x)
