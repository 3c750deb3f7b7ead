"""CNP against plain torch, and its invariances. float64; EXACT is for the same sums in another order."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from metarun.core import Batch
from metarun.meta_learners.cnp import CNP
from metarun.models.mlp import MLP
from metarun.objectives import CROSS_ENTROPY, SQUARED_ERROR
from metarun.trees import stack, tree_flatten, tree_map, tree_unflatten
from tests.composing import experiment
from tests.helpers import (
    BASES,
    IMAGE,
    SHOTS,
    WAYS,
    check_order_of_classes,
    check_order_of_support,
    check_slope,
    check_vmap,
    image_episodes,
    meta_gradient,
    moved,
    one_episode,
    relative_error,
    wave,
)

EXACT = 1e-10
WIDTH = 8
AGGREGATIONS = ["mean", "attention"]


def regressor(aggregation: str) -> tuple[CNP, dict]:
    torch.manual_seed(0)
    net = MLP((1,), 1, [6], None, "torch").double()
    return moved(CNP(net, SQUARED_ERROR, (1,), 1, None, aggregation, WIDTH, 2, 1))


def classifier(aggregation: str, base: str = "mlp") -> tuple[CNP, dict]:
    torch.manual_seed(0)
    return moved(CNP(BASES[base]().double(), CROSS_ENTROPY, IMAGE, WAYS, WAYS, aggregation, WIDTH, 2, 1))


def grads(loss: torch.Tensor, theta: dict) -> dict:
    leaves, structure = tree_flatten(theta)
    return tree_unflatten(torch.autograd.grad(loss, leaves), structure)


def layers(weights: list, x: torch.Tensor) -> torch.Tensor:
    """A plain torch.nn.Sequential with those weights."""
    for i, layer in enumerate(weights):
        x = (x if i == 0 else nn.ReLU()(x)) @ layer["weight"].T + layer["bias"]
    return x


def read(theta: dict, z_support: torch.Tensor, r: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """r(x) of one query by torch's own attention, [R]."""
    if "attention" not in theta:
        return r.mean(0)
    w = theta["attention"]
    out, _ = F.multi_head_attention_forward(
        (z[None] @ w["query"].T),
        (z_support @ w["key"].T),
        (r @ w["value"].T),
        WIDTH,
        8,
        torch.eye(WIDTH).repeat(3, 1).to(r),  # the projections are done
        None,
        None,
        None,
        False,
        0.0,
        w["out"],
        None,
    )
    return out[0]


# ---- plain torch ----


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_regression_is_the_gaussian_likelihood_of_a_plain_encoder_and_decoder(aggregation):
    learner, theta = regressor(aggregation)
    episode = wave()
    weights = tree_map(lambda p: p.detach().clone().requires_grad_(), theta)

    def embed(x):
        return (x @ weights["body"]["1.weight"].T + weights["body"]["1.bias"]).relu()

    z = embed(episode.support.x)
    r = layers(weights["encoder"], torch.cat([z, episode.support.y], 1))
    surprise = []
    for x, y in zip(*episode.query[:2], strict=True):
        q = embed(x[None])[0]
        mean, raw = layers(weights["decoder"], torch.cat([q, read(weights, z, r, q)]))
        surprise.append(-torch.distributions.Normal(mean, 0.1 + 0.9 * F.softplus(raw)).log_prob(y[0]))
    loss, metrics = learner.meta_loss(theta, episode)
    expected = torch.stack(surprise).mean()
    torch.testing.assert_close(loss, expected.detach(), rtol=EXACT, atol=EXACT)
    assert metrics["negative_log_likelihood"] == loss
    assert relative_error(meta_gradient(learner, theta, episode), grads(expected, weights)) < EXACT


@pytest.mark.parametrize("base", ["mlp", "stride_support", "max_pool_transductive"])
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_classes_are_scored_one_by_one_by_one_decoder(aggregation, base):
    learner, theta = classifier(aggregation, base)
    support, query, _ = one_episode()
    phi = learner.adapt(theta, support)

    def embed(x):
        return torch.func.functional_call(learner.base_learner.body, phi["body"], (x,))

    z, r = embed(support.x), layers(theta["encoder"], embed(support.x))
    logits = torch.zeros(len(query.x), WAYS).double()
    for i, q in enumerate(embed(query.x)):
        for n in range(WAYS):
            own = support.y == n
            logits[i, n] = layers(theta["decoder"], torch.cat([q, read(theta, z[own], r[own], q)]))[0]
    torch.testing.assert_close(learner.predict(phi, query.x), logits, rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("make", [classifier, regressor])
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_the_meta_gradient_equals_finite_differences(aggregation, make):
    check_slope(*make(aggregation), one_episode() if make is classifier else wave(), close=(1e-6, 1e-8))


# ---- invariances ----


@pytest.mark.parametrize("make", [classifier, regressor])
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_predictions_do_not_depend_on_the_order_of_the_support_set(aggregation, make):
    check_order_of_support(*make(aggregation), one_episode() if make is classifier else wave())


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_permuting_the_class_labels_permutes_the_outputs(aggregation):
    check_order_of_classes(*classifier(aggregation, "stride_transductive"), one_episode())


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_a_class_is_scored_without_the_others_so_any_number_of_ways_is_possible(aggregation):
    learner, theta = classifier(aggregation)
    support, query, _ = one_episode()
    together = learner.predict(learner.adapt(theta, support), query.x)
    alone = replace(learner, num_ways=1)
    first = support.y == 0
    only = alone.predict(alone.adapt(theta, Batch(support.x[first], support.y[first])), query.x)
    torch.testing.assert_close(only, together[:, :1], rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_the_support_set_twice_over_says_what_it_said_once(aggregation):
    learner, theta = regressor(aggregation)
    support, query, _ = wave()
    twice = Batch(torch.cat([support.x] * 2), torch.cat([support.y] * 2))
    straight = learner.predict(learner.adapt(theta, support), query.x)
    torch.testing.assert_close(learner.predict(learner.adapt(theta, twice), query.x), straight, rtol=EXACT, atol=EXACT)


def test_with_one_shot_attention_within_a_class_reads_its_one_example():
    learner, theta = classifier("attention")
    support = one_episode().support
    one = Batch(support.x[::SHOTS], support.y[::SHOTS])
    phi = learner.adapt(theta, one)
    r = learner.representation(phi, torch.randn(4, 6).double())  # whatever the queries [Q, D]
    values = phi["values"] @ phi["out"].T
    torch.testing.assert_close(r, values.expand(4, -1, -1), rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("make", [classifier, regressor])
def test_attention_by_vmap_and_by_loop_gives_the_same_meta_gradient(make):  # the mean is in the conformance tests
    check_vmap(*make("attention"), image_episodes(3) if make is classifier else stack([wave()] * 3))


# ---- the score ----


def test_the_score_of_regression_is_the_squared_error_of_the_mean():
    learner, theta = regressor("mean")
    support, query, _ = wave()
    loss, metrics = learner.query_loss(learner.adapt(theta, support), query)
    error = (learner.predict(learner.adapt(theta, support), query.x) - query.y).square().mean()
    torch.testing.assert_close(metrics["mse"], error, rtol=EXACT, atol=0)
    torch.testing.assert_close(metrics["query_loss"], error, rtol=EXACT, atol=0)
    floor = math.log(0.1) + math.log(2 * math.pi) / 2  # the density of the smallest deviation at its mean
    assert loss > floor


# ---- wrong input ----


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"width": 0}, "width 0 and encoder_layers 2 must be 1 or more"),
        ({"encoder_layers": 0}, "encoder_layers 0 must be 1 or more"),
        ({"decoder_layers": -1}, "decoder_layers -1 0 or more"),
        ({"aggregation": "attention", "width": 12}, "width is 12, but attention has 8 heads: use a multiple of 8"),
    ],
)
def test_wrong_sizes_are_refused_with_the_rule(change, words):
    learner, _ = regressor("mean")
    with pytest.raises(ValueError, match=words):
        replace(learner, **change)


def test_it_is_built_for_regression_where_the_task_has_no_classes():
    assert experiment("meta_learner=cnp", "task=sinusoid").learner.num_ways is None
    assert experiment("meta_learner=cnp", "task=prototypes").learner.num_ways == 3
