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
from torch.func import functional_call

from metarun.core import Batch, Episode, FewShotLearner, Metrics, Params, take_parameters
from metarun.inner.loops import descent, last
from metarun.inner.optimizers import SGD
from metarun.models.norm_state import with_support
from metarun.trees import detach


@dataclass(frozen=True)
class WarpGrad(FewShotLearner):
    """Gradient descent through learned linear warp layers, which do not adapt.

    ``inner_lr`` is the step size and ``inner_steps`` the number of steps. ``init`` raises ValueError where no weight of
    the base learner has two axes or more.
    """

    inner_lr: float
    inner_steps: int

    def init(self) -> Params:
        base = take_parameters(self.base_learner)
        warp = {name: torch.eye(len(p)).to(p) for name, p in base.items() if p.dim() >= 2}
        if not warp:
            name = type(self.base_learner).__name__
            raise ValueError(f"{name} has no weight of two axes or more to warp; choose a base learner with layers.")
        return {"base": base, "warp": warp}

    def adapt(self, theta: Params, support: Batch) -> Params:
        return self.ended(last(self.steps(theta["base"], theta["warp"], support, self.inner_steps)), theta, support)

    def trajectory(self, theta: Params, support: Batch, steps: int) -> Iterator[Params]:
        path = self.steps(theta["base"], theta["warp"], support, steps)
        return (self.ended(weights, theta, support) for weights in path)

    def steps(self, weights: Params, warp: Params, support: Batch, steps: int) -> Iterator[Params]:
        """The weights, not yet warped, after 0, 1, ..., ``steps`` inner steps under ``warp``."""

        def support_loss(weights: Params, warp: Params, support: Batch) -> Tensor:
            return self.objective.loss(self.predict(warped(weights, warp), support.x), support.y)

        return descent(support_loss, weights, SGD(self.inner_lr), steps, warp, support)

    def ended(self, weights: Params, theta: Params, support: Batch) -> Params:
        """The warped weights, with the statistics that norms in mode ``support`` have on the support set."""
        return with_support(self.base_learner, warped(weights, theta["warp"]), support.x)

    def meta_loss(self, theta: Params, episode: Episode) -> tuple[Tensor, Metrics]:
        support, query = episode.support, episode.query
        fixed = {"warp": detach(theta["warp"])}
        path = list(self.steps(theta["base"], fixed["warp"], support, self.inner_steps))
        loss, metrics = self.query_loss(self.ended(path[-1], fixed, support), query)
        for weights in path[:-1]:
            ahead = last(self.steps(detach(weights), theta["warp"], support, 1))
            loss = loss + self.query_loss(self.ended(ahead, theta, support), query)[0] / self.inner_steps
        return loss, metrics

    def predict(self, phi: Params, x: Tensor) -> Tensor:
        return functional_call(self.base_learner, phi, (x,))


def warped(weights: Params, warp: Params) -> Params:
    """The weights T W of each layer and its warp layer in one, along the output axis; others as they are."""
    return {name: torch.einsum("ij,j...->i...", warp[name], w) if name in warp else w for name, w in weights.items()}
