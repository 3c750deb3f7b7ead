"""Matching networks against plain loops over torch.nn. float64; EXACT is the same sums in another order."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metarun.core import Batch
from metarun.execution.execution import Vmapped
from metarun.meta_learners.matchingnet import MatchingNet, _structure
from metarun.objectives import CROSS_ENTROPY
from metarun.trees import tree_map
from tests.helpers import (
    BASES,
    IMAGE,
    SHOTS,
    WAYS,
    check_slope,
    check_vmap,
    image_episodes,
    moved,
    one_episode,
)

EXACT = 1e-10
READS = 3


def matching(base: str, num_reads: int = 0):
    torch.manual_seed(0)
    learner = MatchingNet(BASES[base]().double(), CROSS_ENTROPY, WAYS, IMAGE, num_reads)
    return moved(learner)


def features(learner, theta, x):
    return torch.func.functional_call(learner.base_learner.body, theta["embedding"], (x,))


def torch_cell(params) -> nn.LSTMCell:
    """torch's own cell with the same weights, without a graph to them."""
    hidden = params["from_hidden"].shape[1]
    cell = nn.LSTMCell(params["from_input"].shape[1], hidden).double()
    weights = {"weight_ih": params["from_input"], "weight_hh": params["from_hidden"], "bias_ih": params["bias"]}
    cell.load_state_dict({**weights, "bias_hh": torch.zeros(4 * hidden)})
    return cell


def attention(f, g, y):
    """p(n | x) by the paper's sums, one query and one support example at a time."""
    rows = []
    for query in f:
        a = torch.stack([F.cosine_similarity(query, example, dim=0) for example in g]).softmax(0)
        rows.append(torch.stack([a[y == n].sum() for n in range(WAYS)]))
    return torch.stack(rows)


def in_context(theta, z, queries):
    """g and f of the paper's appendix A, for one order of the support set, by torch's cells."""
    zero = torch.zeros(z.shape[1]).double()
    sums = [row.clone() for row in z]
    for name, order in (("forward", range(len(z))), ("backward", reversed(range(len(z))))):
        cell, state = torch_cell(theta[name]), (zero, zero)
        for i in order:
            state = cell(z[i], state)
            sums[i] = sums[i] + state[0]
    g, reader, f = torch.stack(sums), torch_cell(theta["reader"]), []
    for query in queries:
        h, c = zero, zero
        for _ in range(READS):
            r = (g @ h).softmax(0) @ g
            h, c = reader(torch.cat([query, r]), (h, c))
            h = h + query
        f.append(h)
    return g, torch.stack(f)


@pytest.mark.parametrize("base", ["mlp", "stride_transductive"])
def test_the_softmax_of_the_outputs_is_the_attention_over_the_support_set(base):
    learner, theta = matching(base)
    support, query, _ = one_episode()
    expected = attention(features(learner, theta, query.x), features(learner, theta, support.x), support.y)
    outputs = learner.predict(learner.adapt(theta, support), query.x)
    torch.testing.assert_close(outputs.softmax(1), expected, rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("base", ["mlp", "stride_transductive"])
def test_full_context_embeddings_are_those_of_torchs_lstm_cells(base):
    learner, theta = matching(base, READS)
    support, query, _ = one_episode()
    g, f = in_context(theta, features(learner, theta, support.x), features(learner, theta, query.x))
    phi = learner.adapt(theta, support)
    torch.testing.assert_close(phi["memory"], g, rtol=EXACT, atol=EXACT)
    expected = attention(f, g, support.y)
    torch.testing.assert_close(learner.predict(phi, query.x).softmax(1), expected, rtol=EXACT, atol=EXACT)


def test_a_scale_multiplies_the_cosines_and_does_not_overflow_in_single_precision():
    learner, theta = matching("mlp")
    support, query, _ = one_episode()
    g, f = (F.normalize(features(learner, theta, x)) for x in (support.x, query.x))
    expected = (100 * f @ g.T).softmax(1) @ F.one_hot(support.y, WAYS).double()
    sharp = replace(learner, scale=100.0)
    phi = sharp.adapt(theta, support)
    torch.testing.assert_close(sharp.predict(phi, query.x).softmax(1), expected, rtol=EXACT, atol=EXACT)
    sharp.base_learner.float()
    in_single = sharp.predict(tree_map(Tensor.float, phi), query.x.float())
    assert in_single.isfinite().all()
    with pytest.raises(ValueError, match="scale is 0"):
        replace(learner, scale=0.0)


def test_the_loss_is_minus_the_logarithm_of_the_attention_on_the_right_class():
    learner, theta = matching("mlp")
    support, query, _ = one_episode()
    p = attention(features(learner, theta, query.x), features(learner, theta, support.x), support.y)
    loss, _ = learner.query_loss(learner.adapt(theta, support), query)
    torch.testing.assert_close(loss, -p[torch.arange(len(p)), query.y].log().mean(), rtol=EXACT, atol=0)


@pytest.mark.parametrize("num_reads", [0, READS])
@pytest.mark.parametrize("base", ["mlp_support", "stride_transductive"])
def test_meta_gradient_equals_finite_differences(base, num_reads):
    check_slope(*matching(base, num_reads), one_episode())


@pytest.mark.parametrize("base", BASES)
def test_with_full_context_vmap_and_loop_give_the_same_meta_gradient(base):
    check_vmap(*matching(base, READS), image_episodes(3))


def test_a_process_may_begin_with_a_vmapped_step():
    _structure.cache_clear()
    learner, theta = matching("mlp", READS)
    Vmapped(None).mean_grad(learner.meta_loss, theta, image_episodes(2))


def test_only_full_context_embeddings_see_the_order_of_the_support_set():
    support, query, _ = one_episode()
    order = torch.randperm(WAYS * SHOTS, generator=torch.Generator().manual_seed(3))
    for num_reads, same in ((0, True), (READS, False)):
        learner, theta = matching("mlp", num_reads)
        straight = learner.predict(learner.adapt(theta, support), query.x)
        shuffled = learner.predict(learner.adapt(theta, Batch(support.x[order], support.y[order])), query.x)
        assert torch.allclose(shuffled, straight, rtol=EXACT, atol=EXACT) == same


def test_a_negative_number_of_reads_is_refused():
    with pytest.raises(ValueError, match=r"num_reads is -1; use 1 or more, or 0"):
        MatchingNet(BASES["mlp"](), CROSS_ENTROPY, WAYS, IMAGE, -1)
