"""A U-Net along one axis, whose weights are in theta: for learners that lay their examples on a grid.

    down:  h_{i+1} = ReLU(convolution of h_i with stride 2)                       ``levels`` times, from h_0 = 1x1 of x
    up:    u_i = ReLU(transposed convolution of [u_{i+1}, h_{i+1}] with stride 2),   u_levels = nothing;   y = 1x1 of u_0

Ronneberger et al. 2015, https://arxiv.org/abs/1505.04597; as in the code of Bruinsma's neuralprocesses. G places, a
multiple of 2^levels; C channels
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metarun.core import Params

KERNEL = 5
PADDING = KERNEL // 2


def unet(inputs: int, outputs: int, channels: int, levels: int, like: Tensor) -> Params:
    """Make the weights of a U-Net from ``inputs`` to ``outputs`` channels, drawn as torch draws them."""
    down = [nn.Conv1d(channels, channels, KERNEL) for _ in range(levels)]
    up = [nn.ConvTranspose1d(channels * (1 if i == 0 else 2), channels, KERNEL) for i in range(levels)]
    ends = {"first": nn.Conv1d(inputs, channels, 1), "last": nn.Conv1d(channels, outputs, 1)}

    def weights(module: nn.Module) -> dict[str, Tensor]:
        return {name: p.detach().to(like) for name, p in module.named_parameters()}

    return {
        **{name: weights(module) for name, module in ends.items()},
        "down": [weights(module) for module in down],
        "up": [weights(module) for module in up],
    }


def through(net: Params, x: Tensor) -> Tensor:
    """Apply a U-Net to x [C, G]: [outputs, G]."""
    h = F.conv1d(x[None], **net["first"])
    seen = []
    for layer in net["down"]:
        h = F.conv1d(h, **layer, stride=2, padding=PADDING).relu()
        seen.append(h)
    for i, layer in enumerate(net["up"]):
        h = h if i == 0 else torch.cat([h, seen[-1 - i]], 1)
        h = F.conv_transpose1d(h, **layer, stride=2, padding=PADDING, output_padding=1).relu()
    return F.conv1d(h, **net["last"])[0]
