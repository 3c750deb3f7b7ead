"""Fine-tuning: ordinary training on all tasks at once, then gradient steps on the support set. The control of a table.

    classes:     min over theta of cross-entropy(W body(x) + b, the class of x among all training classes);
                 a task replaces W and b by zeros for its own classes
    regression:  min over theta of L(theta, support and query of every task)
    a task:      phi_0 = (body, head);   phi_{k+1} = phi_k - inner_lr * grad L(phi_k, support)

Meta-training has no inner loop; ``inner_steps`` count at validation and test alone. ``adapted`` says which parts of the
body take the steps beside the head: all, or those named (``[layer4]``, say; ``[]`` for the head alone). For pretrained
weights as they are: base_learner=torchvision base_learner.weights=... steps=1 optimizer.lr=0.

It is "pretrained on all tasks" of Finn, Abbeel and Levine, ICML 2017, https://arxiv.org/abs/1703.03400 (appendix C), and
the fine-tuning of Yosinski et al., NeurIPS 2014, https://arxiv.org/abs/1411.1792. Cost: one forward and backward pass a
training task; a new task costs inner_steps of them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from metarun.core import Batch, Episode, Metrics, Params, parameters_of, trainable
from metarun.inner.loops import descent
from metarun.inner.optimizers import InnerOptimizerName, inner_optimizer
from metarun.meta_learners.base import GradientLearner
from metarun.models.norm_state import with_support
from metarun.models.parts import body_of, head_of
from metarun.trees import select


@dataclass(frozen=True)
class FineTune(GradientLearner):
    """Ordinary training on all tasks at once, then gradient steps on the support set of a new task.

    ``num_ways`` is None in regression, and ``num_train_classes`` then too. ``adapted`` names the parts of the body that
    take steps beside the head, or is "all". ``inner_lr``, ``inner_steps`` and ``inner_optimizer`` are those of a new
    task.
    """

    any_ways = True

    num_ways: int | None  # None: regression
    num_train_classes: int | None
    adapted: Literal["all"] | Sequence[str]
    inner_lr: float
    inner_steps: int
    inner_optimizer: InnerOptimizerName

    def __post_init__(self) -> None:
        body, head = body_of(self.base_learner), head_of(self.base_learner)
        if self.num_ways is not None and self.num_train_classes is None:
            raise ValueError(
                "fine_tune learns to tell all training classes apart, but the task has no fixed set of them. "
                "Choose a task that has, or a learner that does without, such as maml."
            )
        if self.num_ways is not None and not isinstance(head, nn.Linear):
            raise ValueError(f"fine_tune gives every task a new linear head, but self.head is a {type(head).__name__}.")
        if unknown := [part for part in self.parts if not any(within(p, part) for p in trainable(body))]:
            known = ", ".join(dict.fromkeys(p.rpartition(".")[0] for p in trainable(body)))
            raise ValueError(f"adapted names {', '.join(unknown)}, but the body has {known}. Name those, or use all.")

    @property
    def parts(self) -> Sequence[str]:
        """The parts that ``adapted`` names; none where it is "all"."""
        return () if self.adapted == "all" else self.adapted

    def init(self) -> Params:
        head = head_of(self.base_learner)
        if self.num_train_classes is not None:
            like: Any = head.weight
            head = nn.Linear(like.shape[1], self.num_train_classes).to(like)
        return {"body": parameters_of(body_of(self.base_learner)), "head": parameters_of(head)}

    def meta_loss(self, theta: Params, episode: Episode) -> tuple[Tensor, Metrics]:
        (support_x, support_y), (query_x, query_y) = episode.support[:2], episode.query[:2]
        y = torch.cat([support_y, query_y])
        if self.num_train_classes is not None:
            y = episode.classes[y]
        outputs = self.predict(theta, torch.cat([support_x, query_x]))
        loss, score = self.objective.loss(outputs, y), self.objective.score(outputs, y)
        return loss, {"pretraining_loss": loss.detach(), f"pretraining_{self.objective.score_name}": score}

    def path(self, theta: Params, support: Batch, steps: int) -> Iterator[Params]:
        adapted, kept = select(
            theta["body"], lambda p: self.adapted == "all" or any(within(p, part) for part in self.parts)
        )
        start = {"body": adapted, "head": self.head_of_a_task(theta)}

        def loss(weights: Params, kept: Params, support: Batch) -> Tensor:
            phi = {**weights, "body": {**kept, **weights["body"]}}
            return self.objective.loss(self.predict(phi, support.x), support.y)  # norms as the pretrained network's

        rule = inner_optimizer(self.inner_optimizer, self.inner_lr)
        path = descent(loss, start, rule, steps, kept, support)
        return ({**weights, "body": {**kept, **weights["body"]}} for weights in path)

    def ended(self, phi: Params, support: Batch) -> Params:
        return {**phi, "body": with_support(body_of(self.base_learner), phi["body"], support.x)}

    def head_of_a_task(self, theta: Params) -> Params:
        """The head that a task begins with: zeros, weight [N, D] and bias [N], or in regression the trained head."""
        if self.num_ways is None:
            return theta["head"]
        weight = theta["head"]["weight"]
        return {"weight": weight.new_zeros(self.num_ways, weight.shape[1]), "bias": weight.new_zeros(self.num_ways)}

    def predict(self, phi: Params, x: Tensor) -> Tensor:
        z = functional_call(body_of(self.base_learner), phi["body"], (x,))  # [Q, D]
        return functional_call(head_of(self.base_learner), phi["head"], (z,))


def within(parameter: str, part: str) -> bool:
    """True where ``part`` is the parameter, or a module that it is in."""
    return f"{parameter}.".startswith(f"{part}.")
