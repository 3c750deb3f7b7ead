"""Reptile: move theta towards the adapted weights.

    phi = SGD_k(theta, minibatches of support);   meta-gradient = theta - phi

With ``optimizer=sgd`` the optimizer's lr is the paper's outer step size epsilon. Steps on different minibatches are what
makes Reptile learn to generalise (its section 5); train with more shots than ``inner_batch_size`` holds. First order:
memory does not grow with ``inner_steps``. Unlike the paper, support and query are kept apart, so the query loss stays a
fair metric; the minibatches of a task, whose rows lie in random order, are the same ones again and again; and the inner
optimizer is SGD, not Adam.

Nichol, Achiam and Schulman, 2018, https://arxiv.org/abs/1803.02999. Cost: one forward and backward pass a step.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from metarun.core import Batch, Episode, Metrics, Params, surrogate
from metarun.inner.loops import constant_grad, last
from metarun.meta_learners.base import GradientLearner
from metarun.trees import detach, zip_map


@dataclass(frozen=True)
class Reptile(GradientLearner):
    """Gradient descent from theta, and a meta-gradient that points away from where it ends.

    ``inner_lr`` is the step size and ``inner_steps`` the number of steps. A step is on at least ``inner_batch_size`` (1
    or more) of the support examples, or with None on all of them.
    """

    inner_lr: float
    inner_steps: int
    inner_batch_size: int | None

    def __post_init__(self) -> None:
        if self.inner_batch_size is not None and self.inner_batch_size < 1:
            raise ValueError(
                f"inner_batch_size is {self.inner_batch_size}; use 1 or more, or null for all the support."
            )

    def path(self, theta: Params, support: Batch, steps: int) -> Iterator[Params]:
        phi = detach(theta)  # theta is a constant to the steps
        yield phi
        for k in range(steps):
            gradient = constant_grad(self.support_loss, phi, self.minibatch(support, k))
            phi = zip_map(lambda p, g: p - self.inner_lr * g, phi, gradient)
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
