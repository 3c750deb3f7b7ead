"""Proto-MAML against ProtoNet (no steps), a plain autograd loop, and its symmetries.

float64; EXACT is for the same sums in another order, grown by a few steps.
"""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call

from metarun.core import Batch, Episode
from metarun.meta_learners.proto_maml import ProtoMAML
from metarun.meta_learners.protonet import ProtoNet
from metarun.objectives import CROSS_ENTROPY
from tests.helpers import BASES, WAYS, meta_gradient, one_episode, relative_error

EXACT = 1e-9
NETS = ["mlp_transductive", "stride_transductive"]


def built(base: str, steps: int, first_order: bool = False) -> tuple[ProtoMAML, dict]:
    torch.manual_seed(0)
    learner = ProtoMAML(BASES[base]().double(), CROSS_ENTROPY, WAYS, 0.1, steps, first_order)
    return learner, learner.init()


@pytest.mark.parametrize("base", [*NETS, "max_pool_support"])
def test_without_a_step_loss_and_meta_gradient_are_those_of_protonet(base):
    learner, theta = built(base, 0)
    protonet = ProtoNet(learner.base_learner, CROSS_ENTROPY, WAYS, "euclidean")
    torch.testing.assert_close(learner.meta_loss(theta, one_episode())[0], protonet.meta_loss(theta, one_episode())[0])
    assert (
        relative_error(meta_gradient(learner, theta, one_episode()), meta_gradient(protonet, theta, one_episode()))
        < EXACT
    )


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("base", NETS)
def test_the_meta_gradient_is_that_of_a_plain_loop_through_the_prototypes(base, first_order):
    learner, theta = built(base, 3, first_order)
    body = learner.base_learner.body
    leaves = {name: p.clone().requires_grad_() for name, p in theta.items()}
    (x, y, _), (query_x, query_y, _), _ = one_episode()
    z = functional_call(body, leaves, (x,))
    c = torch.stack([z[y == n].mean(0) for n in range(WAYS)])
    phi = [*(p.clone() for p in leaves.values()), 2 * c, -c.pow(2).sum(1)]  # c is not the adapting body's

    def logits(phi: list, x: torch.Tensor) -> torch.Tensor:
        return functional_call(body, dict(zip(leaves, phi, strict=False)), (x,)) @ phi[-2].T + phi[-1]

    for _ in range(3):
        loss = F.cross_entropy(logits(phi, x), y)
        gradient = torch.autograd.grad(loss, phi, create_graph=not first_order, retain_graph=True)
        phi = [p - 0.1 * g for p, g in zip(phi, gradient, strict=True)]
    loss = F.cross_entropy(logits(phi, query_x), query_y)
    expected = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
    assert relative_error(meta_gradient(learner, theta, one_episode()), expected) < EXACT


def test_renaming_the_classes_changes_neither_the_loss_nor_the_meta_gradient():
    learner, theta = built("mlp_transductive", 3)
    (x, y, _), (query_x, query_y, _), _ = one_episode()
    renamed = Episode(Batch(x, 1 - y), Batch(query_x, 1 - query_y))
    assert relative_error(meta_gradient(learner, theta, renamed), meta_gradient(learner, theta, one_episode())) < EXACT


def test_a_task_may_have_any_number_of_ways():
    learner, theta = built("mlp_transductive", 1)
    x = one_episode().support.x  # six images, as six classes
    phi = replace(learner, num_ways=6).adapt(theta, Batch(x, torch.arange(6)))
    assert learner.predict(phi, x).shape == (6, 6)


def test_a_base_learner_without_a_body_is_refused():
    with pytest.raises(ValueError, match=r"needs a base learner with a part named 'body'; Linear has no parts"):
        ProtoMAML(torch.nn.Linear(2, 2), CROSS_ENTROPY, WAYS, 0.1, 1, False)
