"""Dropout and DropBlock whose masks are a function of the run's seed and the training step.

Nothing is drawn from torch, so vmapped and looped steps drop alike and a resumed run needs no state. The tasks of one
meta-batch share a step's masks; places, layers and the images of a batch have masks of their own. Outside a training step
(evaluation, calibration, finding out shapes) nothing is dropped.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metarun import modes
from metarun.counter import words
from metarun.modes import set_var


def dropping(modules: Iterable[nn.Module], seed: int, step: int) -> AbstractContextManager[None]:
    """Context in which modules that drop values do so as in training step ``step`` of a run with this seed."""
    return set_var(modes.dropped_step, (seed, step) if drops(modules) else None)


def current_step() -> tuple[int, int] | None:
    """The seed and step whose masks are in use; None outside a training step, and where nothing drops."""
    return modes.dropped_step.get()


def drops(modules: Iterable[nn.Module]) -> bool:
    """Tell whether any of the modules drops values, so that its output depends on the training step."""
    return any(isinstance(part, Drop) for module in modules for part in module.modules())


class Drop(nn.Module, ABC):
    """Base of layers that drop a share ``rate`` of the values in training, of any shape; elsewhere they change nothing.

    The share grows linearly from 0 over the first ``steps`` training steps. ``name`` tells a network's layers apart.
    Raises ValueError unless 0 <= rate < 1 and ``steps`` is 0 or more.
    """

    def __init__(self, rate: float, name: str, steps: int = 0) -> None:
        super().__init__()
        if not 0 <= rate < 1 or steps < 0:
            raise ValueError(
                f"a drop rate of {rate} over {steps} steps: use 0 or more and below 1, and 0 steps or more."
            )
        self.rate, self.name, self.steps = rate, name, steps

    def forward(self, x: Tensor) -> Tensor:
        now = modes.dropped_step.get()
        if now is None or not self.training or self.rate == 0:
            return x
        seed, step = now
        rate = self.rate * min(1.0, step / self.steps) if self.steps else self.rate
        return x * self.scale(x, rate, seed, f"{self.name}/{step}")

    @abstractmethod
    def scale(self, x: Tensor, rate: float, seed: int, stream: str) -> Tensor:
        """Factors of the entries of x [S, ...]: 0 where an entry is dropped."""


def chances(seed: int, stream: str, probability: float, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Draw a tensor of ``shape``: 1 with ``probability`` (in steps of 2^-16), else 0; dtype and device as ``like``."""
    count = torch.Size(shape).numel()
    chosen = words(seed, f"{stream}/{shape[0]}", count) < round(probability * 2**16)
    return torch.from_numpy(chosen).view(shape).to(like.device).to(like.dtype)


class Dropout(Drop):
    """Dropout of each value on its own; what is left is divided by 1 - rate."""

    def scale(self, x: Tensor, rate: float, seed: int, stream: str) -> Tensor:
        return (1 - chances(seed, stream, rate, tuple(x.shape), x)) / (1 - rate)


class DropTogether(Drop):
    """Whole channels [S, C] of x [S, C, ...] (``axes`` 2), whole examples (1), or all of x (0); what is left is divided by
    1 - rate."""

    axes: int  # the first ones of x, whose places are dropped or kept one by one

    def scale(self, x: Tensor, rate: float, seed: int, stream: str) -> Tensor:
        shape = (*x.shape[: self.axes], *[1] * (x.dim() - self.axes))
        return (1 - chances(seed, stream, rate, shape, x)) / (1 - rate)


class DropBlock(Drop):
    """Dropout of squares of ``size`` x ``size`` values of a channel: x [S, C, H, W] -> [S, C, H, W].

    As many squares fall as make up the rate; what is left is scaled so that the batch keeps its mean size.

        P(a square begins at a place) = rate / size^2 * H W / ((H - size + 1) (W - size + 1))

    Ghiasi, Lin and Le, NeurIPS 2018, https://arxiv.org/abs/1810.12890. Maps smaller than the square are dropped whole.
    Raises ValueError for a ``size`` below 1.
    """

    def __init__(self, rate: float, name: str, size: int, steps: int = 0) -> None:
        super().__init__(rate, name, steps)
        if size < 1:
            raise ValueError(f"the side of a dropped square is {size}; use 1 or more.")
        self.size = size

    def scale(self, x: Tensor, rate: float, seed: int, stream: str) -> Tensor:
        images, channels, height, width = x.shape
        k = min(self.size, height, width)
        rows, columns = height - k + 1, width - k + 1
        begin = rate / k**2 * height * width / (rows * columns)
        corners = chances(seed, stream, begin, (images, channels, rows, columns), x)
        kept = 1 - F.max_pool2d(F.pad(corners, (k - 1,) * 4), k, stride=1)  # [S, C, H, W]
        return kept * (kept.numel() / kept.sum().clamp(min=1))
