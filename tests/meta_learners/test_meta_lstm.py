"""The meta-LSTM against closed forms, first-order MAML, and a plain loop over torch's own LSTM cell.

float64; EXACT is for the same sums in another order: rounding (1e-16), grown by the LSTM over a few steps.
"""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from metarun.core import Batch, Episode
from metarun.meta_learners.maml import MAML
from metarun.meta_learners.meta_lstm import MetaLSTM
from metarun.models.cells import GatedUpdate
from metarun.models.linear import Linear
from metarun.objectives import CROSS_ENTROPY, SQUARED_ERROR
from metarun.trees import tree_map
from tests.helpers import BASES, flat, meta_gradient, one_episode, relative_error

EXACT = 1e-9
P, STEPS = 10.0, 4


def on_images(base: str) -> tuple[MetaLSTM, dict]:
    torch.manual_seed(0)
    learner = MetaLSTM(BASES[base]().double(), CROSS_ENTROPY, GatedUpdate(5).double(), P, STEPS)
    return learner, learner.init()


def with_gates(theta: dict, forget: float, input_: float) -> dict:
    """Gates that are the same at every step: no weights, and biases of these values."""
    constants = {"forget.bias": forget, "input.bias": input_}
    return {**theta, "optimizer": {n: 0 * p + constants.get(n, 0.0) for n, p in theta["optimizer"].items()}}


# ---- gates that do not depend on anything ----


def test_open_forget_gates_and_equal_input_gates_are_first_order_maml():
    learner, theta = on_images("mlp")
    theta, rate = with_gates(theta, 50.0, -1.0), 1 / (1 + torch.e)  # sigmoid(50) is 1 to rounding
    maml = MAML(learner.base_learner, CROSS_ENTROPY, rate, STEPS, True, "all", "sgd")
    expected = meta_gradient(maml, theta["start"], one_episode())
    assert relative_error(meta_gradient(learner, theta, one_episode())["start"], expected) < EXACT
    assert (
        relative_error(learner.adapt(theta, one_episode().support), maml.adapt(theta["start"], one_episode().support))
        < EXACT
    )


def test_with_constant_gates_a_quadratic_has_the_closed_form_phi_and_meta_gradient():
    """phi_{k+1} = f phi_k - i g_k, so d phi_K / d start = f^K, and d phi_K / df and / di are sums over the steps."""
    torch.manual_seed(0)
    learner = MetaLSTM(Linear((4,), 1, 0.5).double(), SQUARED_ERROR, GatedUpdate(3).double(), P, STEPS)
    theta = with_gates(learner.init(), 2.0, -1.0)
    f, i = torch.tensor([2.0, -1.0]).double().sigmoid()
    (x, y, _), query = [Batch(torch.randn(6, 4).double(), torch.randn(6, 1).double()) for _ in range(2)]

    def slope(z: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return 2 / len(x) * x.T @ (x @ z - y)

    z = theta["start"]["head.weight"].T
    by_f = by_i = torch.zeros_like(z)
    for _ in range(STEPS):
        g = slope(z, x, y)
        by_f, by_i = z + f * by_f, -g + f * by_i
        z = f * z - i * g
    torch.testing.assert_close(learner.adapt(theta, Batch(x, y))["head.weight"].T, z, rtol=EXACT, atol=EXACT)
    at_query = slope(z, *query[:2])
    gradient = meta_gradient(learner, theta, Episode(Batch(x, y), query))
    torch.testing.assert_close(gradient["start"]["head.weight"].T, f**STEPS * at_query, rtol=EXACT, atol=EXACT)
    for name, gate, by_gate in (("forget.bias", f, by_f), ("input.bias", i, by_i)):
        expected = (by_gate * at_query).sum() * gate * (1 - gate)
        torch.testing.assert_close(gradient["optimizer"][name][0], expected, rtol=EXACT, atol=EXACT)


# ---- gates that depend on everything ----


def plain_query_loss(learner: MetaLSTM, theta: dict, episode: Episode) -> Tensor:
    """The loss after the steps of the paper, weight by weight, with torch's own LSTM cell."""
    optimizer, cell = theta["optimizer"], torch.nn.LSTMCell(4, 5).double()
    names = {"weight_ih": "from_input", "weight_hh": "from_hidden", "bias_ih": "bias"}
    weights = {theirs: optimizer[f"cell.{ours}"] for theirs, ours in names.items()}
    weights["bias_hh"] = torch.zeros(20).double()

    def features(v: Tensor) -> Tensor:
        return torch.stack([v.abs().log().clamp(min=-P) / P, (torch.e**P * v).clamp(-1, 1)], -1).view(-1, 2)

    def loss(phi: dict, batch: Batch) -> Tensor:
        return CROSS_ENTROPY.loss(functional_call(learner.base_learner, phi, (batch.x,)), batch.y)

    phi = theta["start"]
    states: dict = {
        n: ((torch.zeros(p.numel(), 5).double(),) * 2, *(torch.zeros(p.numel()).double(),) * 2) for n, p in phi.items()
    }
    for _ in range(STEPS):
        here = {n: p.detach().requires_grad_() for n, p in phi.items()}
        value = loss(here, episode.support)
        for name, g in zip(here, torch.autograd.grad(value, list(here.values())), strict=True):
            hidden, *gates = states[name]
            n, p = g.numel(), phi[name].flatten()
            hidden = functional_call(
                cell, weights, (torch.cat([features(g), features(value.detach()).expand(n, 2)], 1), hidden)
            )
            for k, gate in enumerate(("forget", "input")):
                columns = [hidden[0], p[:, None], gates[k][:, None]]
                gates[k] = torch.sigmoid(
                    torch.cat(columns, 1) @ optimizer[f"{gate}.weight"][0] + optimizer[f"{gate}.bias"]
                )
            states[name] = (hidden, *gates)
            phi = {**phi, name: (gates[0] * p - gates[1] * g.flatten()).view(g.shape)}
    return loss(phi, episode.query)


@pytest.mark.parametrize("base", ["mlp", "stride_transductive"])
def test_the_meta_gradient_is_that_of_a_plain_loop(base):
    learner, theta = on_images(base)
    theta = tree_map(lambda p: p + 0.3 * torch.randn_like(p), theta)  # off the start, where the gates hardly differ
    leaves = tree_map(lambda p: p.clone().requires_grad_(), theta)
    flat_leaves = [*leaves["start"].values(), *leaves["optimizer"].values()]
    expected = torch.autograd.grad(plain_query_loss(learner, leaves, one_episode()), flat_leaves)
    actual = meta_gradient(learner, theta, one_episode())
    actual = [*actual["start"].values(), *actual["optimizer"].values()]
    assert relative_error(actual, list(expected)) < EXACT


def test_it_begins_close_to_gradient_descent_with_a_small_rate():
    """Forget gates sigmoid(4 ... 5) and input gates sigmoid(-5 ... -4), moved by weights of at most 0.01."""
    learner, theta = on_images("mlp")
    support = one_episode().support
    start = flat(theta["start"])
    maml = MAML(learner.base_learner, CROSS_ENTROPY, 1.0, 1, True, "all", "sgd")
    g = start - flat(maml.adapt(theta["start"], support))
    moved = flat(replace(learner, inner_steps=1).adapt(theta, support))
    f, i = torch.linalg.lstsq(torch.stack([start, -g], 1), moved[:, None]).solution[:, 0]
    assert torch.tensor(4.0).sigmoid() - 0.002 < f < torch.tensor(5.0).sigmoid() + 0.002
    assert torch.tensor(-5.0).sigmoid() - 0.002 < i < torch.tensor(-4.0).sigmoid() + 0.002


# ---- wrong input ----


def test_wrong_settings_are_refused_with_the_rule():
    learner, _ = on_images("mlp")
    with pytest.raises(ValueError, match="preprocessing is -1; p must be above 0"):
        replace(learner, preprocessing=-1)
    with pytest.raises(ValueError, match="hidden_size is 0; use 1 or more"):
        GatedUpdate(0)


def test_a_divided_gradient_takes_steps_as_many_times_smaller_as_there_are_examples():
    learner, theta = on_images("mlp")
    theta, (support, _, _) = with_gates(theta, 50.0, -1.0), one_episode()
    rate = 1 / (1 + torch.e) / len(support.y)
    maml = MAML(learner.base_learner, CROSS_ENTROPY, rate, STEPS, True, "all", "sgd")
    divided = replace(learner, gradient="divided").adapt(theta, support)
    assert relative_error(divided, maml.adapt(theta["start"], support)) < EXACT
