"""Reptile: move theta towards the adapted weights.

    phi = SGD_k(theta, minibatches of support);   meta-gradient = theta - phi

With ``optimizer=sgd`` the optimizer's lr is the paper's outer step size epsilon. Steps on different minibatches are what
makes Reptile learn to generalise (its section 5); train with more shots than ``inner_batch_size`` holds. First order:
memory does not grow with ``inner_steps``. Unlike the paper, support and query are kept apart, so the query loss stays a
fair metric; minibatches take every class in turn rather than at random; and the inner optimizer is SGD, not Adam.

Nichol, Achiam and Schulman, 2018, https://arxiv.org/abs/1803.02999. Cost: one forward and backward pass a step.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import functional_call

from metarun.core import Batch, Episode, FewShotLearner, Metrics, Params, surrogate, take_parameters
from metarun.inner.loops import constant_grad, last
from metarun.models.norm_state import with_support
from metarun.trees import detach, zip_map


@dataclass(frozen=True)
class Reptile(FewShotLearner):
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

    def init(self) -> Params:
        return take_parameters(self.base_learner)

    def adapt(self, theta: Params, support: Batch) -> Params:
        return with_support(self.base_learner, last(self.steps(theta, support, self.inner_steps)), support.x)

    def trajectory(self, theta: Params, support: Batch, steps: int) -> Iterator[Params]:
        return (with_support(self.base_learner, phi, support.x) for phi in self.steps(theta, support, steps))

    def steps(self, theta: Params, support: Batch, steps: int) -> Iterator[Params]:
        """Yield the weights after 0, 1, ..., ``steps`` steps from theta, a constant, before ``with_support``."""

        def loss(weights: Params, batch: Batch) -> Tensor:
            return self.objective.loss(self.predict(weights, batch.x), batch.y)

        phi = detach(theta)
        yield phi
        for k in range(steps):
            gradient = constant_grad(loss, phi, self.minibatch(support, k))
            phi = zip_map(lambda p, g: p - self.inner_lr * g, phi, gradient)
            yield phi

    def minibatch(self, support: Batch, k: int) -> Batch:
        """Every m-th support row, from row k on: m different minibatches of at least ``inner_batch_size`` rows.

        Rows lie by class, so each minibatch has every class where a class has m rows or more.
        """
        m = max(1, len(support.y) // (self.inner_batch_size or len(support.y)))
        return Batch(support.x[k % m :: m], support.y[k % m :: m])

    def meta_loss(self, theta: Params, episode: Episode) -> tuple[Tensor, Metrics]:
        phi = last(self.steps(theta, episode.support, self.inner_steps))
        _, metrics = self.query_loss(with_support(self.base_learner, phi, episode.support.x), episode.query)
        return surrogate(theta, zip_map(torch.sub, detach(theta), phi)), metrics

    def predict(self, phi: Params, x: Tensor) -> Tensor:
        return functional_call(self.base_learner, phi, (x,))
