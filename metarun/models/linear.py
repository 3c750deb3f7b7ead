"""A linear map without a bias: the base learner whose squared error is a quadratic in its weights."""

import math

from torch import Tensor, nn


class Linear(nn.Module):
    """Linear map without a bias: flatten (``body``), then a ``head`` whose weights start as N(0, init_std^2).

    Raises ValueError for an ``init_std`` below 0.
    """

    def __init__(self, input_shape: tuple[int, ...], num_outputs: int, init_std: float) -> None:
        super().__init__()
        if init_std < 0:
            raise ValueError(f"base_learner.init_std is {init_std}; use 0 to start at zero, or more.")
        self.body = nn.Flatten()
        self.head = nn.Linear(math.prod(input_shape), num_outputs, bias=False)
        nn.init.normal_(self.head.weight, std=init_std)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))
