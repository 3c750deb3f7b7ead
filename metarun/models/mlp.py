"""A multi-layer perceptron."""

import math
from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from metarun.models.exact.layers import BatchNorm

ACTIVATIONS = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh}


class MLP(nn.Module):
    """Perceptron: flatten, ``hidden`` layers of [linear, batch norm if asked, activation] (``body``), linear ``head``.

    ``init``: ``torch`` is torch's default; ``truncated_normal`` is N(0, 0.01^2) cut at two deviations, zero biases, as
    in the code of Finn et al. 2017. Raises ValueError where ``hidden`` is empty or a width is below 1.
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        num_outputs: int,
        hidden: Sequence[int],
        batch_norm: Literal["transductive", "running", "support"] | None,
        init: Literal["torch", "truncated_normal"],
        activation: Literal["relu", "sigmoid", "tanh"] = "relu",
    ) -> None:
        super().__init__()
        if not hidden or min(hidden) < 1:
            raise ValueError(f"base_learner.hidden is {list(hidden)}; name at least one layer width of 1 or more.")
        layers: list[nn.Module] = [nn.Flatten()]
        for fan_in, width in zip([math.prod(input_shape), *hidden], hidden, strict=False):
            layers += [nn.Linear(fan_in, width), *([BatchNorm(width, batch_norm)] if batch_norm else [])]
            layers += [ACTIVATIONS[activation]()]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(hidden[-1], num_outputs)
        if init == "truncated_normal":
            for module in self.modules():
                if isinstance(module, nn.Linear):
                    nn.init.trunc_normal_(module.weight, std=0.01, a=-0.02, b=0.02)
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))
