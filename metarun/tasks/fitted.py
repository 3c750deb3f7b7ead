"""Images of another task distribution, made to be what the networks of a run take."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor
from torchvision.transforms.v2.functional import resize, rgb_to_grayscale

from metarun.core import Batch, Draw, Episode, TaskDistribution
from metarun.drawing import picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Fitted(TaskDistribution):
    """The episodes of ``task`` with images [channels, height, width] of ``input_shape``.

    Resized to height and width (bilinear, antialiased; not cropped), colours to grey by luma, grey to equal channels. Raises
    ValueError for inputs that are no images of 1 or 3 channels.
    """

    def __init__(self, task: TaskDistribution, input_shape: tuple[int, ...]) -> None:
        if any(len(shape) != 3 or shape[0] not in (1, 3) for shape in (task.input_shape, input_shape)):
            raise ValueError(
                f"evaluation.fit_images fits images of 1 or 3 channels to each other, and not inputs of shape "
                f"{list(task.input_shape)} to {list(input_shape)}. Choose another task, and set it to false."
            )
        self.task, self.input_shape, self.objective = task, input_shape, task.objective
        self.num_outputs, self.num_ways, self.train_num_ways = task.num_outputs, task.num_ways, task.train_num_ways
        self.num_train_classes = task.num_train_classes

    def draw(self, split: str, indices: Sequence[int] | np.ndarray) -> Draw:
        return self.task.draw(split, indices)

    def episodes(self, draw: Draw) -> Episode:
        support, query, classes = self.task.episodes(draw)
        return Episode(Batch(self.fit(support.x), support.y), Batch(self.fit(query.x), query.y), classes)

    def fit(self, x: Tensor) -> Tensor:
        """[B, S, channels, height, width] of the task's shape to ``input_shape``."""
        if self.input_shape[0] < x.shape[2]:
            x = rgb_to_grayscale(x)
        if self.input_shape[1:] != x.shape[3:]:
            x = resize(x.flatten(0, 1), list(self.input_shape[1:]), antialias=True).unflatten(0, x.shape[:2])
        return x.expand(-1, -1, self.input_shape[0], -1, -1)

    def fingerprint(self) -> str:
        return f"{self.task.fingerprint()}, fitted to {list(self.input_shape)}"

    def verify(self) -> None:
        self.task.verify()

    def show(self, split: str, indices: Sequence[int]) -> "Figure":
        return picture(self.task, split, indices)
