"""Hypernetwork against plain torch with forward hooks, and its invariances. float64; EXACT: the same sums, other orders."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metarun.core import Batch, Episode
from metarun.meta_learners.hypernetwork import Hypernetwork
from metarun.models.exact.layers import BatchNorm
from metarun.models.mlp import MLP
from metarun.objectives import CROSS_ENTROPY, SQUARED_ERROR
from metarun.trees import stack, tree_leaves, tree_map, tree_unflatten
from metarun.trees import tree_flatten as flatten
from tests.helpers import (
    BASES,
    IMAGE,
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
WIDTH = 5
GENERATES = ["head", "film_and_head"]


def regressor(generates: str) -> tuple[Hypernetwork, dict]:
    torch.manual_seed(0)
    net = MLP((1,), 1, [6, 4], None, "torch").double()
    return moved(Hypernetwork(net, SQUARED_ERROR, (1,), 1, None, generates, WIDTH, 2, 1))


def classifier(generates: str, base: str = "mlp") -> tuple[Hypernetwork, dict]:
    torch.manual_seed(0)
    return moved(Hypernetwork(BASES[base]().double(), CROSS_ENTROPY, IMAGE, WAYS, WAYS, generates, WIDTH, 2, 1))


def layers(weights: list, x: Tensor) -> Tensor:
    for i, layer in enumerate(weights):
        x = (x if i == 0 else x.relu()) @ layer["weight"].T + layer["bias"]
    return x


def plain_outputs(learner: Hypernetwork, base: nn.Module, theta: dict, episode: Episode) -> Tensor:
    """Features are modulated by hooks on the layers of a fresh body; heads are applied class by class."""
    support, query, _ = episode
    body, ways = base.body, learner.num_ways

    def embed(x: Tensor) -> Tensor:
        return torch.func.functional_call(body, theta["body"], (x,))

    def examples(z: Tensor, y: Tensor) -> Tensor:
        return torch.cat([z, y], 1) if ways is None else z

    hooks = []
    if learner.generates == "film_and_head":
        task = layers(theta["film_encoder"], examples(embed(support.x), support.y)).mean(0)
        film = layers(theta["film_generator"], task)
        norms = [m for m in body.modules() if isinstance(m, BatchNorm)]
        for m in norms or [m for m in body.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]:
            channels = len(m.bias)
            scale, shift, film = film[:channels], film[channels : 2 * channels], film[2 * channels :]

            def modulate(module, inputs, out, scale=scale, shift=shift):
                shape = (1, -1) + (1,) * (out.dim() - 2)
                return (1 + scale).view(shape) * out + shift.view(shape)

            hooks.append(m.register_forward_hook(modulate))
        assert len(film) == 0
    z, queries = embed(support.x), embed(query.x)
    for hook in hooks:
        hook.remove()
    e = layers(theta["head_encoder"], examples(z, support.y))
    if ways is None:
        rows = layers(theta["head_generator"], e.mean(0)).view(learner.num_outputs, -1)
    else:
        rows = torch.stack([layers(theta["head_generator"], e[support.y == n].mean(0)) for n in range(ways)])
    return torch.stack([queries @ row[:-1] + row[-1] for row in rows], 1)


@pytest.mark.parametrize("base", ["mlp", "mlp_transductive", "stride_transductive", "max_pool_transductive"])
@pytest.mark.parametrize("generates", GENERATES)
def test_the_meta_gradient_of_classification_equals_plain_torch(generates, base):
    learner, theta = classifier(generates, base)
    leaves, structure = flatten(tree_map(lambda p: p.detach().clone().requires_grad_(), theta))
    outputs = plain_outputs(learner, BASES[base]().double(), tree_unflatten(leaves, structure), one_episode())
    expected = torch.autograd.grad(F.cross_entropy(outputs, one_episode().query.y), leaves)
    assert relative_error(tree_leaves(meta_gradient(learner, theta, one_episode())), expected) < EXACT


@pytest.mark.parametrize("generates", GENERATES)
def test_the_meta_gradient_of_regression_equals_plain_torch(generates):
    learner, theta = regressor(generates)
    leaves, structure = flatten(tree_map(lambda p: p.detach().clone().requires_grad_(), theta))
    outputs = plain_outputs(
        learner, MLP((1,), 1, [6, 4], None, "torch").double(), tree_unflatten(leaves, structure), wave()
    )
    expected = torch.autograd.grad(F.mse_loss(outputs, wave().query.y), leaves)
    assert relative_error(tree_leaves(meta_gradient(learner, theta, wave())), expected) < EXACT


@pytest.mark.parametrize("base", ["mlp", "stride_support"])
@pytest.mark.parametrize("generates", GENERATES)
def test_the_meta_gradient_equals_finite_differences(generates, base):
    check_slope(*classifier(generates, base), one_episode())


# ---- invariances ----


@pytest.mark.parametrize("make", [classifier, regressor])
@pytest.mark.parametrize("generates", GENERATES)
def test_predictions_do_not_depend_on_the_order_of_the_support_set(generates, make):
    check_order_of_support(*make(generates), one_episode() if make is classifier else wave())


@pytest.mark.parametrize("generates", GENERATES)
def test_permuting_the_class_labels_permutes_the_outputs(generates):
    check_order_of_classes(*classifier(generates, "stride_transductive"), one_episode())


def test_a_head_for_one_class_is_the_row_of_the_head_for_all():
    learner, theta = classifier("head")
    support = one_episode().support
    first = support.y == 0
    alone = replace(learner, num_ways=1).adapt(theta, Batch(support.x[first], support.y[first]))["head"]
    together = learner.adapt(theta, support)["head"]
    torch.testing.assert_close(alone, {name: p[:1] for name, p in together.items()}, rtol=EXACT, atol=EXACT)


# ---- FiLM ----


@pytest.mark.parametrize("base", ["mlp", "stride_transductive"])
def test_the_body_is_not_modulated_at_the_start(base):
    torch.manual_seed(0)
    args = (CROSS_ENTROPY, IMAGE, WAYS, WAYS, "film_and_head", WIDTH, 2, 1)
    learner = Hypernetwork(BASES[base]().double(), *args)
    theta = learner.init()
    torch.testing.assert_close(learner.adapt(theta, one_episode().support)["body"], theta["body"], rtol=0, atol=0)


def test_film_modulates_the_norms_and_leaves_the_weights_that_tasks_share():
    learner, theta = classifier("film_and_head", "stride_transductive")
    phi = learner.adapt(theta, one_episode().support)
    changed = {name for name, p in phi["body"].items() if not torch.equal(p, theta["body"][name])}
    assert changed == {f"{i}.{part}" for i in (1, 4, 7, 10) for part in ("weight", "bias")}


@pytest.mark.parametrize("make", [classifier, regressor])
def test_film_by_vmap_and_by_loop_gives_the_same_meta_gradient(make):  # the head is in the conformance tests
    check_vmap(*make("film_and_head"), image_episodes(3) if make is classifier else stack([wave()] * 3))


# ---- wrong input ----


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"width": 0}, "width 0 and encoder_layers 2 must be 1 or more"),
        ({"encoder_layers": 0}, "encoder_layers 0 must be 1 or more"),
        ({"generator_layers": -1}, "generator_layers -1 0 or more"),
    ],
)
def test_wrong_sizes_are_refused_with_the_rule(change, words):
    learner, _ = regressor("head")
    with pytest.raises(ValueError, match=words):
        replace(learner, **change)


def test_film_of_a_body_without_layers_is_refused():
    net = nn.Module()
    net.body, net.head = nn.Flatten(), nn.Linear(1, 1)
    args = (SQUARED_ERROR, (1,), 1, None, "film_and_head", WIDTH, 2, 1)
    with pytest.raises(ValueError, match="has no layers with a weight and a bias to modulate; use generates=head"):
        Hypernetwork(net, *args)
