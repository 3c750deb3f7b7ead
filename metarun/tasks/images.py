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

from metarun.core import Batch, TaskDistribution
from metarun.drawing import class_figure

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


def class_major_batch(pixels: Pixels, images: np.ndarray, quarter_turns: np.ndarray, dtype: torch.dtype) -> Batch:
    """Batch x [B, N * K, ...] in [0, 1] and y [B, N * K] of images [B, N, K], class n turned by quarter_turns [B, N].

    Class-major: the K examples of class 0 come first, then those of class 1.
    """
    tasks, ways, shots = images.shape
    rows = gather(pixels, images.reshape(-1), np.repeat(quarter_turns.reshape(-1), shots))
    x = rows.reshape(tasks, ways * shots, *rows.shape[1:]).to(dtype).div_(255)
    return Batch(x, class_major_labels(images, rows.device))


def class_major_labels(examples: np.ndarray, device: torch.device) -> Tensor:
    """Labels y [B, N * K] of the examples [B, N, K]: 0 for the first K of an episode, 1 for the next, and so on."""
    tasks, ways, shots = examples.shape
    return torch.arange(ways, device=device).repeat_interleave(shots).repeat(tasks, 1)


def show_classes(task: TaskDistribution, split: str, indices: Sequence[int], names: Sequence[str]) -> "Figure":
    """Picture of episodes with the names of their classes: ``names`` by the number that a draw's ``classes`` give."""
    draw = task.draw(split, indices)
    titles = [f"{split} episode {index}" for index in indices]
    return class_figure(task.episodes(draw), titles, [[names[c] for c in classes] for classes in draw["classes"]])
