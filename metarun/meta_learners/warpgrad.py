"""WarpGrad: every layer is followed by a learned linear warp layer that does not adapt but bends the inner gradients.

    layer:       y = T (W x) + b;   the gradient of W passes through T, so a step moves T W along T T' grad
    inner loop:  phi_0 = theta;   phi_{k+1} = phi_k - inner_lr * grad L(phi_k, support; T)
    theta:       minimise L(phi_K, query; T), backward through the whole loop                         (Warp-MAML's start)
    T:           minimise the mean over k < K of L(phi_k - inner_lr * grad L(phi_k, support; T), query; T), phi_k fixed

The second objective is what sets WarpGrad apart: T learns from one step ahead of each point of the adaptation, never from
a gradient through the whole of it. The warp layers are those of T-Nets (Lee and Choi, ICML 2018), for one reason: T W is a
weight of the same shape, so every base learner can be warped as it is. The paper's own few-shot warp layers are 3x3
convolutions with norms between the layers of one network, nonlinear in depth; its section 2 has T-Nets as the linear case.
Biases and norms adapt unwarped, T begins at the identity, and both objectives weigh the same. Each T looks one step ahead,
so it may make steps as long as training bears and no longer: trained with 2 steps on sinusoids, 5 of them diverged.

Flennerhag et al., ICLR 2020, https://arxiv.org/abs/1909.00025. Cost: about twice MAML's time; memory grows with
``inner_steps``.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from metarun.core import Batch, Episode, Metrics, Params, parameters_of
from metarun.inner.loops import descent, last
from metarun.inner.optimizers import SGD
from metarun.meta_learners.base import GradientLearner
from metarun.trees import detach


@dataclass(frozen=True)
class WarpGrad(GradientLearner):
    """Gradient descent through learned linear warp layers, which do not adapt.

    ``inner_lr`` is the step size and ``inner_steps`` the number of steps. Raises ValueError where no weight of the base
    learner has two axes or more.
    """

    inner_lr: float
    inner_steps: int

    def __post_init__(self) -> None:
        if all(p.dim() < 2 for p in self.base_learner.parameters()):
            name = type(self.base_learner).__name__
            raise ValueError(f"{name} has no weight of two axes or more to warp; choose a base learner with layers.")

    def init(self) -> Params:
        base = parameters_of(self.base_learner)
        return {"base": base, "warp": {name: torch.eye(len(p)).to(p) for name, p in base.items() if p.dim() >= 2}}

    def path(self, theta: Params, support: Batch, steps: int) -> Iterator[Params]:
        base, warp = theta["base"], theta["warp"]
        return (warped(weights, warp) for weights in self.unwarped(base, warp, support, steps))

    def unwarped(self, weights: Params, warp: Params, support: Batch, steps: int) -> Iterator[Params]:
        """The weights, not yet warped, after 0, 1, ..., ``steps`` inner steps under ``warp``."""

        def loss(weights: Params, warp: Params, support: Batch) -> Tensor:
            return self.support_loss(warped(weights, warp), support)

        return descent(loss, weights, SGD(self.inner_lr), steps, warp, support)

    def meta_loss(self, theta: Params, episode: Episode) -> tuple[Tensor, Metrics]:
        (support, query, _), warp = episode, theta["warp"]
        fixed = detach(warp)
        points = list(self.unwarped(theta["base"], fixed, support, self.inner_steps))
        loss, metrics = self.query_loss(self.ended(warped(points[-1], fixed), support), query)
        for weights in points[:-1]:
            ahead = warped(last(self.unwarped(detach(weights), warp, support, 1)), warp)
            loss = loss + self.query_loss(self.ended(ahead, support), query)[0] / self.inner_steps
        return loss, metrics


def warped(weights: Params, warp: Params) -> Params:
    """The weights T W of each layer and its warp layer in one, along the output axis; others as they are."""
    return {name: torch.einsum("ij,j...->i...", warp[name], w) if name in warp else w for name, w in weights.items()}
