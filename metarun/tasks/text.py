"""N-way K-shot episodes of sentences that lie in classes: one task distribution for every data set of this kind.

A data set is a function that prepares its sentences (``text_sources``); ``text_task`` makes it the ``_target_`` of a YAML.
What a sentence is to a network is the choice of ``features`` (``text_features``).

N ways, K shots, Q queries, B episodes, S = N * K
"""

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from metarun.core import Batch, Draw, Episode, TaskDistribution
from metarun.counter import uniform
from metarun.objectives import CROSS_ENTROPY
from metarun.tasks.episodes import ClassPool, EpisodeSize, check_episode_sizes, draw_images, episode_sizes
from metarun.tasks.images import class_major_labels
from metarun.tasks.sources import task_from
from metarun.tasks.splits import SPLITS, Split, split_classes, split_digest
from metarun.tasks.store import verify
from metarun.tasks.text_features import TextFeatures
from metarun.tasks.text_sets import TextSet

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class TextSource:
    """Prepared sentences; ``name`` is that of the random streams and in the fingerprint."""

    name: str
    text_set: TextSet


class TextClasses(TaskDistribution):
    """x [B, S, ...] as the features say, y [B, S] class-major (N * Q in the query set); no sentence is there twice.

    ``train_*`` replace the sizes of the split "train" where they are not None.
    """

    objective = CROSS_ENTROPY

    def __init__(  # noqa: PLR0913
        self,
        *,
        source: Callable[[], TextSource],
        features: TextFeatures,
        split: Split,
        split_seed: int,
        num_ways: int,
        num_shots: int,
        num_queries: int,
        train_num_ways: int | None,
        train_num_shots: int | None,
        train_num_queries: int | None,
        seed: int,
        device: torch.device,
        dtype: torch.dtype,
        data_root: str,
    ) -> None:
        test_size = EpisodeSize(num_ways, num_shots, num_queries)
        self.sizes = episode_sizes(test_size, train_num_ways, train_num_shots, train_num_queries)
        self.num_outputs, self.num_ways, self.train_num_ways = num_ways, num_ways, self.sizes["train"].num_ways
        self.seed, self.device, self.features = seed, device, features

        self.source = source()
        text_set = self.source.text_set
        self.split_of = split_classes(text_set.names, text_set.given, split, split_seed, "text/classes")
        self.pools = {s: ClassPool.of(text_set, [of == s for of in self.split_of]) for s in SPLITS}
        check_episode_sizes(self.sizes, self.pools)
        self.num_train_classes = len(self.pools["train"].names)
        training = np.isin(text_set.labels(), [c for c, of in enumerate(self.split_of) if of == "train"])
        self.encoding = features.encode(text_set, training, Path(data_root) / "prepared", device, dtype)
        self.input_shape, self.num_tokens = self.encoding.input_shape, self.encoding.num_tokens
        self.vocabulary = self.encoding.vocabulary
        self.frozen = self.encoding.frozen(num_ways).to(device, dtype)

    def draw(self, split: str, indices: Sequence[int] | np.ndarray) -> Draw:
        """classes [B, N], and in numbers of sentences support [B, N, K] and query [B, N, Q]."""
        ways, shots, queries = size = self.sizes[split]
        u = uniform(self.seed, f"{self.source.name}/{split}", np.asarray(indices), ways * (1 + shots + queries))
        return draw_images(u, self.pools[split], size)

    def episodes(self, draw: Draw) -> Episode:
        classes = torch.from_numpy(draw["classes"]).to(self.device)
        return Episode(self._batch(draw["support"]), self._batch(draw["query"]), classes)

    def _batch(self, numbers: np.ndarray) -> Batch:
        """Of the sentences [B, N, K]; the K of class 0 come first, then those of class 1."""
        tasks, ways, shots = numbers.shape
        x = self.encoding.take(torch.from_numpy(numbers.reshape(-1)).to(self.device))
        return Batch(x.reshape(tasks, ways * shots, *x.shape[1:]), class_major_labels(numbers, self.device))

    def fingerprint(self) -> str:
        splits = split_digest(self.source.text_set.names, self.split_of)
        sha256 = self.source.text_set.stored.sha256
        return f"{self.source.name}: sha256 {sha256}, splits {splits}, {self.features.describe()}"

    def verify(self) -> None:
        for stored in (self.source.text_set.stored, *self.encoding.stored):
            verify(stored)

    def show(self, split: str, indices: Sequence[int]) -> "Figure":
        """The sentences of those episodes: a block a class, its support above its queries."""
        from matplotlib.figure import Figure

        texts, names, draw = self.source.text_set.texts, self.pools[split].names, self.draw(split, indices)
        lines: list[tuple[str, dict[str, Any]]] = []
        for b, index in enumerate(indices):
            lines.append((f"{split} episode {index}", {"weight": "bold", "size": 10}))
            for n, c in enumerate(draw["classes"][b]):
                lines.append((f"{n}: {names[c]}", {"weight": "bold"}))
                for part in ("support", "query"):
                    lines += [(f"   {part}: {_short(texts[i])}", {}) for i in draw[part][b, n]]
        longest = max(len(text) for text, _ in lines)
        figure = Figure(figsize=(0.075 * longest + 1, 0.22 * len(lines) + 0.3))
        for row, (text, style) in enumerate(lines):
            figure.text(0.02, 1 - (row + 1) / (len(lines) + 1), text, **{"size": 8, "parse_math": False, **style})
        return figure


def _short(text: str) -> str:
    return textwrap.shorten(text, 120, placeholder=" ...")


text_task = task_from(TextClasses)
