"""The embedding of relation networks: four convolutional blocks whose features are maps, not vectors.

    2 x [conv 3x3 without padding, batch norm, ReLU, max-pool 2],   2 x [conv 3x3, batch norm, ReLU]

``body`` gives [S, channels, h, w], 5 x 5 for 28x28 images and 19 x 19 for 84x84, as in the released code; the relation
module goes on convolving. ``head`` flattens the maps, for meta-learners that use one.

Sung et al., CVPR 2018, https://arxiv.org/abs/1711.06025, section 3.4.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from metarun.models.exact.layers import BatchNorm, BatchNormMode, Blocks, Conv2d, MaxPool2d


@torch.no_grad()
def as_released(net: nn.Module) -> None:
    """Draw the first weights of ``net`` as the released code does (omniglot_train_one_shot, lines 103 to 116), in place.

    Convolutions N(0, 2 / (k k outputs)) with biases 0; linear layers N(0, 0.01^2) with biases 1, which opens their ReLUs.
    """
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d):
            fan_out = layer.weight[:, 0].numel()
            layer.weight.normal_(0, (2 / fan_out) ** 0.5)
            layer.bias.zero_()  # type: ignore[union-attr]
        elif isinstance(layer, nn.Linear):
            layer.weight.normal_(0, 0.01)
            layer.bias.fill_(1.0)


class RelationConv(nn.Module):
    """Four blocks of ``channels`` maps (``body``), and a ``head`` that flattens them into a linear layer.

    ``init`` names the first weights: torch's, or those of ``as_released``. Raises
    ValueError unless inputs are images of 10 pixels or more a side.
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        num_outputs: int,
        channels: int,
        batch_norm: BatchNormMode,
        init: Literal["torch", "released"] = "torch",
    ) -> None:
        super().__init__()
        if len(input_shape) != 3 or min(input_shape[1:]) < 10:
            raise ValueError(
                f"base_learner relation_conv needs images [channels, height, width] of 10 pixels or more, but the "
                f"task's inputs have shape {list(input_shape)}. Choose base_learner=mlp."
            )
        blocks: list[nn.Module] = []
        for i, fan_in in enumerate((input_shape[0], channels, channels, channels)):
            halves = i < 2
            blocks += [Conv2d(fan_in, channels, 3, stride=1, padding=0 if halves else 1)]
            blocks += [BatchNorm(channels, batch_norm), nn.ReLU(), *([MaxPool2d(2)] if halves else [])]
        self.body = Blocks(*blocks)
        with torch.no_grad():
            features = self.body(torch.zeros(2, *input_shape)).flatten(1).shape[1]
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(features, num_outputs))
        if init == "released":
            as_released(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))
