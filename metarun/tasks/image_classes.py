"""N-way K-shot episodes of images that lie in classes: one task distribution for every data set of this kind.

A data set is a function that names its images and says which split each class belongs to. ``image_task`` makes it the
``_target_`` of a YAML, with the settings of the function beside those of ``ImageClasses``.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from metarun.core import Batch, Draw, Episode
from metarun.counter import uniform
from metarun.errors import DataProblems
from metarun.tasks.augmentation import NONE, NUM_CHOICES, Augmentation
from metarun.tasks.episodes import (
    ClassPool,
    class_spec,
    pool_problems,
)
from metarun.tasks.groups import GroupedPool, draw_in_order, groups_digest, lacking
from metarun.tasks.image_files import Ranges
from metarun.tasks.image_reader import Decode, ImageReader, square_reader
from metarun.tasks.images import image_batch, pixels_on, show_classes
from metarun.tasks.sizes import Count, EpisodeSize, Sized, Sizes, sizes_by_split
from metarun.tasks.sources import PreparedTask, task_from
from metarun.tasks.splits import SPLITS, split_digest, thinned
from metarun.tasks.store import Prepared, Source

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PARTS = ("support", "query")
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageData:
    """Images uint8 [num_images, channels, height, width], and the split of each of their classes, by the names of all."""

    name: str  # of the random streams and in the fingerprint
    source: Source
    splits_of: Callable[[tuple[str, ...]], Sequence[str]]
    required: tuple[str, ...] = SPLITS  # splits that must have classes
    # images of each class, or groups where they count, where they are known before any is read: copies may be left out
    counts: Mapping[str, int] = field(default_factory=dict)
    faults: Callable[[], list[str]] = list  # of the images themselves, to be told beside other faults
    notes: Sequence[str] = ()  # what the user should know of what is read, and of what is not
    groups: Callable[[Prepared], np.ndarray] | None = None  # the number of each image's group; None: no groups
    # what is black and white in images of more than 8 bits; None: nobody knows
    ranges: Callable[[Prepared], Ranges | None] = lambda prepared: Ranges()
    decode: Decode | None = None  # how new images become rows as these; None: cut square and resized

    def thinned(self, fraction: float) -> "ImageData":
        """The same with that share of the training classes."""
        return replace(self, splits_of=lambda names: thinned(names, self.splits_of(names), fraction))


class ImageClasses(PreparedTask, Sized):
    """Episodes of images: x [B, N * K, channels, height, width] in [0, 1], y [B, N * K] (query set: N * Q).

    ``train_*`` replace the sizes of the split "train" where they are not None; ``augmentation`` changes its images.
    """

    of_training = PreparedTask.of_training | {"augmentation"}

    def __init__(  # noqa: PLR0913
        self,
        *,
        data: Callable[[], ImageData],
        num_ways: Count,
        num_shots: Count,
        num_queries: Count,
        train_num_ways: Count | None,
        train_num_shots: Count | None,
        train_num_queries: Count | None,
        augmentation: Augmentation,
        seed: int,
        device: torch.device,
        dtype: torch.dtype,
        train_fraction: float = 1.0,  # runs of an earlier metarun do not say it
    ) -> None:
        of_training = train_num_ways, train_num_shots, train_num_queries
        self.sizes = sizes_by_split(EpisodeSize, (num_ways, num_shots, num_queries), *of_training)
        self.seed, self.device, self.dtype, self.augmentation = seed, device, dtype, augmentation

        named = data().thinned(train_fraction)
        _say(named.notes)
        if names := tuple(named.counts):
            before = self._pools_of(names, [*named.counts.values()], named.splits_of(names), augmentation)
            if problems := self._problems(before, named):
                raise DataProblems(problems + named.faults())
        self.name, self.images, self.decode = named.name, named.source.prepared(), named.decode
        self.ranges = named.ranges(self.images)
        _say(self.images.facts.get("notes", ()))
        self.prepared, self.split_of = (self.images,), named.splits_of(self.images.names)
        self.pools = self._pools_of(self.images.names, self.images.counts, self.split_of, augmentation)
        self.group_of = named.groups and named.groups(self.images)
        self.grouped = self._grouped()
        of_groups = {split: grouped.classes for split, grouped in self.grouped.items()}
        if problems := self._problems(of_groups or self.pools, named):  # where copies were left out
            raise DataProblems(problems)
        self.splits = tuple(split for split, pool in self.pools.items() if pool.names)
        self.spec = class_spec(self.images.rows.shape[1:], self.sizes, len(self.pools["train"].names))
        augmentation.check(self.spec.input_shape)
        self.pixels = pixels_on(device, self.images.rows)

    def _grouped(self) -> dict[str, GroupedPool]:
        """The pools of every split by group; none where the images have no groups."""
        if self.group_of is None:
            return {}
        return {split: GroupedPool.of(pool, self.group_of) for split, pool in self.pools.items()}

    def _problems(self, pools: dict[str, ClassPool], named: ImageData) -> list[str]:
        """What the pools lack for episodes, but for splits that nobody said must have classes."""
        filled = {split: pool for split, pool in pools.items() if pool.names or split in named.required}
        none = [] if filled else ["task.split leaves no class for any split."]
        return none + pool_problems(filled, self.sizes, "example" if named.groups is None else "group")

    def lacks(self, sizes: Sizes[EpisodeSize], split: str) -> list[str]:
        return lacking(self.pools, self.grouped, sizes, split)

    @staticmethod
    def _pools_of(
        names: tuple[str, ...], counts: Sequence[int] | np.ndarray, split_of: Sequence[str], augmentation: Augmentation
    ) -> dict[str, ClassPool]:
        pools = {s: ClassPool.of(names, np.asarray(counts), [of == s for of in split_of]) for s in SPLITS}
        if augmentation.rotation_classes:
            pools["train"] = pools["train"].repeated(4)  # class c is a quarter turn, c % 4, of one in the set
        return pools

    @staticmethod
    def sources(data: Callable[[], ImageData]) -> list[Source]:
        return [data().source]

    def for_evaluation(self) -> "ImageClasses":
        other = self.apart()
        other.augmentation = NONE
        other.pools = self._pools_of(self.images.names, self.images.counts, self.split_of, NONE)
        other.grouped = other._grouped()
        if problems := other.lacks(other.sizes, "train"):  # where quarter turns counted as classes
            raise DataProblems(problems)
        return other

    def draw(self, split: str, indices: Sequence[int] | np.ndarray) -> Draw:
        """Numbers of classes [B, N] and of images, support [B, N, K] and query [B, N, Q], with their orders.

        Of training episodes, where they are augmented, also rotations [B, N] in quarter turns, and an augmentation's
        choices for support and query images.
        """
        draw = self._examples(split, indices)
        if split != "train":
            return draw
        if self.augmentation.rotation_classes:
            draw["rotations"] = draw["classes"] % 4
        if self.augmentation.changes_pixels:
            draw |= {f"{part}_{name}": v for part in PARTS for name, v in self._choices(part, draw, indices).items()}
        return draw

    def _examples(self, split: str, indices: Sequence[int] | np.ndarray) -> Draw:
        pool, grouped = self.pools[split], self.grouped.get(split)
        return draw_in_order(self.seed, f"{self.name}/{split}", indices, self.sizes[split], pool, grouped)

    def _choices(self, part: str, draw: Draw, indices: Sequence[int] | np.ndarray) -> Draw:
        """The augmentation's choices for the images draw[part] in their order: [B, N * K, ...]."""
        shape = draw[f"{part}_order"].shape
        u = uniform(self.seed, f"{self.name}/augmentation/{part}", np.asarray(indices), shape[1] * NUM_CHOICES)
        return self.augmentation.choices(u.reshape(*shape, NUM_CHOICES))

    def episodes(self, draw: Draw) -> Episode:
        support, query = (self._batch(part, draw) for part in PARTS)
        return Episode(support, query, torch.from_numpy(draw["classes"]).to(self.device))

    def _batch(self, part: str, draw: Draw) -> Batch:
        turns = draw.get("rotations", np.zeros_like(draw["classes"]))
        batch = image_batch(self.pixels, draw, part, turns, self.dtype)
        if f"{part}_shift" not in draw:
            return batch
        choices = {name: draw[f"{part}_{name}"] for name in ("shift", "flip", "jitter")}
        rows = {name: values.reshape(-1, *values.shape[2:]) for name, values in choices.items()}
        return batch._replace(x=self.augmentation.apply(batch.x.flatten(0, 1), rows).view_as(batch.x))

    def reader(self) -> ImageReader:
        if self.decode is not None:
            return ImageReader(self.spec, self.device, self.dtype, self.decode)
        return square_reader(self.spec, self.device, self.dtype, self.ranges)

    def class_names(self, split: str) -> Sequence[str]:
        return self.pools[split].names

    def fitted(self) -> dict[str, Any]:
        return {"ranges": self.ranges} if self.images.facts.get("deep") else {}

    def fingerprint(self) -> str:
        splits = split_digest(self.images.names, self.split_of)
        return f"{self.name}: sha256 {self.images.sha256}, splits {splits}{groups_digest(self.group_of)}"

    def show(self, split: str, indices: Sequence[int]) -> "Figure":
        """Each episode's classes by name, with their support and query images."""
        return show_classes(self, split, indices, self.pools[split].names)


def _say(notes: Sequence[str]) -> None:
    for note in notes:
        logger.info("%s", note)


image_task = task_from(ImageClasses)
