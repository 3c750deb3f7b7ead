"""Baseline++ against plain torch: cosine classifiers, all-class training, and torch.optim.SGD on frozen features.

float64; EXACT is for the same sums in another order, grown by up to 30 steps.
"""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from metarun.errors import ConfigError
from metarun.meta_learners.baseline_plus_plus import BaselinePlusPlus
from metarun.objectives import CROSS_ENTROPY
from tests.composing import experiment
from tests.helpers import BASES, IMAGE, WAYS, meta_gradient, one_episode, relative_error

EXACT = 1e-10
CLASSES = 5


def built(base: str) -> tuple[BaselinePlusPlus, dict]:
    torch.manual_seed(0)
    net = BASES[base]().double()
    learner = BaselinePlusPlus(net, CROSS_ENTROPY, IMAGE, WAYS, CLASSES, 10.0, 2.0, 0.3, 30, 0.1)
    return learner, learner.init()


def plain_cosines(z, w):
    return torch.stack([F.cosine_similarity(z, row[None], dim=1) for row in w], 1)


@pytest.mark.parametrize("base", ["mlp", "stride_transductive", "max_pool_support"])
def test_the_meta_gradient_is_that_of_plain_training_on_all_training_classes(base):
    learner, theta = built(base)
    episode = one_episode()._replace(classes=torch.tensor([4, 1]))  # label 0 is class 4 of 5, label 1 class 1
    body, w = BASES[base]().double().body, theta["directions"].clone().requires_grad_()
    body.load_state_dict(theta["body"], strict=False)
    y = torch.cat([episode.support.y, episode.query.y])
    z = body(torch.cat([episode.support.x, episode.query.x]))
    F.cross_entropy(10 * plain_cosines(z, w), torch.where(y == 0, 4, 1)).backward()
    actual = meta_gradient(learner, theta, episode)
    assert relative_error(actual["body"], {name: p.grad for name, p in body.named_parameters()}) < EXACT
    assert relative_error(actual["directions"], w.grad) < EXACT


@pytest.mark.parametrize("base", ["mlp", "stride_transductive"])
@pytest.mark.parametrize("steps", [0, 1, 30])
def test_the_directions_of_a_task_are_sgd_from_the_mean_direction_on_frozen_features(base, steps):
    learner, theta = built(base)
    support = one_episode().support
    phi = replace(learner, inner_steps=steps).adapt(theta, support)
    body = BASES[base]().double().body
    body.load_state_dict(theta["body"], strict=False)
    z = body(support.x).detach()
    mean = (z / z.norm(dim=1, keepdim=True)).mean(0)
    w = (mean / mean.norm()).repeat(WAYS, 1).requires_grad_()
    optimizer = torch.optim.SGD([w], lr=0.3, weight_decay=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(2 * plain_cosines(z, w), support.y).backward()
        optimizer.step()
    torch.testing.assert_close(phi["directions"], w.detach(), rtol=EXACT, atol=EXACT)
    assert phi["body"] is theta["body"]  # frozen


def test_only_the_directions_count_and_not_the_lengths_of_features_and_weights():
    learner, theta = built("mlp")
    phi = learner.adapt(theta, one_episode().support)
    x = one_episode().query.x
    longer = {"body": phi["body"], "directions": 3 * phi["directions"]}
    torch.testing.assert_close(learner.predict(longer, x), learner.predict(phi, x), rtol=EXACT, atol=EXACT)
    assert learner.predict(phi, x).abs().max() <= learner.scale


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"scale": 0.0}, "scale is 0.0, but multiplies cosines; use a number above 0"),
        ({"train_scale": -1.0}, "train_scale is -1.0, but multiplies cosines; use a number above 0"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1; use 0 for none, or more"),
    ],
)
def test_wrong_settings_are_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        replace(built("mlp")[0], **setting)


def test_tasks_without_a_fixed_set_of_training_classes_are_refused():
    with pytest.raises(ConfigError, match="Prototypes has no fixed set"):
        experiment("meta_learner=baseline_plus_plus", "task=prototypes")
