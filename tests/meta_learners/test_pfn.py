"""PFN: its invariances, and its likelihood. float64; EXACT is for the same sums in another order."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from metarun.core import Batch, Episode
from metarun.evaluation.explaining.numbers import coverage
from metarun.evaluation.explaining.observed import predictions
from metarun.meta_learners.pfn import PFN
from metarun.models.binned import HALF, log_density
from metarun.models.columns import ridges
from metarun.models.linear import Linear
from metarun.objectives import CROSS_ENTROPY, SQUARED_ERROR
from tests.helpers import moved

EXACT = 1e-10
COLUMNS, CLASSES, ROWS, QUERIES = 6, 4, 15, 7
SIZES = {"width": 8, "layers": 2, "heads": 2, "feedforward": 12, "cells": 5}
BINS = {"penalties": [0.01, 0.3], "bins": 10, "quantiles": [-3, -1, 0, 1, 3]}
KINDS = ["classification", "regression"]


def learner_of(kind: str, columns: int = COLUMNS, **changes: object) -> tuple[PFN, dict]:
    torch.manual_seed(0)
    classifies = kind == "classification"
    outputs = CLASSES if classifies else 1
    net = Linear((columns,), outputs, 0.01).double()
    objective = CROSS_ENTROPY if classifies else SQUARED_ERROR
    settings = {"num_outputs": outputs, "num_ways": CLASSES if classifies else None, **SIZES, **BINS, **changes}
    learner = PFN(net, objective, (columns,), **settings)  # type: ignore[arg-type]
    return moved(learner)


def table(kind: str, columns: int = COLUMNS, classes: int = CLASSES) -> Episode:
    torch.manual_seed(1)
    x = torch.randn(ROWS + QUERIES, columns, dtype=torch.float64)
    y = torch.arange(len(x)) % classes if kind == "classification" else torch.randn(len(x), 1).double()
    return Episode(Batch(x[:ROWS], y[:ROWS]), Batch(x[ROWS:], y[ROWS:]))


def outputs(learner: PFN, theta: dict, support: Batch, x: torch.Tensor) -> torch.Tensor:
    return learner.outputs(learner.adapt(theta, support), x)


def same(one: torch.Tensor, other: torch.Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_the_context_does_not_matter(kind):
    (learner, theta), episode = learner_of(kind), table(kind)
    order = torch.randperm(ROWS)
    mixed = Batch(episode.support.x[order], episode.support.y[order])
    same(outputs(learner, theta, mixed, episode.query.x), outputs(learner, theta, episode.support, episode.query.x))


@pytest.mark.parametrize("kind", KINDS)
def test_a_query_does_not_depend_on_the_others(kind):
    (learner, theta), episode = learner_of(kind), table(kind)
    together = outputs(learner, theta, episode.support, episode.query.x)
    for k in range(QUERIES):
        same(outputs(learner, theta, episode.support, episode.query.x[k : k + 1])[0], together[k])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("penalties", [[], [0.01, 0.3]])
def test_rows_outside_the_mask_change_nothing(kind, penalties):
    (learner, theta), episode = learner_of(kind, penalties=penalties), table(kind)
    x, y = episode.support[:2]
    more = torch.cat([x, 100 * torch.randn(5, COLUMNS).double()]), torch.cat([y, y[:5]])
    mask = torch.arange(ROWS + 5) < ROWS
    order = torch.randperm(ROWS + 5)
    padded = Batch(more[0][order], more[1][order], mask[order])
    same(outputs(learner, theta, padded, episode.query.x), outputs(learner, theta, episode.support, episode.query.x))


@pytest.mark.parametrize("kind", KINDS)
def test_columns_that_the_table_does_not_use_change_nothing(kind):
    (small, theta), episode = learner_of(kind), table(kind)
    large, _ = learner_of(kind, columns=COLUMNS + 3)
    linear = torch.cat([theta["rows"]["linear"], torch.randn(SIZES["width"], 3).double()], 1)
    wide = {**theta, "rows": {**theta["rows"], "linear": linear}}
    support = Batch(F.pad(episode.support.x, (0, 3)), episode.support.y)
    expected = outputs(small, theta, episode.support, episode.query.x)
    for filling in (torch.zeros(QUERIES, 3), torch.randn(QUERIES, 3)):
        x = torch.cat([episode.query.x, filling.double()], 1)
        same(outputs(large, wide, support, x), expected)


def test_the_outputs_of_a_ridge_regression_leave_each_row_out():
    torch.manual_seed(0)
    z, t = torch.randn(9, 3).double(), torch.randn(9, 2).double()
    for columns in (3, 1):  # both systems of Woodbury's: fewer columns than rows, and more
        x, regulariser = torch.cat([z.repeat(1, columns * 4 - 3), torch.ones(9, 1).double()], 1), 0.1 * 9
        own, _ = ridges(x[:, :-1], t, torch.ones(9).double(), [0.1])
        for i in range(9):
            rest = torch.arange(9) != i
            gram = x[rest].T @ x[rest] + regulariser * torch.eye(x.shape[1]).double()
            same(own[i], x[i] @ torch.linalg.solve(gram, x[rest].T @ t[rest]))


def test_classes_that_the_context_lacks_have_no_probability():
    (learner, theta), episode = learner_of("classification"), table("classification", classes=3)
    probabilities = learner.probabilities(learner.adapt(theta, episode.support), episode.query.x)
    assert (probabilities[:, 3] < 1e-12).all() and (probabilities[:, :3] > 0).all()
    same(probabilities.sum(1), torch.ones(QUERIES).double())


def test_regression_minimises_the_binned_likelihood_and_predicts_its_mean():
    (learner, theta), episode = learner_of("regression"), table("regression")
    phi = learner.adapt(theta, episode.support)
    logits = learner.outputs(phi, episode.query.x)
    loss, metrics = learner.query_loss(phi, episode.query)
    same(loss, -log_density(logits, learner.borders(logits), episode.query.y).mean())
    same(metrics["negative_log_likelihood"], loss)
    same(metrics["mse"], F.mse_loss(learner.predict(phi, episode.query.x), episode.query.y))


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_over_the_query_rows_of_the_mask(kind):
    (learner, theta), episode = learner_of(kind), table(kind)
    phi, (x, y) = learner.adapt(theta, episode.support), episode.query[:2]
    kept = torch.arange(QUERIES) % 2 == 0
    found, expected = learner.query_loss(phi, Batch(x, y, kept)), learner.query_loss(phi, Batch(x[kept], y[kept]))
    same(found[0], expected[0])
    assert found[1].keys() == expected[1].keys()
    for name, value in expected[1].items():
        same(found[1][name], value)


def test_queries_in_parts_read_keys_and_values_that_were_computed_once():
    (learner, theta), episode = learner_of("classification"), table("classification")
    phi = learner.adapt(theta, episode.support)
    assert [key.shape for key, _ in phi["memory"]] == [(2, ROWS, SIZES["width"] // 2)] * SIZES["layers"]
    parts = torch.cat([learner.predict(phi, part) for part in episode.query.x.split(2)])
    same(parts, learner.predict(phi, episode.query.x))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"width": 9}, "width a multiple of heads"),
        ({"layers": 0}, "1 or more"),
        ({"penalties": [0.1, 0]}, "above 0"),
        ({"bins": 2}, "3 bins"),
        ({"quantiles": [0, 1, 1]}, "each above the one before"),
    ],
)
def test_settings_that_make_no_network_are_refused(changes, said):
    learner, _ = learner_of("regression")
    with pytest.raises(ValueError, match=said):
        replace(learner, **changes)


def test_the_intervals_of_its_own_distribution_cover_their_levels():
    (learner, theta), episode = learner_of("regression"), table("regression")
    phi = learner.adapt(theta, episode.support)
    phi["head"] = {**phi["head"], "bias": torch.tensor([3.0, 0, 0, -1, 0, 0, 2, 0, 0, 1]).double()}  # far from a normal
    x = episode.query.x[:1].expand(20000, -1)
    logits = learner.outputs(phi, x[:1])
    borders, place = learner.borders(logits), torch.multinomial(logits[0, 0].softmax(0), len(x), replacement=True)
    width, share, tail = borders.diff()[place], torch.rand(len(x)).double(), torch.randn(len(x)).double().abs() / HALF
    y = borders[place] + width * torch.where(place == 0, 1 - tail, torch.where(place == len(borders) - 2, tail, share))
    below = predictions(learner, phi, Batch(x, y[:, None])).below
    assert coverage(below, [0.1, 0.5, 0.9]) == pytest.approx([0.1, 0.5, 0.9], abs=0.015)  # four standard errors
