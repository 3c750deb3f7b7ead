"""Batch norm in its three modes equals F.batch_norm (outside vmap, where that is exact), to second order.

Outside vmap a batch norm is F.batch_norm itself, so what is compared with it is composed from primitives, as under vmap.
float64; 1e-10 leaves room for the rounding of another order of sums through two derivatives.
"""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vjp, vmap

from metarun.core import Batch, parameters_of
from metarun.inner.loops import last, recomputing, repeat
from metarun.models.exact.derivatives import Largest, Normalised
from metarun.models.exact.layers import (
    BatchNorm,
    Blocks,
    Conv2d,
    MaxPool2d,
    composing,
    convolving,
    differentiated_once,
    vmapped,
)
from metarun.models.norm_state import evaluating, norms, recording, with_support
from metarun.trees import tree_leaves
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
    with composing():
        close(layer(x), fused(layer, x))


@pytest.mark.parametrize("shape", SHAPES)
def test_second_order_gradients_equal_those_of_the_fused_batch_norm(shape):
    layer, x = norm_and_input("transductive", shape)
    inputs = [x.requires_grad_(), layer.weight, layer.bias]
    direction = [torch.randn_like(p) for p in inputs]

    def hessian_vector_product(output: Tensor) -> tuple[Tensor, ...]:
        grads = torch.autograd.grad(torch.sigmoid(output).square().sum(), inputs, create_graph=True)
        return torch.autograd.grad(sum((g * v).sum() for g, v in zip(grads, direction, strict=True)), inputs)

    with composing():
        composed = layer(x)
    for norm in (composed, layer(x)):
        for actual, expected in zip(hessian_vector_product(norm), hessian_vector_product(fused(layer, x)), strict=True):
            close(actual, expected)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_norm_is_right_to_third_order_looped_and_under_vmap(shape, axis):
    """Of torch's own norm autograd refuses a third derivative, and torch.func gives a wrong one."""
    layer, x = norm_and_input("transductive", shape)
    tasks, directions = (x + torch.randn(2, *shape).double() for _ in range(2))
    weights = [p.detach() for p in (layer.weight, layer.bias)]

    def swap(x: Tensor) -> Tensor:
        return x.transpose(0, 1) if axis == 0 else x

    def ours(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return swap(Normalised.apply(swap(x), weight, bias, layer.eps, axis)[0])

    def primitive(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        axes = [0, *range(2, x.dim())]
        var, mean = torch.var_mean(x, axes, correction=0, keepdim=True)
        weight, bias = (p.view(-1, *[1] * (x.dim() - 2)) for p in (weight, bias))
        return (x - mean) / (var + layer.eps).sqrt() * weight + bias

    def third(norm: Callable[..., Tensor], x: Tensor, direction: Tensor) -> list[Tensor]:
        def value(*inputs: Tensor) -> Tensor:
            return torch.sigmoid(norm(*inputs)).square().sum()

        def slope(*inputs: Tensor) -> Tensor:
            of_x, *others = grad(value, (0, 1, 2))(*inputs)
            return (of_x * direction).sum() + sum(g.square().sum() for g in others)

        def curvature(*inputs: Tensor) -> Tensor:
            return sum(g.square().sum() for g in grad(slope, (0, 1, 2))(*inputs))

        return list(grad(curvature, (0, 1, 2))(x, *weights))

    together = vmap(partial(third, ours))(tasks, directions)
    for i, (x, direction) in enumerate(zip(tasks, directions, strict=True)):
        expected = third(primitive, x, direction)
        for found in (third(ours, x, direction), [values[i] for values in together]):
            for actual, exact in zip(found, expected, strict=True):
                torch.testing.assert_close(actual, exact, rtol=1e-9, atol=1e-9)


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


def test_in_mode_support_predictions_use_the_adapted_networks_support_statistics():
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
    with composing():
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
    assert torch.equal(functional_call(net, parameters_of(net), (x,)), expected)


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
def test_a_convolution_by_a_matrix_product_is_torchs_to_second_order(stride, padding, kernel):
    torch.manual_seed(0)
    conv = Conv2d(3, 4, kernel, stride, padding).double()
    x = torch.randn(2, 3, 11, 9, dtype=torch.float64, requires_grad=True)

    def derivatives():
        out = conv(x)
        first = torch.autograd.grad((out**3).sum(), [x, conv.weight, conv.bias], create_graph=True)
        second = torch.autograd.grad(sum((g**2).sum() for g in first), [x, conv.weight])
        return [out, *first, *second]

    expected = derivatives()
    with convolving("matmul"):
        for got, want in zip(derivatives(), expected, strict=True):
            assert torch.allclose(got, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("size", [(6, 4), (7, 5)])
def test_the_largest_of_windows_is_torchs_to_second_order_with_equals_and_nan(size):
    torch.manual_seed(0)
    x = torch.randint(0, 3, (2, 3, *size)).double().requires_grad_()  # most windows have several largest

    def derivatives(out: Tensor) -> list[Tensor]:
        (first,) = torch.autograd.grad((out**3 * torch.arange(out.numel()).view(out.shape)).sum(), x, create_graph=True)
        return [out, first, *torch.autograd.grad((first**2).sum(), x)]

    pairs = zip(derivatives(Largest.apply(x)[0]), derivatives(F.max_pool2d(x, 2)), strict=True)
    assert all(torch.equal(found, expected) for found, expected in pairs)
    with torch.no_grad():
        x[0, 0, 1, 1] = torch.nan
    assert torch.equal(Largest.apply(x)[0].isnan(), F.max_pool2d(x, 2).isnan())


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
    with composing():
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
@pytest.mark.parametrize("how", ["native", "matmul"])
def test_second_order_gradients_of_blocks_are_their_layers_looped_and_under_vmap(pooled, how):
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
def test_blocks_differentiated_once_have_the_same_gradients_with_each_tasks_weights(pooled, mode):
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


Sum = Callable[[Tensor], Tensor]


def recomputed(f: Sum) -> Sum:
    """Another function, by a step that runs f in its forward pass and again in its backward pass."""

    def total(x: Tensor) -> Tensor:
        with recomputing(True):
            return last(repeat(lambda x: f(x) * x, x, 1)).sum()

    return total


WITHOUT_VMAP: list[Callable[[Sum, Tensor], Any]] = [
    lambda f, x: f(x[0]),
    lambda f, x: grad(f)(x[0]),
    lambda f, x: grad(lambda x: grad(f)(x).square().sum())(x[0]),
    lambda f, x: vjp(f, x[0]),
    lambda f, x: grad(recomputed(f))(x[0]),
]
UNDER_VMAP: list[Callable[[Sum, Tensor], Any]] = [
    lambda f, x: vmap(f)(x),
    lambda f, x: vmap(lambda one: f(x[0]) + one.sum())(x),  # whose input is not the tasks' own
    lambda f, x: vmap(vmap(f))(x[None]),
    lambda f, x: vmap(grad(f))(x),
    lambda f, x: grad(lambda x: vmap(f)(x).sum())(x),
    lambda f, x: grad(lambda x: vmap(grad(f))(x).square().sum())(x),
    lambda f, x: vmap(recomputed(f))(x),
    lambda f, x: grad(lambda x: vmap(grad(recomputed(f)))(x).sum())(x),
]


@pytest.fixture
def calls(monkeypatch) -> list[int]:
    """One number for every call of torch's own kernel."""
    calls, own = [], torch.batch_norm
    monkeypatch.setattr(torch, "batch_norm", lambda *arguments: calls.append(1) or own(*arguments))
    return calls


def norm_and_tasks() -> tuple[BatchNorm, Sum, Tensor]:
    layer, x = norm_and_input("transductive", SHAPES[2])
    layer.requires_grad_(False)
    return layer, lambda x: torch.sigmoid(layer(x)).square().sum(), x + torch.randn(2, *x.shape, dtype=x.dtype)


@pytest.mark.parametrize("transform", WITHOUT_VMAP)
def test_outside_vmap_a_norm_is_torchs_own_unless_a_compiler_asks_for_primitives(transform, calls):
    _, f, tasks = norm_and_tasks()
    own = transform(f, tasks)
    assert calls
    calls.clear()
    with composing():
        composed = transform(f, tasks)
    assert not calls
    for actual, expected in zip(tree_leaves(composed), tree_leaves(own), strict=True):
        if isinstance(expected, Tensor):  # vjp gives a function too
            close(actual, expected)


@pytest.mark.parametrize("transform", UNDER_VMAP)
def test_under_vmap_a_norm_is_torchs_own_only_where_one_derivative_is_all(transform, calls):
    _, f, tasks = norm_and_tasks()
    transform(f, tasks)
    assert not calls
    with differentiated_once():
        transform(f, tasks)
    assert calls


def test_a_forward_derivative_counts_as_vmap():
    seen = []
    jvp(lambda x: seen.append(vmapped()) or x.sum(), (torch.ones(2),), (torch.ones(2),))
    assert seen == [True]


def test_where_torch_does_not_tell_its_transforms_every_norm_counts_as_vmapped(monkeypatch, calls):
    monkeypatch.setattr("metarun.models.exact.layers.get_interpreter_stack", None)
    layer, _, tasks = norm_and_tasks()
    layer(tasks[0])
    assert not calls


def test_torchs_own_norm_of_one_number_a_channel_is_its_bias(calls):
    layer, _ = norm_and_input("transductive", SHAPES[0])
    close(layer(torch.randn(1, 3, dtype=torch.float64)), layer.bias.expand(1, 3))
    assert calls


def test_a_norm_whose_statistics_are_recorded_or_given_is_not_torchs_own(calls):
    layer, x = norm_and_input("support", SHAPES[2])
    with differentiated_once(), recording({"norm": layer}) as statistics:
        layer(x)
    assert statistics.keys() == {"norm.mean", "norm.var"}
    functional_call(layer, {"mean": statistics["norm.mean"], "var": statistics["norm.var"]}, (x,))
    assert not calls


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("how", [nullcontext, composing, differentiated_once])
def test_the_gradient_of_a_convolutions_bias_before_a_norm_is_0_and_not_noise(pooled, how):
    blocks, _, x = blocks_and_images(pooled)
    params = dict(blocks.named_parameters())
    with how():
        gradients = torch.autograd.grad(blocks(x).square().sum(), list(params.values()))  # none is unused
    gradient = dict(zip(params, gradients, strict=True))
    assert gradient["0.bias"].eq(0).all()
    assert gradient["0.weight"].ne(0).any()


def test_a_hook_on_a_layer_of_blocks_sees_what_the_layer_returns():
    blocks, plain, x = blocks_and_images(pooled=True)
    seen: list[Tensor] = []
    handle = blocks[1].register_forward_hook(lambda layer, inputs, output: seen.append(output))
    close(blocks(x), plain(x))
    handle.remove()
    close(seen[0], plain[:2](x))
