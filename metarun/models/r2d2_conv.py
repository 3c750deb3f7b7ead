"""The network of R2-D2: four convolutional blocks, of which the last two are the features together.

    blocks 1-3:   conv 3x3, batch norm, leaky ReLU, max-pool 2         -> z3         block 3 ends with dropout
    block 4:      conv 3x3, batch norm, leaky ReLU, max-pool 2 of stride 1, dropout (z3)  -> z4
    features:     [max-pool 2 of stride 1 (z3), z4], flattened

28x28 images give 3584 features of the paper's widths (96, 192, 384, 512), 32x32 images 8064. The released code pools before
the leaky ReLU, which gives the same numbers: it keeps their order.

Bertinetto et al., ICLR 2019, https://arxiv.org/abs/1805.08136; released code: fewshots/models/load_model.py 24-130.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from metarun.models.conv4 import four
from metarun.models.dropout import Dropout
from metarun.models.exact.layers import BatchNorm, BatchNormMode, Blocks, Conv2d, MaxPool2d
from metarun.models.parts import check_images, num_features

SLOPE = 0.1  # of the leaky ReLU (scripts/train/conf/fewshots.yaml)


def block(fan_in: int, width: int, batch_norm: BatchNormMode, stride: int) -> list[nn.Module]:
    """The layers of a block whose pooling has this stride."""
    layers = [Conv2d(fan_in, width, 3, stride=1, padding=1), BatchNorm(width, batch_norm), nn.LeakyReLU(SLOPE)]
    return [*layers, MaxPool2d(2, stride)]


class LastTwo(nn.Module):
    """Features [S, D] of x [S, C, H, W]: what blocks 3 and 4 make, one beside the other."""

    def __init__(self, widths: Sequence[int], batch_norm: BatchNormMode, dropout: float) -> None:
        super().__init__()
        first = [layer for i in range(3) for layer in block(widths[i], widths[i + 1], batch_norm, 2)]
        self.first = Blocks(*first, Dropout(dropout, "block3"))
        self.last = Blocks(*block(widths[3], widths[4], batch_norm, 1), Dropout(dropout, "block4"))
        self.pool = MaxPool2d(2, stride=1)

    def forward(self, x: Tensor) -> Tensor:
        z = self.first(x)
        return torch.cat([self.pool(z).flatten(1), self.last(z).flatten(1)], 1)


class R2D2Conv(nn.Module):
    """Four convolutional blocks whose last two are the features (``body``), and a linear ``head``.

    ``channels`` is one number of 1 or more for all blocks, or a list of four. ``dropout`` is the share of values that are
    dropped in training, from 0 to below 1. Raises ValueError for other values, and unless inputs are images of 16 pixels or
    more a side.
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        num_outputs: int,
        channels: int | Sequence[int],
        dropout: float,
        batch_norm: BatchNormMode,
    ) -> None:
        super().__init__()
        check_images(input_shape, "r2d2_conv", 16)
        self.body = LastTwo([input_shape[0], *four(channels)], batch_norm, dropout)
        self.head = nn.Linear(num_features(self, input_shape), num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))
