"""Proto-MAML: MAML whose head begins, for each task, as the classifier of a prototypical network.

    c_n = mean of body(x) over the support examples of class n;   head_0 = (W, b),  W_n = 2 c_n,  b_n = -||c_n||^2
    phi_0 = (theta, head_0);   phi_{k+1} = phi_k - inner_lr * grad L(phi_k, support);   phi = phi_K

W_n z + b_n = -||z - c_n||^2 + ||z||^2, so without a step it is ProtoNet. Only the body is learned; the meta-gradient flows
through the prototypes, also with ``first_order``, which drops the inner second derivatives (the paper's results are of
that kind). No class has parameters in theta, so any number of ways, in any order, will do.

Triantafillou et al., ICLR 2020, https://arxiv.org/abs/1903.03096. Cost: as MAML, and one forward pass of the body.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from metarun.core import Batch, Params, parameters_of
from metarun.inner.loops import descent, first_order_descent
from metarun.inner.optimizers import SGD
from metarun.meta_learners.base import GradientLearner
from metarun.models.norm_state import adapting, with_support
from metarun.models.parts import body_of, check_learned
from metarun.objectives import among, one_hot


@dataclass(frozen=True)
class ProtoMAML(GradientLearner):
    """Gradient descent of body and head, where the head begins as a classifier by class means.

    ``inner_lr`` is the step size and ``inner_steps`` the number of steps. ``first_order`` takes the inner gradients as
    constants. A body without parameters raises ValueError.
    """

    any_ways = True
    regresses = False

    num_ways: int
    inner_lr: float
    inner_steps: int
    first_order: bool

    def __post_init__(self) -> None:
        check_learned(self.base_learner, "ProtoMAML")

    def init(self) -> Params:
        return parameters_of(body_of(self.base_learner))

    def path(self, theta: Params, support: Batch, steps: int) -> Iterator[Params]:
        start = {"body": theta, "head": self.prototypical_head(theta, support)}
        descend = first_order_descent if self.first_order else descent
        return descend(self.loss_among, start, SGD(self.inner_lr), steps, support, self.present(support))

    def prototypical_head(self, theta: Params, support: Batch) -> Params:
        """The head at the start of a task: weight 2 c [N, D] and bias -||c||^2 [N], c the classes' mean features."""
        with adapting():
            z = functional_call(body_of(self.base_learner), theta, (support.x,))  # [S, D]
        onehot = one_hot(support.y, self.num_ways, z.dtype)  # [S, N]
        c = (onehot.T @ z) / onehot.sum(0)[:, None].clamp(min=1)  # [N, D]
        return {"weight": 2 * c, "bias": -(c * c).sum(1)}

    def ended(self, phi: Params, support: Batch) -> Params:
        body = with_support(body_of(self.base_learner), phi["body"], support.x)
        return {**phi, "body": body, "present": self.present(support)}

    def present(self, support: Batch) -> Tensor:
        """Which classes the support has, bool [N]; no other is predicted."""
        return one_hot(support.y, self.num_ways, torch.bool).any(0)

    def loss_among(self, phi: Params, support: Batch, present: Tensor) -> Tensor:
        """L(phi, support) among the classes that are ``present``."""
        return self.support_loss({**phi, "present": present}, support)

    def predict(self, phi: Params, x: Tensor) -> Tensor:
        z = functional_call(body_of(self.base_learner), phi["body"], (x,))  # [Q, D]
        return among(phi["present"], F.linear(z, **phi["head"]))
