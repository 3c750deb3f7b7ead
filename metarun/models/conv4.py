"""Four convolutional blocks: the backbone of most few-shot papers.

    stride:   4 x [conv 3x3 stride 2, batch norm, ReLU], mean over the image      MAML on Omniglot (Finn et al. 2017, A.1)
    max_pool: 4 x [conv 3x3, batch norm, ReLU, max-pool 2], flattened             ProtoNet; MAML on mini-ImageNet


``flatten`` takes the strided features as they are, as the released codes of Reptile and iMAML do: 256 of 64 channels.
28x28 images give ``channels`` features either way; 84x84 images give 25 * channels with max-pooling. One number of
channels is that of every block; a list of four is one each.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from metarun.models.exact.layers import BatchNorm, BatchNormMode, Blocks, Conv2d, MaxPool2d

Init = Literal["torch", "xavier", "maml", "imaml"]


@torch.no_grad()
def initialise(net: nn.Module, init: Init) -> None:
    """Draw the first weights of convolutions and linear layers again, in place.

    torch: leave them. xavier: uniform with gain 1, biases 0 (MAML++, few_shot networks' file, lines 62-66 and 115-118).
    maml: as xavier, but linear layers N(0, 1) (MAML, its main file, lines 189-207). imaml: xavier with gain 1.73, biases
    U(0, 0.05) (iMAML, learner_model, lines 222-225).
    """
    for layer in net.modules() if init != "torch" else ():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(layer.weight, gain=1.73 if init == "imaml" else 1.0)
            if init == "maml" and isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight)
            if layer.bias is not None:
                nn.init.uniform_(layer.bias, 0.0, 0.05 if init == "imaml" else 0.0)


def four(channels: int | Sequence[int]) -> list[int]:
    """The channels of four blocks. Raises ValueError unless it is one number of 1 or more, or four of them."""
    widths = [channels] * 4 if isinstance(channels, int) else list(channels)
    if len(widths) != 4 or min(widths) < 1:
        raise ValueError(
            f"base_learner.channels is {channels}; give one number of 1 or more for all blocks, or a list of four."
        )
    return widths


class ImageMean(nn.Module):
    """Mean over height and width: [S, C, H, W] -> [S, C]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


class Conv4(nn.Module):
    """Four convolutional blocks (``body``) and a linear ``head``.

    ``channels`` is one number of 1 or more for all blocks, or a list of four. ``downsample`` says how a block halves
    the image; ``flatten`` leaves out the mean over the image that ends strided blocks. ``init`` names the first weights
    (``initialise``). Raises ValueError for other channels, and unless inputs are images of 16 pixels or more a side.
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        num_outputs: int,
        channels: int | Sequence[int],
        downsample: Literal["stride", "max_pool"],
        batch_norm: BatchNormMode,
        flatten: bool = False,
        init: Init = "torch",
    ) -> None:
        super().__init__()
        if len(input_shape) != 3:
            raise ValueError(
                f"base_learner conv4 needs images [channels, height, width], but the task's inputs have shape "
                f"{list(input_shape)}. Choose base_learner=mlp."
            )
        if min(input_shape[1:]) < 16:
            raise ValueError(f"base_learner conv4 halves the image four times; {input_shape[1:]} is below 16 pixels.")
        strided = downsample == "stride"
        blocks: list[nn.Module] = []
        for fan_in, width in pairwise([input_shape[0], *four(channels)]):
            blocks += [Conv2d(fan_in, width, 3, stride=2 if strided else 1, padding=1)]
            blocks += [BatchNorm(width, batch_norm), nn.ReLU(), *([] if strided else [MaxPool2d(2)])]
        self.body = Blocks(*blocks, ImageMean() if strided and not flatten else nn.Flatten())
        with torch.no_grad():
            features = self.body(torch.zeros(2, *input_shape)).shape[1]
        self.head = nn.Linear(features, num_outputs)
        initialise(self, init)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))
