"""Lake's one-shot classification: 20 fixed runs of 20-way 1-shot within an alphabet, after training on other alphabets.

Lake et al., Science 2015. Each run shows one drawing of 20 characters of one alphabet, and asks for 20 drawings by another
person, one of each. Training and validation episodes are of the background alphabets (``Omniglot``).
"""

from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from metarun.core import Draw, Episode
from metarun.tasks.episodes import ordered
from metarun.tasks.image_reader import ImageReader
from metarun.tasks.images import image_batch, pixels_on, show_classes
from metarun.tasks.omniglot import Omniglot
from metarun.tasks.omniglot_files import RUNS
from metarun.tasks.sizes import Count
from metarun.tasks.sources import PreparedTask
from metarun.tasks.store import Source

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WAYS = 20


class OmniglotLake(PreparedTask):
    """Handwritten characters 28 x 28: Lake's 20 one-shot runs; x [B, 20, 1, 28, 28] in [0, 1], y [B, 20].

    The test episode i is run i + 1, whatever the seed; ``num_queries`` and ``train_*`` are of the other splits.
    """

    of_training = Omniglot.of_training

    def __init__(  # noqa: PLR0913
        self,
        *,
        num_queries: Count,
        train_num_ways: Count | None,
        train_num_shots: Count | None,
        train_num_queries: Count | None,
        trainval: bool,
        rotations: Literal["none", "per_task", "as_classes"],
        download: bool,
        seed: int,
        device: torch.device,
        dtype: torch.dtype,
        data_root: str,
        train_fraction: float = 1.0,  # runs of an earlier metarun do not say it
    ) -> None:
        self.background = Omniglot(
            num_ways=WAYS,
            num_shots=1,
            num_queries=num_queries,
            train_num_ways=train_num_ways,
            train_num_shots=train_num_shots,
            train_num_queries=train_num_queries,
            split="background_evaluation",
            trainval=trainval,
            rotations=rotations,
            download=download,
            seed=seed,
            device=device,
            dtype=dtype,
            data_root=data_root,
            train_fraction=train_fraction,
        )
        self.runs = RUNS.source(data_root, download).prepared()
        self.prepared = (*self.background.prepared, self.runs)
        self.spec = replace(self.background.spec, num_test_tasks=len(self.runs.names) // WAYS)
        self.pixels, self.dtype = pixels_on(device, self.runs.rows[:, None]), dtype

    @staticmethod
    def sources(data_root: str, download: bool) -> list[Source]:
        return [*Omniglot.sources(data_root, download), RUNS.source(data_root, download)]

    def at(self, split: str, number: int) -> "OmniglotLake":
        background = self.background.at(split, number)
        if split == "test" or background is self.background:
            return self
        other = copy(self)
        other.background = background
        other.spec = replace(background.spec, num_test_tasks=self.spec.num_test_tasks)
        return other

    def draw(self, split: str, indices: Sequence[int] | np.ndarray) -> Draw:
        """The draw of Omniglot; of the test split classes [B, 20], support and query [B, 20, 1] are places in the runs."""
        if split != "test":
            return self.background.draw(split, indices)
        num_runs = len(self.runs.names) // WAYS
        if len(indices) and max(indices) >= num_runs:
            raise ValueError(f"task: there is no run {max(indices) + 1}: Lake's test set has {num_runs}.")
        classes = WAYS * np.asarray(indices)[:, None] + np.arange(WAYS)
        draw = {"classes": classes, "support": 2 * classes[..., None], "query": 2 * classes[..., None] + 1}
        return ordered(draw, 0, "omniglot_lake/test", indices)  # the same for every seed, as the runs are

    def episodes(self, draw: Draw) -> Episode:
        if "rotations" in draw:
            return self.background.episodes(draw)
        upright = np.zeros_like(draw["classes"])
        return Episode(*(image_batch(self.pixels, draw, part, upright, self.dtype) for part in ("support", "query")))

    def reader(self) -> ImageReader:
        return self.background.reader()

    def class_names(self, split: str) -> Sequence[str]:
        return self.runs.names if split == "test" else self.background.pools[split].names

    def fingerprint(self) -> str:
        return f"{self.background.fingerprint()}; Lake's runs: sha256 {self.runs.sha256}"

    def show(self, split: str, indices: Sequence[int]) -> "Figure":
        return show_classes(
            self, split, indices, self.runs.names if split == "test" else self.background.pools[split].names
        )
