"""Features that are good already, each times a learned weight: for sentences as counts of words or n-grams.

    z(x) = x * exp(w)         (``body``)

w starts at zero, so a metric learner starts from the features as they come and learns which of them matter; the linear
``head`` starts at zero too, so the first inner step of MAML makes it the difference of each class's mean to that of all.
A weight for each number is all that there is to learn, which few training classes suffice for: random projections, as
``embedding_bag`` begins with, have a hundred times as many.
"""

import torch
from torch import Tensor, nn


class Weighted(nn.Module):
    """A weight for each number of a vector (``body``) and a linear ``head``; other inputs raise ValueError."""

    def __init__(self, input_shape: tuple[int, ...], num_outputs: int) -> None:
        super().__init__()
        if len(input_shape) != 1:
            raise ValueError(
                f"base_learner weighted weighs the numbers of vectors, but the task's inputs have shape "
                f"{list(input_shape)}. Choose base_learner=mlp."
            )
        self.body = Weights(input_shape[0])
        self.head = nn.Linear(input_shape[0], num_outputs)
        for p in self.head.parameters():
            nn.init.zeros_(p)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class Weights(nn.Module):
    """x [S, width] times a positive weight for each of its numbers, 1 at the start."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.log_weight = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.log_weight.exp()
