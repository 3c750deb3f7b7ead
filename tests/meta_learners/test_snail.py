"""SNAIL against loops over places in plain torch, and its causality. float64; EXACT: the same sums, other orders."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from metarun.core import Batch, Episode
from metarun.meta_learners.snail import SNAIL, attention_block, dense_block, network
from metarun.models.mlp import MLP
from metarun.objectives import CROSS_ENTROPY, SQUARED_ERROR
from metarun.trees import tree_flatten, tree_leaves, tree_map, tree_unflatten
from tests.composing import experiment
from tests.helpers import BASES, IMAGE, WAYS, check_slope, meta_gradient, moved, one_episode, relative_error, wave

EXACT = 1e-10
ATTENTION, FILTERS, LENGTH = [[4, 3], [5, 2], [3, 4]], 3, 7  # WAYS * SHOTS + 1 = 7 places: dilations 1, 2, 4


def classifier(base: str) -> tuple[SNAIL, dict]:
    torch.manual_seed(0)
    return moved(SNAIL(BASES[base]().double(), CROSS_ENTROPY, IMAGE, WAYS, ATTENTION, FILTERS, LENGTH))


def regressor() -> tuple[SNAIL, dict]:
    torch.manual_seed(0)
    net = MLP((1,), 1, [6], None, "torch").double()
    return moved(SNAIL(net, SQUARED_ERROR, (1,), 1, ATTENTION, FILTERS, LENGTH))


def sequence(length: int, channels: int) -> Tensor:
    return torch.randn(length, channels, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


# ---- the network, place by place ----


def plain_network(weights: dict, x: Tensor) -> Tensor:
    """The last output of the sequence [T, C]: a loop over places that looks back one by one."""
    places = list(x)
    for block in weights["blocks"]:
        for k, layer in enumerate(block["temporal"]):
            now, before = layer["weight"][:, len(places[0]) :], layer["weight"][:, : len(places[0])]
            new = []
            for t, place in enumerate(places):
                both = now @ place + layer["bias"]
                if t >= 2**k:
                    both = both + before @ places[t - 2**k]
                f, g = both[:FILTERS], both[FILTERS:]
                new.append(torch.cat([place, f.tanh() / (1 + (-g).exp())]))
            places = new
        affine = {name: (lambda v, p=p: p["weight"] @ v + p["bias"]) for name, p in block["attention"].items()}
        new = []
        for t, place in enumerate(places):
            query = affine["query"](place)
            scores = torch.stack([(query * affine["key"](p)).sum() / math.sqrt(len(query)) for p in places[: t + 1]])
            weights_of = scores.exp() / scores.exp().sum()
            read = sum(w * affine["value"](p) for w, p in zip(weights_of, places, strict=False))
            new.append(torch.cat([place, read]))
        places = new
    return weights["head"]["weight"] @ places[-1] + weights["head"]["bias"]


def plain_outputs(learner: SNAIL, theta: dict, episode: Episode) -> Tensor:
    def embed(x: Tensor) -> Tensor:
        return torch.func.functional_call(learner.base_learner.body, theta["body"], (x,))

    support, query, _ = episode
    y = support.y if support.y.is_floating_point() else torch.eye(WAYS).double()[support.y]
    past = torch.cat([embed(support.x), y], 1)
    unlabelled = [torch.cat([z, torch.zeros(y.shape[1]).double()]) for z in embed(query.x)]
    return torch.stack([plain_network(theta["network"], torch.cat([past, q[None]])) for q in unlabelled])


@pytest.mark.parametrize("base", ["mlp", "stride_transductive"])
def test_the_meta_gradient_of_classification_equals_a_plain_loop_over_places(base):
    learner, theta = classifier(base)
    leaves, structure = tree_flatten(tree_map(lambda p: p.detach().clone().requires_grad_(), theta))
    outputs = plain_outputs(learner, tree_unflatten(leaves, structure), one_episode())
    expected = torch.autograd.grad(F.cross_entropy(outputs, one_episode().query.y), leaves)
    assert relative_error(tree_leaves(meta_gradient(learner, theta, one_episode())), expected) < EXACT


def test_the_meta_gradient_of_regression_equals_a_plain_loop_over_places():
    learner, theta = regressor()
    leaves, structure = tree_flatten(tree_map(lambda p: p.detach().clone().requires_grad_(), theta))
    outputs = plain_outputs(learner, tree_unflatten(leaves, structure), wave())
    expected = torch.autograd.grad(F.mse_loss(outputs, wave().query.y), leaves)
    assert relative_error(tree_leaves(meta_gradient(learner, theta, wave())), expected) < EXACT


def test_the_meta_gradient_equals_finite_differences():
    check_slope(*classifier("stride_support"), one_episode())


# ---- blocks against torch's own ----


@pytest.mark.parametrize("dilation", [1, 2, 4, 9])
def test_a_dense_block_is_a_dilated_causal_convolution_of_width_two(dilation):
    x = sequence(7, 5)
    weight, bias = sequence(6, 10), sequence(6, 1)[:, 0]
    kernel = torch.stack([weight[:, :5], weight[:, 5:]], 2)  # [out, in, width]: the earlier place first
    out = F.conv1d(F.pad(x.T[None], (dilation, 0)), kernel, bias, dilation=dilation)[0].T  # [T, 6]
    expected = torch.cat([x, out[:, :3].tanh() * out[:, 3:].sigmoid()], 1)
    actual = dense_block({"weight": weight, "bias": bias}, x, 6, dilation)
    torch.testing.assert_close(actual, expected, rtol=EXACT, atol=EXACT)


def test_an_attention_block_is_torchs_causal_attention():
    x = sequence(7, 5)
    layers = {
        name: {"weight": sequence(4, 5) * s, "bias": sequence(4, 1)[:, 0]}
        for s, name in enumerate(("query", "key", "value"), 1)
    }
    query, key, value = (F.linear(x, **layers[name])[None] for name in ("query", "key", "value"))
    expected = torch.cat([x, F.scaled_dot_product_attention(query, key, value, is_causal=True)[0]], 1)
    torch.testing.assert_close(attention_block(layers, x, 6), expected, rtol=EXACT, atol=EXACT)


# ---- causality ----


@pytest.mark.parametrize("t", range(LENGTH))
def test_an_output_depends_on_every_place_up_to_its_own_and_on_none_after(t):
    _, theta = classifier("mlp")
    x = sequence(LENGTH, 6 + WAYS)
    jacobian = torch.autograd.functional.jacobian(lambda x: network(theta["network"], x, LENGTH - 1)[t], x)  # [N, T, C]
    reached = jacobian.abs().amax((0, 2)) > 0
    assert reached.tolist() == [place <= t for place in range(LENGTH)]


def test_the_temporal_blocks_alone_reach_the_first_place_of_the_longest_sequence():
    _, theta = classifier("mlp")
    layers = theta["network"]["blocks"][1]["temporal"]
    channels = layers[0]["weight"].shape[1] // 2

    def last(x):
        for k, layer in enumerate(layers):
            x = dense_block(layer, x, LENGTH - 1, 2**k)
        return x[-1]

    reached = torch.autograd.functional.jacobian(last, sequence(LENGTH, channels)).abs().amax((0, 2)) > 0
    assert reached.all()


def test_queries_do_not_see_each_other():
    learner, theta = classifier("mlp")
    support, query, _ = one_episode()
    phi = learner.adapt(theta, support)
    alone = torch.cat([learner.predict(phi, x[None]) for x in query.x])
    torch.testing.assert_close(learner.predict(phi, query.x), alone, rtol=EXACT, atol=EXACT)


# ---- wrong input ----


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"attention": []}, r"attention is \[\]; give each attention block"),
        ({"attention": [[4, 0]]}, r"attention is \[\[4, 0\]\]; give each attention block"),
        ({"attention": [[4, 3, 2]]}, r"\[key size, value size\] of 1 or more"),
        ({"filters": 0}, "filters is 0 and sequence_length 7; use 1 or more"),
        ({"sequence_length": 1}, "sequence_length 1; use 1 or more, and 2 or more"),
    ],
)
def test_wrong_sizes_are_refused_with_the_rule(change, words):
    learner, _ = regressor()
    with pytest.raises(ValueError, match=words):
        replace(learner, **change)


def test_a_support_set_that_is_too_long_is_refused_with_the_number_to_set():
    learner, theta = regressor()
    x = torch.zeros(7, 1).double()
    with pytest.raises(ValueError, match="sequence_length is 7, but 7 support examples and a query are 8 places"):
        learner.adapt(theta, Batch(x, x))


def test_the_blocks_of_the_paper_have_its_sizes():
    blocks = ["meta_learner.attention=[[64,32],[256,128],[512,256]]", "meta_learner.filters=128"]
    x = experiment("meta_learner=snail", "task=prototypes", "meta_learner.sequence_length=6", *blocks)
    net = x.theta_0["network"]
    # Mishra et al. 2018: each of 2 temporal blocks adds ceil(log2 6) * 128 channels, the attention blocks 32, 128, 256
    assert [len(block["temporal"]) for block in net["blocks"]] == [0, 3, 3]
    assert net["head"]["weight"].shape == (3, 40 + 3 + 32 + 128 + 256 + 2 * 3 * 128)
