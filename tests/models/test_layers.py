"""Batch norm in its three modes equals F.batch_norm (outside vmap, where that is exact), to second order.

float64; 1e-10 leaves room for the rounding of another order of sums through two derivatives.
"""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from metarun.core import Batch, take_parameters
from metarun.models.layers import (
    BatchNorm,
    Blocks,
    Conv2d,
    MaxPool2d,
    convolving,
    differentiated_once,
    evaluating,
    norms,
    recording,
    with_support,
)
from tests.helpers import make, one_episode

close = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-12)
SHAPES = [(6, 3), (6, 3, 4), (6, 3, 4, 5)]


def norm_and_input(mode: str, shape: tuple[int, ...]) -> tuple[BatchNorm, Tensor]:
    torch.manual_seed(0)
    layer = BatchNorm(3, mode).double()
    with torch.no_grad():
        layer.weight += 0.3 * torch.randn(3)
        layer.bias += 0.3 * torch.randn(3)
    return layer, 2 + 3 * torch.randn(shape, dtype=torch.float64)


def fused(layer: BatchNorm, x: Tensor) -> Tensor:
    return F.batch_norm(x, None, None, layer.weight, layer.bias, training=True, eps=layer.eps)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("mode", ["transductive", "support", "running"])
def test_in_training_every_mode_without_statistics_uses_those_of_the_batch(mode, shape):
    layer, x = norm_and_input(mode, shape)
    close(layer(x), fused(layer, x))


@pytest.mark.parametrize("shape", SHAPES)
def test_second_order_gradients_equal_those_of_the_fused_batch_norm(shape):
    layer, x = norm_and_input("transductive", shape)
    inputs = [x.requires_grad_(), layer.weight, layer.bias]
    direction = [torch.randn_like(p) for p in inputs]

    def hessian_vector_product(output: Tensor) -> tuple[Tensor, ...]:
        grads = torch.autograd.grad(torch.sigmoid(output).square().sum(), inputs, create_graph=True)
        return torch.autograd.grad(sum((g * v).sum() for g, v in zip(grads, direction, strict=True)), inputs)

    for actual, expected in zip(hessian_vector_product(layer(x)), hessian_vector_product(fused(layer, x)), strict=True):
        close(actual, expected)


def test_second_order_gradients_under_vmap_equal_those_of_a_loop():
    layer, x = norm_and_input("transductive", (6, 3))
    tasks = x + torch.randn(4, 6, 3).double()
    weights = {name: p.detach().requires_grad_() for name, p in layer.named_parameters()}

    def meta_loss(p: dict[str, Tensor], x: Tensor) -> Tensor:
        inner = torch.func.grad(lambda q: torch.sigmoid(functional_call(layer, q, (x,))).square().sum())(p)
        adapted = {name: value - 0.3 * inner[name] for name, value in p.items()}
        return torch.sigmoid(functional_call(layer, adapted, (x.flip(0) + 1,)) ** 2).sum()

    leaves = list(weights.values())
    together = torch.autograd.grad(vmap(meta_loss, (None, 0))(weights, tasks).sum(), leaves)
    one_by_one = torch.autograd.grad(sum(meta_loss(weights, task) for task in tasks), leaves)
    for actual, expected in zip(together, one_by_one, strict=True):
        close(actual, expected)


# ---- support ----


def test_with_support_predictions_use_the_statistics_of_the_adapted_network_on_the_support_set():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 3), BatchNorm(3, "support"), nn.ReLU(), nn.Linear(3, 2)).double()
    net.requires_grad_(False)  # F.batch_norm takes no gradient to its statistics
    support, query = torch.randn(6, 4).double(), torch.randn(5, 4).double()
    params = dict(net.named_parameters())
    hidden, new = net[0](support), net[0](query)
    mean, var = hidden.mean(0), hidden.var(0, correction=0)
    normal = F.batch_norm(new, mean, var, net[1].weight, net[1].bias, training=False, eps=1e-5)
    close(functional_call(net, with_support(net, params, support), (query,)), net[3](F.relu(normal)))


@pytest.mark.parametrize("learner", ["maml", "anil", "reptile", "protonet"])
def test_in_mode_support_a_prediction_does_not_depend_on_the_other_queries(learner):
    built, theta = make(learner, "stride_support")
    support, query, _ = one_episode()
    phi = built.adapt(theta, support)
    close(built.predict(phi, query.x[:1]), built.predict(phi, query.x)[:1])


def test_in_mode_transductive_a_prediction_depends_on_the_other_queries():
    built, theta = make("maml", "stride_transductive")
    support, query, _ = one_episode()
    phi = built.adapt(theta, support)
    assert (built.predict(phi, query.x[:2]) - built.predict(phi, query.x)[:2]).abs().max() > 1e-3


def test_the_support_set_is_normalised_as_in_its_own_batch():
    built, theta = make("maml", "stride_support")
    transductive, _ = make("maml", "stride_transductive")
    support = one_episode().support
    phi = built.adapt(theta, support)
    close(built.predict(phi, support.x), transductive.predict(transductive.adapt(theta, support), support.x))


@pytest.mark.parametrize("base", ["mlp", "stride_transductive"])
def test_with_support_returns_the_same_params_where_no_norm_asks_for_it(base):
    built, theta = make("maml", base)
    assert with_support(built.base_learner, theta, one_episode().support.x) is theta


def test_with_support_replaces_statistics_that_were_there_before():
    built, theta = make("maml", "stride_support")
    net, (support, query, _) = built.base_learner, one_episode()
    twice = with_support(net, with_support(net, theta, query.x), support.x)
    assert all(torch.equal(twice[name], p) for name, p in with_support(net, theta, support.x).items())


def test_adaptation_leaves_no_statistics_in_the_module():
    built, theta = make("maml", "stride_support")
    built.adapt(theta, one_episode().support)
    for layer in norms(built.base_learner, "support").values():
        assert layer.mean.numel() == layer.var.numel() == 0
        assert layer.recorded is None
        assert not layer.recording


# ---- running ----


def test_in_evaluation_mode_running_uses_the_given_statistics():
    layer, x = norm_and_input("running", (6, 3, 4, 5))
    mean, var = torch.randn(3).double(), torch.rand(3).double() + 0.5
    params = {**dict(layer.named_parameters()), "mean": mean, "var": var}
    with evaluating(layer):
        actual = functional_call(layer, params, (x,))
    close(actual, F.batch_norm(x, mean, var, layer.weight, layer.bias, training=False, eps=layer.eps))


def test_in_training_running_ignores_the_given_statistics():
    layer, x = norm_and_input("running", (6, 3))
    params = {**dict(layer.named_parameters()), "mean": torch.full((3,), 7.0), "var": torch.full((3,), 9.0)}
    close(functional_call(layer, params, (x,)), fused(layer, x))


def test_recording_collects_the_biased_statistics_of_the_batch():
    layer, x = norm_and_input("running", (6, 3, 4, 5))
    with recording({"norm": layer}) as collected:
        layer(x)
    close(collected["norm.mean"], x.mean((0, 2, 3)))
    close(collected["norm.var"], x.var((0, 2, 3), correction=0))


def test_evaluating_restores_the_mode_of_every_module():
    net = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout().eval()))
    before = [module.training for module in net.modules()]
    with evaluating(net):
        assert not any(module.training for module in net.modules())
    assert [module.training for module in net.modules()] == before


# ---- parameters live outside the module ----


@pytest.mark.parametrize("learner", ["maml", "anil", "reptile"])
def test_calling_the_module_directly_raises_once_its_parameters_are_taken(learner):
    built, _ = make(learner, "stride_transductive")
    with pytest.raises((RuntimeError, NotImplementedError)):
        built.base_learner(one_episode().support.x)


def test_taken_parameters_give_the_outputs_the_module_gave():
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Linear(4, 3), BatchNorm(3, "transductive")), torch.randn(6, 4)
    expected = net(x)
    assert torch.equal(functional_call(net, take_parameters(net), (x,)), expected)


def test_support_statistics_carry_gradients_to_the_weights_before_them():
    built, theta = make("protonet", "mlp_support")
    leaves = {name: p.clone().requires_grad_() for name, p in theta.items()}
    support = Batch(*one_episode().support)
    statistics = with_support(built.base_learner.body, leaves, support.x)
    (grad,) = torch.autograd.grad(statistics["2.var"].sum(), leaves["1.weight"])
    h = F.linear(support.x.flatten(1), leaves["1.weight"], leaves["1.bias"])
    (expected,) = torch.autograd.grad(h.var(0, correction=0).sum(), leaves["1.weight"])
    close(grad, expected)


@pytest.mark.parametrize(("stride", "padding", "kernel"), [(1, 1, 3), (2, 1, 3), (1, 0, 3), (2, 2, 5)])
def test_a_convolution_by_slices_is_torchs_to_second_order(stride, padding, kernel):
    torch.manual_seed(0)
    conv = Conv2d(3, 4, kernel, stride, padding).double()
    x = torch.randn(2, 3, 11, 9, dtype=torch.float64, requires_grad=True)

    def derivatives():
        out = conv(x)
        first = torch.autograd.grad((out**3).sum(), [x, conv.weight, conv.bias], create_graph=True)
        second = torch.autograd.grad(sum((g**2).sum() for g in first), [x, conv.weight])
        return [out, *first, *second]

    expected = derivatives()
    with convolving("slices"):
        for got, want in zip(derivatives(), expected, strict=True):
            assert torch.allclose(got, want, rtol=1e-10, atol=1e-10)


def blocks_and_images(
    pooled: bool, bias: bool = True, mode: str = "transductive"
) -> tuple[Blocks, nn.Sequential, Tensor]:
    """Two blocks, with norms of weights of either sign and 0, the same layers one by one, and images [S, C, H, W]."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for fan_in in (2, 4):
        layers += [Conv2d(fan_in, 4, 3, 1, 1, bias), BatchNorm(4, mode), nn.ReLU(), *([MaxPool2d(2)] if pooled else [])]
    for norm in layers[1 :: 4 if pooled else 3]:
        with torch.no_grad():
            norm.weight.copy_(torch.tensor([1.5, -0.7, 0.0, -1.2]))
            norm.bias.copy_(torch.tensor([0.3, 0.2, 0.1, -0.1]))
    blocks = Blocks(*layers).double()
    plain = nn.Sequential(*(nn.MaxPool2d(2) if isinstance(layer, MaxPool2d) else layer for layer in layers))
    return blocks, plain, torch.randn(5, 2, 11, 9, dtype=torch.float64)


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("mode", ["transductive", "support", "running"])
def test_blocks_are_their_layers_one_by_one(pooled, bias, mode):
    blocks, plain, x = blocks_and_images(pooled, bias, mode)
    close(blocks(x), plain(x))


@pytest.mark.parametrize("pooled", [False, True])
def test_blocks_with_given_statistics_are_their_layers_one_by_one(pooled):
    blocks, plain, x = blocks_and_images(pooled, mode="running")
    with recording(norms(blocks, "running")) as by_blocks:
        blocks(x)
    with recording(norms(plain, "running")) as by_layers:
        plain(x)
    assert (
        by_blocks.keys()
        == by_layers.keys()
        == {f"{i}.{what}" for i in (1, 5 if pooled else 4) for what in ("mean", "var")}
    )
    for name, value in by_layers.items():
        close(by_blocks[name], value)
    given = {**dict(blocks.named_parameters()), **by_layers}
    other = x.flip(0) + 0.5
    with evaluating(blocks):
        close(functional_call(blocks, given, (other,)), functional_call(plain, given, (other,)))


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("how", ["native", "slices"])
def test_second_order_gradients_of_blocks_are_those_of_their_layers_looped_and_under_vmap(pooled, how):
    blocks, plain, x = blocks_and_images(pooled)
    with torch.no_grad():  # at a weight of 0 every place of a window is a maximum, and gradients are a matter of taste
        for norm in norms(blocks, "transductive").values():
            norm.weight[2] = 0.4
    tasks = x + torch.randn(3, *x.shape, dtype=torch.float64)

    def meta_gradients(net: nn.Module, vectorised: bool) -> dict[str, Tensor]:
        def task_loss(p: dict[str, Tensor], x: Tensor) -> Tensor:
            def loss(q: dict[str, Tensor], x: Tensor) -> Tensor:
                return torch.sigmoid(functional_call(net, q, (x,))).square().mean()

            inner = grad(loss)(p, x)
            return loss({name: value - 0.3 * inner[name] for name, value in p.items()}, x.flip(0) + 0.5)

        def total(p: dict[str, Tensor]) -> Tensor:
            return vmap(task_loss, (None, 0))(p, tasks).sum() if vectorised else sum(task_loss(p, x) for x in tasks)

        return grad(total)(dict(net.named_parameters()))

    expected = meta_gradients(plain, vectorised=False)
    with convolving(how):
        for vectorised in (False, True):
            found = meta_gradients(blocks, vectorised)
            for name, value in expected.items():
                close(found[name], value, atol=1e-10)


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("mode", ["transductive", "support", "running"])
def test_blocks_differentiated_once_have_the_same_gradients_with_weights_of_each_tasks_own(pooled, mode):
    blocks, _, x = blocks_and_images(pooled, mode=mode)
    tasks = x + torch.randn(3, *x.shape, dtype=torch.float64)
    params = {k: p + 0.1 * torch.randn(3, *p.shape, dtype=torch.float64) for k, p in blocks.named_parameters()}

    def gradient(p: dict[str, Tensor], x: Tensor) -> dict[str, Tensor]:
        return grad(lambda p: torch.sigmoid(functional_call(blocks, p, (x,))).square().mean())(p)

    expected = vmap(gradient)(params, tasks)
    with differentiated_once():
        found = vmap(gradient)(params, tasks)
    for name, value in expected.items():
        close(found[name], value)


def test_torchs_own_norm_is_used_where_one_derivative_is_all(monkeypatch):
    layer, x = norm_and_input("transductive", SHAPES[2])
    calls = []
    own = torch.batch_norm
    monkeypatch.setattr(torch, "batch_norm", lambda *arguments: calls.append(1) or own(*arguments))
    outside = layer(x)
    assert not calls
    with differentiated_once():
        close(layer(x), outside)
        assert calls
        single = torch.randn(1, 3, dtype=torch.float64)  # one number a channel: all that is left is the bias
        close(layer(single), layer.bias.expand(1, 3))
        with recording({"": layer}) as statistics:
            layer(x)
    assert statistics.keys() == {".mean", ".var"}


def test_the_gradient_of_a_convolutions_bias_before_a_norm_is_0_and_not_noise():
    blocks, _, x = blocks_and_images(pooled=True)
    gradient = grad(lambda p: functional_call(blocks, p, (x,)).square().sum())(dict(blocks.named_parameters()))
    assert gradient["0.bias"].eq(0).all()
    assert gradient["0.weight"].ne(0).any()


def test_a_hook_on_a_layer_of_blocks_sees_what_the_layer_returns():
    blocks, plain, x = blocks_and_images(pooled=True)
    seen: list[Tensor] = []
    handle = blocks[1].register_forward_hook(lambda layer, inputs, output: seen.append(output))
    close(blocks(x), plain(x))
    handle.remove()
    close(seen[0], plain[:2](x))
