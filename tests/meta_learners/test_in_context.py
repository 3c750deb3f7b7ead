"""The in-context learner beside a plain GPT-2, its causality, its memory and its masks. float64; EXACT: other orders."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call, vmap

from metarun.core import Batch, Episode
from metarun.meta_learners.in_context import InContext
from metarun.models.linear import Linear
from metarun.models.mlp import MLP
from metarun.objectives import CROSS_ENTROPY, SQUARED_ERROR
from metarun.trees import tree_leaves, tree_map
from tests.composing import train
from tests.helpers import meta_gradient, relative_error
from tests.running import identical

EXACT = 1e-10
DIMS, WAYS, SUPPORT, QUERY = 3, 4, 6, 5


def moved(learner: InContext) -> tuple[InContext, Any]:
    return learner, tree_map(lambda p: p + 0.3 * torch.randn_like(p), learner.init())


def regressor() -> tuple[InContext, Any]:
    torch.manual_seed(0)
    net = Linear((DIMS,), 1, 1.0).double()
    return moved(InContext(net, SQUARED_ERROR, (DIMS,), 1, width=8, depth=2, heads=2, max_points=14))


def classifier() -> tuple[InContext, Any]:
    torch.manual_seed(0)
    net = MLP((DIMS,), WAYS, [3], None, "torch").double()
    return moved(InContext(net, CROSS_ENTROPY, (DIMS,), WAYS, width=8, depth=2, heads=2, max_points=14))


def points(of: str) -> Episode:
    g = torch.Generator().manual_seed(1)
    x = torch.randn(SUPPORT + QUERY, DIMS, generator=g, dtype=torch.float64)
    y = x @ torch.randn(DIMS, 1, generator=g, dtype=torch.float64)
    if of == "classes":
        y = torch.randint(WAYS, (len(x),), generator=g)
    return Episode(Batch(x[:SUPPORT], y[:SUPPORT]), Batch(x[SUPPORT:], y[SUPPORT:]))


BUILT = {"targets": regressor, "classes": classifier}
OF = pytest.mark.parametrize("of", ["targets", "classes"])


def plain(theta: Any, z: Tensor, labels: Tensor, heads: int) -> Tensor:
    """The output at the last of the features z [P, D], whose label is not read: GPT-2, place by place."""
    places = []
    for k, (a, b) in enumerate(zip(z, labels, strict=True)):
        for row in (a, b)[: 1 if k == len(z) - 1 else 2]:
            weight = theta["read_in"]["weight"][:, : len(row)]
            places.append(weight @ row + theta["read_in"]["bias"] + theta["positions"][len(places)])

    def norm(of: Any, h: Tensor) -> Tensor:
        return (h - h.mean()) / (h.var(unbiased=False) + 1e-5).sqrt() * of["weight"] + of["bias"]

    for layer in theta["layers"]:
        qkv = [(layer["qkv"]["weight"] @ norm(layer["norm_1"], h) + layer["qkv"]["bias"]).chunk(3) for h in places]
        after = []
        for t, h in enumerate(places):
            read = []
            for head in range(heads):
                q, *_ = (part.chunk(heads)[head] for part in qkv[t])
                keys, values = ([one[i].chunk(heads)[head] for one in qkv[: t + 1]] for i in (1, 2))
                weights = torch.stack([q @ k / math.sqrt(len(q)) for k in keys]).softmax(0)
                read.append(sum(w * v for w, v in zip(weights, values, strict=True)))
            attended = h + layer["out"]["weight"] @ torch.cat(read) + layer["out"]["bias"]
            hidden = layer["expand"]["weight"] @ norm(layer["norm_2"], attended) + layer["expand"]["bias"]
            hidden = F.gelu(hidden, approximate="tanh")
            after.append(attended + layer["contract"]["weight"] @ hidden + layer["contract"]["bias"])
        places = after
    return theta["read_out"]["weight"] @ norm(theta["norm"], places[-1]) + theta["read_out"]["bias"]


@OF
def test_each_prediction_is_that_of_gpt_2_after_the_points_before_it(of):
    learner, theta = BUILT[of]()
    x, y = (torch.cat(both) for both in zip(*(batch[:2] for batch in points(of)[:2]), strict=True))
    z = x if of == "targets" else functional_call(learner.base_learner.body, theta["body"], (x,))
    labels = y if of == "targets" else F.one_hot(y, WAYS).double()
    outputs = learner.outputs(theta, z, labels, None)
    for k in (0, 1, 5, len(x) - 1):
        expected = plain(theta, z[: k + 1], labels[: k + 1], heads=2)
        torch.testing.assert_close(outputs[k], expected, rtol=EXACT, atol=EXACT)


@OF
def test_a_later_point_and_its_own_label_do_not_move_a_prediction(of):
    learner, theta = BUILT[of]()
    z, labels = torch.randn(7, learner_width(learner)).double(), torch.randn(7, learner.num_outputs).double()
    before = learner.outputs(theta, z, labels, None)
    other_z, other_labels = z.clone(), labels.clone()
    other_z[4:], other_labels[3:] = 9.0, -9.0
    after = learner.outputs(theta, other_z, other_labels, None)
    assert torch.equal(before[:4], after[:4])
    assert not torch.isclose(before[4:], after[4:]).any()


def learner_width(learner: InContext) -> int:
    return DIMS if learner.objective is SQUARED_ERROR else 3


@OF
def test_a_prediction_after_adaptation_is_that_of_the_whole_sequence(of):
    learner, theta = BUILT[of]()
    support, query, _ = points(of)
    predictions = learner.predict(learner.adapt(theta, support), query.x)
    for i in range(QUERY):
        alone = Episode(support, Batch(query.x[i : i + 1], query.y[i : i + 1]))
        loss, metrics = learner.meta_loss(theta, alone)
        expected = learner.objective.loss(predictions[i : i + 1], query.y[i : i + 1])
        torch.testing.assert_close(metrics["query_loss"], expected.detach(), rtol=EXACT, atol=EXACT)
        assert not torch.isclose(loss, expected)  # it has those of the support, too


@OF
def test_a_query_sees_no_other_query(of):
    learner, theta = BUILT[of]()
    support, query, _ = points(of)
    phi = learner.adapt(theta, support)
    together = learner.predict(phi, query.x)
    for i in range(QUERY):
        torch.testing.assert_close(learner.predict(phi, query.x[i : i + 1])[0], together[i], rtol=EXACT, atol=EXACT)


@OF
@pytest.mark.parametrize("place", ["front", "middle", "end"])
def test_rows_that_a_mask_leaves_out_change_nothing(of, place):
    learner, theta = BUILT[of]()
    episode = points(of)
    start = {"front": 0, "middle": 3, "end": SUPPORT}[place]

    def padded(batch: Batch, at: int) -> Batch:
        x = torch.cat([batch.x[:at], torch.full((1, DIMS), 7.0).double(), batch.x[at:]])
        y = torch.cat([batch.y[:at], batch.y[-1:], batch.y[at:]])
        return Batch(x, y, torch.arange(len(x)) != at)

    other = Episode(padded(episode.support, start), episode.query)
    one, two = (learner.predict(learner.adapt(theta, e.support), e.query.x) for e in (episode, other))
    torch.testing.assert_close(one, two, rtol=EXACT, atol=EXACT)
    for masked in (
        other,
        Episode(other.support, padded(episode.query, 2)),
        Episode(episode.support, padded(episode.query, 0)),
    ):
        gradients = [meta_gradient(learner, theta, e) for e in (episode, masked)]
        assert all(relative_error(b, a) < EXACT for a, b in zip(*map(tree_leaves, gradients), strict=True) if a.any())
        losses = [learner.query_loss(learner.adapt(theta, e.support), e.query) for e in (episode, masked)]
        torch.testing.assert_close(losses[1], losses[0], rtol=EXACT, atol=EXACT)
        whole = [learner.meta_loss(theta, e) for e in (episode, masked)]
        torch.testing.assert_close(whole[1], whole[0], rtol=EXACT, atol=EXACT)


def test_masks_differ_from_task_to_task_under_vmap():
    learner, theta = regressor()
    support, query, _ = points("targets")
    masks = torch.tensor([[True] * 6, [True, False, True, True, False, False]])
    together = vmap(lambda mask: learner.predict(learner.adapt(theta, Batch(*support[:2], mask)), query.x))(masks)
    for mask, predictions in zip(masks, together, strict=True):
        kept = Batch(support.x[mask], support.y[mask])
        torch.testing.assert_close(
            predictions, learner.predict(learner.adapt(theta, kept), query.x), rtol=EXACT, atol=EXACT
        )


def test_the_loss_is_the_mean_over_all_positions_of_the_sequence():
    learner, theta = regressor()
    episode = points("targets")
    x, y = (torch.cat(both) for both in zip(*(batch[:2] for batch in episode[:2]), strict=True))
    errors = (learner.outputs(theta, x, y, None) - y).square()
    loss, metrics = learner.meta_loss(theta, episode)
    torch.testing.assert_close(loss, errors.mean())
    torch.testing.assert_close(metrics["query_loss"], errors[SUPPORT:].mean().detach())


def test_the_order_of_the_support_counts_as_in_any_sequence():
    learner, theta = regressor()
    support, query, _ = points("targets")
    turned = Batch(support.x.flip(0), support.y.flip(0))
    one, other = (learner.predict(learner.adapt(theta, each), query.x) for each in (support, turned))
    assert not torch.isclose(one, other).any()


def test_sequences_beyond_the_positions_are_refused_with_their_length():
    learner, theta = regressor()
    short = replace(learner, max_points=SUPPORT)
    with pytest.raises(ValueError, match=r"max_points is 6, but a support set and one query are 7 points"):
        short.adapt(theta, points("targets").support)
    with pytest.raises(ValueError, match=r"support and query of a training episode are 11 points"):
        short.meta_loss(theta, points("targets"))
    with pytest.raises(ValueError, match="multiple of heads"):
        replace(learner, width=9)


def test_initial_weights_have_the_deviations_of_gpt_2():
    net = Linear((DIMS,), 1, 1.0)
    theta = InContext(net, SQUARED_ERROR, (DIMS,), 1, width=64, depth=8, heads=2, max_points=50).init()
    for name, deviation in (("qkv", 0.02), ("expand", 0.02), ("out", 0.005), ("contract", 0.005)):
        weights = torch.cat([layer[name]["weight"].flatten() for layer in theta["layers"]])
        assert abs(weights.std() / deviation - 1) < 0.02
    assert abs(theta["positions"].std() / 0.02 - 1) < 0.05


SMALL = [
    *(
        "task=linear_regression",
        "task.num_dims=3",
        "task.num_shots=6",
        "task.train_num_queries=1",
        "task.num_queries=3",
    ),
    *("base_learner=linear", "meta_learner=in_context", "meta_learner.width=8", "meta_learner.depth=2"),
    *("meta_learner.heads=2", "meta_batch_size=3", "evaluation.every=2", "evaluation.num_val_tasks=2"),
    *("evaluation.num_tasks=2", "task.grow_dims=[1,1,2]", "task.grow_shots=[2,2,3]"),
]


def test_a_curriculum_resumed_in_its_midst_ends_bit_for_bit_as_one_that_went_on(tmp_path):
    train(tmp_path / "whole", *SMALL, "steps=8")
    train(tmp_path / "parts", *SMALL, "steps=3")
    train(tmp_path / "parts", *SMALL, "steps=8", "resume=auto")
    one, other = (
        torch.load(tmp_path / run / "checkpoints/last.pt", weights_only=True)["theta"] for run in ("whole", "parts")
    )
    assert identical(one, other)
