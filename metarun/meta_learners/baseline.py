"""Baseline: learn to tell all training classes apart, then fit a linear classifier of the new classes on frozen features.

    training:  min over body, W of cross-entropy(W body(x) + b, the class of x among all training classes)
    a task:    head_0 = 0;   head_{k+1} = head_k - inner_lr * grad L(head_k(body(support.x)), support.y) - decay
    phi = (body, head_K)

Training has no inner loop: support and query are one batch of labelled images (train with many ways and a few queries).
The task distribution must have a fixed set of training classes. ``inner_steps`` count at validation and test alone.

Unlike the paper, a step is on the whole support set, not on batches of 4, and the fit starts at zero, where all classes
are alike, not at random weights: the problem is convex, so the start is all they differ in. The released code's momentum
0.9 has a dampening of 0.9, so its steps add up to those of plain SGD at the same rate, as here.

Chen et al., ICLR 2019, https://arxiv.org/abs/1904.04232. Cost: one forward and backward pass a training task; a new task
costs one forward pass and inner_steps steps of its head.
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
class Baseline(FewShotLearner):
    """A classifier of all training classes, whose body is reused frozen under a linear head fitted to each task.

    ``input_shape`` is that of one example. ``inner_lr``, ``inner_steps`` and ``weight_decay`` (0 or more; it adds half
    of it times the squared head to the loss) are those of a new task's head and do not enter training.
    """

    any_ways = True
    regresses = False
    needs_train_classes = True

    input_shape: tuple[int, ...]
    num_ways: int
    num_train_classes: int
    inner_lr: float
    inner_steps: int
    weight_decay: float

    def __post_init__(self) -> None:
        body_of(self.base_learner)
        if self.weight_decay < 0:
            raise ValueError(f"weight_decay is {self.weight_decay}; use 0 for none, or more.")

    def init(self) -> Params:
        head = nn.Linear(num_features(self.base_learner, self.input_shape), self.num_train_classes)
        like = next(self.base_learner.parameters())  # the body may have none
        return {"body": parameters_of(body_of(self.base_learner)), "head": parameters_of(head.to(like))}

    def meta_loss(self, theta: Params, episode: Episode) -> tuple[Tensor, Metrics]:
        x = torch.cat([episode.support.x, episode.query.x])
        y = episode.classes[torch.cat([episode.support.y, episode.query.y])]
        outputs = self.predict(theta, x)  # [S + Q, all training classes]
        loss, score = self.objective.loss(outputs, y), self.objective.score(outputs, y)
        return loss, {"all_classes_loss": loss.detach(), f"all_classes_{self.objective.score_name}": score}

    def adapt(self, theta: Params, support: Batch) -> Params:
        return last(self.trajectory(theta, support, self.inner_steps))

    def trajectory(self, theta: Params, support: Batch, steps: int) -> Iterator[Params]:
        z = functional_call(body_of(self.base_learner), theta["body"], (support.x,))  # [S, D]
        start = {"weight": z.new_zeros(self.num_ways, z.shape[1]), "bias": z.new_zeros(self.num_ways)}

        def loss(head: Params, features: Batch) -> Tensor:
            decay = sum((p * p).sum() for p in head.values()) * self.weight_decay / 2
            return self.objective.loss(F.linear(features.x, **head), features.y) + decay

        body = with_support(body_of(self.base_learner), theta["body"], support.x)
        heads = descent(loss, start, SGD(self.inner_lr), steps, Batch(z, support.y))
        return ({"body": body, "head": head} for head in heads)

    def predict(self, phi: Params, x: Tensor) -> Tensor:
        z = functional_call(body_of(self.base_learner), phi["body"], (x,))  # [Q, D]
        return F.linear(z, **phi["head"])
