"""Attentive neural process: a deterministic path that looks at the support set, and a latent one that sums it up.

    deterministic:  r(x) = attention of MLP(z(x)) to the MLP(z(x_s)), reading h(z(x_s), y_s);   z(x) = body(x)
    latent:         q(l | D) = N(mean, deviation^2) = MLP(mean over D of k(z(x), y)),   deviation = 0.1 + 0.9 sigmoid
    prediction:     (mean, deviation) of y at x = g(z(x), r(x), l)

    training:       -E_q(l | C, T) [mean over T of log p(y | x, r(x), l)] + KL(q(l | C, T) || q(l | C)) / |T|
    evaluation:     negative_log_likelihood = -mean over T of log E_q(l | C) p(y | x, r(x), l): query by query
                    joint_negative_log_likelihood = -log E_q(l | C, T) [p(T | l) q(l | C) / q(l | C, T)] / |T|, both by
                    ``samples`` draws; the latter is importance-weighted (Burda et al. 2016), and a bound from above

C is the support set, T the query set; they are kept apart, where the released code has C in T. The draws are those of
``seed``, which ``at`` replaces every training step: the tasks of a step share them, as they share the masks of dropout, and
evaluation has the same each time. The base learner's head is not used and not trained.

Kim et al., ICLR 2019, https://arxiv.org/abs/1901.05761; released code: https://github.com/deepmind/neural-processes, which
has no self-attention on curves. Without the latent path it is ``cnp`` with ``aggregation: attention``. Cost: one forward
and backward pass; the decoder runs once for each draw.

S support, Q query, D features, P outputs, C width, E entries of l, L draws
"""

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from metarun.core import Batch, Episode, FewShotLearner, Metrics, Params, parameters_of
from metarun.counter import normal, uniform
from metarun.meta_learners.likelihood import check_smallest, deviation_of, mean_of, of_mean, surprise
from metarun.models.attention import join, similarity, split, weights_of
from metarun.models.dense import dense, perceptron
from metarun.models.norm_state import with_support
from metarun.models.parts import body_of, num_features
from metarun.objectives import examples_of


class Normal(NamedTuple):
    """Independent normal numbers, their means and deviations [E]."""

    mean: Tensor
    deviation: Tensor

    def draws(self, seed: int, number: int) -> Tensor:
        """``number`` draws [L, E], which are a function of the seed."""
        noise = torch.from_numpy(standard_normal(seed, number, len(self.mean))).to(self.mean)
        return self.mean + self.deviation * noise

    def log_density(self, l: Tensor) -> Tensor:  # noqa: E741
        """Log density of draws l [L, E]: [L]."""
        return -surprise(self.mean, self.deviation, l).sum(1)

    def divergence(self, other: "Normal") -> Tensor:
        """KL(self || other)."""
        ratio = self.deviation / other.deviation
        return (
            ((self.mean - other.mean) / other.deviation).square() + ratio.square() - 1
        ).sum() / 2 - ratio.log().sum()


@dataclass(frozen=True)
class ANP(FewShotLearner):
    """An attentive neural process, for regression on ``num_outputs`` targets.

    ``width`` C, a multiple of ``heads``, is that of every hidden layer, and ``latent_width`` E the length of l. h and k
    have ``encoder_layers`` (1 or more) linear layers, g ``decoder_layers`` (0 or more) hidden ones. An evaluation takes
    ``samples`` draws, a training step ``train_samples``. No deviation is below ``smallest_deviation``; 0: unbounded.
    """

    reads_masks: ClassVar[bool] = True

    input_shape: tuple[int, ...]
    num_outputs: int
    num_ways: int | None  # None: regression, as it must be
    width: int
    latent_width: int
    heads: int
    encoder_layers: int
    decoder_layers: int
    samples: int
    train_samples: int
    smallest_deviation: float
    seed: int

    def __post_init__(self) -> None:
        body_of(self.base_learner)
        check_smallest(self.smallest_deviation)
        if self.num_ways is not None:
            raise ValueError("anp predicts numbers, but the task has classes; choose protonet, snail or cnp.")
        names = ("width", "latent_width", "heads", "encoder_layers", "samples", "train_samples")
        if wrong := [f"{name} is {getattr(self, name)}" for name in names if getattr(self, name) < 1]:
            raise ValueError(f"{', '.join(wrong)}; use 1 or more.")
        if self.width % self.heads or self.decoder_layers < 0:
            raise ValueError(
                f"width is {self.width}, heads {self.heads} and decoder_layers {self.decoder_layers}; width must be a "
                "multiple of heads, and decoder_layers 0 or more."
            )

    def at(self, step: int) -> "ANP":
        return replace(self, seed=(self.seed << 32) + step)  # no two runs share a step's draws

    def init(self) -> Params:
        like, features = next(self.base_learner.parameters()), num_features(self.base_learner, self.input_shape)
        encoder = [features + self.num_outputs] + [self.width] * self.encoder_layers
        decoder = [features + self.width + self.latent_width] + [self.width] * self.decoder_layers
        return {
            "body": parameters_of(body_of(self.base_learner)),
            "encoder": dense(encoder, like),
            "place": dense([features, self.width, self.width], like),
            "projections": {name: dense([self.width] * 2, like)[0] for name in ("query", "key", "value", "out")},
            "latent_encoder": dense(encoder, like),
            "latent": dense([self.width, self.width, 2 * self.latent_width], like),
            "decoder": dense([*decoder, 2 * self.num_outputs], like),
        }

    def adapt(self, theta: Params, support: Batch) -> Params:
        body, seen, size = body_of(self.base_learner), examples_of(support), self.width // self.heads
        z = functional_call(body, theta["body"], (support.x,))  # [S, D]
        pairs = torch.cat([z, support.y.flatten(1)], 1)
        to = theta["projections"]
        phi = {
            **theta,
            "body": with_support(body, theta["body"], support.x),
            "keys": split(F.linear(perceptron(theta["place"], z), **to["key"]), size),  # [H, S, d]
            "values": split(F.linear(perceptron(theta["encoder"], pairs), **to["value"]), size),
            "summary": summary(theta, pairs, support),
        }
        return phi if seen is None else {**phi, "seen": seen}

    def attended(self, phi: Params, z: Tensor) -> Tensor:
        """z [Q, D] beside what it reads of the support: [Q, D + C]."""
        to = phi["projections"]
        query = split(F.linear(perceptron(phi["place"], z), **to["query"]), self.width // self.heads)
        read = join(weights_of(similarity(query, phi["keys"]), phi.get("seen")) @ phi["values"])
        return torch.cat([z, F.linear(read, **to["out"])], 1)

    def decode(self, phi: Params, attended: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
        """Means and deviations [L, Q, P] of y for each of the draws [L, E]."""
        both = torch.cat(
            [attended.expand(len(draws), -1, -1), draws[:, None].expand(-1, len(attended), -1)], 2
        )  # [L, Q, D + C + E]
        mean, raw = perceptron(phi["decoder"], both).chunk(2, 2)
        return mean, deviation_of(raw, self.smallest_deviation)

    def predict(self, phi: Params, x: Tensor) -> Tensor:
        return self.posterior(phi, x)[0]

    def posterior(self, phi: Params, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the mixture over draws of q(l | C)."""
        return moments(*self.mixture(phi, x))

    def below(self, phi: Params, x: Tensor, y: Tensor) -> Tensor:
        means, deviations = self.mixture(phi, x)
        return torch.special.ndtr((y - means) / deviations).mean(0)

    def mixture(self, phi: Params, x: Tensor) -> tuple[Tensor, Tensor]:
        """Means and deviations [L, Q, P] of y for draws of q(l | C)."""
        z = functional_call(body_of(self.base_learner), phi["body"], (x,))
        draws = latent(phi, phi["summary"]).draws(self.seed, self.samples)
        return self.decode(phi, self.attended(phi, z), draws)

    def query_loss(self, phi: Params, query: Batch) -> tuple[Tensor, Metrics]:
        z = functional_call(body_of(self.base_learner), phi["body"], (query.x,))  # [Q, D]
        attended, (prior, posterior) = self.attended(phi, z), self.latents(phi, z, query)
        means, deviations = self.decode(phi, attended, prior.draws(self.seed, self.samples))
        alone = surprise(means, deviations, query.y).sum(2)  # [L, Q]
        loss = mean_of(log_mean_exp(-alone).neg()[:, None], query) / self.num_outputs

        draws = posterior.draws(self.seed, self.samples)
        every = torch.stack([mean_of(s, query) for s in surprise(*self.decode(phi, attended, draws), query.y)])  # [L]
        number = num_rows(query) * self.num_outputs
        log_weight = -every * number + prior.log_density(draws) - posterior.log_density(draws)
        return loss, {
            **of_mean(self.objective, moments(means, deviations)[0], query),
            "negative_log_likelihood": loss.detach(),
            "joint_negative_log_likelihood": -log_mean_exp(log_weight).detach() / number,
        }

    def meta_loss(self, theta: Params, episode: Episode) -> tuple[Tensor, Metrics]:
        phi, query = self.adapt(theta, episode.support), episode.query
        z = functional_call(body_of(self.base_learner), phi["body"], (query.x,))
        prior, posterior = self.latents(phi, z, query)
        means, deviations = self.decode(phi, self.attended(phi, z), posterior.draws(self.seed, self.train_samples))
        alone = surprise(means, deviations, query.y).mean(0)  # [Q, P]
        divergence = posterior.divergence(prior) / (num_rows(query) * self.num_outputs)
        loss = mean_of(alone, query) + divergence
        metrics = of_mean(self.objective, means.mean(0), query)
        return loss, {**metrics, "negative_elbo": loss.detach(), "divergence": divergence.detach()}

    def latents(self, phi: Params, z: Tensor, query: Batch) -> tuple[Normal, Normal]:
        """q(l | C) and q(l | C, T) for the query set with features z [Q, D]."""
        own = summary(phi, torch.cat([z, query.y.flatten(1)], 1), query)
        return latent(phi, phi["summary"]), latent(phi, phi["summary"] + own)


def summary(weights: Params, pairs: Tensor, batch: Batch) -> Tensor:
    """Sum of k over the examples, whose (z, y) are ``pairs`` [S, D + P], and at the end their number: [C + 1]."""
    rows = torch.cat([perceptron(weights["latent_encoder"], pairs), torch.ones_like(pairs[:, :1])], 1)
    mask = examples_of(batch)
    return rows.sum(0) if mask is None else torch.where(mask[:, None], rows, 0).sum(0)


def latent(weights: Params, summed: Tensor) -> Normal:
    """q(l | D), given the ``summary`` of D: of all sets that make it up, theirs are added."""
    mean, raw = perceptron(weights["latent"], summed[:-1] / summed[-1].clamp(min=1)).chunk(2)
    return Normal(mean, 0.1 + 0.9 * raw.sigmoid())


def num_rows(batch: Batch) -> Tensor | int:
    """The number of examples in a batch."""
    mask = examples_of(batch)
    return len(batch.x) if mask is None else mask.sum()


def moments(means: Tensor, deviations: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation [Q, P] of an even mixture of normal numbers [L, Q, P]."""
    mean = means.mean(0)
    return mean, ((means - mean).square() + deviations.square()).mean(0).sqrt()


def log_mean_exp(values: Tensor) -> Tensor:
    """Log of the mean of exp over the first axis."""
    return values.logsumexp(0) - math.log(len(values))


@lru_cache(maxsize=8)  # the tasks of a step share them
def standard_normal(seed: int, number: int, size: int) -> np.ndarray:
    """``number`` vectors ~ N(0, I): [L, E]."""
    return normal(uniform(seed, "anp", np.arange(number), size + size % 2))[:, :size]
