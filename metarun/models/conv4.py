"""Four convolutional blocks: the backbone of most few-shot papers.

    stride:   4 x [conv 3x3 stride 2, batch norm, ReLU], mean over the image      MAML on Omniglot (Finn et al. 2017, A.1)
    max_pool: 4 x [conv 3x3, batch norm, ReLU, max-pool 2], flattened             ProtoNet; MAML on mini-ImageNet

28x28 images give ``channels`` features either way; 84x84 images give 25 * channels with max-pooling. One number of
channels is that of every block; a list of four is one each, as 96, 192, 384, 512 (R2-D2: Bertinetto et al. 2019, 5.2).
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from metarun.models.exact.layers import BatchNorm, BatchNormMode, Blocks, Conv2d, MaxPool2d


class ImageMean(nn.Module):
    """Mean over height and width: [S, C, H, W] -> [S, C]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


class Conv4(nn.Module):
    """Four convolutional blocks (``body``) and a linear ``head``.

    ``channels`` is one number of 1 or more for all blocks, or a list of four. ``downsample`` says how a block halves
    the image. Raises ValueError for other channels, and unless inputs are images of 16 pixels or more a side.
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        num_outputs: int,
        channels: int | Sequence[int],
        downsample: Literal["stride", "max_pool"],
        batch_norm: BatchNormMode,
    ) -> None:
        super().__init__()
        if len(input_shape) != 3:
            raise ValueError(
                f"base_learner conv4 needs images [channels, height, width], but the task's inputs have shape "
                f"{list(input_shape)}. Choose base_learner=mlp."
            )
        if min(input_shape[1:]) < 16:
            raise ValueError(f"base_learner conv4 halves the image four times; {input_shape[1:]} is below 16 pixels.")
        widths = [channels] * 4 if isinstance(channels, int) else list(channels)
        if len(widths) != 4 or min(widths) < 1:
            raise ValueError(
                f"base_learner.channels is {channels}; give one number of 1 or more for all blocks, or a list of four."
            )
        strided = downsample == "stride"
        blocks: list[nn.Module] = []
        for fan_in, width in pairwise([input_shape[0], *widths]):
            blocks += [Conv2d(fan_in, width, 3, stride=2 if strided else 1, padding=1)]
            blocks += [BatchNorm(width, batch_norm), nn.ReLU(), *([] if strided else [MaxPool2d(2)])]
        self.body = Blocks(*blocks, ImageMean() if strided else nn.Flatten())
        with torch.no_grad():
            features = self.body(torch.zeros(2, *input_shape)).shape[1]
        self.head = nn.Linear(features, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))
