"""ProtoNet with the cosine. The Euclidean one is in test_oracles. float64; EXACT is rounding."""

import pytest
import torch
import torch.nn.functional as F

from metarun.config.experiment import Experiment
from metarun.core import Batch
from metarun.errors import ConfigError
from metarun.meta_learners.protonet import ProtoNet
from metarun.objectives import CROSS_ENTROPY
from metarun.trees import tree_leaves
from tests.composing import experiment
from tests.helpers import (
    BASES,
    SHOTS,
    WAYS,
    check_vmap,
    image_episodes,
    meta_gradient,
    one_episode,
)

EXACT = 1e-10


def cosine(base: str):
    torch.manual_seed(0)
    learner = ProtoNet(BASES[base]().double(), CROSS_ENTROPY, WAYS, "cosine")
    return learner, learner.init()


def test_the_logits_are_ten_times_the_cosines_with_the_class_means_at_the_start():
    learner, theta = cosine("stride_transductive")
    support, query, _ = one_episode()
    z, queries = (
        torch.func.functional_call(learner.base_learner.body, theta["embedding"], (b.x,)) for b in (support, query)
    )
    means = torch.stack([z[support.y == n].mean(0) for n in range(WAYS)])
    expected = torch.stack([F.cosine_similarity(queries, mean[None]) for mean in means], 1)
    logits = learner.predict(learner.adapt(theta, support), query.x)
    torch.testing.assert_close(logits, 10 * expected, rtol=EXACT, atol=EXACT)


def test_the_gradient_of_the_scale_is_the_loss_slope_of_scaling_the_cosines():
    learner, theta = cosine("mlp")
    support, query, _ = one_episode()
    cosines = learner.predict(learner.adapt(theta, support), query.x) / theta["scale"]
    s = theta["scale"].clone().requires_grad_()
    (expected,) = torch.autograd.grad(F.cross_entropy(s * cosines.detach(), query.y), s)
    gradient = meta_gradient(learner, theta, one_episode())
    torch.testing.assert_close(gradient["scale"], expected, rtol=EXACT, atol=0)


def test_the_cosine_does_not_see_the_length_of_features():
    learner, theta = cosine("mlp")  # the last linear layer and ReLU are homogeneous: scaling it scales the features
    support, query, _ = one_episode()
    names = sorted(theta["embedding"])[-2:]
    longer = {**theta, "embedding": {n: 7 * p if n in names else p for n, p in theta["embedding"].items()}}
    straight = learner.predict(learner.adapt(theta, support), query.x)
    torch.testing.assert_close(
        learner.predict(learner.adapt(longer, support), query.x), straight, rtol=EXACT, atol=EXACT
    )


@pytest.mark.parametrize("base", BASES)
def test_vmap_and_loop_give_the_same_meta_gradient(base):
    check_vmap(*cosine(base), image_episodes(3))


def test_an_image_whose_features_are_all_zero_gives_finite_gradients():
    learner, theta = cosine("mlp")
    support, _, _ = one_episode()
    silent = support.x.clone()
    silent[:SHOTS] = 0  # with biases at zero every ReLU stays shut
    theta["embedding"] = {n: torch.zeros_like(p) if n.endswith("bias") else p for n, p in theta["embedding"].items()}
    gradient = meta_gradient(learner, theta, one_episode()._replace(support=Batch(silent, support.y)))
    assert all(torch.isfinite(g).all() for g in tree_leaves(gradient))


def test_theta_of_the_euclidean_distance_is_the_embedding_alone():
    learner = ProtoNet(BASES["mlp"](), CROSS_ENTROPY, WAYS, "euclidean")
    assert set(learner.init()) == set(dict(BASES["mlp"]().body.named_parameters()))


def test_an_unknown_distance_is_refused_with_the_choices():
    assert isinstance(experiment("task=prototypes", "base_learner.hidden=[4]", "meta_learner=protonet"), Experiment)
    with pytest.raises(ConfigError, match=r"meta_learner.distance is 'manhattan'.*'euclidean' or 'cosine'"):
        experiment(
            "task=prototypes", "base_learner.hidden=[4]", "meta_learner=protonet", "meta_learner.distance=manhattan"
        )
