"""Augmentation of training images, by choices that are part of an episode's draw: the same episode has the same pixels.

    crop:     a window of the image's own size out of the image with ``padding`` black pixels around, anywhere alike
    flip:     mirrored left to right with probability ``flip``
    jitter:   brightness, contrast and saturation, in this order, by factors ~ U[1 - a, 1 + a], a the setting

The three blend the image with black, with the mean of its grey, and with its grey (torchvision's definitions, which take one
factor for a batch; here each image has its own). ``rotation_classes``: the four quarter turns of a class are classes of
their own in training. Validation and test episodes are left as they are.

B episodes, n images of each, R = B n images
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from metarun.core import Draw

JITTERS = ("brightness", "contrast", "saturation")
NUM_CHOICES = 3 + len(JITTERS)  # uniforms for each image: two of the crop, one of the flip, one of each factor


@dataclass(frozen=True)
class Augmentation:
    """Settings of what is done to training images; all at zero is nothing. Raises ValueError for what cannot be drawn."""

    padding: int
    flip: float
    brightness: float
    contrast: float
    saturation: float
    rotation_classes: bool

    def __post_init__(self) -> None:
        if self.padding < 0:
            raise ValueError(f"task.augmentation.padding is {self.padding}, but must be 0 or more pixels.")
        for name in ("flip", *JITTERS):
            if not 0 <= (value := getattr(self, name)) <= 1:
                raise ValueError(f"task.augmentation.{name} is {value}, but must be from 0 to 1.")

    @property
    def changes_pixels(self) -> bool:
        """True where ``apply`` may change an image; ``rotation_classes`` has no part in it."""
        return any(getattr(self, name) for name in ("padding", "flip", *JITTERS))

    def check(self, image_shape: tuple[int, ...]) -> None:
        """Raise ValueError unless images of this shape [channels, height, width] can be augmented so."""
        channels, height, width = image_shape
        if self.padding > (most := min(height, width) // 2):  # from the side on, some windows would hold black alone
            raise ValueError(
                f"task.augmentation.padding is {self.padding}, but must be at most {most}, half the side of these images "
                f"of {height} x {width} pixels: a window then keeps at least a quarter of its image. "
                f"Set it to {most} or less."
            )
        if channels not in (1, 3) and (self.contrast or self.saturation):
            raise ValueError(
                f"task.augmentation.contrast and saturation need images of 1 or 3 channels, and these have {channels}. "
                "Set both to 0."
            )
        if self.saturation and channels == 1:
            raise ValueError("task.augmentation.saturation has no effect on grey images. Set it to 0.")
        if self.rotation_classes and height != width:
            raise ValueError(
                f"task.augmentation.rotation_classes needs square images, and these have {height} x {width} pixels. "
                "Set it to false."
            )

    def choices(self, u: np.ndarray) -> Draw:
        """Choices by uniforms u [..., NUM_CHOICES]: shift [..., 2] (first row and column), flip [...], jitter [..., 3]."""
        strengths = np.array([getattr(self, name) for name in JITTERS], dtype=np.float64)
        return {
            "shift": np.floor((2 * self.padding + 1) * u[..., :2]).astype(np.int64),
            "flip": (u[..., 2] < self.flip).astype(np.int64),
            "jitter": 1 + strengths * (2 * u[..., 3:] - 1),
        }

    def apply(self, x: Tensor, choices: Draw) -> Tensor:
        """Images x [R, channels, height, width] in [0, 1], changed as ``choices`` (leading with R) say, in their dtype."""
        x = window(x, choices["shift"], choices["flip"], self.padding)
        factors = torch.from_numpy(choices["jitter"]).to(x)[:, :, None, None, None]  # [R, 3, 1, 1, 1]
        if self.brightness:
            x = blend(x, torch.zeros_like(x), factors[:, 0])
        if self.contrast:
            x = blend(x, grey(x).mean((1, 2, 3), keepdim=True), factors[:, 1])
        if self.saturation:
            x = blend(x, grey(x), factors[:, 2])
        return x


NONE = Augmentation(padding=0, flip=0.0, brightness=0.0, contrast=0.0, saturation=0.0, rotation_classes=False)


def window(x: Tensor, shift: np.ndarray, flip: np.ndarray, padding: int) -> Tensor:
    """Windows of images x [R, C, H, W] with black around them, which begin at shift [R, 2]; mirrored where flip [R] is 1."""
    height, width = x.shape[2:]
    columns = np.arange(width)
    rows = shift[:, :1] + np.arange(height)  # [R, H]
    columns = shift[:, 1:] + np.where(flip[:, None] == 1, columns[::-1], columns)  # [R, W]
    places = rows[:, :, None] * (width + 2 * padding) + columns[:, None, :]  # [R, H, W]
    index = torch.from_numpy(places).to(x.device).flatten(1)[:, None].expand(-1, x.shape[1], -1)
    # by number of the pixel, which is five times as fast as advanced indexing
    return F.pad(x, (padding,) * 4).flatten(2).gather(2, index).view_as(x)


def blend(x: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    """Blend factor x + (1 - factor) other of images, kept in [0, 1]."""
    return (factor * x + (1 - factor) * other).clamp(0, 1)


def grey(x: Tensor) -> Tensor:
    """Grey images [R, 1, H, W] of x [R, 1 or 3, H, W]."""
    if x.shape[1] == 1:
        return x
    from torchvision.transforms.v2.functional import rgb_to_grayscale  # it takes seconds to load

    return rgb_to_grayscale(x)
