"""BOIL: MAML whose inner loop adapts the body alone.

    body_0 = theta.body;   body_{k+1} = body_k - inner_lr * grad_body L((body_k, head), support)
    phi = (body_K, head);   meta-gradient = d L(phi, query) / d theta

The head is learned by the outer loop only, so adapting has to change the features, where ANIL reuses them. The inner loss
is the mean over the support set, and weights and biases of norms in the body adapt too, as in the authors' code. The base
learner must have the parts ``body`` and ``head``. Equal to MAML with ``adapted: body``.

Oh et al., ICLR 2021, https://arxiv.org/abs/2008.08882. Cost: as MAML.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from metarun.core import Batch, Params
from metarun.inner.loops import descent, first_order_descent
from metarun.inner.optimizers import SGD
from metarun.meta_learners.base import GradientLearner
from metarun.models.parts import adapted_part, head_of
from metarun.trees import select


@dataclass(frozen=True)
class BOIL(GradientLearner):
    """Gradient descent of the body alone, under a head that only the outer loop learns.

    ``inner_lr`` is the body's step size and ``inner_steps`` the number of steps. ``first_order`` takes the inner
    gradients as constants. Raises ValueError where the base learner lacks ``body`` or ``head``.
    """

    inner_lr: float
    inner_steps: int
    first_order: bool

    def __post_init__(self) -> None:
        adapted_part(self.base_learner, "body")
        head_of(self.base_learner)

    def path(self, theta: Params, support: Batch, steps: int) -> Iterator[Params]:
        body, head = select(theta, lambda name: name.startswith("body."))
        descend = first_order_descent if self.first_order else descent

        def loss(body: Params, head: Params, support: Batch) -> Tensor:
            return self.support_loss({**body, **head}, support)

        bodies = descend(loss, body, SGD(self.inner_lr), steps, head, support)
        return ({**body, **head} for body in bodies)
