"""Tables drawn from random networks: what each setting does, and what a learner may rely on."""

import numpy as np
import pytest
import torch

from metarun.errors import ConfigError
from metarun.tasks.tabular_columns import standard_columns
from metarun.tasks.tabular_labels import shared_classes
from tests.composing import experiment

KINDS = ["classification", "regression"]
SMALL = ["task=tabular_prior", "base_learner=linear", "meta_learner=pfn"]
PLAIN = ["task.categorical=0", "task.missing=0"]


def prior(*overrides: str):
    return experiment(*SMALL, *overrides).task


def used(x: torch.Tensor) -> torch.Tensor:
    """The number of columns with a value of each table."""
    return (x != 0).any(1).sum(1)


def test_a_table_has_as_many_columns_as_were_drawn_and_zeros_fill_the_rest():
    numbers = used(prior(*PLAIN, "task.num_features=[3,8]").sample("train", range(200)).support.x)
    assert numbers.min() >= 2 and numbers.max() == 8 and len(numbers.unique()) >= 6
    assert (numbers < 3).float().mean() < 0.05  # a column that does not vary is zeros, too


@pytest.mark.parametrize("kind", KINDS)
def test_columns_and_targets_are_standardised_by_the_support_rows(kind):
    support, query, _ = prior(*PLAIN, f"task.kind={kind}").sample("val", range(30))
    x = support.x[..., :2]
    near = (x.abs() < 4.9).all(1)  # no value was cut
    assert near.float().mean() > 0.5
    torch.testing.assert_close(x.mean(1)[near], torch.zeros(int(near.sum())).double(), rtol=0, atol=1e-9)
    assert support.x.abs().max() <= 5 and query.x.abs().max() <= 5
    if kind == "regression":
        torch.testing.assert_close(support.y.std(1, correction=0), torch.ones(30, 1).double(), rtol=0, atol=1e-9)


def test_classes_have_no_gaps_and_the_support_has_all_of_the_query():
    support, query, _ = prior("task.num_shots=45").sample("train", range(150))
    numbers = []
    for own, asked in zip(support.y, query.y, strict=True):
        assert set(asked.tolist()) <= set(own.tolist()) == set(range(int(own.max()) + 1))
        numbers.append(int(own.max()) + 1)
    assert min(numbers) <= 2 and max(numbers) >= 7


def test_tables_can_be_learned():
    support, query, _ = prior("task.num_classes=[2,2]").sample("test", range(60))
    scores = []
    for x, y, at, true in zip(support.x, support.y, query.x, query.y, strict=True):
        nearest = torch.cdist(at, x).topk(5, largest=False).indices
        scores.append((y[nearest].float().mean(1).round() == true).float().mean())
    assert torch.stack(scores).mean() > 0.7  # 5 nearest neighbours, where the largest class alone has about 0.6


def test_a_table_and_its_query_are_the_same_whatever_the_number_of_support_rows():
    few, many = (prior(*PLAIN, "task.kind=regression", f"task.num_shots={k}").sample("test", [5]) for k in (40, 80))
    for pair in ((few.query.x, many.query.x), (few.query.y, many.query.y)):
        own = (values[0, :, :1] for values in pair)
        standard = [(v - v.mean()) / v.std() for v in own]  # each was standardised by its own support
        torch.testing.assert_close(*standard, rtol=0, atol=1e-9)


def test_missing_values_are_zeros_and_columns_say_where_they_are():
    with_gaps = prior("task.categorical=0", "task.missing=1", "task.num_features=[4,12]").sample("train", range(40))
    without = prior("task.categorical=0", "task.missing=0", "task.num_features=[4,12]").sample("train", range(40))
    assert used(with_gaps.support.x).sum() > used(without.support.x).sum()
    changed = (with_gaps.support.x == 0) & (without.support.x != 0)
    assert 0.01 < changed.double().mean() < 0.5


def test_categorical_columns_have_few_values():
    x = prior("task.categorical=1", "task.missing=0").sample("train", range(40)).support.x
    plain = prior(*PLAIN).sample("train", range(40)).support.x

    def few(tables: torch.Tensor) -> int:
        return sum(1 < len(column.unique()) <= 10 for table in tables for column in table.T)

    assert few(x) > 3 * few(plain)


def test_shares_decide_which_families_are_drawn():
    def labels(*overrides: str) -> torch.Tensor:
        return prior(*PLAIN, *overrides).sample("train", range(8)).query.y

    families = [labels(f"task.clusters={c}", f"task.trees={t}") for c, t in ((0, 0), (0, 1), (1, 0))]
    assert not any(torch.equal(a, b) for a, b in ((families[0], families[1]), (families[1], families[2])))
    torch.testing.assert_close(labels("task.clusters=1", "task.trees=1"), families[2])  # clusters come before trees


def test_a_row_of_a_class_that_the_support_lacks_changes_places():
    y = np.array([[4, 1, 1, 3, 3, 3], [0, 0, 2, 2, 2, 2], [1, 1, 1, 0, 2, 5]])
    order, labels = shared_classes(y, 2)
    for row, own, before in zip(order, labels, y, strict=True):
        assert sorted(row) == list(range(6)) and set(own[:2]) <= set(own[2:]) == set(range(own.max() + 1))
        assert len(set(zip(before[row].tolist(), own.tolist(), strict=True))) >= own.max() + 1
    assert order[1].tolist() == [2, 1, 0, 3, 4, 5]


def test_standard_columns_read_only_the_context_and_leave_constant_ones_out():
    x = np.array([[1.0, 7.0, np.nan], [3.0, 7.0, 2.0], [np.nan, 8.0, 4.0]])
    z = standard_columns(x, x[:2])
    np.testing.assert_allclose(z, [[-1, 0, 0], [1, 0, 0], [0, 0, 0]])


def test_the_borders_of_the_networks_bins_are_quantiles_of_the_priors_targets():
    x = experiment("experiment=pfn_tables_regression")
    y = torch.cat([x.task.at("train", step).sample("train", range(100)).query.y.flatten() for step in range(4)])
    levels = torch.linspace(0, 1, len(x.learner.quantiles), dtype=torch.float64)[1:-1]  # type: ignore[attr-defined]
    found = torch.tensor([(y < border).double().mean() for border in x.learner.quantiles[1:-1]])  # type: ignore[attr-defined]
    assert (found - levels).abs().max() < 0.04  # 400 tables; the targets of one are alike


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("task.num_features=[5,3]", r"num_features is \[5, 3\]; give \[lowest, highest\]"),
        ("task.num_classes=[1,3]", "from 2 to 10"),
        ("task.num_layers=[0,3]", "num_layers"),
        ("task.causal=1.5", "causal is 1.5; it is a share"),
    ],
)
def test_settings_that_make_no_table_are_refused_with_the_rule(override, said):
    with pytest.raises(ConfigError, match=said):
        prior(override)
