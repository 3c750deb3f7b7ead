"""ResNet-12 as few-shot papers use it: four residual blocks of three convolutions, each halving the image.

    block: conv 3x3, norm, leaky ReLU 0.1, conv 3x3, norm, leaky ReLU, conv 3x3, norm, + norm(conv 1x1 of the block's input),
           leaky ReLU, max-pool 2, dropout (blocks 1 and 2) or DropBlock (blocks 3 and 4)

``channels``: 64, 160, 320, 640 as in MetaOptNet (12.4 million parameters), or the thinner 64, 128, 256, 512 (8.0).
``features``: "flat", all places of the last maps side by side (MetaOptNet), or "mean", their mean (TADAM and later papers).
``drop_block``: side of the dropped squares: 5 on images of 84 pixels, 2 on 32. ``drop_block_steps``: training steps over
which their rate rises from 0 to ``drop_rate``. Released code: 40000 passes, two a step.

Lee et al., CVPR 2019, https://arxiv.org/abs/1904.03758, and its released code. Unlike there, the tasks of a meta-batch share
masks (see metarun/models/dropout.py).
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

from metarun.models.conv4 import ImageMean
from metarun.models.dropout import Drop, DropBlock, Dropout
from metarun.models.exact.layers import BatchNorm, BatchNormMode, Conv2d, MaxPool2d
from metarun.models.parts import check_images

SLOPE = 0.1  # of the leaky ReLU


class ResNet12(nn.Module):
    """Four residual blocks and the image's features (``body``), and a linear ``head``.

    ``drop_rate`` (0 or more, below 1) is that of values in blocks 1 and 2, and of squares in blocks 3 and 4. Raises
    ValueError unless inputs are images of 16 pixels or more a side and ``channels`` are four of 1 or more.
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        num_outputs: int,
        channels: Sequence[int],
        features: Literal["flat", "mean"],
        drop_rate: float,
        drop_block: int,
        drop_block_steps: int,
        batch_norm: BatchNormMode,
    ) -> None:
        super().__init__()
        check_images(input_shape, "resnet12", 16)
        if len(channels) != 4 or min(channels) < 1:
            raise ValueError(f"base_learner.channels is {list(channels)}; give the channels of the four blocks.")
        drops: list[Drop] = [Dropout(drop_rate, f"block{i}") for i in (1, 2)]
        drops += [DropBlock(drop_rate, f"block{i}", drop_block, drop_block_steps) for i in (3, 4)]
        sizes = pairwise([input_shape[0], *channels])
        blocks = [Block(a, b, drop, batch_norm) for (a, b), drop in zip(sizes, drops, strict=True)]
        self.body = nn.Sequential(*blocks, ImageMean() if features == "mean" else nn.Flatten())
        places = 1 if features == "mean" else (input_shape[1] // 16) * (input_shape[2] // 16)
        self.head = nn.Linear(channels[3] * places, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class Block(nn.Module):
    """A residual block of three convolutions: x [S, fan_in, H, W] -> [S, width, H // 2, W // 2]."""

    def __init__(self, fan_in: int, width: int, drop: Drop, batch_norm: BatchNormMode) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for a in (fan_in, width, width):
            layers += [*([nn.LeakyReLU(SLOPE)] if layers else []), conv(a, width, 3), BatchNorm(width, batch_norm)]
        self.residual = nn.Sequential(*layers)
        self.shortcut = nn.Sequential(conv(fan_in, width, 1), BatchNorm(width, batch_norm))
        self.end = nn.Sequential(MaxPool2d(2), nn.LeakyReLU(SLOPE), drop)  # equal in either order, cheaper in this one

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.residual(x) + self.shortcut(x))


def conv(fan_in: int, fan_out: int, kernel_size: int, stride: int = 1) -> Conv2d:
    """Make a convolution without bias that keeps the size at stride 1, weights ~ N(0, 2 / (k k fan_out)).

    He et al., ICCV 2015, by fan-out.
    """
    layer = Conv2d(fan_in, fan_out, kernel_size, stride=stride, padding=kernel_size // 2, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return layer
