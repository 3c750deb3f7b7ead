"""Reptile: move theta towards the adapted weights.

    phi = SGD_k(theta, support);   meta-gradient = theta - phi

With ``optimizer=sgd`` the optimizer's lr is the paper's outer step size epsilon. First order: memory does not grow with
``inner_steps``. Unlike the paper, support and query are kept apart, so the query loss stays a fair metric, and the
inner optimizer is plain full-batch gradient descent rather than Adam on minibatches.

Nichol, Achiam and Schulman, 2018, https://arxiv.org/abs/1803.02999. Cost: one forward and backward pass a step.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import functional_call

from metarun.adaptation import first_order_descent, last
from metarun.core import Batch, Episode, FewShotLearner, Metrics, Params, surrogate, take_parameters
from metarun.models.layers import with_support
from metarun.trees import detach, zip_map


@dataclass(frozen=True)
class Reptile(FewShotLearner):
    inner_lr: float
    inner_steps: int

    def init(self) -> Params:
        return take_parameters(self.base_learner)

    def adapt(self, theta: Params, support: Batch) -> Params:
        return with_support(self.base_learner, last(self.steps(theta, support, self.inner_steps)), support.x)

    def trajectory(self, theta: Params, support: Batch, steps: int) -> list[Params]:
        return [with_support(self.base_learner, phi, support.x) for phi in self.steps(theta, support, steps)]

    def steps(self, theta: Params, support: Batch, steps: int) -> Iterator[Params]:
        def support_loss(weights: Params, support: Batch) -> Tensor:
            return self.objective.loss(self.predict(weights, support.x), support.y)

        return first_order_descent(support_loss, detach(theta), self.inner_lr, steps, support)

    def meta_loss(self, theta: Params, episode: Episode) -> tuple[Tensor, Metrics]:
        phi = last(self.steps(theta, episode.support, self.inner_steps))
        _, metrics = self.query_loss(with_support(self.base_learner, phi, episode.support.x), episode.query)
        return surrogate(theta, zip_map(torch.sub, detach(theta), phi)), metrics

    def predict(self, phi: Params, x: Tensor) -> Tensor:
        return functional_call(self.base_learner, phi, (x,))
