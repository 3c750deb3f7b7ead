"""Meta-SGD: closed forms on a quadratic, a plain autograd loop, finite differences, and what its rates start as.

float64. EXACT is for two ways of computing the same number: rounding (1e-16) grows through a few inner steps and through
batch norms over six values, and 1e-8 leaves room for both while a wrong term shows at 1e-3.
"""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from metarun.config.experiment import take_theta
from metarun.core import Batch, Episode
from metarun.meta_learners.maml import MAML
from metarun.meta_learners.meta_sgd import MetaSGD
from metarun.objectives import CROSS_ENTROPY, SQUARED_ERROR
from metarun.trees import tree_leaves, tree_map
from tests.helpers import (
    BASES,
    INNER_LR,
    INNER_STEPS,
    check_slope,
    flat,
    meta_gradient,
    moved,
    one_episode,
    relative_error,
)

EXACT = 1e-8


def make(base: str) -> tuple[MetaSGD, dict]:
    """A learner with rates of every size and both signs."""
    torch.manual_seed(0)
    built = MetaSGD(BASES[base]().double(), CROSS_ENTROPY, INNER_STEPS, 0.1, 0.1)
    return moved(built)


# ---- one step on a quadratic: phi = w - a * g(w), so dL/dw = (I - H diag(a)) q and dL/da = -g * q ----


def linear_problem() -> tuple[MetaSGD, dict, Episode]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    built = MetaSGD(nn.Linear(4, 1, bias=False).double(), SQUARED_ERROR, 1, 0.1, 0.1)
    take_theta(built)
    theta = {"weights": {"weight": normal(1, 4)}, "rates": {"weight": 0.1 * normal(1, 4)}}
    return built, theta, Episode(Batch(normal(6, 4), normal(6, 1)), Batch(normal(5, 4), normal(5, 1)))


def slope(batch: Batch, w: Tensor) -> Tensor:
    return 2 / len(batch.x) * batch.x.T @ (batch.x @ w - batch.y[:, 0])


def test_gradients_of_weights_and_rates_on_a_quadratic_equal_their_closed_forms():
    built, theta, (support, query, _) = linear_problem()
    w, a = theta["weights"]["weight"][0], theta["rates"]["weight"][0]
    hessian = 2 / len(support.x) * support.x.T @ support.x
    g, q = slope(support, w), slope(query, w - a * slope(support, w))
    gradient = meta_gradient(built, theta, Episode(support, query))
    assert relative_error(gradient["weights"]["weight"][0], q - hessian @ (a * q)) < EXACT
    assert relative_error(gradient["rates"]["weight"][0], -g * q) < EXACT


def test_the_rates_of_newtons_method_solve_a_diagonal_quadratic_in_one_step():
    built, theta, _ = linear_problem()
    x = torch.diag(torch.tensor([1.0, 2.0, 3.0, 4.0])).double()
    target = torch.tensor([[1.0, -1.0, 2.0, 0.5]]).double()
    theta["rates"]["weight"] = 4 / (2 * x.diagonal()[None] ** 2)  # one over the Hessian's diagonal
    phi = built.adapt(theta, Batch(x, x @ target.T))
    torch.testing.assert_close(phi["weight"], target, rtol=1e-12, atol=1e-12)  # rounding


# ---- networks ----


@pytest.mark.parametrize("base", ["mlp", "mlp_transductive", "stride_transductive", "max_pool_transductive"])
def test_meta_gradient_equals_a_plain_autograd_loop(base):
    built, theta = make(base)
    support, query, _ = one_episode()
    leaves = tree_map(lambda p: p.clone().requires_grad_(), theta)
    phi = dict(leaves["weights"])
    for _ in range(INNER_STEPS):
        loss = F.cross_entropy(functional_call(built.base_learner, phi, (support.x,)), support.y)
        grads = torch.autograd.grad(loss, list(phi.values()), create_graph=True)
        phi = {name: p - leaves["rates"][name] * g for (name, p), g in zip(phi.items(), grads, strict=True)}
    loss = F.cross_entropy(functional_call(built.base_learner, phi, (query.x,)), query.y)
    expected = torch.autograd.grad(loss, tree_leaves(leaves))
    assert relative_error(meta_gradient(built, theta, one_episode()), expected) < EXACT


@pytest.mark.parametrize("base", ["mlp", "stride_support"])
def test_meta_gradient_equals_finite_differences(base):
    check_slope(*make(base), one_episode())


@pytest.mark.parametrize("base", BASES)
def test_equal_rates_give_mamls_adaptation_and_its_meta_gradient_of_the_weights(base):
    built, theta = make(base)
    theta["rates"] = tree_map(lambda p: torch.full_like(p, INNER_LR), theta["rates"])
    maml = MAML(built.base_learner, CROSS_ENTROPY, INNER_LR, INNER_STEPS, False, "all", "sgd")
    expected = meta_gradient(maml, theta["weights"], one_episode())
    assert relative_error(meta_gradient(built, theta, one_episode())["weights"], expected) < EXACT


def test_a_rate_of_zero_keeps_its_weight_where_it_is():
    built, theta = make("mlp")
    theta["rates"]["head.bias"] = torch.zeros(2).double()
    phi = built.adapt(theta, one_episode().support)
    assert [name for name, p in phi.items() if torch.equal(p, theta["weights"][name])] == ["head.bias"]


# ---- the start ----


def test_all_rates_start_at_one_number_within_the_bounds_and_each_seed_at_another():
    net = BASES["mlp"]().double()
    weights = {name: p.detach().clone() for name, p in net.named_parameters()}
    starts = set()
    for seed in range(20):
        torch.manual_seed(seed)
        rates = MetaSGD(BASES["mlp"]().double(), CROSS_ENTROPY, 1, 0.005, 0.1).init()["rates"]
        assert {name: r.shape for name, r in rates.items()} == {name: p.shape for name, p in weights.items()}
        assert len(flat(rates).unique()) == 1
        starts.add(flat(rates)[0].item())
    assert len(starts) == 20
    assert min(starts) >= 0.005
    assert max(starts) <= 0.1


def test_bounds_in_the_wrong_order_are_refused_with_the_fix():
    with pytest.raises(ValueError, match=r"initial_rate_low is 0.2 and initial_rate_high is 0.1.*not be above.*swap"):
        MetaSGD(BASES["mlp"](), CROSS_ENTROPY, 1, 0.2, 0.1)


def test_more_steps_than_in_training_use_the_same_rates():
    built, theta = make("mlp")
    support = one_episode().support
    one_by_one = theta["weights"]
    for _ in range(5):
        one_by_one = replace(built, inner_steps=1).adapt({**theta, "weights": one_by_one}, support)
    at_once = replace(built, inner_steps=5).adapt(theta, support)
    assert all(torch.equal(at_once[name], p) for name, p in one_by_one.items())  # the same operations: bitwise
