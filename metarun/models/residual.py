"""Features that are good already, and a small correction of them: for embeddings of a pretrained encoder.

    z(x) = x + W_2 ReLU(W_1 x + b_1)         (``body``)

W_2 starts at zero, so a metric learner starts from the frozen features: whatever training changes is its own doing.
"""

import torch.nn.functional as F
from torch import Tensor, nn


class Residual(nn.Module):
    """A small correction of vectors with ``hidden`` units (``body``) and a linear ``head``.

    Raises ValueError where inputs are not vectors, or ``hidden`` is below 1.
    """

    def __init__(self, input_shape: tuple[int, ...], num_outputs: int, hidden: int) -> None:
        super().__init__()
        if len(input_shape) != 1:
            raise ValueError(
                f"base_learner residual corrects vectors, but the task's inputs have shape {list(input_shape)}. Choose "
                "base_learner=mlp."
            )
        if hidden < 1:
            raise ValueError(f"base_learner.hidden is {hidden}; use 1 or more.")
        self.body = Correction(input_shape[0], hidden)
        self.head = nn.Linear(input_shape[0], num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class Correction(nn.Module):
    """The sum of x [S, width] and a perceptron of it with ``hidden`` units, which gives zeros at the start."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.into, self.back = nn.Linear(width, hidden), nn.Linear(hidden, width, bias=False)
        nn.init.zeros_(self.back.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.back(F.relu(self.into(x)))
