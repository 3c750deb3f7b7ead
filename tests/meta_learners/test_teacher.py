"""Teacher: its meta-gradient against a plain loop, and what its switches do. float64; EXACT leaves room for rounding."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from metarun.core import Batch
from metarun.errors import ConfigError
from metarun.meta_learners.maml import MAML
from metarun.meta_learners.teacher import Teacher
from metarun.models.mlp import MLP
from metarun.objectives import CROSS_ENTROPY
from tests.composing import experiment
from tests.helpers import BASES, IMAGE, WAYS, flat, meta_gradient, one_episode, relative_error

EXACT = 1e-10


def make(guidance=0.7, learn_start=True, steps=3):
    torch.manual_seed(0)
    teacher = MLP(IMAGE, WAYS, [5], None, "torch").double()
    learner = Teacher(BASES["mlp"]().double(), CROSS_ENTROPY, teacher, WAYS, 0.3, steps, guidance, learn_start)
    return learner, learner.init()


def plain_mlp(p, x):
    h = x.flatten(1)
    for i in (1, 3):
        h = F.relu(F.linear(h, p[f"body.{i}.weight"], p[f"body.{i}.bias"])) if f"body.{i}.weight" in p else h
    return F.linear(h, p["head.weight"], p["head.bias"])


def plain_meta_gradient(theta, episode, guidance, steps=3):
    theta = {part: {k: p.clone().requires_grad_() for k, p in ps.items()} for part, ps in theta.items()}
    x, y = episode.support
    t = plain_mlp(theta["teacher"], x)
    soft = torch.stack(
        [
            sum(w * F.one_hot(label, WAYS) for w, label in zip(row, y, strict=True))
            for row in torch.softmax(-(torch.cdist(t, t, compute_mode="donot_use_mm_for_euclid_dist") ** 2), 1)
        ]
    )
    phi = dict(theta["base"])
    for _ in range(steps):
        out = plain_mlp(phi, x)
        loss = F.cross_entropy(out, y) + guidance * F.cross_entropy(out, soft)
        grads = torch.autograd.grad(loss, list(phi.values()), create_graph=True)
        phi = {k: p - 0.3 * g for (k, p), g in zip(phi.items(), grads, strict=True)}
    loss = F.cross_entropy(plain_mlp(phi, episode.query.x), episode.query.y)
    leaves = [*theta["teacher"].values(), *theta["base"].values()]
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, leaves)])


def test_the_meta_gradient_of_both_networks_equals_a_plain_loop():
    learner, theta = make()
    # cdist has no second derivative at distance zero but is differentiated once here, where its square is smooth
    expected = plain_meta_gradient(theta, one_episode(), 0.7)
    g = meta_gradient(learner, theta, one_episode())
    assert relative_error(flat({"a": g["teacher"], "b": g["base"]}), expected) < EXACT


def test_the_teacher_s_gradient_equals_finite_differences_and_is_not_zero():
    learner, theta = make()
    episode, eps = one_episode(), 1e-6
    torch.manual_seed(1)
    direction = {k: torch.randn_like(p) for k, p in theta["teacher"].items()}

    def at(step):
        moved = {k: p + step * direction[k] for k, p in theta["teacher"].items()}
        return learner.meta_loss({**theta, "teacher": moved}, episode)[0]

    g = flat(meta_gradient(learner, theta, episode)["teacher"])
    slope = (at(eps) - at(-eps)) / (2 * eps)
    assert g.norm() > 0
    assert abs(slope - g @ flat(direction)) < 1e-6 * g.norm() * flat(direction).norm()  # truncation and rounding


def test_without_guidance_it_is_maml_and_the_teacher_has_no_gradient():
    learner, theta = make(guidance=0.0)
    g = meta_gradient(learner, theta, one_episode())
    maml = MAML(learner.base_learner, CROSS_ENTROPY, 0.3, 3, False, "all", "sgd")
    assert relative_error(g["base"], meta_gradient(maml, theta["base"], one_episode())) < EXACT
    assert flat(g["teacher"]).abs().max() == 0


def test_a_start_that_is_not_learned_has_no_gradient():
    learner, theta = make(learn_start=False)
    g = meta_gradient(learner, theta, one_episode())
    assert flat(g["base"]).abs().max() == 0 and flat(g["teacher"]).abs().max() > 0


def test_the_teacher_acts_on_phi_alone_and_sees_no_query():
    learner, theta = make()
    phi = learner.adapt(theta, one_episode().support)
    assert phi.keys() == theta["base"].keys()
    other = {**theta, "teacher": {k: p + 1 for k, p in theta["teacher"].items()}}
    assert not torch.equal(flat(learner.adapt(other, one_episode().support)), flat(phi))


def test_exchanging_the_labels_of_two_classes_exchanges_what_is_taught():
    learner, theta = make()
    support = one_episode().support
    straight = learner.soft_labels(theta["teacher"], support)
    swapped = learner.soft_labels(theta["teacher"], Batch(support.x, 1 - support.y))
    torch.testing.assert_close(swapped, straight.flip(1), rtol=EXACT, atol=EXACT)
    torch.testing.assert_close(
        straight.sum(1), torch.full((len(straight),), 1.7, dtype=torch.float64), rtol=EXACT, atol=EXACT
    )


def test_settings_that_leave_nothing_to_do_are_refused():
    learner, _ = make()
    with pytest.raises(ValueError, match="guidance is -1"):
        replace(learner, guidance=-1)
    with pytest.raises(ValueError, match="nothing to learn"):
        replace(learner, guidance=0.0, learn_start=False)


def test_a_teacher_with_statistics_it_cannot_have_is_refused():
    with pytest.raises(ConfigError, match="must be null or transductive"):
        experiment("meta_learner=teacher", "task=prototypes", "meta_learner.teacher.batch_norm=running")
