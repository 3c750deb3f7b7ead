"""MAML: an initialisation from which a few gradient steps suffice.

    phi_0 = theta;   phi_{k+1} = phi_k - inner_lr * grad L(phi_k, support)
    meta-gradient = d L(phi_K, query) / d theta

``first_order`` drops the second derivatives: d phi_K / d theta is taken to be the identity (FOMAML). ``adapted`` says
which parameters take the steps: every one, those of the ``body``, or those of the ``head``. ``inner_optimizer`` momentum,
rmsprop or adam replaces the step; the meta-gradient flows through its state too.

The inner loss is the mean over the support set. The official code sums over classes, so its inner_lr is num_ways times
smaller for the same step. Norm weights and biases adapt too; in the official code they do not, and its norms have no
weight (docs/fidelity.md).

Finn, Abbeel and Levine, ICML 2017, https://arxiv.org/abs/1703.03400. Cost: about three forward and backward passes a
step in time; memory grows with inner_steps unless first_order.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from metarun.core import Batch, Params
from metarun.inner.loops import descent, first_order_descent
from metarun.inner.optimizers import InnerOptimizerName, inner_optimizer
from metarun.meta_learners.base import GradientLearner
from metarun.models.parts import adapted_part
from metarun.trees import select


@dataclass(frozen=True)
class MAML(GradientLearner):
    """Gradient descent from a learned initialisation.

    ``inner_lr`` is the step size and ``inner_steps`` the number of steps. ``first_order`` takes the inner gradients as
    constants. ``adapted`` says which parameters take steps; "body" and "head" raise ValueError where the base learner
    has no such part. ``inner_optimizer`` names the rule of a step.
    """

    inner_lr: float
    inner_steps: int
    first_order: bool
    adapted: Literal["all", "body", "head"]
    inner_optimizer: InnerOptimizerName

    def __post_init__(self) -> None:
        if self.adapted != "all":
            adapted_part(self.base_learner, self.adapted)

    def path(self, theta: Params, support: Batch, steps: int) -> Iterator[Params]:
        adapted, kept = select(theta, lambda name: self.adapted in ("all", name.split(".")[0]))
        descend = first_order_descent if self.first_order else descent

        def loss(adapted: Params, kept: Params, support: Batch) -> Tensor:
            return self.support_loss({**kept, **adapted}, support)

        rule = inner_optimizer(self.inner_optimizer, self.inner_lr)
        return ({**kept, **weights} for weights in descend(loss, adapted, rule, steps, kept, support))
