"""CAVIA: against a network that really concatenates its context, a plain FiLM network, a closed form, and its refusals.

float64. EXACT is for two ways of computing the same number: rounding (1e-16) grows through a few inner steps and through
batch norms over six values, and 1e-8 leaves room for both while a wrong term shows at 1e-3.
"""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from metarun.core import Batch
from metarun.execution.execution import Looped, Vmapped
from metarun.meta_learners.cavia import CAVIA
from metarun.models.mlp import MLP
from metarun.objectives import CROSS_ENTROPY, SQUARED_ERROR
from metarun.trees import tree_leaves, tree_map
from tests.helpers import (
    BASES,
    INNER_LR,
    INNER_STEPS,
    check_slope,
    flat,
    image_episodes,
    meta_gradient,
    moved,
    one_episode,
    relative_error,
)

EXACT = 1e-8
CONTEXT = 3


def make(base: str, layer: int, first_order: bool = False) -> tuple[CAVIA, dict]:
    torch.manual_seed(0)
    built = CAVIA(BASES[base]().double(), CROSS_ENTROPY, CONTEXT, layer, INNER_LR, INNER_STEPS, first_order)
    return moved(built)


def plain_gradient(theta: dict, outputs, first_order: bool) -> list[Tensor]:
    """torch.autograd's, through a loop of steps of c alone; ``outputs(leaves, c, x)`` is the network."""
    support, query, _ = one_episode()
    leaves = tree_map(lambda p: p.clone().requires_grad_(), theta)
    c = torch.zeros(CONTEXT).double().requires_grad_()
    for _ in range(INNER_STEPS):
        loss = F.cross_entropy(outputs(leaves, c, support.x), support.y)
        c = c - INNER_LR * torch.autograd.grad(loss, c, create_graph=not first_order)[0]
    loss = F.cross_entropy(outputs(leaves, c, query.x), query.y)
    return list(torch.autograd.grad(loss, tree_leaves(leaves), materialize_grads=True))


# ---- layer 0: context beside the inputs ----


def concatenating(leaves: dict, c: Tensor, x: Tensor) -> Tensor:
    """A 256-8-6-2 network that is given [x, c]."""
    net = leaves["net"]
    z = torch.cat([x.flatten(1), c.expand(len(x), -1)], 1)
    first = torch.cat([net["body.1.weight"], leaves["context"]["weight"]], 1)
    z = F.relu(F.linear(z, first, net["body.1.bias"]))
    z = F.relu(F.linear(z, net["body.3.weight"], net["body.3.bias"]))
    return F.linear(z, net["head.weight"], net["head.bias"])


@pytest.mark.parametrize("first_order", [False, True])
def test_the_meta_gradient_is_that_of_a_network_with_context_beside_its_inputs(first_order):
    built, theta = make("mlp", 0, first_order)
    expected = plain_gradient(theta, concatenating, first_order)
    assert relative_error(meta_gradient(built, theta, one_episode()), expected) < EXACT


def test_one_step_on_a_linear_network_equals_its_closed_form():
    """Residual r = x w + b - y; grad_c = W' (2 / S) sum r; phi's bias is b - inner_lr W W' (2 / S) sum r."""
    net = nn.Sequential(nn.Linear(4, 1)).double()
    torch.manual_seed(0)
    built = CAVIA(net, SQUARED_ERROR, CONTEXT, 0, INNER_LR, 1, False)
    theta = built.init()
    support = Batch(torch.randn(6, 4).double(), torch.randn(6, 1).double())
    w, b, columns = theta["net"]["0.weight"], theta["net"]["0.bias"], theta["context"]["weight"]
    slope = 2 * (support.x @ w.T + b - support.y).mean(0)
    phi = built.adapt(theta, support)
    torch.testing.assert_close(phi["0.bias"], b - INNER_LR * columns @ columns.T @ slope, rtol=1e-12, atol=1e-12)
    assert torch.equal(phi["0.weight"], w)


# ---- FiLM ----


def filmed(base: str, layer: int):
    """The same network with scale * z + shift after batch norm number ``layer``, by a forward hook."""
    net = BASES[base]().double()
    norm = [m for m in net.modules() if type(m).__name__ == "BatchNorm"][layer - 1]

    def outputs(leaves: dict, c: Tensor, x: Tensor) -> Tensor:
        scale, shift = F.linear(c, leaves["context"]["weight"], leaves["context"]["bias"]).chunk(2)

        def film(module: nn.Module, args: tuple, z: Tensor) -> Tensor:
            shape = (1, -1) + (1,) * (z.dim() - 2)
            return scale.view(shape) * z + shift.view(shape)

        hook = norm.register_forward_hook(film)
        try:
            return functional_call(net, leaves["net"], (x,))
        finally:
            hook.remove()

    return outputs


@pytest.mark.parametrize(
    ("base", "layer"),
    [("stride_transductive", 1), ("stride_transductive", 3), ("max_pool_transductive", 3), ("mlp_transductive", 2)],
)
def test_meta_gradient_equals_that_of_a_network_with_film_after_the_batch_norm(base, layer):
    built, theta = make(base, layer)
    expected = plain_gradient(theta, filmed(base, layer), False)
    assert relative_error(meta_gradient(built, theta, one_episode()), expected) < EXACT


def test_film_starts_as_the_network_would_without_it():
    torch.manual_seed(0)
    net = BASES["stride_transductive"]().double()
    built = CAVIA(net, CROSS_ENTROPY, CONTEXT, 3, INNER_LR, 0, False)
    theta, x = built.init(), one_episode().query.x
    phi = built.adapt(theta, one_episode().support)
    assert torch.equal(built.predict(phi, x), functional_call(net, theta["net"], (x,)))  # times one, plus zero


def test_a_start_of_film_is_refused_where_context_joins_the_inputs():
    with pytest.raises(ValueError, match="film_start is 'released', which is for FiLM; name a batch norm by layer"):
        CAVIA(BASES["mlp"]().double(), CROSS_ENTROPY, CONTEXT, 0, INNER_LR, 1, False, "released")


def test_film_released_starts_small_and_an_inner_step_of_one_moves_the_prediction():
    torch.manual_seed(0)
    net = BASES["stride_transductive"]().double()
    moved = {}
    for start in ("identity", "released"):
        built = CAVIA(net, CROSS_ENTROPY, 100, 3, 1.0, 1, False, start)
        theta, episode = built.init(), one_episode()
        before, after = built.trajectory(theta, episode.support, 1)
        moved[start] = (built.predict(after, episode.query.x) - built.predict(before, episode.query.x)).norm()
        weight, bias = theta["context"]["weight"], theta["context"]["bias"]
        if start == "released":  # classification/models.py, lines 70 and 119 to 141
            assert bias.abs().max() <= 0.1 and bias.chunk(2)[0].min() < 0 < bias.chunk(2)[0].max()
            assert 0.1 < weight.abs().max() <= (3 / 100) ** 0.5
    assert moved["released"] > 10 * moved["identity"]


@pytest.mark.parametrize("base", ["stride_transductive", "max_pool_support"])
def test_film_by_vmap_and_by_loop_gives_the_same_meta_gradient(base):
    built, theta = make(base, 3)
    gradient, expected = (e.mean_grad(built.meta_loss, theta, image_episodes(3))[0] for e in (Vmapped(None), Looped()))
    assert relative_error(flat(gradient), flat(expected)) < EXACT


# ---- both ----


@pytest.mark.parametrize(("base", "layer"), [("mlp", 0), ("stride_support", 3)])
def test_meta_gradient_equals_finite_differences(base, layer):
    check_slope(*make(base, layer), one_episode())


@pytest.mark.parametrize(
    ("base", "layer", "changed"),
    [("mlp", 0, {"body.1.bias"}), ("stride_transductive", 3, {"body.7.weight", "body.7.bias"})],
)
def test_tasks_differ_in_the_parameters_that_context_moves_and_in_no_other(base, layer, changed):
    built, theta = make(base, layer)
    support, query, _ = one_episode()
    one, other = built.adapt(theta, support), built.adapt(theta, Batch(query.x, query.y))
    assert {name for name in one if not torch.equal(one[name], other[name])} == changed


def test_context_starts_at_zero_and_moves_by_the_inner_rate_times_its_gradient():
    built, theta = make("mlp", 0)
    support = one_episode().support
    start, first = built.contexts(theta, support, 1)
    assert torch.equal(start, torch.zeros(CONTEXT).double())
    c = torch.zeros(CONTEXT).double().requires_grad_()
    loss = F.cross_entropy(concatenating(theta, c, support.x), support.y)
    expected = -INNER_LR * torch.autograd.grad(loss, c)[0]
    torch.testing.assert_close(first, expected, rtol=1e-12, atol=1e-12)  # rounding


def test_context_beyond_the_degrees_of_freedom_changes_the_step_by_its_columns_alone():
    """Columns of zeros carry no gradient: context behind them stays at zero and predictions stay the same."""
    built, theta = make("mlp", 0)
    wider = replace(built, num_context=CONTEXT + 2)
    padded = {"weight": F.pad(theta["context"]["weight"], (0, 2))}
    episode = one_episode()
    expected = built.query_loss(built.adapt(theta, episode.support), episode.query)[0]
    loss = wider.query_loss(wider.adapt({**theta, "context": padded}, episode.support), episode.query)[0]
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)  # rounding


# ---- refusals ----


@pytest.mark.parametrize(
    ("base", "layer", "reason"),
    [
        ("mlp_transductive", 0, r"layer is 0, .*without batch norm; MLP has 2 batch norms.*Set layer to the number"),
        ("stride_transductive", 0, r"layer is 0, .*Conv4 has 4 batch norms and begins with Conv2d"),
        ("stride_transductive", 5, r"layer is 5, but Conv4 has 4 batch norms; choose one of them"),
        ("mlp", 1, r"layer is 1, but MLP has 0 batch norms; .*set layer to 0"),
        ("mlp_transductive", -1, r"layer is -1, but MLP has 2 batch norms"),
    ],
)
def test_a_layer_that_cannot_take_context_is_refused_with_the_fix(base, layer, reason):
    with pytest.raises(ValueError, match=reason):
        CAVIA(BASES[base](), CROSS_ENTROPY, CONTEXT, layer, INNER_LR, 1, False)


def test_no_context_is_refused():
    with pytest.raises(ValueError, match="num_context is 0; adaptation needs 1 context parameter or more"):
        CAVIA(BASES["mlp"](), CROSS_ENTROPY, 0, 0, INNER_LR, 1, False)


def test_a_sinusoid_is_told_from_its_mirror_image_by_context_alone():
    """Two targets on the same inputs: with the network fixed, enough steps of c lower the loss of each."""
    torch.manual_seed(0)
    built = CAVIA(MLP((1,), 1, [40, 40], None, "torch").double(), SQUARED_ERROR, 2, 0, 0.1, 20, False)
    theta = built.init()
    x = torch.linspace(-5, 5, 10).double()[:, None]
    for y in (x.sin(), -x.sin()):
        before, *_, after = (built.query_loss(phi, Batch(x, y))[0] for phi in built.trajectory(theta, Batch(x, y), 20))
        assert after < before
