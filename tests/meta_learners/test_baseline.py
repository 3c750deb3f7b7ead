"""Baseline against plain torch: all-class training, and torch.optim.SGD on frozen features.

float64; EXACT is for the same sums in another order, grown by up to 30 steps.
"""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from metarun.errors import ConfigError
from metarun.meta_learners.baseline import Baseline
from metarun.objectives import CROSS_ENTROPY
from tests.composing import experiment
from tests.helpers import BASES, IMAGE, WAYS, meta_gradient, one_episode, relative_error

EXACT = 1e-10
CLASSES = 5


def built(base: str) -> tuple[Baseline, dict]:
    torch.manual_seed(0)
    learner = Baseline(BASES[base]().double(), CROSS_ENTROPY, IMAGE, WAYS, CLASSES, 0.3, 30, 0.1)
    return learner, learner.init()


def loaded(base: str, body: dict) -> nn.Module:
    """The body as a plain module with those weights."""
    net = BASES[base]().double().body
    net.load_state_dict(body, strict=False)
    return net


@pytest.mark.parametrize("base", ["mlp", "stride_transductive", "max_pool_support"])
def test_the_meta_gradient_is_that_of_plain_training_on_all_training_classes(base):
    learner, theta = built(base)
    episode = one_episode()._replace(classes=torch.tensor([4, 1]))  # label 0 is class 4 of 5, label 1 class 1
    net = nn.Sequential(loaded(base, theta["body"]), nn.Linear(theta["head"]["weight"].shape[1], CLASSES).double())
    net[1].load_state_dict(theta["head"])
    x = torch.cat([episode.support.x, episode.query.x])
    y = torch.cat([episode.support.y, episode.query.y])
    F.cross_entropy(net(x), torch.where(y == 0, 4, 1)).backward()
    expected = {
        f"{i}.{part}": p.grad for i, name in enumerate(("body", "head")) for part, p in net[i].named_parameters()
    }
    actual = meta_gradient(learner, theta, episode)
    assert (
        relative_error(
            {f"0.{k}": g for k, g in actual["body"].items()} | {f"1.{k}": g for k, g in actual["head"].items()},
            expected,
        )
        < EXACT
    )


@pytest.mark.parametrize("base", ["mlp", "stride_transductive"])
@pytest.mark.parametrize("steps", [0, 1, 30])
def test_the_head_of_a_task_is_sgd_with_weight_decay_from_zero_on_frozen_features(base, steps):
    learner, theta = built(base)
    support = one_episode().support
    phi = replace(learner, inner_steps=steps).adapt(theta, support)
    z = loaded(base, theta["body"])(support.x).detach()
    head = nn.Linear(z.shape[1], WAYS).double()
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.3, weight_decay=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(head(z), support.y).backward()
        optimizer.step()
    torch.testing.assert_close(phi["head"], dict(head.state_dict()), rtol=EXACT, atol=EXACT)
    assert phi["body"] is theta["body"]  # frozen


def test_a_new_task_may_have_more_ways_than_the_training_episodes():
    learner, theta = built("mlp")
    phi = replace(learner, num_ways=7).adapt(theta, one_episode().support)
    assert learner.predict(phi, one_episode().query.x).shape == (6, 7)


def test_a_negative_weight_decay_is_refused():
    learner, _ = built("mlp")
    with pytest.raises(ValueError, match=r"weight_decay is -0.1; use 0 for none, or more"):
        replace(learner, weight_decay=-0.1)


@pytest.mark.parametrize(
    ("task", "message"),
    [(["task=prototypes"], "Prototypes has no fixed set"), (["task=sinusoid"], "Sinusoid has no classes")],
)
def test_tasks_without_a_fixed_set_of_training_classes_are_refused(task, message):
    with pytest.raises(ConfigError, match=message):
        experiment("meta_learner=baseline", *task)
