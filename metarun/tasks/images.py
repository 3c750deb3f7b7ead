"""Images of episodes: gathering them on the device, and showing them.

N ways, K shots, Q queries, B episodes
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from metarun.core import Batch, Draw, TaskDistribution
from metarun.drawing import class_figure
from metarun.tasks.episodes import rows_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Pixels(ABC):
    """Images by number, as bytes on the run's device."""

    @abstractmethod
    def take(self, images: np.ndarray) -> Tensor:
        """The images [R], in this order: uint8 [R, channels, height, width]."""


@dataclass(frozen=True)
class OnDevice(Pixels):
    """All images on the device, uint8 [num_images, channels, height, width]."""

    pixels: Tensor

    def take(self, images: np.ndarray) -> Tensor:
        return self.pixels[torch.from_numpy(images).to(self.pixels.device)]


@dataclass(frozen=True)
class Mapped(Pixels):
    """Images read from the memory-mapped array when asked for, in the order of the file; they need not fit in memory."""

    images: np.ndarray
    device: torch.device

    def take(self, images: np.ndarray) -> Tensor:
        on_gpu = self.device.type == "cuda"
        rows = torch.empty(len(images), *self.images.shape[1:], dtype=torch.uint8, pin_memory=on_gpu)
        order = np.argsort(images)
        rows.numpy()[order] = self.images[images[order]]
        return rows.to(self.device, non_blocking=on_gpu)


def pixels_on(device: torch.device, images: np.ndarray) -> Pixels:
    """The images [num_images, channels, height, width] for ``device``.

    A CPU reads them from the file, whose pages the system caches and all processes share. A GPU holds them all if they
    take up at most a quarter of its free memory.
    """
    fits = device.type == "cuda" and images.nbytes <= torch.cuda.mem_get_info(device)[0] / 4
    return OnDevice(torch.from_numpy(np.array(images)).to(device)) if fits else Mapped(images, device)


def gather(pixels: Pixels, images: np.ndarray, quarter_turns: np.ndarray) -> Tensor:
    """The images [R]; row r turned counter-clockwise by quarter_turns[r] x 90 degrees."""
    rows = pixels.take(images)
    for turns in range(1, 4):  # turning bytes by group is 4x faster than gathering them by a pixel table
        where = torch.from_numpy(np.flatnonzero(quarter_turns == turns)).to(rows.device)
        if len(where):
            rows[where] = rows[where].rot90(turns, (-2, -1))
    return rows


def image_batch(pixels: Pixels, draw: Draw, part: str, quarter_turns: np.ndarray, dtype: torch.dtype) -> Batch:
    """Batch x [B, N * K, ...] in [0, 1] and y [B, N * K] of the images draw[part], in the draw's order.

    Class n is turned by quarter_turns [B, N].
    """
    images, labels = rows_of(draw, part)
    turns = np.take_along_axis(quarter_turns, labels, 1)
    rows = gather(pixels, images.reshape(-1), turns.reshape(-1))
    x = rows.reshape(*images.shape, *rows.shape[1:]).to(dtype).div_(255)
    return Batch(x, torch.from_numpy(labels).to(rows.device))


def show_classes(task: TaskDistribution, split: str, indices: Sequence[int], names: Sequence[str]) -> "Figure":
    """Picture of episodes with the names of their classes: ``names`` by the number that a draw's ``classes`` give."""
    draw = task.draw(split, indices)
    titles = [f"{split} episode {index}" for index in indices]
    return class_figure(task.episodes(draw), titles, [[names[c] for c in classes] for classes in draw["classes"]])
