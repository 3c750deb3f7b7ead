"""iMAML against linear algebra: closed forms on a quadratic, and the linear system of a network.

float64. EXACT: conjugate gradient and the descent run until rounding, on matrices of condition numbers below 1000.
"""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch.func import functional_call

from metarun.config.experiment import take_theta
from metarun.core import Batch, Episode
from metarun.inner.loops import conjugate_gradient
from metarun.meta_learners.imaml import IMAML
from metarun.models.norm_state import with_support
from metarun.objectives import CROSS_ENTROPY, SQUARED_ERROR
from metarun.trees import slice_tasks
from tests.helpers import BASES, meta_gradient, one_episode, relative_error
from tests.test_oracles import LinearModel, quadratic

EXACT = 1e-8
PROXIMAL = 0.7


def on_quadratic(**changes: object) -> tuple[IMAML, dict, Episode]:
    problem = quadratic(1)
    learner = IMAML(LinearModel(4).double(), SQUARED_ERROR, 0.3, 150, PROXIMAL, 0.0, 4, 0.0, 0.0)
    take_theta(learner)
    return replace(learner, **changes), {"head.weight": problem.theta[None]}, problem.episode


def exact_minimum(theta: torch.Tensor, episode: Episode, proximal: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The minimum of |Xw - y|^2 / S + proximal / 2 |w - theta|^2, and the Hessian of the first term."""
    x, y = episode.support[:2]
    a = 2 / len(x) * x.T @ x
    eye = torch.eye(len(theta)).to(theta)
    return torch.linalg.solve(a + proximal * eye, 2 / len(x) * x.T @ y[:, 0] + proximal * theta), a


def test_the_descent_ends_at_the_proximal_minimum_of_a_quadratic():
    learner, theta, episode = on_quadratic()
    minimum, _ = exact_minimum(theta["head.weight"][0], episode, PROXIMAL)
    assert relative_error(learner.adapt(theta, episode.support)["head.weight"][0], minimum) < EXACT


@pytest.mark.parametrize("damping", [0.0, 1.3])
def test_on_a_quadratic_the_meta_gradient_solves_i_plus_a_over_lambda_exactly(damping):
    learner, theta, episode = on_quadratic(cg_damping=damping)
    minimum, a = exact_minimum(theta["head.weight"][0], episode, PROXIMAL)
    x, y = episode.query[:2]
    query_gradient = 2 / len(x) * x.T @ (x @ minimum - y[:, 0])
    expected = torch.linalg.solve(torch.eye(4).double() + a / (PROXIMAL + damping), query_gradient)
    assert relative_error(meta_gradient(learner, theta, episode)["head.weight"][0], expected) < EXACT


def test_the_meta_gradient_is_the_slope_of_the_query_loss_after_all_of_adaptation():
    learner, theta, episode = on_quadratic()
    eps, basis = 1e-5, torch.eye(4).double()  # the query loss is a quadratic of theta: central differences are exact

    def after(shift: torch.Tensor) -> torch.Tensor:
        moved = {"head.weight": theta["head.weight"] + shift}
        return learner.query_loss(learner.adapt(moved, episode.support), episode.query)[0]

    expected = torch.stack([(after(eps * e) - after(-eps * e)) / (2 * eps) for e in basis])
    assert relative_error(meta_gradient(learner, theta, episode)["head.weight"][0], expected) < 1e-6


@pytest.mark.parametrize("base", ["mlp", "mlp_support", "stride_transductive"])
def test_the_meta_gradient_of_a_network_solves_the_system_by_plain_double_backward(base):
    torch.manual_seed(0)
    net = BASES[base]().double()
    proximal = 300.0  # above the most negative curvature of a batch norm over six examples
    learner = IMAML(net, CROSS_ENTROPY, 0.003, 3, proximal, 0.0, 40, 0.0, 0.0)
    theta, (support, query, _) = learner.init(), one_episode()
    phi = learner.adapt(theta, support)
    names = list(theta)
    leaves = [phi[name].clone().requires_grad_() for name in names]
    weights = dict(zip(names, leaves, strict=True))
    loss = CROSS_ENTROPY.loss(functional_call(net, weights, (support.x,)), support.y)
    gradient = torch.autograd.grad(loss, leaves, create_graph=True)
    actual = meta_gradient(learner, theta, one_episode())
    x = [actual[name] for name in names]
    products = torch.autograd.grad(gradient, leaves, grad_outputs=x)
    after = learner.query_loss(with_support(net, weights, support.x), query)[0]
    query_gradient = torch.autograd.grad(after, leaves)
    solved = [v + hv / proximal for v, hv in zip(x, products, strict=True)]
    assert relative_error(solved, query_gradient) < EXACT


def test_held_at_the_end_it_gives_twice_the_released_codes_gradient_and_tests_freely():
    """The release: plain steps, one pull, and (2 I + H / 12)^-1 of the query's gradient there; at a test no pull."""
    torch.manual_seed(0)
    net, lr, steps, proximal = BASES["mlp"]().double(), 0.05, 3, 2.0
    learner = IMAML(net, CROSS_ENTROPY, lr, steps, proximal, 0.0, 5, 0.0, 22.0, "at_end")
    theta, (support, query, _) = learner.init(), one_episode()
    names = list(theta)

    def slope(weights: dict, batch: Batch, **more: bool) -> tuple[torch.Tensor, ...]:
        loss = CROSS_ENTROPY.loss(functional_call(net, weights, (batch.x,)), batch.y)
        return torch.autograd.grad(loss, [weights[name] for name in names], **more)

    free = {name: p.clone().requires_grad_() for name, p in theta.items()}
    for _ in range(steps):
        stepped = zip(names, slope(free, support), strict=True)
        free = {name: (free[name] - lr * g).detach().requires_grad_() for name, g in stepped}
    pulled = {name: (w - lr * proximal * (w - theta[name])).detach().requires_grad_() for name, w in free.items()}
    leaves = [pulled[name] for name in names]
    b = torch.cat([g.flatten() for g in slope(pulled, query)])
    at_support = torch.cat([g.flatten() for g in slope(pulled, support, create_graph=True)])

    def released(v: torch.Tensor) -> torch.Tensor:
        hv = torch.autograd.grad(at_support, leaves, grad_outputs=v, retain_graph=True)
        return 2 * v + torch.cat([h.flatten() for h in hv]) / 12

    expected, _ = conjugate_gradient(released, b, 5, 0.0)
    actual = meta_gradient(learner, theta, one_episode())
    assert (
        relative_error([actual[name] for name in names], list((2 * expected).split([p.numel() for p in leaves])))
        < EXACT
    )
    assert (
        relative_error([learner.adapt(theta, support)[name] for name in names], [free[name] for name in names]) < EXACT
    )


def test_conjugate_gradient_solves_a_system_of_n_unknowns_in_n_steps():
    torch.manual_seed(0)
    root, b = torch.randn(6, 6).double(), torch.randn(6).double()
    a = root @ root.T + torch.eye(6).double()
    x, residual = conjugate_gradient(lambda v: a @ v, b, 6, 0.0)
    assert relative_error(x, torch.linalg.solve(a, b)) < EXACT
    assert residual < EXACT


def test_conjugate_gradient_says_how_much_is_left_and_stops_at_the_tolerance():
    torch.manual_seed(0)
    a, b = torch.diag(torch.linspace(1, 50, 20).double()), torch.randn(20).double()
    early, residual = conjugate_gradient(lambda v: a @ v, b, 100, 0.1)
    torch.testing.assert_close(residual, (b - a @ early).norm() / b.norm(), rtol=1e-8, atol=0)
    assert 0.01 < residual <= 0.1
    until = [conjugate_gradient(lambda v: a @ v, b, k, 0.0) for k in range(1, 20)]
    assert torch.equal(next(x for x, left in until if left <= 0.1), early)


def test_conjugate_gradient_keeps_what_it_has_where_the_matrix_is_not_positive():
    b = torch.tensor([1.0, 1.0]).double()
    x, residual = conjugate_gradient(lambda v: -v, b, 5, 0.0)
    assert torch.equal(x, torch.zeros(2).double())
    assert residual == 1
    x, residual = conjugate_gradient(lambda v: v, 0 * b, 5, 0.0)
    assert torch.equal(x, 0 * b)
    assert residual == 0


def test_the_descent_stops_at_its_tolerance_for_each_task_by_itself():
    learner, theta, episode = on_quadratic(tolerance=0.05, inner_lr=0.1)
    path = list(learner.trajectory(theta, episode.support, 60))
    moved = [not torch.equal(a["head.weight"], b["head.weight"]) for a, b in pairwise(path)]
    stop = moved.index(False)
    assert 0 < stop < 60
    assert not any(moved[stop:])
    _, metrics = learner.meta_loss(theta, episode)
    assert metrics["inner_gradient"] <= 0.05
    before = replace(learner, inner_steps=stop - 1).meta_loss(theta, episode)[1]
    assert before["inner_gradient"] > 0.05


def test_tasks_that_stop_at_different_steps_give_under_vmap_what_they_give_alone():
    learner, theta, _ = on_quadratic(tolerance=0.05, inner_lr=0.1, inner_steps=30)
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    episodes = Episode(Batch(normal(4, 6, 4), normal(4, 6, 1)), Batch(normal(4, 5, 4), normal(4, 5, 1)))
    together = torch.func.vmap(learner.adapt, in_dims=(None, 0))(theta, episodes.support)["head.weight"]
    alone = [learner.adapt(theta, slice_tasks(episodes, i).support)["head.weight"] for i in range(4)]
    torch.testing.assert_close(together, torch.stack(alone), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"proximal": 0.0}, r"proximal is 0.0; it divides the Hessian, so use a number above 0"),
        ({"cg_steps": 0}, r"cg_steps is 0; without a step the meta-gradient is 0, so use 1 or more"),
        ({"tolerance": -1.0}, r"tolerance is -1.0; use 0 for none, or more"),
        ({"cg_damping": -1.0}, r"cg_damping is -1.0; use 0 for none, or more"),
    ],
)
def test_wrong_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        on_quadratic(**changes)
