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
from torch.func import functional_call

from metarun.core import Batch, FewShotLearner, Params, take_parameters
from metarun.inner.loops import descent, first_order_descent, last
from metarun.inner.optimizers import SGD
from metarun.models.norm_state import with_support
from metarun.models.parts import adapted_part, head_of
from metarun.trees import select


@dataclass(frozen=True)
class BOIL(FewShotLearner):
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

    def init(self) -> Params:
        return take_parameters(self.base_learner)

    def adapt(self, theta: Params, support: Batch) -> Params:
        return with_support(self.base_learner, last(self.steps(theta, support, self.inner_steps)), support.x)

    def trajectory(self, theta: Params, support: Batch, steps: int) -> Iterator[Params]:
        return (with_support(self.base_learner, phi, support.x) for phi in self.steps(theta, support, steps))

    def steps(self, theta: Params, support: Batch, steps: int) -> Iterator[Params]:
        """All weights after 0, 1, ..., ``steps`` steps of the body, before ``with_support``."""
        body, head = select(theta, lambda name: name.startswith("body."))
        descend = first_order_descent if self.first_order else descent

        def support_loss(body: Params, head: Params, support: Batch) -> Tensor:
            return self.objective.loss(self.predict({**body, **head}, support.x), support.y)

        bodies = descend(support_loss, body, SGD(self.inner_lr), steps, head, support)
        return ({**body, **head} for body in bodies)

    def predict(self, phi: Params, x: Tensor) -> Tensor:
        return functional_call(self.base_learner, phi, (x,))
