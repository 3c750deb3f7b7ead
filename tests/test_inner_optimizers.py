"""Inner optimizers: the steps of torch.optim, and derivatives through them."""

import copy

import pytest
import torch
from torch.func import grad

from metarun.inner.loops import descent, first_order_descent, gradient, last
from metarun.inner.optimizers import SGD, Adam, InnerOptimizer, Momentum, RMSprop, inner_optimizer
from metarun.meta_learners.maml import MAML
from metarun.meta_learners.reptile import Reptile
from metarun.objectives import CROSS_ENTROPY
from tests.helpers import BASES, flat, meta_gradient, one_episode, relative_error

RULES: dict[str, InnerOptimizer] = {
    "sgd": SGD(0.1),
    "momentum": Momentum(0.1),
    "rmsprop": RMSprop(0.01),
    "adam": Adam(0.1),
}
TORCH = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1),
    "momentum": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.01),
    "adam": lambda p: torch.optim.Adam(p, 0.1),
}
MATRIX = torch.randn(4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
START = {"w": torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)}


def loss(params):
    return ((MATRIX @ params["w"]) ** 2).sum() + params["w"].sin().sum()


@pytest.mark.parametrize("name", RULES)
def test_an_inner_optimizer_takes_the_steps_of_torch(name):
    w = START["w"].clone().requires_grad_()
    optimizer = TORCH[name]([w])
    for phi in descent(loss, START, RULES[name], 5):
        torch.testing.assert_close(phi["w"], w.detach(), rtol=1e-9, atol=0)  # eps_root moves the tenth digit
        optimizer.zero_grad()
        loss({"w": w}).backward()
        optimizer.step()


@pytest.mark.parametrize("name", RULES)
def test_the_gradient_through_five_steps_equals_finite_differences(name):
    def after(w):
        return last(descent(loss, {"w": w}, RULES[name], 5))["w"].pow(2).sum()

    exact, eps = grad(after)(START["w"]), 1e-6
    units = torch.eye(4, dtype=torch.float64) * eps
    slopes = torch.stack([(after(START["w"] + u) - after(START["w"] - u)) / (2 * eps) for u in units])
    torch.testing.assert_close(exact, slopes, rtol=1e-6, atol=1e-6)  # truncation eps^2, rounding 1e-16 / eps


@pytest.mark.parametrize("name", RULES)
def test_first_order_steps_pass_the_gradient_on_as_it_is(name):
    def after(w):
        return last(first_order_descent(loss, {"w": w}, RULES[name], 3))["w"].pow(2).sum()

    assert torch.equal(grad(after)(START["w"]), 2 * last(descent(loss, START, RULES[name], 3))["w"])


def test_the_gradient_through_adam_is_finite_where_an_inner_gradient_is_zero():
    def after(w):
        flat_at_zero = lambda params: (params["w"] * torch.tensor([1.0, 0.0]).double()).sum() ** 2  # noqa: E731
        return last(descent(flat_at_zero, {"w": w}, Adam(0.1), 3))["w"].sum()

    assert torch.isfinite(grad(after)(torch.ones(2).double())).all()


@pytest.mark.parametrize("name", RULES)
def test_maml_differentiates_through_its_inner_optimizer(name):
    torch.manual_seed(0)
    learner = MAML(BASES["mlp"]().double(), CROSS_ENTROPY, 0.05, 3, False, "all", name)
    theta, episode, eps = learner.init(), one_episode(), 1e-6
    direction = {k: torch.randn_like(p) for k, p in theta.items()}

    def at(step):
        return learner.meta_loss({k: p + step * direction[k] for k, p in theta.items()}, episode)[0]

    g = flat(meta_gradient(learner, theta, episode))
    slope = (at(eps) - at(-eps)) / (2 * eps)
    assert abs(slope - g @ flat(direction)) < 1e-6 * g.norm() * flat(direction).norm()


@pytest.mark.parametrize("name", RULES)
def test_reptile_goes_where_torchs_optimizer_goes_on_a_task(name):
    torch.manual_seed(0)
    base = BASES["mlp"]().double()
    learner = Reptile(base, CROSS_ENTROPY, RULES[name].lr, 4, 3, name)
    theta, episode = learner.init(), one_episode()
    x, y = episode.support.x, episode.support.y
    net = copy.deepcopy(base)
    optimizer = TORCH[name](list(net.parameters()))
    for k in range(4):
        rows = slice(k % (len(y) // 3), None, len(y) // 3)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(x[rows]), y[rows]).backward()
        optimizer.step()
    moved = {key: theta[key] - p.detach() for key, p in net.named_parameters()}
    assert relative_error(meta_gradient(learner, theta, episode), moved) < 1e-5  # eps_root, where a gradient is small


def test_the_name_chooses_the_rule():
    assert [type(inner_optimizer(name, 0.1)) for name in RULES] == [SGD, Momentum, RMSprop, Adam]


def test_no_state_of_one_task_reaches_another():
    rule = Adam(0.1)
    first = last(descent(loss, START, rule, 3))
    last(descent(loss, {"w": 5 * START["w"]}, rule, 3))
    assert relative_error(last(descent(loss, START, rule, 3)), first) == 0


def test_an_inner_gradient_by_autograd_is_that_of_functorch_at_the_edges():
    params = {"w": torch.ones(2)}
    constant = gradient(lambda p: (p["w"] ** 2).sum(), params)
    assert torch.equal(constant["w"], torch.full((2,), 2.0)) and not constant["w"].requires_grad
    moving = {"w": torch.ones(2, requires_grad=True)}
    assert gradient(lambda p: (p["w"] ** 2).sum(), moving)["w"].requires_grad
    assert torch.equal(gradient(lambda p: torch.tensor(3.0), moving)["w"], torch.zeros(2))
    assert gradient(lambda p: torch.tensor(3.0), {}) == {}
    with torch.no_grad():
        assert not gradient(lambda p: (p["w"] ** 2).sum(), moving)["w"].requires_grad
        assert gradient(lambda p: torch.tensor(3.0), {}) == {}
    with torch.inference_mode():
        assert torch.equal(gradient(lambda p: (p["w"] ** 2).sum(), params)["w"], torch.full((2,), 2.0))
    outside = torch.tensor(3.0, requires_grad=True)  # a loss may reach what is to be differentiated by itself
    (slope,) = torch.autograd.grad(gradient(lambda p: outside * p["w"].sum(), params)["w"].sum(), outside)
    assert slope == 2
