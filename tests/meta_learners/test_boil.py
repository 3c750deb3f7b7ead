"""BOIL: its meta-gradient against a plain autograd loop, against MAML, and what its inner loop leaves alone.

float64. EXACT is for two ways of computing the same number: rounding (1e-16) grows through a few inner steps and through
batch norms over six values, and 1e-8 leaves room for both while a wrong term shows at 1e-3.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from metarun.meta_learners.boil import BOIL
from metarun.meta_learners.maml import MAML
from metarun.objectives import CROSS_ENTROPY
from tests.helpers import BASES, INNER_LR, INNER_STEPS, meta_gradient, moved, one_episode, relative_error

EXACT = 1e-8
TRANSDUCTIVE = ["mlp", "mlp_transductive", "stride_transductive", "max_pool_transductive"]


def make(base: str, first_order: bool = False, steps: int = INNER_STEPS) -> tuple[BOIL, dict[str, Tensor]]:
    torch.manual_seed(0)
    built = BOIL(BASES[base]().double(), CROSS_ENTROPY, INNER_LR, steps, first_order)
    return moved(built)


def plain_boil(net: nn.Module, theta: dict[str, Tensor], first_order: bool) -> dict[str, Tensor]:
    """A loop over torch.autograd: head rate 0, body rate INNER_LR, in one dictionary of rates."""
    support, query, _ = one_episode()
    theta = {name: p.clone().requires_grad_() for name, p in theta.items()}
    phi = dict(theta)
    for _ in range(INNER_STEPS):
        loss = F.cross_entropy(functional_call(net, phi, (support.x,)), support.y)
        grads = torch.autograd.grad(loss, list(phi.values()), create_graph=not first_order)
        rates = [0.0 if name.startswith("head") else INNER_LR for name in phi]
        phi = {name: p - r * g for (name, p), r, g in zip(phi.items(), rates, grads, strict=True)}
    loss = F.cross_entropy(functional_call(net, phi, (query.x,)), query.y)
    return dict(zip(theta, torch.autograd.grad(loss, list(theta.values())), strict=True))


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("base", TRANSDUCTIVE)
def test_meta_gradient_equals_a_plain_loop_with_a_rate_of_zero_for_the_head(base, first_order):
    built, theta = make(base, first_order)
    expected = plain_boil(built.base_learner, theta, first_order)
    assert relative_error(meta_gradient(built, theta, one_episode()), expected) < EXACT


@pytest.mark.parametrize("base", BASES)
def test_boil_is_maml_that_adapts_the_body(base):
    built, theta = make(base)
    maml = MAML(built.base_learner, CROSS_ENTROPY, INNER_LR, INNER_STEPS, False, "body", "sgd")
    gradient, expected = (meta_gradient(learner, theta, one_episode()) for learner in (built, maml))
    assert all(torch.equal(gradient[name], g) for name, g in expected.items())  # the same operations: bitwise


@pytest.mark.parametrize("steps", [1, 4])
def test_the_inner_loop_moves_every_tensor_of_the_body_and_none_of_the_head(steps):
    built, theta = make("mlp", steps=steps)  # without norms: one takes away the bias before it, whose gradient is zero
    phi = built.adapt(theta, one_episode().support)
    assert {name for name, p in theta.items() if torch.equal(phi[name], p)} == {"head.weight", "head.bias"}


def test_the_outer_loop_trains_the_head():
    built, theta = make("stride_transductive")
    gradient = meta_gradient(built, theta, one_episode())
    assert gradient["head.weight"].abs().max() > 1e-3


@pytest.mark.parametrize("missing", ["body", "head"])
def test_a_base_learner_without_body_or_head_is_refused_with_the_fix(missing):
    net = nn.ModuleDict({name: nn.Linear(2, 2) for name in ("body", "head") if name != missing})
    with pytest.raises(ValueError, match=rf"part named '{missing}'; ModuleDict has .*Assign self.body and self.head"):
        BOIL(net, CROSS_ENTROPY, INNER_LR, 1, False)
