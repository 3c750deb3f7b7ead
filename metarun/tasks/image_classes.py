"""N-way K-shot episodes of images that lie in classes: one task distribution for every data set of this kind.

A data set is a function that prepares its images and says which split each class belongs to. ``image_task`` makes it the
``_target_`` of a YAML, with the settings of the function beside those of ``ImageClasses``.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from metarun.core import Draw, Episode, TaskDistribution
from metarun.objectives import CROSS_ENTROPY
from metarun.tasks.counter import uniform
from metarun.tasks.images import (
    ClassPool,
    EpisodeSize,
    ImageSet,
    check_episode_sizes,
    class_major_batch,
    draw_images,
    episode_sizes,
    pixels_on,
    show_classes,
    verify,
)
from metarun.tasks.sources import task_from
from metarun.tasks.splits import SPLITS

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class ImageSource:
    """Prepared images uint8 [num_images, channels, height, width], and the split of each of their classes."""

    name: str  # of the random streams and in the fingerprint
    image_set: ImageSet
    split_of: tuple[str, ...]


class ImageClasses(TaskDistribution):
    """x [B, N * K, channels, height, width] in [0, 1], y [B, N * K] class-major (N * Q in the query set).

    ``train_*`` replace the sizes of the split "train" where they are not None.
    """

    objective = CROSS_ENTROPY

    def __init__(  # noqa: PLR0913
        self,
        *,
        source: Callable[[], ImageSource],
        num_ways: int,
        num_shots: int,
        num_queries: int,
        train_num_ways: int | None,
        train_num_shots: int | None,
        train_num_queries: int | None,
        seed: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        test_size = EpisodeSize(num_ways, num_shots, num_queries)
        self.sizes = episode_sizes(test_size, train_num_ways, train_num_shots, train_num_queries)
        self.num_outputs, self.num_ways, self.train_num_ways = num_ways, num_ways, self.sizes["train"].num_ways
        self.seed, self.device, self.dtype = seed, device, dtype

        self.source = source()
        image_set, split_of = self.source.image_set, self.source.split_of
        self.pools = {s: ClassPool.of(image_set, [of == s for of in split_of]) for s in SPLITS}
        check_episode_sizes(self.sizes, self.pools)
        self.num_train_classes = len(self.pools["train"].names)
        self.input_shape = image_set.images.shape[1:]
        self.pixels = pixels_on(device, image_set.images)

    def draw(self, split: str, indices: Sequence[int] | np.ndarray) -> Draw:
        """classes [B, N], and in image numbers support [B, N, K] and query [B, N, Q]."""
        ways, shots, queries = size = self.sizes[split]
        u = uniform(self.seed, f"{self.source.name}/{split}", np.asarray(indices), ways * (1 + shots + queries))
        return draw_images(u, self.pools[split], size)

    def episodes(self, draw: Draw) -> Episode:
        upright = np.zeros_like(draw["classes"])
        support = class_major_batch(self.pixels, draw["support"], upright, self.dtype)
        query = class_major_batch(self.pixels, draw["query"], upright, self.dtype)
        return Episode(support, query, torch.from_numpy(draw["classes"]).to(self.device))

    def fingerprint(self) -> str:
        image_set = self.source.image_set
        classes = json.dumps([*zip(image_set.names, self.source.split_of, strict=True)])
        splits = hashlib.sha256(classes.encode()).hexdigest()[:16]
        return f"{self.source.name}: sha256 {image_set.sha256}, splits {splits}"

    def verify(self) -> None:
        verify(self.source.image_set)

    def show(self, split: str, indices: Sequence[int]) -> "Figure":
        """Each episode's classes by name, with their support and query images."""
        return show_classes(self, split, indices, self.pools[split].names)


image_task = task_from(ImageClasses)
