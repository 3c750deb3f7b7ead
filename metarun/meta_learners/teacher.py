"""Teacher: one network says what another should learn from the support set, and is trained by how well that went.

    t_s = teacher(x_s);   soft_s = sum over r of softmax_r(-||t_s - t_r||^2) onehot(y_r)        over the support set
    L(phi, support) = mean over s of CE(base(x_s; phi), y_s) + guidance * CE(base(x_s; phi), soft_s)
    phi_0 = theta.base;   phi_{k+1} = phi_k - inner_lr * grad_phi L(phi_k, support)
    meta-gradient = d CE(base(query.x; phi_K), query.y) / d (theta.teacher, theta.base)

Two separate networks: theta holds the weights of the teacher and where the base learner starts. The teacher sees no query
and never predicts; it acts on phi alone, by the soft labels in the inner loss, so its gradient flows back through the
inner steps. Soft labels are of classes and not of output numbers, so permuting labels permutes what is taught.
``guidance: 0`` is the control: the same base learner, the same steps, no teacher. ``learn_start: false`` keeps the base
learner's start as it was drawn, and trains the teacher alone.

Not a paper's algorithm; soft labels from a second network are those of distillation (Hinton, Vinyals and Dean, 2015,
https://arxiv.org/abs/1503.02531), with a teacher that is itself meta-learned. Cost: as MAML, and one pass of the teacher.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from metarun.adaptation import descent, last
from metarun.core import Batch, FewShotLearner, Params, take_parameters
from metarun.inner_optimizers import SGD
from metarun.models.layers import norms, with_support
from metarun.trees import detach


@dataclass(frozen=True)
class Teacher(FewShotLearner):
    teacher: nn.Module
    num_ways: int
    inner_lr: float
    inner_steps: int
    guidance: float
    learn_start: bool

    def __post_init__(self) -> None:
        if self.guidance < 0:
            raise ValueError(f"guidance is {self.guidance}; it weighs a loss: use 0 (no teacher) or more.")
        if self.guidance == 0 and not self.learn_start:
            raise ValueError("guidance=0 and learn_start=false leave nothing to learn; change one of them.")
        if norms(self.teacher, "running") or norms(self.teacher, "support"):
            raise ValueError("the teacher sees support sets alone: its batch_norm must be null or transductive.")

    def init(self) -> Params:
        return {"teacher": take_parameters(self.teacher), "base": take_parameters(self.base_learner)}

    def adapt(self, theta: Params, support: Batch) -> Params:
        return last(self.trajectory(theta, support, self.inner_steps))

    def trajectory(self, theta: Params, support: Batch, steps: int) -> Iterator[Params]:
        start = theta["base"] if self.learn_start else detach(theta["base"])
        lesson = Batch(support.x, self.soft_labels(theta["teacher"], support))
        path = descent(self.guided_loss, start, SGD(self.inner_lr), steps, lesson)
        return (with_support(self.base_learner, phi, support.x) for phi in path)

    def soft_labels(self, weights: Params, support: Batch) -> Tensor:
        """onehot + guidance * soft [S, N]: cross-entropy is linear in its target, so one loss has both."""
        t = functional_call(self.teacher, weights, (support.x,))  # [S, D]
        distances = ((t[:, None] - t[None]) ** 2).sum(-1)  # [S, S]
        onehot = F.one_hot(support.y, self.num_ways).to(t.dtype)
        return onehot + self.guidance * torch.softmax(-distances, -1) @ onehot

    def guided_loss(self, phi: Params, lesson: Batch) -> Tensor:
        return -(lesson.y * self.predict(phi, lesson.x).log_softmax(-1)).sum(-1).mean()

    def predict(self, phi: Params, x: Tensor) -> Tensor:
        return functional_call(self.base_learner, phi, (x,))
