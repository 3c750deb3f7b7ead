"""Wide residual networks: three groups of residual blocks, norms first, on a third of the usual depth.

    conv 3x3 (16);   groups of (depth - 4) / 6 blocks with 16, 32, 64 times ``width`` channels, the latter two halving;
    norm, ReLU, mean over the image

    block: o = ReLU(norm(x));   x <- shortcut + conv 3x3(dropout(ReLU(norm(conv 3x3(o)))))
    shortcut: x, or conv 1x1(o) where the channels change

``wrn_28_10`` has depth 28 and width 10 (36.5 million parameters with ten outputs). Zagoruyko and Komodakis, BMVC 2016,
https://arxiv.org/abs/1605.07146. Dropout by step: see metarun/models/dropout.py.
"""

from torch import Tensor, nn

from metarun.models.conv4 import ImageMean
from metarun.models.dropout import Dropout
from metarun.models.exact.layers import BatchNorm, BatchNormMode
from metarun.models.parts import check_images
from metarun.models.resnet12 import conv


class WideResNet(nn.Module):
    """Three groups of residual blocks and the mean over the image (``body``), and a linear ``head``.

    ``depth`` is 4 more than a multiple of 6 (10 or more), ``width`` multiplies the channels (1 or more), and
    ``dropout`` is a rate (0 or more, below 1). Raises ValueError for other numbers, and unless inputs are images of 4
    pixels or more a side.
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        num_outputs: int,
        depth: int,
        width: int,
        dropout: float,
        batch_norm: BatchNormMode,
    ) -> None:
        super().__init__()
        check_images(input_shape, "wrn_28_10", 4)
        if depth < 10 or (depth - 4) % 6 or width < 1:
            raise ValueError(
                f"base_learner.depth is {depth} and width {width}; the depth of a wide residual network is 4 more than a "
                "multiple of 6 (10, 16, 22, 28, ...), the width 1 or more."
            )
        blocks: list[nn.Module] = []
        fan_in = 16
        for group, fan_out in enumerate((16 * width, 32 * width, 64 * width)):
            for i in range((depth - 4) // 6):
                stride = 2 if group and not i else 1
                blocks.append(Block(fan_in, fan_out, stride, Dropout(dropout, f"block{len(blocks)}"), batch_norm))
                fan_in = fan_out
        end = BatchNorm(fan_in, batch_norm), nn.ReLU(), ImageMean()
        self.body = nn.Sequential(conv(input_shape[0], 16, 3), *blocks, *end)
        self.head = nn.Linear(fan_in, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class Block(nn.Module):
    """A residual block, norms first: x [S, fan_in, H, W] -> [S, width, h, w], H / stride and W / stride rounded up."""

    def __init__(self, fan_in: int, width: int, stride: int, dropout: Dropout, batch_norm: BatchNormMode) -> None:
        super().__init__()
        self.first = nn.Sequential(BatchNorm(fan_in, batch_norm), nn.ReLU())
        self.residual = nn.Sequential(
            conv(fan_in, width, 3, stride), BatchNorm(width, batch_norm), nn.ReLU(), dropout, conv(width, width, 3)
        )
        self.shortcut = None if fan_in == width else conv(fan_in, width, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        o = self.first(x)
        return (x if self.shortcut is None else self.shortcut(o)) + self.residual(o)
