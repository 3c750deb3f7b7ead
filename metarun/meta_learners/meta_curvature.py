"""Meta-Curvature: MAML whose inner gradients are multiplied by learned matrices, one for each axis of a weight.

    MC(G) = G x_1 M_output x_2 M_input x_3 M_kernel          G [O, I, F]: the gradient of a convolution, F = height * width
    phi_{k+1} = phi_k - inner_lr * MC(grad L(phi_k, support));   meta-gradient = d L(phi_K, query) / d (theta, M)

vec MC(G) = (M_output (x) M_input (x) M_kernel) vec G: a Kronecker-factored curvature. A linear layer's weight has M_output
and M_input; biases and norm weights [O], of which the paper says nothing, have M_output. The matrices begin at the
identity, where this is MAML. They do not adapt. ``rates.curvature`` sets their own outer rate.

The inner loss is the mean over the support set; the released code is MAML's with these matrices, and sums over classes, so
its 0.4 is 2.0 here at 5 ways. It has a diagonal for a bias, not a matrix, and does not adapt norms (docs/fidelity.md).

Park and Oliva, NeurIPS 2019, https://arxiv.org/abs/1902.03356. Cost: as MAML, and a matrix product an axis and step;
theta grows by O^2 + I^2 + F^2 for each weight.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import grad

from metarun.core import Batch, Params, parameters_of
from metarun.inner.loops import repeat
from metarun.meta_learners.base import GradientLearner

AXES = ("output", "input", "kernel")


@dataclass(frozen=True)
class MetaCurvature(GradientLearner):
    """Gradient descent whose gradients are multiplied by learned matrices.

    ``inner_lr`` is the step size and ``inner_steps`` the number of steps.
    """

    inner_lr: float
    inner_steps: int

    def init(self) -> Params:
        base = parameters_of(self.base_learner)
        return {"base": base, "curvature": {name: identities(p) for name, p in base.items()}}

    def path(self, theta: Params, support: Batch, steps: int) -> Iterator[Params]:
        def step(phi: Params, curvature: Params, support: Batch) -> Params:
            gradient = grad(self.support_loss)(phi, support)
            return {name: p - self.inner_lr * curved(gradient[name], curvature[name]) for name, p in phi.items()}

        return repeat(step, theta["base"], steps, theta["curvature"], support)


def identities(p: Tensor) -> dict[str, Tensor]:
    """An identity matrix for each axis of ``p``; the axes of a kernel count as one."""
    sizes = p.flatten(2).shape if p.dim() > 2 else p.shape
    return {axis: torch.eye(size).to(p) for axis, size in zip(AXES, sizes, strict=False)}


def curved(gradient: Tensor, matrices: dict[str, Tensor]) -> Tensor:
    """Each axis of ``gradient`` multiplied by its matrix."""
    g = gradient.flatten(2) if gradient.dim() > 2 else gradient
    for i, axis in enumerate(AXES[: g.dim()]):
        g = torch.einsum("ij,j...->i...", matrices[axis], g.movedim(i, 0)).movedim(0, i)
    return g.reshape(gradient.shape)
