"""Teacher: a second network says how much each support example is to count while the base learner takes its steps.

    w_i = max_weight * sigmoid(guidance * teacher(x_i)[y_i] - log(max_weight - 1))      in (0, max_weight); 1 at 0
    phi_0 = base;   phi_{k+1} = phi_k - inner_lr * grad mean_i w_i L(phi_k(x_i), y_i);   phi = phi_K
    theta = (teacher, base);   meta-gradient = d L(phi_K, query) / d theta, through every step

The base learner alone predicts. With ``guidance: 0`` every weight is 1 and the teacher learns nothing: MAML from the same
start. The weights are the teacher's hold on the pace of learning, of a task and of each example in it. What it wins is
mostly that pace: without it, a larger ``inner_lr`` found by hand does as well or better (compare before you credit it).

The teacher of ``experiment=article_example`` is an MLP of 784-128-10, its base learner one of 784-64-10. What of the
teacher enters the inner loss is our choice: example weights, as in Ren et al., ICML 2018,
https://arxiv.org/abs/1803.09050, and Shu et al., NeurIPS 2019, https://arxiv.org/abs/1902.07379. Cost: as MAML, and one
pass of the support set through the teacher.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from metarun.core import Batch, Params, parameters_of
from metarun.inner.loops import descent
from metarun.inner.optimizers import SGD
from metarun.meta_learners.base import GradientLearner
from metarun.models.norm_state import adapting


@dataclass(frozen=True)
class Teacher(GradientLearner):
    """Gradient descent on a support loss whose examples the network ``teacher`` weighs.

    ``guidance`` (0 or more) multiplies the teacher's outputs, and ``max_weight`` (above 1) is what no weight exceeds.
    ``inner_lr`` is the step size, ``inner_steps`` the number of steps.
    """

    regresses = False

    teacher: nn.Module
    guidance: float
    max_weight: float
    inner_lr: float
    inner_steps: int

    def __post_init__(self) -> None:
        if self.guidance < 0:
            raise ValueError(f"guidance is {self.guidance}; use 0 to do without the teacher, or more.")
        if self.max_weight <= 1:
            raise ValueError(
                f"max_weight is {self.max_weight}, but an example counts 1 to begin with; use more than 1."
            )

    def init(self) -> Params:
        return {"teacher": parameters_of(self.teacher), "base": parameters_of(self.base_learner)}

    def path(self, theta: Params, support: Batch, steps: int) -> Iterator[Params]:
        def weighted_loss(phi: Params, support: Batch, weights: Tensor) -> Tensor:
            with adapting():
                outputs = self.predict(phi, support.x)  # [S, N]
            losses = vmap(self.objective.loss)(outputs[:, None], support.y[:, None])  # of each example [S]
            return (weights * losses).mean()

        return descent(weighted_loss, theta["base"], SGD(self.inner_lr), steps, support, self.weights(theta, support))

    def weights(self, theta: Params, support: Batch) -> Tensor:
        """Weights of the support examples [S]."""
        says = functional_call(self.teacher, theta["teacher"], (support.x,))  # [S, N]
        of_its_class = says.gather(1, support.y[:, None])[:, 0]
        return self.max_weight * torch.sigmoid(self.guidance * of_its_class - math.log(self.max_weight - 1))
