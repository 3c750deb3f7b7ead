"""iMAML: the meta-gradient of a proximal adaptation, from where it ends alone and not from the path there.

    phi = argmin_w L(w, support) + proximal / 2 ||w - theta||^2       by gradient descent from theta
    meta-gradient = (I + H / proximal)^-1 grad L(phi, query)          H: Hessian of L(., support) at phi

The inverse is applied by ``cg_steps`` of conjugate gradient, each one product with H. The descent stops where the gradient
of its objective is at ``tolerance`` or below (theta then stays put: every task computes ``inner_steps`` steps). The
formula is that of the minimum: ``inner_gradient`` logs how far from zero the gradient was, ``cg_residual`` how much of
||query gradient|| conjugate gradient left over, 1 where it met negative curvature at once and the task gives no gradient.

``cg_damping`` replaces proximal by proximal + cg_damping in the formula, against negative curvature: on sinusoids H had
eigenvalues from -3 to 76, and 5 steps of conjugate gradient left 0.4 to 0.8 over at 0.5, 0.03 to 0.15 at 2 and 0.004 to
0.12 at 5.

The released code (its omniglot_implicit_maml.py and learner_model.py) is another method, which ``hold: at_end`` follows:

    phi = theta + (1 - inner_lr * proximal) (w - theta)               w: the end of plain gradient descent from theta
    meta-gradient = (2 I + H / 12)^-1 grad L(phi, query)              half of what cg_damping = 24 - proximal gives

The damping of its command arrives as another argument, so 12 is 2 (lambda) + 10 (a default), and 2 is 1 + the command's 1.
Its outer Adam has an eps of 1e-3, which is 2e-3 for a gradient twice as long. Its test takes w, without the pull.

Rajeswaran, Finn, Kakade and Levine, NeurIPS 2019, https://arxiv.org/abs/1909.04630. Cost: one forward and backward pass
a step, cg_steps backward passes of a gradient; memory does not grow with ``inner_steps``.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.func import grad, vjp

from metarun.core import Batch, Episode, Metrics, Params, surrogate
from metarun.inner.loops import conjugate_gradient, last
from metarun.meta_learners.base import GradientLearner
from metarun.trees import detach, ravel, zip_map


@dataclass(frozen=True)
class IMAML(GradientLearner):
    """Gradient descent held near theta, and an implicit meta-gradient at its end by conjugate gradient.

    ``proximal`` (above 0) is the strength of the hold. The descent stops at a gradient norm of ``tolerance`` or less.
    ``cg_steps`` (1 or more) of conjugate gradient end early at the relative residual ``cg_tolerance``; ``cg_damping``
    is added to ``proximal`` in the meta-gradient. ``hold``: in every step of the descent, as in the paper, or once at
    the end of training's, as in the released code.
    """

    inner_lr: float
    inner_steps: int
    proximal: float
    tolerance: float
    cg_steps: int
    cg_tolerance: float
    cg_damping: float
    hold: Literal["every_step", "at_end"] = "every_step"

    def __post_init__(self) -> None:
        if self.proximal <= 0:
            raise ValueError(f"proximal is {self.proximal}; it divides the Hessian, so use a number above 0.")
        if self.cg_steps < 1:
            raise ValueError(f"cg_steps is {self.cg_steps}; without a step the meta-gradient is 0, so use 1 or more.")
        for name in ("tolerance", "cg_tolerance", "cg_damping"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; use 0 for none, or more.")

    def path(self, theta: Params, support: Batch, steps: int) -> Iterator[Params]:
        theta = phi = detach(theta)  # theta is a constant to the steps
        yield phi
        for _ in range(steps):
            pull = grad(self.support_loss)(phi, support)
            if self.hold == "every_step":
                pull = self.proximal_gradient(phi, pull, theta)
            rate = torch.where(norm(pull) > self.tolerance, self.inner_lr, 0.0)
            phi = zip_map(lambda p, g, rate=rate: p - rate * g, phi, pull)
            yield phi

    def proximal_gradient(self, phi: Params, gradient: Params, theta: Params) -> Params:
        """Gradient of the support loss at phi, which is ``gradient``, plus that of proximal / 2 ||phi - theta||^2."""
        return zip_map(lambda p, g, start: g + self.proximal * (p - start), phi, gradient, theta)

    def meta_loss(self, theta: Params, episode: Episode) -> tuple[Tensor, Metrics]:
        support, query = episode.support, episode.query
        phi = last(self.path(theta, support, self.inner_steps))
        if self.hold == "at_end":
            kept = 1 - self.inner_lr * self.proximal
            phi = zip_map(lambda w, start: start + kept * (w - start), phi, detach(theta))

        def of_query(phi: Params) -> tuple[Tensor, Metrics]:
            return self.query_loss(self.ended(phi, support), query)

        query_gradient, metrics = grad(of_query, has_aux=True)(phi)
        b, tree_of = ravel(query_gradient)
        linear: Any = vjp(lambda phi: grad(self.support_loss)(phi, support), phi)
        gradient, hessian = linear  # of v: v H, which is H v

        def product(v: Tensor) -> Tensor:
            return v + ravel(hessian(tree_of(v)))[0] / (self.proximal + self.cg_damping)

        meta_gradient, residual = conjugate_gradient(product, b, self.cg_steps, self.cg_tolerance)
        ended_at = norm(self.proximal_gradient(phi, gradient, detach(theta)))
        metrics |= {"cg_residual": residual.detach(), "inner_gradient": ended_at.detach()}
        return surrogate(theta, tree_of(meta_gradient)), metrics


def norm(tree: Params) -> Tensor:
    """Euclidean norm of all tensors of a tree as one vector."""
    return torch.linalg.vector_norm(ravel(tree)[0])
