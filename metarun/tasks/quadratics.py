"""Quadratics: f(z) = ||W z - y||^2 with random W [D, D] and y [D], the test problems of learned optimizers.

A task is one problem, written as regression: inputs are the rows of W, targets the entries of y, and a linear base
learner without bias has z as its weights. Support and query are the same D rows: the aim is to minimise, not to
generalise. The loss is the sum of the squared residuals, not their mean.

    entries of W and y ~ N(0, 1)   (``gaussian``, the paper's text)   or   U[0, 1]   (``uniform``, its released code)

Andrychowicz et al., NeurIPS 2016, section 3.1, https://arxiv.org/abs/1606.04474. Figures of one are not comparable with
figures of the other: at z = 0 the mean loss is D for gaussian entries and D / 3 for uniform ones.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from metarun.core import Batch, Draw, Episode, TaskDistribution, TaskSpec
from metarun.counter import normal, uniform
from metarun.objectives import Objective


def sum_of_squares(outputs: Tensor, y: Tensor) -> Tensor:
    """Sum of the squared residuals over all entries."""
    return ((outputs - y) ** 2).sum()


def detached_sum_of_squares(outputs: Tensor, y: Tensor) -> Tensor:
    """Sum of the squared residuals over all entries, without a gradient."""
    return sum_of_squares(outputs.detach(), y)


SUM_OF_SQUARES = Objective(sum_of_squares, detached_sum_of_squares, "sum_of_squares", higher_is_better=False)


class Quadratics(TaskDistribution):
    """Optimization problems; support and query: x = W [D, D], y [D, 1], with D = num_dims."""

    def __init__(
        self,
        num_dims: int,
        entries: Literal["gaussian", "uniform"],
        seed: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        if num_dims < 1:
            raise ValueError(f"task.num_dims is {num_dims}; use 1 or more.")
        self.spec = TaskSpec(input_shape=(num_dims,), num_outputs=1, objective=SUM_OF_SQUARES)
        self.num_dims, self.entries, self.seed, self.device, self.dtype = num_dims, entries, seed, device, dtype

    def draw(self, split: str, indices: Sequence[int] | np.ndarray) -> Draw:
        count = self.num_dims * (self.num_dims + 1)  # even: one of two neighbours is
        return {"u": uniform(self.seed, f"quadratics/{split}", np.asarray(indices), count)}

    def episodes(self, draw: Draw) -> Episode:
        entries = normal(draw["u"]) if self.entries == "gaussian" else draw["u"]
        rows = torch.from_numpy(entries).to(self.device, self.dtype).unflatten(1, (self.num_dims, -1))  # [B, D, D + 1]
        batch = Batch(rows[..., :-1], rows[..., -1:])
        return Episode(batch, batch)

    def fingerprint(self) -> str:
        return f"quadratics: {self.num_dims} dimensions, {self.entries} entries"
