"""N-way K-shot episodes of images that lie in classes: one task distribution for every data set of this kind.

A data set is a function that names its images and says which split each class belongs to. ``image_task`` makes it the
``_target_`` of a YAML, with the settings of the function beside those of ``ImageClasses``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from metarun.core import Batch, Draw, Episode
from metarun.counter import uniform
from metarun.tasks.augmentation import NUM_CHOICES, Augmentation
from metarun.tasks.episodes import ClassPool, EpisodeSize, check_pools, class_spec, draw_examples, sizes_by_split
from metarun.tasks.images import class_major_batch, pixels_on, show_classes
from metarun.tasks.sources import PreparedTask, task_from
from metarun.tasks.splits import SPLITS, split_digest
from metarun.tasks.store import Source

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PARTS = ("support", "query")


@dataclass(frozen=True)
class ImageData:
    """Images uint8 [num_images, channels, height, width], and the split of each of their classes, by the names of all."""

    name: str  # of the random streams and in the fingerprint
    source: Source
    splits_of: Callable[[tuple[str, ...]], Sequence[str]]


class ImageClasses(PreparedTask):
    """Episodes of images: x [B, N * K, channels, height, width] in [0, 1], y [B, N * K] class-major (query set: N * Q).

    ``train_*`` replace the sizes of the split "train" where they are not None; ``augmentation`` changes its images.
    """

    def __init__(  # noqa: PLR0913
        self,
        *,
        data: Callable[[], ImageData],
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
        size = EpisodeSize(num_ways, num_shots, num_queries)
        self.sizes = sizes_by_split(size, train_num_ways, train_num_shots, train_num_queries)
        self.seed, self.device, self.dtype = seed, device, dtype

        named = data()
        self.name, self.images = named.name, named.source.prepared()
        self.prepared, self.split_of = (self.images,), named.splits_of(self.images.names)
        _, names, counts, _ = self.images
        self.pools = {s: ClassPool.of(names, counts, [of == s for of in self.split_of]) for s in SPLITS}
        if augmentation.rotation_classes:
            self.pools["train"] = self.pools["train"].repeated(4)  # class c is a quarter turn, c % 4, of one in the set
        check_pools(self.pools, self.sizes)
        self.spec = class_spec(self.images.rows.shape[1:], self.sizes, len(self.pools["train"].names))
        self.augmentation = augmentation
        augmentation.check(self.spec.input_shape)
        self.pixels = pixels_on(device, self.images.rows)

    @staticmethod
    def sources(data: Callable[[], ImageData]) -> list[Source]:
        return [data().source]

    def draw(self, split: str, indices: Sequence[int] | np.ndarray) -> Draw:
        """Numbers of classes [B, N] and of images, support [B, N, K] and query [B, N, Q].

        Of training episodes, where they are augmented, also rotations [B, N] in quarter turns, and an augmentation's
        choices for support and query images.
        """
        ways, shots, queries = size = self.sizes[split]
        u = uniform(self.seed, f"{self.name}/{split}", np.asarray(indices), ways * (1 + shots + queries))
        draw = draw_examples(u, self.pools[split], size)
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
        u = uniform(self.seed, f"{self.name}/augmentation/{part}", np.asarray(indices), count)
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
        return f"{self.name}: sha256 {self.images.sha256}, splits {split_digest(self.images.names, self.split_of)}"

    def show(self, split: str, indices: Sequence[int]) -> "Figure":
        """Each episode's classes by name, with their support and query images."""
        return show_classes(self, split, indices, self.pools[split].names)


image_task = task_from(ImageClasses)
