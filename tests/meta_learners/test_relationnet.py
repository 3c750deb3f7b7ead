"""Relation networks against plain torch.nn. float64; EXACT is the same sums in another order."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from metarun.core import Batch, Episode
from metarun.execution.execution import Vmapped
from metarun.meta_learners.relationnet import Relation, RelationNet, _structure
from metarun.models.relation_conv import RelationConv
from metarun.objectives import CROSS_ENTROPY
from metarun.trees import slice_tasks
from tests.helpers import (
    BASES,
    SHOTS,
    WAYS,
    check_order_of_classes,
    check_slope,
    check_vmap,
    flat,
    image_episodes,
    meta_gradient,
    moved,
    relative_error,
)

EXACT = 1e-10
IMAGE = (1, 24, 24)  # maps of 4 x 4: the smallest that can be halved twice


def relating(mode: str = "transductive"):
    torch.manual_seed(0)
    learner = RelationNet(RelationConv(IMAGE, WAYS, 3, mode).double(), CROSS_ENTROPY, WAYS, IMAGE, 8)
    return moved(learner)


def relating_vectors(base: str):
    torch.manual_seed(0)
    return RelationNet(BASES[base]().double(), CROSS_ENTROPY, WAYS, (1, 16, 16), 8)


def map_episodes(num_tasks: int) -> Episode:
    """The helpers' images, enlarged."""

    def large(batch: Batch) -> Batch:
        return Batch(F.pad(batch.x, (4, 4, 4, 4), value=0.5), batch.y)

    support, query, _ = image_episodes(num_tasks)
    return Episode(large(support), large(query))


def block(fan_in: int, padding: int, halves: bool) -> list[nn.Module]:
    norm = nn.BatchNorm2d(3, track_running_stats=False)
    return [nn.Conv2d(fan_in, 3, 3, padding=padding), norm, nn.ReLU(), *([nn.MaxPool2d(2)] if halves else [])]


def paper() -> tuple[nn.Module, nn.Module]:
    """The paper's two modules by torch.nn."""
    embedding = nn.Sequential(*block(1, 0, True), *block(3, 0, True), *block(3, 1, False), *block(3, 1, False))
    relation = nn.Sequential(*block(6, 1, True), *block(3, 1, True), nn.Flatten())
    relation.extend([nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1), nn.Sigmoid()])
    return embedding.double(), relation.double()


def loaded(module: nn.Module, params) -> nn.Module:
    """``module`` with the parameters ``params``, whose names differ and whose order is the same."""
    module.load_state_dict(dict(zip(module.state_dict(), params.values(), strict=True)))
    return module


def paper_gradient(theta, episode):
    """Loss and gradient of one task by loops over queries' classes and torch.nn."""
    embedding, relation = (loaded(m, theta[k]) for m, k in zip(paper(), ("embedding", "relation"), strict=True))
    z, queries = embedding(episode.support.x), embedding(episode.query.x)
    sums = [z[episode.support.y == n].sum(0) for n in range(WAYS)]
    together = torch.stack([torch.cat([sums[n], query]) for query in queries for n in range(WAYS)])
    targets = torch.stack([(y == n).double() for y in episode.query.y for n in range(WAYS)])
    loss = ((relation(together)[:, 0] - targets) ** 2).mean()
    parameters = [*embedding.parameters(), *relation.parameters()]
    return loss, torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])


def test_loss_and_meta_gradient_are_those_of_the_papers_network_by_torch_nn():
    learner, theta = relating()
    episode = slice_tasks(map_episodes(1), 0)
    loss, gradient = paper_gradient(theta, episode)
    torch.testing.assert_close(learner.meta_loss(theta, episode)[0], loss, rtol=EXACT, atol=0)
    assert relative_error(flat(meta_gradient(learner, theta, episode)), gradient) < 1e-8  # grown by six batch norms


def test_with_flat_features_the_scores_are_two_linear_layers_on_sum_and_query():
    learner = relating_vectors("mlp")
    theta = learner.init()
    support, query, _ = slice_tasks(image_episodes(1), 0)
    z, queries = (functional_call(learner.base_learner.body, theta["embedding"], (b.x,)) for b in (support, query))
    w1, b1, w2, b2 = theta["relation"].values()
    scores = learner.predict(learner.adapt(theta, support), query.x)
    assert scores.shape == (WAYS * SHOTS, WAYS)
    for q, row in zip(queries, scores, strict=True):
        for n, score in enumerate(row):
            pair = torch.cat([z[support.y == n].sum(0), q])
            expected = torch.sigmoid(w2[0] @ torch.relu(w1 @ pair + b1) + b2[0])
            torch.testing.assert_close(score, expected, rtol=EXACT, atol=0)


@pytest.mark.parametrize("mode", ["transductive", "support"])
def test_with_maps_vmap_and_loop_give_the_same_meta_gradient(mode):
    check_vmap(*relating(mode), map_episodes(3))


def test_meta_gradient_in_mode_support_equals_finite_differences():
    learner, theta = relating("support")
    check_slope(learner, theta, slice_tasks(map_episodes(1), 0), eps=1e-7)  # nearer to a kink, of max-pool


def test_in_mode_support_a_score_does_not_depend_on_the_other_queries():
    learner, theta = relating("support")
    support, query, _ = slice_tasks(map_episodes(1), 0)
    phi = learner.adapt(theta, support)
    alone = torch.cat([learner.predict(phi, x[None]) for x in query.x])
    torch.testing.assert_close(learner.predict(phi, query.x), alone, rtol=EXACT, atol=EXACT)


def test_permuting_the_class_labels_permutes_the_scores():
    check_order_of_classes(*relating(), slice_tasks(map_episodes(1), 0))


def test_the_embedding_has_the_maps_its_docstring_names():
    for side, height in ((28, 5), (84, 19)):
        net = RelationConv((1, side, side), 5, 2, "transductive")
        assert net.body(torch.randn(2, 1, side, side)).shape == (2, 2, height, height)
        assert net(torch.randn(2, 1, side, side)).shape == (2, 5)


def test_the_relation_module_on_omniglot_has_the_parameters_of_the_paper():
    relation = Relation((64, 5, 5), 8, "transductive")
    convolutions = (9 * 128 * 64 + 64 + 128) + (9 * 64 * 64 + 64 + 128)
    assert sum(p.numel() for p in relation.parameters()) == convolutions + (64 * 8 + 8) + (8 + 1)


def test_a_process_may_begin_with_a_vmapped_step():
    _structure.cache_clear()
    learner, theta = relating()
    Vmapped(None).mean_grad(learner.meta_loss, theta, map_episodes(2))


def test_a_learner_made_again_draws_no_random_numbers():
    learner, _ = relating()
    state = torch.get_rng_state()
    again = RelationNet(learner.base_learner, CROSS_ENTROPY, 5, IMAGE, 9)
    again.structure(torch.zeros(2, 3, 4, 4))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("side", "mode", "hidden_size", "message"),
    [
        (16, "transductive", 8, r"body gives \[3, 2, 2\]; use larger images"),
        (24, "running", 8, "batch_norm=running cannot give"),
        (24, "support", 0, "hidden_size is 0; use 1 or more"),
    ],
)
def test_settings_that_cannot_work_are_refused(side, mode, hidden_size, message):
    net = RelationConv((1, side, side), WAYS, 3, mode)
    with pytest.raises(ValueError, match=message):
        RelationNet(net, CROSS_ENTROPY, WAYS, (1, side, side), hidden_size)


@pytest.mark.parametrize("shape", [(1,), (1, 9, 28)])
def test_relation_conv_refuses_inputs_that_are_no_images_or_too_small(shape):
    with pytest.raises(ValueError, match="Choose base_learner=mlp"):
        RelationConv(shape, 2, 3, "transductive")


def test_it_can_begin_as_the_released_code_with_open_rectifiers():
    torch.manual_seed(0)
    base = RelationConv((1, 28, 28), WAYS, 64, "transductive", "released").double()
    theta = RelationNet(base, CROSS_ENTROPY, WAYS, (1, 28, 28), 8, "released").init()
    linear = {name: p for name, p in theta["relation"].items() if p.shape[:1] in ((8,), (1,))}
    assert [float(p.min()) for name, p in linear.items() if name.endswith("bias")] == [1.0, 1.0]
    assert float(theta["relation"]["layers.9.weight"].std()) == pytest.approx(0.01, rel=0.2)
    assert float(theta["embedding"]["4.weight"].std()) == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.05)
    assert float(theta["embedding"]["4.bias"].abs().max()) == 0
