"""UNICORN-MAML: MAML with one head vector w for all classes, so that the names of the classes do not matter.

    theta = (body, w);   phi_0 = (body, W, b),  W_n = w and b_n = 0 for every class n
    phi_{k+1} = phi_k - inner_lr * grad L(phi_k, support);   meta-gradient = d L(phi_K, query) / d theta

All classes begin alike and part ways by the data. In the first step the body's gradient is zero (W' (p - y) = w * 0), so
take ``inner_steps`` of 2 or more.

Something the paper does not say: under softmax w cancels. The inner gradients of W sum to zero over classes, so
W_n = w + something without w throughout, and w z is the same for every class: no value of w changes a loss, and w's own
meta-gradient is zero to rounding. UNICORN-MAML is MAML with a head reset to zero for each task (the zeroing trick of Kao
et al., ICLR 2022, https://arxiv.org/abs/2106.15367). We keep w, as the paper has it. A shared bias would cancel too and
starts at 0. The released code trains a pre-trained ResNet-12 to first order, with the logits of queries divided by 0.5
(``temperature``; those of the support are not).

Ye and Chao, ICLR 2022, https://arxiv.org/abs/2106.16245. Cost: as MAML.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from metarun.core import Batch, Params, parameters_of
from metarun.inner.loops import descent, first_order_descent
from metarun.inner.optimizers import SGD
from metarun.meta_learners.base import GradientLearner
from metarun.models.norm_state import adapting, with_support
from metarun.models.parts import body_of, num_features


@dataclass(frozen=True)
class UnicornMAML(GradientLearner):
    """Gradient descent of body and head, where the heads of all classes begin at one learned vector.

    ``input_shape`` is that of one example. ``inner_lr`` is the step size and ``inner_steps`` the number of steps: with
    1 the body does not move. ``first_order`` takes the inner gradients as constants. ``temperature`` (above 0) divides the
    logits of queries.
    """

    any_ways = True
    regresses = False

    input_shape: tuple[int, ...]
    num_ways: int
    inner_lr: float
    inner_steps: int
    first_order: bool
    temperature: float = 1.0

    def __post_init__(self) -> None:
        body_of(self.base_learner)
        if self.temperature <= 0:
            raise ValueError(f"temperature is {self.temperature}; it divides logits, so use a number above 0.")

    def init(self) -> Params:
        one_class = nn.Linear(num_features(self.base_learner, self.input_shape), 1)
        like = next(self.base_learner.parameters())  # the body may have none
        return {"body": parameters_of(body_of(self.base_learner)), "head": one_class.weight.detach()[0].to(like)}

    def path(self, theta: Params, support: Batch, steps: int) -> Iterator[Params]:
        w = theta["head"]  # [D]
        start = {
            "body": theta["body"],
            "head": {"weight": w.repeat(self.num_ways, 1), "bias": w.new_zeros(self.num_ways)},
        }
        descend = first_order_descent if self.first_order else descent
        return descend(self.support_loss, start, SGD(self.inner_lr), steps, support)

    def ended(self, phi: Params, support: Batch) -> Params:
        return {**phi, "body": with_support(body_of(self.base_learner), phi["body"], support.x)}

    def support_loss(self, phi: Params, support: Batch) -> Tensor:
        with adapting():
            return self.objective.loss(self.logits(phi, support.x), support.y)

    def predict(self, phi: Params, x: Tensor) -> Tensor:
        return self.logits(phi, x) / self.temperature

    def logits(self, phi: Params, x: Tensor) -> Tensor:
        """Logits [Q, N] of x, not divided by the temperature."""
        z = functional_call(body_of(self.base_learner), phi["body"], (x,))  # [Q, D]
        return F.linear(z, **phi["head"])
