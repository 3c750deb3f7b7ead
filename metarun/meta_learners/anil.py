"""ANIL: MAML whose inner loop adapts the head alone.

    z = body(support.x);   head_{k+1} = head_k - inner_lr * grad_head L(head_k(z), support.y);   phi = (body, head_K)

The body is reused as it is, so its features are computed once: cheaper than MAML by about the number of steps, and equal
to MAML with ``adapted: head`` to rounding. The base learner must have the parts ``body`` and ``head``.

Raghu et al., ICLR 2020, https://arxiv.org/abs/1909.09157. Cost: one pass through the body, steps through the head.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor
from torch.func import functional_call

from metarun.core import Batch, FewShotLearner, Params
from metarun.inner.loops import descent, last
from metarun.inner.optimizers import SGD
from metarun.models.norm_state import adapting, with_support
from metarun.models.parts import adapted_part, body_of, head_of
from metarun.trees import under


@dataclass(frozen=True)
class ANIL(FewShotLearner):
    """Gradient descent of the head alone, on features of a learned body that stays as it is.

    ``inner_lr`` is the step size and ``inner_steps`` the number of steps. Raises ValueError where the base learner
    lacks ``body`` or ``head``.
    """

    inner_lr: float
    inner_steps: int

    def __post_init__(self) -> None:
        body_of(self.base_learner)
        adapted_part(self.base_learner, "head")

    def adapt(self, theta: Params, support: Batch) -> Params:
        return last(self.trajectory(theta, support, self.inner_steps))

    def trajectory(self, theta: Params, support: Batch, steps: int) -> Iterator[Params]:
        net = self.base_learner
        with adapting():
            z = functional_call(body_of(net), under(theta, "body"), (support.x,))  # [S, D]

        def support_loss(head: Params, features: Batch) -> Tensor:
            return self.objective.loss(functional_call(head_of(net), head, (features.x,)), features.y)

        heads = descent(support_loss, under(theta, "head"), SGD(self.inner_lr), steps, Batch(z, support.y))
        body = with_support(net, theta, support.x)  # the body does not adapt, so neither do its statistics
        return ({**body, **{f"head.{name}": p for name, p in head.items()}} for head in heads)
