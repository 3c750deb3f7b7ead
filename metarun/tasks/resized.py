"""Images of another task distribution, resized, recoloured and inverted to be what the networks of a run take."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from metarun.core import Batch, Draw, Episode, Origin, TaskDistribution
from metarun.drawing import picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Resized(TaskDistribution):
    """The episodes of ``task`` with images [channels, height, width] of ``input_shape``.

    Resized to height and width (bilinear, antialiased; not cropped), colours to grey by luma, grey to equal channels, and
    ``inverted``, ink being 1, or not, as the images of the training are. Raises ValueError for inputs that are no images
    of 1 or 3 channels.
    """

    def __init__(self, task: TaskDistribution, input_shape: tuple[int, ...], inverted: bool = False) -> None:
        own = task.spec.input_shape
        if any(len(shape) != 3 or shape[0] not in (1, 3) for shape in (own, input_shape)):
            raise ValueError(
                f"evaluation.fit_images fits images of 1 or 3 channels to each other, and not inputs of shape "
                f"{list(own)} to {list(input_shape)}. Choose another task, and set it to false."
            )
        self.task, self.spec = task, replace(task.spec, input_shape=input_shape, inverted=inverted)
        self.splits = task.splits

    def at(self, split: str, number: int) -> "Resized":
        task = self.task.at(split, number)
        return self if task is self.task else self.of(task)

    def of(self, task: TaskDistribution) -> "Resized":
        """The episodes of another ``task`` with images as these."""
        return Resized(task, self.spec.input_shape, self.spec.inverted)

    @property
    def turned(self) -> bool:
        """Whether black and white change places."""
        return self.spec.inverted != self.task.spec.inverted

    def draw(self, split: str, indices: Sequence[int] | np.ndarray) -> Draw:
        return self.task.draw(split, indices)

    def episodes(self, draw: Draw) -> Episode:
        support, query, classes = self.task.episodes(draw)
        return Episode(Batch(self.resized(support.x), support.y), Batch(self.resized(query.x), query.y), classes)

    def resized(self, x: Tensor) -> Tensor:
        """Images [B, S, channels, height, width] of the task's shape in the shape of ``spec``."""
        from torchvision.transforms.v2.functional import resize, rgb_to_grayscale  # it takes seconds to load

        channels, *size = self.spec.input_shape
        if channels < x.shape[2]:
            x = rgb_to_grayscale(x)
        if size != list(x.shape[3:]):
            x = resize(x.flatten(0, 1), size, antialias=True).unflatten(0, x.shape[:2])
        return (1 - x if self.turned else x).expand(-1, -1, channels, -1, -1)

    def drawn_from(self, split: str, draw: Draw) -> Origin | None:
        return self.task.drawn_from(split, draw)

    def class_names(self, split: str) -> Sequence[str]:
        return self.task.class_names(split)

    def fingerprint(self) -> str:
        shape = self.spec.input_shape
        fitted = f", fitted to {list(shape)}" if shape != self.task.spec.input_shape else ""
        return self.task.fingerprint() + fitted + ", inverted" * self.turned

    def verify(self) -> None:
        self.task.verify()

    def show(self, split: str, indices: Sequence[int]) -> "Figure":
        return picture(self.task, split, indices)
