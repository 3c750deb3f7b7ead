"""Reptile: move theta towards the adapted weights.

    phi = U_k(theta, minibatches of support);   meta-gradient = theta - phi          (U_k: k steps of ``inner_optimizer``)

With ``optimizer=sgd`` the optimizer's lr is the paper's outer step size epsilon. Steps on different minibatches are what
makes Reptile learn to generalise (its section 5); train with more shots than ``inner_batch_size`` holds. First order:
memory does not grow with ``inner_steps``. Unlike the paper, support and query are kept apart, so the query loss stays a
fair metric; the minibatches of a task, whose rows lie in random order, are the same ones again and again; and the state
of the inner optimizer begins anew with each task (there Adam's second moments live on).

Nichol, Achiam and Schulman, 2018, https://arxiv.org/abs/1803.02999. Cost: one forward and backward pass a step.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from metarun.core import Batch, Episode, Metrics, Params, surrogate
from metarun.inner.loops import constant_grad, last
from metarun.inner.optimizers import InnerOptimizerName, inner_optimizer
from metarun.meta_learners.base import GradientLearner
from metarun.trees import detach, zip_map


@dataclass(frozen=True)
class Reptile(GradientLearner):
    """Gradient descent from theta, and a meta-gradient that points away from where it ends.

    ``inner_lr`` is the step size and ``inner_steps`` the number of steps, and ``inner_optimizer`` names the rule of a step.
    A step is on at least ``inner_batch_size`` (1 or more) of the support examples, or with None on all of them.
    """

    inner_lr: float
    inner_steps: int
    inner_batch_size: int | None
    inner_optimizer: InnerOptimizerName = "sgd"

    def __post_init__(self) -> None:
        if self.inner_batch_size is not None and self.inner_batch_size < 1:
            raise ValueError(
                f"inner_batch_size is {self.inner_batch_size}; use 1 or more, or null for all the support."
            )

    def path(self, theta: Params, support: Batch, steps: int) -> Iterator[Params]:
        rule = inner_optimizer(self.inner_optimizer, self.inner_lr)
        phi = detach(theta)  # theta is a constant to the steps
        state = rule.start(phi)
        yield phi
        for k in range(steps):
            gradient = constant_grad(self.support_loss, phi, self.minibatch(support, k))
            phi, state = rule.step(phi, gradient, state)
            yield phi

    def minibatch(self, support: Batch, k: int) -> Batch:
        """Every m-th support row, from row k on: m different minibatches of at least ``inner_batch_size`` rows.

        Rows lie in random order, so a minibatch need not have every class.
        """
        m = max(1, len(support.y) // (self.inner_batch_size or len(support.y)))
        return Batch(support.x[k % m :: m], support.y[k % m :: m])

    def meta_loss(self, theta: Params, episode: Episode) -> tuple[Tensor, Metrics]:
        phi = last(self.path(theta, episode.support, self.inner_steps))
        _, metrics = self.query_loss(self.ended(phi, episode.support), episode.query)
        return surrogate(theta, zip_map(torch.sub, detach(theta), phi)), metrics
