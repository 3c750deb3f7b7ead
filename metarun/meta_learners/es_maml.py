"""ES-MAML: MAML whose meta-gradient is estimated from values of the query loss alone, by evolution strategies.

    F(theta) = L(phi_K(theta), query);   phi_{k+1} = phi_k - inner_lr * grad L(phi_k, support)
    meta-gradient = mean over i of (F(theta + sigma e_i) - F(theta - sigma e_i)) / (2 sigma) * e_i,   e_i ~ N(0, I), n pairs

It estimates the gradient of F smoothed by a Gaussian of width sigma: the bias is of order sigma^2 (none on a quadratic);
the variance there is (d + 1) / n times the squared gradient, d the number of parameters. F need not be differentiable.

The directions are those of ``seed``, which ``at`` replaces every training step, and one step's tasks share them; the paper
draws new ones for each task. The paper's tasks are reinforcement learning, where adapting has no exact gradients either
(ES, hill climbing); here the inner loop takes gradients, and nothing is differentiated through it.

Song et al., ICLR 2020, https://arxiv.org/abs/1910.01215. Cost: 2 n + 1 adaptations a task (the last to log the loss at
theta), all n pairs at once in memory, which does not grow with ``inner_steps``; nothing is differentiated twice. To be as
accurate as one exact meta-gradient n must be many times d: for small networks.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.func import vmap

from metarun.core import Batch, Episode, Metrics, Params, surrogate
from metarun.counter import normal, uniform
from metarun.inner.loops import first_order_descent
from metarun.inner.optimizers import SGD
from metarun.meta_learners.base import GradientLearner
from metarun.trees import detach, ravel, tree_map


@dataclass(frozen=True)
class ESMAML(GradientLearner):
    """MAML by evolution strategies, whose meta-gradient is made of values of the query loss.

    ``inner_lr`` and ``inner_steps`` are those of the inner gradient descent. ``sigma`` (above 0) is the width of the
    perturbations of theta, ``num_pairs`` n (1 or more) the number of antithetic pairs, and ``seed`` decides on them.
    """

    inner_lr: float
    inner_steps: int
    sigma: float
    num_pairs: int
    seed: int

    def __post_init__(self) -> None:
        if self.sigma <= 0:
            raise ValueError(f"sigma is {self.sigma}; differences are divided by it, so use a number above 0.")
        if self.num_pairs < 1:
            raise ValueError(f"num_pairs is {self.num_pairs}; use 1 or more.")

    def at(self, step: int) -> "ESMAML":
        return replace(self, seed=(self.seed << 32) + step)  # no two runs share a step's directions

    def path(self, theta: Params, support: Batch, steps: int) -> Iterator[Params]:
        return first_order_descent(self.support_loss, theta, SGD(self.inner_lr), steps, support)

    def meta_loss(self, theta: Params, episode: Episode) -> tuple[Tensor, Metrics]:
        centre, tree_of = ravel(detach(theta))

        def value(vector: Tensor, episode: Episode) -> Tensor:
            phi = self.adapt(tree_of(vector), episode.support)
            return self.query_loss(phi, episode.query)[0]

        e = torch.from_numpy(directions(self.seed, self.num_pairs, len(centre))).to(centre)  # [n, d]
        shifted = centre + self.sigma * torch.cat([e, -e])  # [2 n, d]
        # torch 2.14: mse_loss fails where an outer vmap batches the target and this one does not, so both do
        same = tree_map(lambda t: t.expand(len(shifted), *t.shape), episode)
        up, down = vmap(value, randomness="different")(shifted, same).chunk(2)
        gradient = (up - down) @ e / (2 * self.sigma * self.num_pairs)
        _, metrics = self.query_loss(self.adapt(detach(theta), episode.support), episode.query)
        return surrogate(theta, tree_of(gradient)), metrics


@lru_cache(maxsize=1)  # the tasks of a step share them
def directions(seed: int, num_pairs: int, size: int) -> np.ndarray:
    """``num_pairs`` vectors ~ N(0, I): [n, d]."""
    return normal(uniform(seed, "es_maml", np.arange(num_pairs), size + size % 2))[:, :size]
