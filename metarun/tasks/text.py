"""N-way K-shot episodes of sentences that lie in classes: one task distribution for every data set of this kind.

A data set is a function that names its sentences (``text_sources``); ``text_task`` makes it the ``_target_`` of a YAML.
What a sentence is to a network is the choice of ``features`` (``text_features``).

N ways, K shots, Q queries, B episodes, S = N * K
"""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from metarun.core import Batch, Draw, Episode
from metarun.tasks.encoded_texts import TextFeatures
from metarun.tasks.episodes import (
    ClassPool,
    check_pools,
    class_spec,
    rows_of,
)
from metarun.tasks.groups import GroupedPool, draw_in_order, groups_digest, lacking
from metarun.tasks.sizes import Count, EpisodeSize, Sized, Sizes, sizes_by_split
from metarun.tasks.sources import PreparedTask, task_from
from metarun.tasks.splits import SPLITS, PublishedSplit, Split, by_shares, split_classes, split_digest, thinned
from metarun.tasks.store import Prepared, Source
from metarun.tasks.text_files import BY_NAME, Fields
from metarun.tasks.text_reader import TextReader
from metarun.tasks.text_sets import placed, say, text_set
from metarun.tasks.text_words import by_rule_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class TextData:
    """Sentences in classes; ``name`` is that of the random streams and in the fingerprint."""

    name: str
    source: Source
    fields: Fields = BY_NAME  # of the user's own file
    path: str = ""  # of that file, to be named in notes: what is prepared goes by content, whatever the path
    splits: Mapping[str, Split] = field(default_factory=dict)  # those that papers have published, by name


class TextClasses(PreparedTask, Sized):
    """Episodes of sentences, none twice: x [B, S, ...] as the features say, y [B, S] class-major (query set: N * Q).

    ``train_*`` replace the sizes of the split "train" where they are not None.
    """

    def __init__(  # noqa: PLR0913
        self,
        *,
        data: Callable[[], TextData],
        features: TextFeatures,
        split: Split | PublishedSplit,
        split_seed: int,
        num_ways: Count,
        num_shots: Count,
        num_queries: Count,
        train_num_ways: Count | None,
        train_num_shots: Count | None,
        train_num_queries: Count | None,
        seed: int,
        device: torch.device,
        dtype: torch.dtype,
        data_root: str,
        fitted: Mapping[str, Any] | None = None,
        train_fraction: float = 1.0,  # runs of an earlier metarun do not say it
    ) -> None:
        """Read and encode the sentences; ``fitted``: vocabulary and word weights of a run, to be used for these."""
        of_training = train_num_ways, train_num_shots, train_num_queries
        self.sizes = sizes_by_split(EpisodeSize, (num_ways, num_shots, num_queries), *of_training)
        self.seed, self.device, self.dtype = seed, device, dtype
        named = data()
        self.fields, self.path = named.fields, named.path
        self.name, self.text_set = named.name, text_set(named.source.prepared())
        self.features = by_rule_of((fitted or {}).get("features", ""), features).beside(self.path, self.fields)
        chosen = named.splits.get(split, split) if isinstance(split, str) else split
        prepared = self._divide(chosen, split_seed, train_fraction)
        training = np.isin(self.text_set.labels(), [c for c, of in enumerate(self.split_of) if of == "train"])
        known = self._known(fitted or {})
        self.encoded = self.features.encode(self.text_set, training, Path(data_root) / "prepared", device, dtype, known)
        self.prepared = (prepared, *self.encoded.prepared)
        self.spec = replace(
            class_spec(self.encoded.input_shape, self.sizes, len(self.pools["train"].names)),
            num_tokens=self.encoded.num_tokens,
            vocabulary=self.encoded.vocabulary,
        )
        self.frozen = self.encoded.frozen(self.sizes["test"].num_ways).to(device, dtype)

    def _divide(self, split: Split | PublishedSplit, split_seed: int, train_fraction: float) -> Prepared:
        """Choose the splits of the classes; what was prepared of the sentences."""
        _, names, given, counts, prepared = self.text_set
        say(placed(prepared.facts.get("notes", ()), self.path))
        self.split_of = thinned(names, split_classes(names, given, split, split_seed, "text/classes"), train_fraction)
        self.pools = {s: ClassPool.of(names, counts, [of == s for of in self.split_of]) for s in SPLITS}
        self.splits = tuple(s for s in SPLITS if self.pools[s].names or by_shares(split))
        self.grouped = self._grouped(prepared)
        check_pools(
            {s: self.grouped[s].classes if self.grouped else self.pools[s] for s in self.splits},
            self.sizes,
            "group" if self.grouped else "example",
        )
        return prepared

    def lacks(self, sizes: Sizes[EpisodeSize], split: str) -> list[str]:
        return lacking(self.pools, self.grouped, sizes, split)

    def _grouped(self, prepared: Prepared) -> dict[str, GroupedPool]:
        """The pools with the groups of their sentences; nothing where there are none."""
        groups = prepared.facts.get("groups")
        self.group_of = None if groups is None else np.unique(groups, return_inverse=True)[1]
        if self.group_of is None:
            return {}
        return {split: GroupedPool.of(pool, self.group_of) for split, pool in self.pools.items()}

    def _known(self, fitted: Mapping[str, Any]) -> Mapping[str, Any]:
        """What was ``fitted`` for these features: nothing for a run on other data than sentences."""
        if "features" not in fitted:
            return {}
        if fitted["features"] != self.features.describe():
            raise ValueError(
                f"task.features are {self.features.describe()}, but the run was trained on {fitted['features']}: keep them."
            )
        return fitted

    def fitted(self) -> dict[str, Any]:
        own = dict(self.encoded.fitted)
        return {"features": self.features.describe(), **own} if own else {}

    @staticmethod
    def sources(
        data: Callable[[], TextData], features: TextFeatures, device: torch.device, data_root: str
    ) -> list[Source]:
        source = data().source
        if source.state() != "ready":
            return [source]
        kept = features.source(text_set(source.prepared()), Path(data_root) / "prepared", device)
        return [source] if kept is None else [source, kept]

    def draw(self, split: str, indices: Sequence[int] | np.ndarray) -> Draw:
        """Numbers of classes [B, N] and of sentences, support [B, N, K] and query [B, N, Q], with their orders."""
        pool, grouped = self.pools[split], self.grouped.get(split)
        return draw_in_order(self.seed, f"{self.name}/{split}", indices, self.sizes[split], pool, grouped)

    def episodes(self, draw: Draw) -> Episode:
        classes = torch.from_numpy(draw["classes"]).to(self.device)
        return Episode(self._batch(draw, "support"), self._batch(draw, "query"), classes)

    def _batch(self, draw: Draw, part: str) -> Batch:
        numbers, labels = rows_of(draw, part)
        x = self.encoded.take(torch.from_numpy(numbers.reshape(-1)).to(self.device))
        return Batch(x.reshape(*numbers.shape, *x.shape[1:]), torch.from_numpy(labels).to(self.device))

    def reader(self) -> TextReader:
        return TextReader(self.spec, self.device, self.dtype, self._inputs, self.fields)

    def _inputs(self, texts: Sequence[str]) -> Tensor:
        return self.features.inputs(texts, self.encoded.fitted, self.device, self.dtype)

    def class_names(self, split: str) -> Sequence[str]:
        return self.pools[split].names

    def fingerprint(self) -> str:
        splits = split_digest(self.text_set.names, self.split_of)
        groups = groups_digest(self.group_of)
        return (
            f"{self.name}: sha256 {self.text_set.prepared.sha256}, splits {splits}{groups}, {self.features.describe()}"
        )

    def show(self, split: str, indices: Sequence[int]) -> "Figure":
        """The sentences of those episodes: a block a class, its support above its queries."""
        from matplotlib.figure import Figure

        texts, names, draw = self.text_set.texts, self.pools[split].names, self.draw(split, indices)
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
            figure.text(0.02, 1 - (row + 1) / (len(lines) + 1), text, **{"size": 8, **style})
        return figure


def _short(text: str) -> str:
    return textwrap.shorten(text, 120, placeholder=" ...")


text_task = task_from(TextClasses)
