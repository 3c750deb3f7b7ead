"""The learned optimizer against closed forms and against a plain loop over torch's own LSTM cells.

float64; EXACT is for the same sums in another order: rounding (1e-16), grown by the LSTM over a few steps.
"""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from metarun.core import Batch, Episode
from metarun.meta_learners.learned_optimizer import LearnedOptimizer
from metarun.models.cells import CoordinatewiseLSTM, LSTMCell, log_and_sign
from metarun.models.linear import Linear
from metarun.objectives import CROSS_ENTROPY
from metarun.tasks.quadratics import SUM_OF_SQUARES
from metarun.trees import tree_map
from tests.helpers import BASES, meta_gradient, one_episode, relative_error

EXACT = 1e-9
P, SCALE = 10.0, 0.1


def on_images(inner_steps: int, unroll: int) -> tuple[LearnedOptimizer, dict]:
    torch.manual_seed(0)
    net, network = BASES["mlp"]().double(), CoordinatewiseLSTM(5, 2).double()
    learner = LearnedOptimizer(net, CROSS_ENTROPY, network, P, SCALE, inner_steps, unroll, 0)
    return learner, learner.init()


# ---- the network ----


def test_a_cell_is_torchs_lstm_cell():
    torch.manual_seed(0)
    ours, theirs = LSTMCell(3, 4).double(), torch.nn.LSTMCell(3, 4).double()
    theirs.load_state_dict(
        {
            "weight_ih": ours.from_input,
            "weight_hh": ours.from_hidden,
            "bias_ih": ours.bias,
            "bias_hh": torch.zeros(16).double(),
        }
    )
    x, h, c = (torch.randn(6, n).double() for n in (3, 4, 4))
    for actual, expected in zip(ours(x, (h, c)), theirs(x, (h, c)), strict=True):
        torch.testing.assert_close(actual, expected, rtol=EXACT, atol=EXACT)


def test_preprocessing_has_the_two_cases_of_the_paper_and_is_finite_at_zero():
    x = torch.tensor([0.0, 1e-30, 1e-6, 0.02, 1.0, 3e4], dtype=torch.float64)
    x = torch.cat([x, -x])
    large = x.abs() >= torch.e**-P
    log = torch.where(large, x.abs().log() / P, -torch.ones_like(x))
    sign = torch.where(large, x.sign(), torch.e**P * x)
    torch.testing.assert_close(log_and_sign(x, P), torch.stack([log, sign], -1), rtol=1e-12, atol=1e-12)


# ---- the meta-gradient ----


def plain_trajectory_loss(learner: LearnedOptimizer, theta: dict, episode: Episode) -> Tensor:
    """The mean loss along the trajectory, with everything cut every ``unroll`` steps: torch alone, weight by weight."""
    cells = []
    for k, size in enumerate((2, 5)):
        cell = torch.nn.LSTMCell(size, 5).double()
        names = {"weight_ih": "from_input", "weight_hh": "from_hidden", "bias_ih": "bias"}
        weights = {theirs: theta[f"cells.{k}.{ours}"] for theirs, ours in names.items()}
        cells.append((cell, {**weights, "bias_hh": torch.zeros(20).double()}))
    phi = {n: p.detach() for n, p in learner.ended(learner.unravel(learner.start()[0]), episode.support).items()}
    states: dict = {n: [(torch.zeros(p.numel(), 5).double(),) * 2] * 2 for n, p in phi.items()}
    total = torch.zeros(()).double()
    for k in range(learner.inner_steps):
        if k % learner.unroll == 0:
            phi, states = tree_map(torch.detach, (phi, states))
        here = {n: p.detach().requires_grad_() for n, p in phi.items()}
        loss = CROSS_ENTROPY.loss(functional_call(learner.base_learner, here, (episode.support.x,)), episode.support.y)
        for (name, p), g in zip(phi.items(), torch.autograd.grad(loss, list(here.values())), strict=True):
            x = torch.stack([g.abs().log().clamp(min=-P) / P, (torch.e**P * g).clamp(-1, 1)], -1).view(-1, 2)
            after = []
            for (cell, weights), state in zip(cells, states[name], strict=True):
                after.append(functional_call(cell, weights, (x, state)))
                x = after[-1][0]
            states[name] = after
            update = x @ theta["head.weight"].T + theta["head.bias"]
            phi = {**phi, name: p + SCALE * update.view(p.shape)}
        outputs = functional_call(learner.base_learner, phi, (episode.query.x,))
        total = total + CROSS_ENTROPY.loss(outputs, episode.query.y) / learner.inner_steps
    return total


@pytest.mark.parametrize(("steps", "unroll"), [(6, 6), (6, 3), (7, 3), (4, 1), (3, 20)])
def test_the_meta_gradient_is_that_of_truncated_backpropagation_through_a_plain_loop(steps, unroll):
    (learner, theta), episode = on_images(steps, unroll), one_episode()
    leaves = {name: p.clone().requires_grad_() for name, p in theta.items()}
    value = plain_trajectory_loss(learner, leaves, episode)
    expected = dict(zip(leaves, torch.autograd.grad(value, list(leaves.values())), strict=True))
    assert relative_error(meta_gradient(learner, theta, episode), expected) < EXACT
    metrics = learner.meta_loss(theta, episode)[1]
    torch.testing.assert_close(metrics["trajectory_loss"], value.detach(), rtol=EXACT, atol=0)


def test_an_optimizer_that_always_takes_the_same_step_has_the_closed_form_gradient():
    """With zero weights the update is the head's bias b: phi_k = phi_0 + k scale b, and within a segment that begins at
    k_0, d f(phi_k) / db = (k - k_0) scale 1^T grad f(phi_k)."""
    torch.manual_seed(0)
    steps, unroll, bias = 5, 2, 0.3
    learner = LearnedOptimizer(
        Linear((4,), 1, 0.5).double(), SUM_OF_SQUARES, CoordinatewiseLSTM(3, 2).double(), P, SCALE, steps, unroll, 0
    )
    theta = {n: torch.full_like(p, bias) if n == "head.bias" else 0 * p for n, p in learner.init().items()}
    w, y, phi_0 = torch.randn(4, 4).double(), torch.randn(4, 1).double(), learner.start()[0][:, None]
    expected = 0.0
    for k in range(1, steps + 1):
        phi = phi_0 + k * SCALE * bias
        slope = (2 * w.T @ (w @ phi - y)).sum()
        expected += (k - (k - 1) // unroll * unroll) * SCALE * slope / steps
    gradient = meta_gradient(learner, theta, Episode(Batch(w, y), Batch(w, y)))
    torch.testing.assert_close(gradient["head.bias"][0], expected, rtol=EXACT, atol=0)


def test_memory_of_the_backward_pass_ends_with_each_segment_and_no_graph_is_returned():
    (learner, theta), episode = on_images(4, 2), one_episode()
    loss, metrics = learner.meta_loss(tree_map(lambda p: p.requires_grad_(), theta), episode)
    assert all(not value.requires_grad for value in metrics.values())
    assert loss.grad_fn is not None and len(set(walk(loss.grad_fn))) < 10 * len(theta)  # sums of theta times constants


def walk(node: object) -> list:
    return [node, *(n for child, _ in node.next_functions if child is not None for n in walk(child))]  # type: ignore


# ---- where it begins, and what it fits ----


def test_a_task_begins_at_the_base_learners_weights_in_another_order_each_step():
    learner, _ = on_images(2, 2)
    initial = torch.cat([p.detach().flatten() for p in learner.base_learner.parameters()])
    starts = [built.start()[0] for built in (learner, learner.at(0), learner.at(1), learner.at(1))]
    for start in starts:
        assert torch.equal(start.sort().values, initial.sort().values)
    assert torch.equal(starts[2], starts[3])
    assert not torch.equal(starts[0], starts[1]) and not torch.equal(starts[1], starts[2])


def test_each_tensor_keeps_its_own_entries():
    torch.manual_seed(0)
    norm = BASES["mlp_transductive"]().double()
    learner = LearnedOptimizer(norm, CROSS_ENTROPY, CoordinatewiseLSTM(3, 1).double(), P, SCALE, 1, 1, 0)
    phi = learner.unravel(learner.start()[0])
    for name, p in norm.named_parameters():
        assert torch.equal(phi[name].flatten().sort().values, p.detach().flatten().sort().values)


@pytest.mark.parametrize("base", BASES)
def test_one_theta_optimizes_any_base_learner(base):
    _, theta = on_images(2, 2)
    other = LearnedOptimizer(
        BASES[base]().double(), CROSS_ENTROPY, CoordinatewiseLSTM(5, 2).double(), P, SCALE, 2, 2, 0
    )
    assert {n: p.shape for n, p in other.init().items()} == {n: p.shape for n, p in theta.items()}
    loss, _ = other.query_loss(other.adapt(theta, one_episode().support), one_episode().query)
    assert torch.isfinite(loss)


def test_it_runs_on_for_more_steps_than_it_was_trained_for():
    (learner, theta), support = on_images(2, 2), one_episode().support
    longer = list(learner.trajectory(theta, support, 9))
    torch.testing.assert_close(longer[9], replace(learner, inner_steps=9).adapt(theta, support))


# ---- wrong input ----


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"unroll": 0}, "unroll is 0; use 1 or more"),
        ({"preprocessing": 0.0}, "preprocessing is 0.0; p must be above 0"),
    ],
)
def test_a_wrong_setting_is_refused_with_the_rule(change, message):
    with pytest.raises(ValueError, match=message):
        replace(on_images(2, 2)[0], **change)


def test_a_network_without_units_is_refused():
    with pytest.raises(ValueError, match="hidden_size 0 and num_layers 2 must be 1 or more"):
        CoordinatewiseLSTM(0, 2)
