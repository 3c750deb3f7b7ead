"""Perceptrons whose weights are a list in theta: for the networks of a learner, whose sizes depend on its features."""

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

Layers = list[dict[str, Tensor]]  # weight [out, in] and bias [out] of each


def dense(sizes: Sequence[int], like: Tensor) -> Layers:
    """Make linear layers between ``sizes``, drawn as torch draws them, in the dtype and on the device of ``like``."""
    modules = [nn.Linear(a, b) for a, b in pairwise(sizes)]
    return [{"weight": m.weight.detach().to(like), "bias": m.bias.detach().to(like)} for m in modules]


def perceptron(layers: Layers, x: Tensor) -> Tensor:
    """Apply the layers in turn, with a ReLU between two of them: x [..., in] -> [..., out]."""
    for layer in layers[:-1]:
        x = F.linear(x, **layer).relu()
    return F.linear(x, **layers[-1])
