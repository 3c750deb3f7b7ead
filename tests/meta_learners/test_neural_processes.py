"""What CNP, ANP, TNP and ConvCNP have in common, and each against plain torch. float64.

EXACT is for the same sums in another order.
"""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Normal as TorchNormal
from torch.distributions import kl_divergence

from metarun.core import Batch, Episode, FewShotLearner, Params
from metarun.errors import ConfigError
from metarun.meta_learners.anp import Normal, latent, summary
from metarun.models.unet import through
from metarun.trees import slice_tasks, tree_flatten, tree_map
from tests.composing import experiment
from tests.helpers import check_slope, check_vmap, meta_gradient, relative_error

EXACT = 1e-10
SMALL = {
    "cnp": ["meta_learner.width=8", "meta_learner.encoder_layers=2"],
    "anp": ["meta_learner.width=8", "meta_learner.heads=2", "meta_learner.latent_width=5"],
    "tnp": ["meta_learner.width=8", "meta_learner.heads=2", "meta_learner.depth=2", "meta_learner.feedforward=12"],
    "convcnp": ["meta_learner.points_per_unit=8", "meta_learner.channels=6", "meta_learner.levels=2"],
}
SMALL["attentive_cnp"] = [*SMALL["cnp"], "meta_learner.aggregation=attention"]
NAMES = pytest.mark.parametrize("name", SMALL)


def made(name: str) -> tuple[FewShotLearner, Params, Episode]:
    """A small learner, a theta away from ones and zeros, and three tasks of 6 points."""
    x = experiment(
        *(f"meta_learner={name.removeprefix('attentive_')}", "task=gp_rbf", "base_learner=linear", "dtype=float64"),
        *("task.num_shots=6", "task.num_queries=4", *SMALL[name]),
    )
    torch.manual_seed(1)
    theta = tree_map(lambda p: p + 0.1 * torch.randn_like(p), x.theta_0)
    return x.learner, theta, x.task.sample("train", range(3))


def one(episodes: Episode) -> tuple[Batch, Batch]:
    return slice_tasks(episodes, 0)[:2]


def outputs(learner: FewShotLearner, theta: Params, support: Batch, x: Tensor) -> Tensor:
    """Mean and deviation side by side [Q, 2]."""
    return torch.cat(learner.posterior(learner.adapt(theta, support), x), 1)


def padded(batch: Batch, number: int) -> Batch:
    """The batch and so many rows more that are no examples, and no numbers that a mean could hide."""
    rows = torch.full((number, 1), 1.7, dtype=torch.float64)
    mask = torch.arange(len(batch.x) + number) < len(batch.x)
    return Batch(torch.cat([batch.x, rows]), torch.cat([batch.y, 50 * rows]), mask)


# ---- all of them ----


@NAMES
def test_predictions_do_not_depend_on_the_order_of_the_context(name):
    learner, theta, episodes = made(name)
    support, query = one(episodes)
    straight, reversed_ = (
        outputs(learner, theta, s, query.x) for s in (support, Batch(support.x.flip(0), support.y.flip(0)))
    )
    torch.testing.assert_close(reversed_, straight, rtol=0, atol=EXACT)


@NAMES
def test_a_prediction_is_the_same_whatever_else_is_asked(name):
    learner, theta, episodes = made(name)
    support, query = one(episodes)
    alone = torch.cat([outputs(learner, theta, support, x[None]) for x in query.x])
    torch.testing.assert_close(alone, outputs(learner, theta, support, query.x), rtol=0, atol=EXACT)


@NAMES
def test_padded_rows_change_neither_predictions_nor_losses_nor_meta_gradients(name):
    learner, theta, episodes = made(name)
    support, query = one(episodes)
    assert learner.reads_masks
    torch.testing.assert_close(
        outputs(learner, theta, padded(support, 3), query.x),
        outputs(learner, theta, support, query.x),
        rtol=0,
        atol=EXACT,
    )
    plain, more = Episode(support, query), Episode(padded(support, 3), padded(query, 2))
    (loss, metrics), (other_loss, other_metrics) = (learner.meta_loss(theta, e) for e in (plain, more))
    torch.testing.assert_close(other_loss, loss, rtol=0, atol=EXACT)
    torch.testing.assert_close(other_metrics, metrics, rtol=0, atol=EXACT)
    scores = [learner.query_loss(learner.adapt(theta, e.support), e.query)[1] for e in (plain, more)]
    torch.testing.assert_close(*scores, rtol=0, atol=EXACT)
    assert relative_error(meta_gradient(learner, theta, more), meta_gradient(learner, theta, plain)) < EXACT


@NAMES
def test_masks_of_its_own_in_each_task_hold_under_vmap(name):
    learner, theta, (support, query, _) = made(name)
    masks = torch.arange(6) < torch.tensor([[2], [6], [4]])
    check_vmap(learner, theta, Episode(support._replace(mask=masks), query))


@NAMES
def test_the_meta_gradient_is_that_of_finite_differences(name):
    learner, theta, episodes = made(name)
    check_slope(learner, theta, Episode(*one(episodes)), close=(1e-5, 1e-7))


@NAMES
def test_the_smallest_deviation_is_a_floor_and_zero_is_none(name):
    learner, theta, episodes = made(name)
    support, query = one(episodes)

    def lowest(floor: float) -> Tensor:
        return outputs(replace(learner, smallest_deviation=floor), theta, support, query.x)[:, 1].min()

    assert lowest(0.9) > 0.9 > lowest(0.0) > 0
    with pytest.raises(ValueError, match=r"smallest_deviation is 1; use 0"):
        replace(learner, smallest_deviation=1)


@pytest.mark.parametrize("name", ["anp", "tnp", "convcnp"])
def test_classes_are_refused_with_another_choice(name):
    with pytest.raises(ConfigError, match=r"choose|classes"):
        experiment(f"meta_learner={name}", "task=prototypes", "base_learner=linear")


# ---- transformer ----


def test_a_tnp_is_torchs_encoder_with_the_mask_of_the_released_code():
    learner, theta, episodes = made("tnp")
    support, query = one(episodes)
    encoder = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(8, 2, 12, 0.0, batch_first=True, dtype=torch.float64), 2, enable_nested_tensor=False
    )
    names = {"qkv": "self_attn.in_proj_", "out": "self_attn.out_proj.", "expand": "linear1.", "contract": "linear2."}
    names |= {"norm_1": "norm1.", "norm_2": "norm2."}
    for own, layer in zip(encoder.layers, theta["layers"], strict=True):
        own.load_state_dict({names[part] + k: v for part, weights in layer.items() for k, v in weights.items()})

    def mlp(layers: Params, x: Tensor) -> Tensor:
        for i, layer in enumerate(layers):
            x = F.linear(x if i == 0 else x.relu(), **layer)
        return x

    rows = torch.cat([torch.cat([support.x, support.y], 1), torch.cat([query.x, torch.zeros_like(query.y)], 1)])
    unseen = torch.full((10, 10), -torch.inf, dtype=torch.float64)
    unseen[:, :6] = 0.0
    tokens = encoder(mlp(theta["embedder"], rows)[None], mask=unseen)[0, 6:]
    mean, raw = mlp(theta["predictor"], tokens).chunk(2, 1)
    expected = torch.cat([mean, F.softplus(raw)], 1)
    torch.testing.assert_close(outputs(learner, theta, support, query.x), expected, rtol=0, atol=EXACT)


# ---- latent path ----


def test_the_divergence_and_density_of_latents_are_torchs():
    a, b = (Normal(torch.randn(5).double(), torch.rand(5).double() + 0.1) for _ in range(2))
    expected = kl_divergence(TorchNormal(*a), TorchNormal(*b)).sum()
    torch.testing.assert_close(a.divergence(b), expected, rtol=0, atol=EXACT)
    draws = a.draws(seed=3, number=4)
    torch.testing.assert_close(b.log_density(draws), TorchNormal(*b).log_prob(draws).sum(1), rtol=0, atol=EXACT)


def test_draws_of_a_latent_have_its_mean_and_deviation():
    normal = Normal(torch.tensor([1.0, -2.0]).double(), torch.tensor([0.5, 2.0]).double())
    draws = normal.draws(seed=0, number=20000)
    assert ((draws.mean(0) - normal.mean).abs() < 5 * normal.deviation / 20000**0.5).all()
    assert ((draws.std(0) / normal.deviation - 1).abs() < 5 / 40000**0.5).all()


def test_training_an_anp_minimises_its_evidence_bound():
    learner, theta, episodes = made("anp")
    support, query = one(episodes)
    phi = learner.adapt(theta, support)
    both = Batch(torch.cat([support.x, query.x]), torch.cat([support.y, query.y]))
    prior, posterior = (latent(theta, summary(theta, torch.cat([b.x, b.y], 1), b)) for b in (support, both))
    draw = posterior.draws(learner.seed, 1)
    mean, deviation = learner.decode(phi, learner.attended(phi, query.x), draw)
    fit = TorchNormal(mean[0], deviation[0]).log_prob(query.y).mean()
    expected = -fit + kl_divergence(TorchNormal(*posterior), TorchNormal(*prior)).sum() / 4
    loss, metrics = learner.meta_loss(theta, Episode(support, query))
    torch.testing.assert_close(loss, expected, rtol=0, atol=EXACT)
    torch.testing.assert_close(metrics["negative_elbo"], expected, rtol=0, atol=EXACT)


def test_the_importance_weighted_likelihood_tends_to_that_by_draws_of_the_prior():
    learner, theta, episodes = made("anp")
    support, query = one(episodes)
    learner = replace(learner, samples=20000)
    phi = learner.adapt(theta, support)
    weighted = learner.query_loss(phi, query)[1]["joint_negative_log_likelihood"]
    draws = latent(theta, phi["summary"]).draws(7, 20000)
    mean, deviation = learner.decode(phi, learner.attended(phi, query.x), draws)
    each = TorchNormal(mean, deviation).log_prob(query.y).sum((1, 2))
    plain = -(each.logsumexp(0) - math.log(20000)) / 4
    assert abs(weighted - plain) < 0.01


def test_the_likelihood_of_a_query_on_its_own_is_that_of_the_mixture_over_draws():
    learner, theta, episodes = made("anp")
    support, query = one(episodes)
    phi = learner.adapt(theta, support)
    draws = latent(theta, phi["summary"]).draws(learner.seed, learner.samples)
    mean, deviation = learner.decode(phi, learner.attended(phi, query.x), draws)
    density = TorchNormal(mean, deviation).log_prob(query.y).exp().mean(0)  # [Q, 1]
    torch.testing.assert_close(learner.query_loss(phi, query)[0], -density.log().mean(), rtol=0, atol=EXACT)


def test_draws_are_renewed_each_step_and_the_same_at_each_evaluation():
    learner, theta, episodes = made("anp")
    episode = Episode(*one(episodes))
    losses = [learner.at(step).meta_loss(theta, episode)[0] for step in (3, 3, 4)]
    assert losses[0] == losses[1] != losses[2]
    torch.manual_seed(99)
    phi = learner.adapt(theta, episode.support)
    assert learner.query_loss(phi, episode.query)[0] == learner.query_loss(phi, episode.query)[0]
    assert replace(learner, seed=1).at(0) != learner.at(0)


# ---- convolution ----


def test_the_grid_of_a_convcnp_holds_density_and_signal_as_the_formula_says():
    learner, theta, episodes = made("convcnp")
    support, query = one(episodes)
    t = learner.grid(support.x)
    assert t[0] <= -2.2 and t[-1] >= 2.2 and len(t) % 4 == 0
    torch.testing.assert_close(t.diff(), torch.full_like(t[1:], 1 / 8), rtol=0, atol=EXACT)
    to, back = (theta["log_length"][k].exp() for k in ("to", "back"))
    density, signal = torch.zeros_like(t), torch.zeros_like(t)
    for x, y in zip(support.x[:, 0], support.y[:, 0], strict=True):
        weight = (-((x - t) ** 2) / (2 * to**2)).exp()
        density, signal = density + weight, signal + weight * y
    field = through(theta["net"], torch.stack([density, signal / (density + 1e-4)]))  # [2, G]
    weights = (-((query.x - t) ** 2) / (2 * back**2)).exp()  # [Q, G]
    mean, raw = weights @ field[0], weights @ field[1]
    expected = torch.stack([mean, F.softplus(raw)], 1)
    torch.testing.assert_close(outputs(learner, theta, support, query.x), expected, rtol=0, atol=EXACT)


def test_far_from_its_ends_a_shifted_context_shifts_the_predictions_of_a_convcnp():
    learner, theta, episodes = made("convcnp")
    support, query = one(episodes)
    wide = replace(learner, interval=[-12.0, 12.0])
    shift = 4 / 8  # places of the coarsest of three grids
    moved = outputs(wide, theta, Batch(support.x + shift, support.y), query.x + shift)
    torch.testing.assert_close(moved, outputs(wide, theta, support, query.x), rtol=0, atol=EXACT)


def test_a_u_net_is_torchs_modules_in_turn():
    _, theta, _ = made("convcnp")
    net, x = theta["net"], torch.randn(2, 16).double()
    h0 = F.conv1d(x[None], **net["first"])
    h1 = F.relu(F.conv1d(h0, **net["down"][0], stride=2, padding=2))
    h2 = F.relu(F.conv1d(h1, **net["down"][1], stride=2, padding=2))
    assert h2.shape[2] == 4
    u1 = F.relu(F.conv_transpose1d(h2, **net["up"][0], stride=2, padding=2, output_padding=1))
    u0 = F.conv_transpose1d(torch.cat([u1, h1], 1), **net["up"][1], stride=2, padding=2, output_padding=1).relu()
    torch.testing.assert_close(through(net, x), F.conv1d(u0, **net["last"])[0], rtol=0, atol=EXACT)
    assert len(tree_flatten(net)[0]) == 12


def test_a_convcnp_refuses_inputs_of_more_than_one_number():
    learner, _, _ = made("convcnp")
    with pytest.raises(ValueError, match=r"inputs of shape \[2\]; choose tnp"):
        replace(learner, input_shape=(2,))
    with pytest.raises(ValueError, match=r"interval is \[1, 1\]; use \[lowest, highest\]"):
        replace(learner, interval=[1, 1])


@NAMES
def test_the_probability_below_a_target_has_the_likelihood_as_its_slope(name):
    learner, theta, episodes = made(name)
    support, query = one(episodes)
    phi = learner.adapt(theta, support)
    y = query.y[:1].clone().requires_grad_()
    (slope,) = torch.autograd.grad(learner.below(phi, query.x[:1], y).sum(), y)
    _, metrics = learner.query_loss(phi, Batch(query.x[:1], query.y[:1]))
    torch.testing.assert_close(slope.sum().log(), -metrics["negative_log_likelihood"], rtol=EXACT, atol=EXACT)
