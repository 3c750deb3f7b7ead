"""UNICORN-MAML: the names of the classes do not matter, and neither does its shared vector; its gradient by a plain loop.

float64; EXACT is for the same sums in another order, grown by a few steps.
"""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call

from metarun.core import Batch, Episode
from metarun.meta_learners.maml import MAML
from metarun.meta_learners.unicorn_maml import UnicornMAML
from metarun.objectives import CROSS_ENTROPY
from tests.helpers import BASES, IMAGE, WAYS, meta_gradient, one_episode, relative_error

EXACT = 1e-9


def built(base: str, steps: int, ways: int = WAYS, first_order: bool = False) -> tuple[UnicornMAML, dict]:
    torch.manual_seed(0)
    learner = UnicornMAML(BASES[base]().double(), CROSS_ENTROPY, IMAGE, ways, 0.4, steps, first_order)
    return learner, learner.init()


def three_classes() -> Episode:
    """Images of one task under three names."""
    (x, _, _), (query_x, _, _), _ = one_episode()
    y = torch.tensor([0, 0, 1, 1, 2, 2])
    return Episode(Batch(x, y), Batch(query_x, y))


@pytest.mark.parametrize("order", [(1, 2, 0), (2, 1, 0), (0, 2, 1)])
@pytest.mark.parametrize("base", ["mlp_transductive", "stride_support"])
def test_renaming_the_classes_renames_the_predictions_and_changes_no_gradient(base, order):
    learner, theta = built(base, 3, ways=3)
    episode, names = three_classes(), torch.tensor(order)
    renamed = Episode(*(Batch(part.x, names[part.y]) for part in episode[:2]))
    before = learner.predict(learner.adapt(theta, episode.support), episode.query.x)
    after = learner.predict(learner.adapt(theta, renamed.support), renamed.query.x)
    assert relative_error(after[:, names], before) < EXACT
    expected = meta_gradient(learner, theta, episode)["body"]
    assert relative_error(meta_gradient(learner, theta, renamed)["body"], expected) < EXACT


def test_the_head_of_maml_is_not_so():
    torch.manual_seed(0)
    maml = MAML(BASES["mlp_transductive"]().double(), CROSS_ENTROPY, 0.4, 3, False, "all", "sgd")
    theta, (support, query, _) = maml.init(), one_episode()
    before = maml.predict(maml.adapt(theta, support), query.x)
    after = maml.predict(maml.adapt(theta, Batch(support.x, 1 - support.y)), query.x)
    assert relative_error(after[:, [1, 0]], before) > 0.01


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("base", ["mlp_transductive", "stride_transductive"])
def test_the_meta_gradient_is_that_of_a_plain_loop(base, first_order):
    learner, theta = built(base, 3, first_order=first_order)
    body = learner.base_learner.body
    leaves = {name: p.clone().requires_grad_() for name, p in theta["body"].items()}
    (x, y, _), (query_x, query_y, _), _ = one_episode()
    phi = [*leaves.values(), torch.stack([theta["head"]] * WAYS).requires_grad_(), torch.zeros(WAYS).double()]
    phi[-1].requires_grad_()

    def logits(phi: list, x: torch.Tensor) -> torch.Tensor:
        return functional_call(body, dict(zip(leaves, phi, strict=False)), (x,)) @ phi[-2].T + phi[-1]

    for _ in range(3):
        loss = F.cross_entropy(logits(phi, x), y)
        gradient = torch.autograd.grad(loss, phi, create_graph=not first_order)
        phi = [p - 0.4 * g for p, g in zip(phi, gradient, strict=True)]
    loss = F.cross_entropy(logits(phi, query_x), query_y)
    expected = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
    assert relative_error(meta_gradient(learner, theta, one_episode())["body"], expected) < EXACT


def test_the_shared_vector_cancels_in_the_softmax():
    learner, theta = built("mlp_transductive", 3)
    gradient = meta_gradient(learner, theta, one_episode())
    assert gradient["head"].abs().max() < 1e-12  # zero but for rounding
    assert max(g.abs().max() for g in gradient["body"].values()) > 1e-3
    other = {**theta, "head": 5 * torch.randn_like(theta["head"])}
    torch.testing.assert_close(learner.meta_loss(other, one_episode())[0], learner.meta_loss(theta, one_episode())[0])


def test_the_first_step_leaves_the_body_alone():
    learner, theta = built("mlp_transductive", 1)
    body = learner.adapt(theta, one_episode().support)["body"]
    torch.testing.assert_close(body, theta["body"], rtol=0, atol=1e-12)  # the errors of a softmax sum to rounding


def test_a_new_task_may_have_another_number_of_ways():
    learner, theta = built("mlp_transductive", 2)
    x = one_episode().support.x
    phi = replace(learner, num_ways=6).adapt(theta, Batch(x, torch.arange(6)))
    assert learner.predict(phi, x).shape == (6, 6)


def test_a_base_learner_without_a_body_is_refused():
    with pytest.raises(ValueError, match=r"needs a base learner with a part named 'body'; Linear has no parts"):
        UnicornMAML(torch.nn.Linear(2, 2), CROSS_ENTROPY, IMAGE, WAYS, 0.1, 1, False)


def test_the_temperature_divides_the_logits_of_queries_and_no_inner_step_sees_it():
    learner, theta = built("mlp_transductive", 2)
    support, query, _ = one_episode()
    cool = replace(learner, temperature=0.5)
    phi, same = learner.adapt(theta, support), cool.adapt(theta, support)
    assert relative_error(same, phi) == 0
    assert relative_error(cool.predict(same, query.x), 2 * learner.predict(phi, query.x)) == 0


def test_a_temperature_of_zero_is_refused():
    with pytest.raises(ValueError, match="temperature is 0; it divides logits, so use a number above 0"):
        replace(built("mlp_transductive", 2)[0], temperature=0)
