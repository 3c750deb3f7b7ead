"""Baseline++: Baseline with classifiers that compare directions, so that a class keeps its features together.

    logit_n(x) = scale * cos(body(x), w_n)
    training:  min over body, W of the cross-entropy over all training classes, with train_scale
    a task:    w_n = mean direction of all the support;   W_{k+1} = W_k - inner_lr * grad L(W_k, support) - decay
    phi = (body, W_K)

As in Baseline, training has no inner loop, needs a fixed set of training classes, and treats support and query as one
batch; a step of a task is on the whole support set, not on batches of 4; and the fit starts where all classes are alike
(there is no direction of zero), not at random weights. The released code also learns a length for each class's
w_n; here, as the paper writes it, only the direction of w_n counts.

Chen et al., ICLR 2019, https://arxiv.org/abs/1904.04232. Cost: as Baseline.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from metarun.core import Batch, Episode, FewShotLearner, Metrics, Params, parameters_of
from metarun.inner.loops import descent, last
from metarun.inner.optimizers import SGD
from metarun.models.norm_state import with_support
from metarun.models.parts import body_of, num_features


@dataclass(frozen=True)
class BaselinePlusPlus(FewShotLearner):
    """A classifier by cosines of all training classes, whose body is reused frozen under one fitted to each task.

    ``train_scale`` multiplies the cosines in training and ``scale`` those of a task, both above 0. ``inner_lr``,
    ``inner_steps`` and ``weight_decay`` (0 or more) are those of a new task's directions and do not enter training.
    """

    any_ways = True
    regresses = False
    needs_train_classes = True

    input_shape: tuple[int, ...]
    num_ways: int
    num_train_classes: int
    train_scale: float
    scale: float
    inner_lr: float
    inner_steps: int
    weight_decay: float

    def __post_init__(self) -> None:
        body_of(self.base_learner)
        for name in ("train_scale", "scale"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}, but multiplies cosines; use a number above 0.")
        if self.weight_decay < 0:
            raise ValueError(f"weight_decay is {self.weight_decay}; use 0 for none, or more.")

    def init(self) -> Params:
        head = nn.Linear(num_features(self.base_learner, self.input_shape), self.num_train_classes, bias=False)
        like = next(self.base_learner.parameters())  # the body may have none
        return {"body": parameters_of(body_of(self.base_learner)), "directions": head.weight.detach().to(like)}

    def meta_loss(self, theta: Params, episode: Episode) -> tuple[Tensor, Metrics]:
        x = torch.cat([episode.support.x, episode.query.x])
        y = episode.classes[torch.cat([episode.support.y, episode.query.y])]
        z = functional_call(body_of(self.base_learner), theta["body"], (x,))
        outputs = self.train_scale * cosines(z, theta["directions"])  # [S + Q, all training classes]
        loss, score = self.objective.loss(outputs, y), self.objective.score(outputs, y)
        return loss, {"all_classes_loss": loss.detach(), f"all_classes_{self.objective.score_name}": score}

    def adapt(self, theta: Params, support: Batch) -> Params:
        return last(self.trajectory(theta, support, self.inner_steps))

    def trajectory(self, theta: Params, support: Batch, steps: int) -> Iterator[Params]:
        z = functional_call(body_of(self.base_learner), theta["body"], (support.x,))  # [S, D]
        start = F.normalize(F.normalize(z, dim=1).mean(0), dim=0).expand(self.num_ways, -1)  # [N, D]

        def loss(directions: Tensor, features: Batch) -> Tensor:
            decay = (directions * directions).sum() * self.weight_decay / 2
            return self.objective.loss(self.scale * cosines(features.x, directions), features.y) + decay

        body = with_support(body_of(self.base_learner), theta["body"], support.x)
        path = descent(loss, start, SGD(self.inner_lr), steps, Batch(z, support.y))
        return ({"body": body, "directions": directions} for directions in path)

    def predict(self, phi: Params, x: Tensor) -> Tensor:
        z = functional_call(body_of(self.base_learner), phi["body"], (x,))  # [Q, D]
        return self.scale * cosines(z, phi["directions"])


def cosines(z: Tensor, w: Tensor) -> Tensor:
    """The cosine of the angle between every row of z [S, D] and every row of w [N, D]: [S, N]."""
    return F.normalize(z, dim=1) @ F.normalize(w, dim=1).T
