"""Losses and scores of supervised tasks."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import vmap

ABSENT = 30.0  # how far the logits of absent classes lie below all others: no probability, and no infinite loss either


@dataclass(frozen=True)
class Objective:
    """``loss`` is what adaptation and meta-training minimise; ``score`` is what a table reports. Both average over S."""

    loss: Callable[[Tensor, Tensor], Tensor]
    score: Callable[[Tensor, Tensor], Tensor]
    score_name: str
    higher_is_better: bool


def accuracy(logits: Tensor, y: Tensor) -> Tensor:
    """Share of the rows of ``logits`` [S, N] whose largest entry is at ``y`` [S]."""
    return (logits.detach().argmax(-1) == y).to(logits.dtype).mean()


def detached_mse(outputs: Tensor, y: Tensor) -> Tensor:
    """Mean squared error over all entries, without a gradient."""
    return F.mse_loss(outputs.detach(), y)


CROSS_ENTROPY = Objective(F.cross_entropy, accuracy, "accuracy", higher_is_better=True)
SQUARED_ERROR = Objective(F.mse_loss, detached_mse, "mse", higher_is_better=False)


def one_hot(y: Tensor, num_ways: int, dtype: torch.dtype) -> Tensor:
    """Classes ``y`` [...] of ``num_ways`` as vectors [..., N] of 0 and 1. torch's own asks on a CPU whether every class is
    below N, which no compiled graph can."""
    return (y[..., None] == torch.arange(num_ways, device=y.device)).to(dtype)


def among(present: Tensor, logits: Tensor) -> Tensor:
    """``logits`` [..., N] with those of classes that are not ``present``, bool [N], ``ABSENT`` below all others; as they are
    where no class is."""
    present = present | ~present.any()
    least = torch.where(present, logits, torch.inf).amin(-1, keepdim=True).detach()
    return torch.where(present, logits, least - (least.abs() / 100).clamp(min=ABSENT))  # 30 less is no less of 1e9


def examples_of(batch: Any) -> Tensor | None:
    """Which rows of a ``Batch`` are examples, bool [S]; None: all."""
    return None if isinstance(batch.mask, tuple) else batch.mask


def of_examples(objective: Objective, examples: Tensor | None) -> Objective:
    """``objective`` as a mean over the rows that are ``examples`` [S]; itself where all are."""
    if examples is None:
        return objective

    def over(fn: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
        of_each = vmap(lambda output, target: fn(output[None], target[None]))
        return lambda outputs, y: mean_of_rows(of_each(outputs, y), examples)

    return replace(objective, loss=over(objective.loss), score=over(objective.score))


def mean_of_rows(values: Tensor, examples: Tensor) -> Tensor:
    """The mean of those of ``values`` [S] that are ``examples`` [S]."""
    return torch.where(examples, values, 0).sum() / examples.sum()
