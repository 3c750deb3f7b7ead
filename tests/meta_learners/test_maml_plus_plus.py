"""MAML++: against a plain autograd loop, against MAML with every switch off, and what each switch does by itself.

float64. EXACT is for two ways of computing the same number: rounding (1e-16) grows through a few inner steps and through
batch norms over six values, and 1e-8 leaves room for both while a wrong term shows at 1e-3.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from metarun.meta_learners.maml import MAML
from metarun.meta_learners.maml_plus_plus import MAMLPlusPlus
from metarun.models.exact.layers import BatchNorm
from metarun.objectives import CROSS_ENTROPY
from metarun.trees import tree_leaves, tree_map
from tests.helpers import BASES, INNER_LR, INNER_STEPS, check_slope, meta_gradient, moved, one_episode, relative_error

EXACT = 1e-8
SWITCHES = {
    "multi_step_epochs": 10,
    "learned_rates": True,
    "per_step_norms": True,
    "first_order_epochs": 0,
    "steps_per_epoch": 500,
    "epoch": 0,
}
OFF = {"multi_step_epochs": 0, "learned_rates": False, "per_step_norms": False}


def make(base: str, **changes: Any) -> tuple[MAMLPlusPlus, dict]:
    """A learner and a theta whose rates and norms differ between steps."""
    torch.manual_seed(0)
    built = MAMLPlusPlus(BASES[base]().double(), CROSS_ENTROPY, INNER_LR, INNER_STEPS, **{**SWITCHES, **changes})
    return moved(built)


# ---- the meta-gradient ----


def plain_gradient(built: MAMLPlusPlus, theta: dict, importance: list[float], first_order: bool) -> list[Tensor]:
    """An autograd loop over 3 steps; ``importance`` of the query losses after each of them."""
    support, query, _ = one_episode()
    leaves = tree_map(lambda p: p.clone().requires_grad_(), theta)
    weights, total = dict(leaves["weights"]), torch.zeros(()).double()
    for k in range(INNER_STEPS):
        norms = {name: p[k if built.per_step_norms else 0] for name, p in leaves["norms"].items()}
        loss = F.cross_entropy(functional_call(built.base_learner, {**weights, **norms}, (support.x,)), support.y)
        grads = torch.autograd.grad(loss, list(weights.values()), create_graph=not first_order)
        rates = [leaves["rates"][name][k] if built.learned_rates else INNER_LR for name in weights]
        weights = {name: p - r * g for (name, p), r, g in zip(weights.items(), rates, grads, strict=True)}
        outputs = functional_call(built.base_learner, {**weights, **norms}, (query.x,))
        total = total + importance[k] * F.cross_entropy(outputs, query.y)
    return list(torch.autograd.grad(total, tree_leaves(leaves), materialize_grads=True))


CASES = {
    "begins": ({}, [1 / 3, 1 / 3, 1 / 3], False),
    "halfway": ({"epoch": 5}, [1 / 6, 1 / 6, 2 / 3], False),
    "annealed": ({"epoch": 10}, [0, 0, 1], False),
    "one_step_counts": ({"multi_step_epochs": 0}, [0, 0, 1], False),
    "fixed_rates": ({"learned_rates": False}, [1 / 3, 1 / 3, 1 / 3], False),
    "shared_norms": ({"per_step_norms": False}, [1 / 3, 1 / 3, 1 / 3], False),
    "first_order": ({"first_order_epochs": 1}, [1 / 3, 1 / 3, 1 / 3], True),
    "first_order_is_over": ({"first_order_epochs": 5, "epoch": 5}, [1 / 6, 1 / 6, 2 / 3], False),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("base", ["mlp_transductive", "stride_transductive"])
def test_meta_gradient_equals_a_plain_autograd_loop(base, case):
    changes, importance, first_order = CASES[case]
    built, theta = make(base, **changes)
    expected = plain_gradient(built, theta, importance, first_order)
    assert relative_error(meta_gradient(built, theta, one_episode()), expected) < EXACT


@pytest.mark.parametrize("base", ["mlp_transductive", "stride_support"])
def test_meta_gradient_equals_finite_differences(base):
    check_slope(*make(base), one_episode())


@pytest.mark.parametrize("first_order_epochs", [0, 1])
def test_with_every_switch_off_and_no_norms_it_is_maml(first_order_epochs):
    built, theta = make("mlp", **OFF, first_order_epochs=first_order_epochs)
    assert theta.keys() == {"weights", "norms"}
    assert not theta["norms"]
    maml = MAML(built.base_learner, CROSS_ENTROPY, INNER_LR, INNER_STEPS, bool(first_order_epochs), "all", "sgd")
    expected = meta_gradient(maml, theta["weights"], one_episode())
    assert relative_error(meta_gradient(built, theta, one_episode())["weights"], expected) < EXACT


# ---- annealing ----


def learner(steps: int, epochs: int, epoch: int) -> MAMLPlusPlus:
    return MAMLPlusPlus(
        BASES["mlp_transductive"](), CROSS_ENTROPY, 0.1, steps, epochs, True, True, 0, steps_per_epoch=500, epoch=epoch
    )


@pytest.mark.parametrize("epoch", [0, 1, 5, 9, 10, 99])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_importance_sums_to_one(steps, epoch):
    assert sum(learner(steps, 10, epoch).importance()) == pytest.approx(1, rel=1e-12)  # rounding


def test_importance_moves_from_all_steps_alike_to_the_last_alone():
    assert learner(5, 10, 0).importance() == pytest.approx([0.2] * 5)
    assert learner(5, 10, 5).importance() == pytest.approx([0.1] * 4 + [0.6])
    assert learner(5, 10, 10).importance() == [1.0]
    last = [learner(5, 10, epoch).importance()[-1] for epoch in range(12)]
    assert last == sorted(last)


def test_earlier_steps_keep_three_percent_of_their_share_while_importance_is_spread():
    assert learner(5, 100, 99).importance() == pytest.approx([0.03 / 5] * 4 + [1 - 4 * 0.03 / 5])


def test_the_learner_of_a_step_is_that_of_its_epoch():
    built, _ = make("mlp_transductive", first_order_epochs=12)
    assert [built.at(step).epoch for step in (0, 499, 500, 4999, 5000, 6000, 100_000)] == [0, 0, 1, 9, 10, 12, 12]
    assert built.at(6000) == built.at(100_000)  # nothing left to anneal: one learner from then on
    assert replace(built, epoch=3).at(500).epoch == 4


def test_adaptation_knows_no_epochs():
    built, theta = make("stride_transductive", first_order_epochs=2)
    support = one_episode().support
    expected = built.adapt(theta, support)
    for step in (0, 1000, 5000):
        phi = built.at(step).adapt(theta, support)
        assert all(torch.equal(phi[name], p) for name, p in expected.items())  # the same operations: bitwise


# ---- what belongs to a step ----


@pytest.mark.parametrize("k", range(INNER_STEPS))
@pytest.mark.parametrize("part", ["rates", "norms"])
def test_what_belongs_to_step_k_matters_after_step_k_and_not_before(part, k):
    built, theta = make("mlp_transductive")
    support = one_episode().support
    name = "head.weight" if part == "rates" else "body.2.weight"
    moved = tree_map(torch.clone, theta)
    moved[part][name][k] += 0.1
    pairs = zip(*(list(built.trajectory(t, support, INNER_STEPS)) for t in (theta, moved)), strict=True)
    same = [all(torch.equal(a[name], b[name]) for name in a) for a, b in pairs]
    before = k if part == "norms" and k == 0 else k + 1  # phi_0 is already given the norms of the first step
    assert same == [True] * before + [False] * (INNER_STEPS + 1 - before)


def test_norms_take_no_inner_steps():
    built, theta = make("stride_transductive")
    phi = built.adapt(theta, one_episode().support)
    assert all(torch.equal(phi[name], p[-1]) for name, p in theta["norms"].items())


def test_steps_beyond_the_trained_ones_repeat_the_last_rates_and_norms():
    built, theta = make("mlp_transductive")
    stretched = {
        **theta,
        **{p: tree_map(lambda t: torch.cat([t, t[-1:], t[-1:]]), theta[p]) for p in ("rates", "norms")},
    }
    longer, support = replace(built, inner_steps=INNER_STEPS + 2), one_episode().support
    phi, expected = longer.adapt(theta, support), longer.adapt(stretched, support)
    assert all(torch.equal(phi[name], p) for name, p in expected.items())  # the same operations: bitwise


def test_everything_starts_alike_at_each_step():
    built, _ = make("stride_transductive")
    torch.manual_seed(0)
    theta = replace(built, base_learner=BASES["stride_transductive"]().double()).init()
    assert all(
        torch.equal(r, torch.full((INNER_STEPS,), INNER_LR, dtype=torch.float64)) for r in theta["rates"].values()
    )
    assert theta["rates"].keys() == theta["weights"].keys()
    assert len(theta["norms"]) == 8  # weight and bias of four
    assert all(p.shape == (INNER_STEPS, 3) and len(p.unique()) == 1 for p in theta["norms"].values())


# ---- statistics ----


def test_inner_steps_use_the_support_sets_statistics_whatever_queries_use():
    built, theta = make("mlp_transductive")
    layers = [m for m in built.base_learner.modules() if isinstance(m, BatchNorm)]
    episode = one_episode()
    expected = built.adapt(theta, episode.support)
    outputs = built.predict(expected, episode.query.x)
    for layer in layers:
        layer.mean, layer.var = torch.zeros(len(layer.weight)).double(), torch.full((len(layer.weight),), 2.0).double()
    phi = built.adapt(theta, episode.support)
    assert all(torch.equal(phi[name], p) for name, p in expected.items())
    assert not torch.allclose(built.predict(phi, episode.query.x), outputs)  # queries do use them


# ---- refusals ----


@pytest.mark.parametrize(
    ("name", "value", "least"),
    [("multi_step_epochs", -1, 0), ("first_order_epochs", -1, 0), ("steps_per_epoch", 0, 1), ("epoch", -1, 0)],
)
def test_numbers_out_of_range_are_refused(name, value, least):
    with pytest.raises(ValueError, match=f"{name} is {value}, but must be {least} or more"):
        make("mlp_transductive", **{name: value})
