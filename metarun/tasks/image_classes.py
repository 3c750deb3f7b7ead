"""N-way K-shot episodes of images that lie in classes: one task distribution for every data set of this kind.

A data set is a function that prepares its images and says which split each class belongs to. ``image_task`` makes it the
``_target_`` of a YAML, with the settings of the function beside those of ``ImageClasses``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from metarun.core import Batch, Draw, Episode, TaskDistribution
from metarun.counter import uniform
from metarun.objectives import CROSS_ENTROPY
from metarun.tasks.augmentation import NUM_CHOICES, Augmentation
from metarun.tasks.episodes import ClassPool, EpisodeSize, check_episode_sizes, draw_images, episode_sizes
from metarun.tasks.images import class_major_batch, pixels_on, show_classes
from metarun.tasks.sources import task_from
from metarun.tasks.splits import SPLITS, split_digest
from metarun.tasks.store import ImageSet, verify

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PARTS = ("support", "query")


@dataclass(frozen=True)
class ImageSource:
    """Prepared images uint8 [num_images, channels, height, width], and the split of each of their classes."""

    name: str  # of the random streams and in the fingerprint
    image_set: ImageSet
    split_of: tuple[str, ...]


class ImageClasses(TaskDistribution):
    """x [B, N * K, channels, height, width] in [0, 1], y [B, N * K] class-major (N * Q in the query set).

    ``train_*`` replace the sizes of the split "train" where they are not None; ``augmentation`` changes its images.
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
        augmentation: Augmentation,
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
        if augmentation.rotation_classes:
            self.pools["train"] = self.pools["train"].repeated(4)  # class c is a quarter turn, c % 4, of one in the set
        check_episode_sizes(self.sizes, self.pools)
        self.num_train_classes = len(self.pools["train"].names)
        self.input_shape = image_set.images.shape[1:]
        self.augmentation = augmentation
        augmentation.check(self.input_shape)
        self.pixels = pixels_on(device, image_set.images)

    def draw(self, split: str, indices: Sequence[int] | np.ndarray) -> Draw:
        """classes [B, N], and in image numbers support [B, N, K] and query [B, N, Q]. Of training episodes, where they are
        augmented, also rotations [B, N] in quarter turns, and an augmentation's choices for support and query images."""
        ways, shots, queries = size = self.sizes[split]
        u = uniform(self.seed, f"{self.source.name}/{split}", np.asarray(indices), ways * (1 + shots + queries))
        draw = draw_images(u, self.pools[split], size)
        if split != "train":
            return draw
        if self.augmentation.rotation_classes:
            draw["rotations"] = draw["classes"] % 4
        if self.augmentation.changes_pixels:
            draw |= {f"{part}_{name}": v for part in PARTS for name, v in self._choices(part, draw, indices).items()}
        return draw

    def _choices(self, part: str, draw: Draw, indices: Sequence[int] | np.ndarray) -> Draw:
        """The augmentation's choices for the images draw[part] [B, N, K]: [B, N, K, ...]."""
        shape = draw[part].shape
        count = shape[1] * shape[2] * NUM_CHOICES
        u = uniform(self.seed, f"{self.source.name}/augmentation/{part}", np.asarray(indices), count)
        return self.augmentation.choices(u.reshape(*shape, NUM_CHOICES))

    def episodes(self, draw: Draw) -> Episode:
        support, query = (self._batch(part, draw) for part in PARTS)
        return Episode(support, query, torch.from_numpy(draw["classes"]).to(self.device))

    def _batch(self, part: str, draw: Draw) -> Batch:
        turns = draw.get("rotations", np.zeros_like(draw["classes"]))
        batch = class_major_batch(self.pixels, draw[part], turns, self.dtype)
        if f"{part}_shift" not in draw:
            return batch
        choices = {name: draw[f"{part}_{name}"] for name in ("shift", "flip", "jitter")}
        rows = {name: values.reshape(-1, *values.shape[3:]) for name, values in choices.items()}
        return batch._replace(x=self.augmentation.apply(batch.x.flatten(0, 1), rows).view_as(batch.x))

    def fingerprint(self) -> str:
        image_set = self.source.image_set
        splits = split_digest(image_set.names, self.source.split_of)
        return f"{self.source.name}: sha256 {image_set.sha256}, splits {splits}"

    def verify(self) -> None:
        verify(self.source.image_set)

    def show(self, split: str, indices: Sequence[int]) -> "Figure":
        """Each episode's classes by name, with their support and query images."""
        return show_classes(self, split, indices, self.pools[split].names)


image_task = task_from(ImageClasses)
