"""Omniglot: 1623 handwritten characters of 50 alphabets, 20 drawings each, as N-way K-shot episodes of 28 x 28 images.

Lake et al., Science 2015. Inverted (ink = 1, paper = 0); ``resize`` as in ``omniglot_files``.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import torch

from metarun.core import Draw, Episode
from metarun.counter import uniform
from metarun.tasks.episodes import (
    ClassPool,
    check_pools,
    class_spec,
    draw_examples,
    ordered,
    pool_problems,
)
from metarun.tasks.image_reader import ImageReader
from metarun.tasks.images import image_batch, pixels_on, show_classes
from metarun.tasks.omniglot_files import OMNIGLOT, SIDE, Resize, Scheme, characters, drawing, splits_of
from metarun.tasks.sizes import Count, EpisodeSize, Sized, Sizes, sizes_by_split
from metarun.tasks.sources import PreparedTask
from metarun.tasks.splits import train_share
from metarun.tasks.store import Prepared, Source

if TYPE_CHECKING:
    from matplotlib.figure import Figure


Rotations = Literal["none", "per_task", "per_episode", "as_classes"]


class Omniglot(PreparedTask, Sized):
    """Handwritten characters 28 x 28: x [B, N * K, 1, 28, 28] in [0, 1], y [B, N * K] (query set: N * Q).

    ``train_*`` replace the sizes of the split "train" where they are not None. ``trainval``: "train" reads the classes
    of "val" too; "val" stays as it is. ``rotations`` by multiples of 90 degrees, alike in every split: "per_task" turns
    each class of an episode at random (MAML), "per_episode" all of them alike (RelationNet), "as_classes" makes four
    classes of each character (ProtoNet). ``resize``: see ``omniglot_files``.
    """

    of_training = PreparedTask.of_training | {"trainval"}

    def __init__(  # noqa: PLR0913
        self,
        *,
        num_ways: Count,
        num_shots: Count,
        num_queries: Count,
        train_num_ways: Count | None,
        train_num_shots: Count | None,
        train_num_queries: Count | None,
        split: Scheme,
        trainval: bool,
        rotations: Rotations,
        resize: Resize = "lanczos",
        download: bool,
        seed: int,
        device: torch.device,
        dtype: torch.dtype,
        data_root: str,
        train_fraction: float = 1.0,  # runs of an earlier metarun do not say it
    ) -> None:
        _check_choice("task.split", split, get_args(Scheme))
        _check_choice("task.rotations", rotations, get_args(Rotations))
        _check_choice("task.resize", resize, get_args(Resize))
        of_training = train_num_ways, train_num_shots, train_num_queries
        self.sizes = sizes_by_split(EpisodeSize, (num_ways, num_shots, num_queries), *of_training)
        self.split, self.trainval, self.rotations, self.resize = split, trainval, rotations, resize
        self.seed, self.device, self.dtype = seed, device, dtype

        images = characters(resize).source(data_root, download).prepared()
        self.prepared = (images,)
        self.pools = self._pools(images, train_fraction)
        self.choices = f"rotations {rotations}" + (f", share {train_fraction:g}" if train_fraction < 1 else "")
        if rotations == "as_classes":
            self.pools = {s: pool.repeated(4) for s, pool in self.pools.items()}
        check_pools(self.pools, self.sizes)
        # each turn of a character is a class of its own
        self.turns = 4 if rotations in ("per_task", "per_episode") else 1
        spec = class_spec((1, SIDE, SIDE), self.sizes, self.turns * len(self.pools["train"].names))
        self.spec = replace(spec, inverted=True)
        self.pixels = pixels_on(device, images.rows[:, None])  # [num_images, 1, 28, 28]

    def _pools(self, images: Prepared, train_fraction: float) -> dict[str, ClassPool]:
        """The characters of each split, of "train" that share."""
        members = {"test": {"test"}, "val": {"val"}, "train": {"train", "val"} if self.trainval else {"train"}}
        of_class = splits_of(self.split, images.names, OMNIGLOT.files[0].num_classes)
        pools = {}
        for split, parts in members.items():
            names = {name for name, of in zip(images.names, of_class, strict=True) if of in parts}
            used = train_share(sorted(names), train_fraction) if split == "train" else names
            pools[split] = ClassPool.of(images.names, images.counts, [name in used for name in images.names])
        return pools

    def lacks(self, sizes: Sizes[EpisodeSize], split: str) -> list[str]:
        return pool_problems({split: self.pools[split]}, sizes)

    @staticmethod
    def sources(data_root: str, download: bool, resize: Resize = "lanczos") -> list[Source]:
        return [characters(resize).source(data_root, download)]

    def draw(self, split: str, indices: Sequence[int] | np.ndarray) -> Draw:
        """Numbers of classes [B, N] and images, support [B, N, K] and query [B, N, Q], with their orders; rotations [B, N]
        in quarter turns."""
        ways, shots, queries = size = self.sizes[split]
        u = uniform(self.seed, f"omniglot/{split}", np.asarray(indices), ways + ways + ways * (shots + queries))
        draw = ordered(draw_examples(u[:, ways:], self.pools[split], size), self.seed, f"omniglot/{split}", indices)
        if self.rotations == "per_task":
            rotations = np.floor(4 * u[:, :ways]).astype(np.int64)
        elif self.rotations == "per_episode":
            rotations = np.floor(4 * u[:, :1]).astype(np.int64).repeat(ways, 1)
        elif self.rotations == "as_classes":
            rotations = draw["classes"] % 4
        else:
            rotations = np.zeros_like(draw["classes"])
        return {**draw, "rotations": rotations}

    def episodes(self, draw: Draw) -> Episode:
        support = image_batch(self.pixels, draw, "support", draw["rotations"], self.dtype)
        query = image_batch(self.pixels, draw, "query", draw["rotations"], self.dtype)
        numbers = draw["classes"] if self.turns == 1 else self.turns * draw["classes"] + draw["rotations"]
        return Episode(support, query, torch.from_numpy(numbers).to(self.device))

    def class_names(self, split: str) -> Sequence[str]:
        return self.pools[split].names

    def reader(self) -> ImageReader:
        reader = ImageReader(self.spec, self.device, self.dtype, partial(drawing, resize=self.resize))
        reader.on_arrays = [
            "arrays are taken as the networks see drawings: ink is 1 and paper 0; in files ink is dark."
        ]
        return reader

    def fingerprint(self) -> str:
        trainval = "+trainval" if self.trainval else ""
        return f"omniglot-{SIDE}: sha256 {self.prepared[0].sha256}, split {self.split}{trainval}, {self.choices}"

    def show(self, split: str, indices: Sequence[int]) -> "Figure":
        return show_classes(self, split, indices, self.pools[split].names)


def _check_choice(key: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{key} is {value!r}, but it must be one of {', '.join(choices)}.")
