"""The sizes of episodes: of all alike, or drawn for each meta-batch, so that tensors stay rectangular.

    num_shots: 5          every episode has 5
    num_shots: [3, 46]    each meta-batch has one number from 3 to 46, all equally likely, by its own number alone

N ways, K shots, Q queries
"""

from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

import numpy as np

from metarun.core import TaskDistribution, TaskSpec
from metarun.counter import uniform
from metarun.tasks.splits import SPLITS

Count = int | tuple[int, int]  # a number, or the lowest and the highest


class EpisodeSize(NamedTuple):
    """N, K and Q of episodes over classes: classes in an episode, support and query examples of each."""

    num_ways: int
    num_shots: int
    num_queries: int


class PointSize(NamedTuple):
    """K and Q of episodes without classes: support and query points."""

    num_shots: int
    num_queries: int


Size = TypeVar("Size", bound=EpisodeSize | PointSize)
AnySized = TypeVar("AnySized", bound="Sized")


class Sizes(dict[str, Size]):
    """The size of each split's episodes: the largest where it varies, with the ``smallest`` beside it."""

    def __init__(self, largest: dict[str, Size], smallest: dict[str, Size]) -> None:
        super().__init__(largest)
        self.smallest = smallest
        self.made: dict[tuple[str, Size], Any] = {}  # what ``Sized.at`` has made of a task distribution

    def with_size(self, split: str, largest: Size, smallest: Size) -> "Sizes[Size]":
        """The same with other sizes of ``split``."""
        return Sizes({**self, split: largest}, {**self.smallest, split: smallest})


def sizes_by_split(kind: type[Size], test: Sequence[Count], *training: Count | None) -> Sizes[Size]:
    """The size of each split's episodes: ``test``, for "train" with those of ``training`` that are not None.

    Raises ValueError where a number is below 1, and where two are not the lowest and the highest.
    """
    train = [own if other is None else other for own, other in zip(test, training, strict=True)]
    ends: dict[str, list[tuple[int, int]]] = {}
    for prefix, counts in (("task.", test), ("task.train_", train)):
        ends[prefix] = [span(prefix + key, count) for key, count in zip(kind._fields, counts, strict=True)]
    smallest, largest = (
        {split: kind(*(one[end] for one in ends["task.train_" if split == "train" else "task."])) for split in SPLITS}
        for end in (0, 1)
    )
    return Sizes(largest, smallest)


def span(key: str, count: Any) -> tuple[int, int]:
    """The lowest and the highest of ``count``; raises ValueError unless it is a number of 1 or more, or two in order."""
    ends = [count, count] if isinstance(count, int) else list(count)
    if len(ends) != 2 or not all(isinstance(end, int) and not isinstance(end, bool) for end in ends):
        raise ValueError(f"{key} is {count}; use a whole number, or two as [lowest, highest].")
    low, high = ends
    if low < 1:
        rule = "Set it to 1 or more" if low == count else "Set the lowest to 1 or more"
        raise ValueError(f"{key} is {count}, but an episode needs at least 1. {rule}.")
    if low > high:
        raise ValueError(f"{key} is {list(count)}, but the lowest comes first: use [{high}, {low}].")
    if key.endswith("num_ways") and 1 == low < high:
        raise ValueError(
            f"{key} is {list(count)}, but with one class every answer is right. Set the lowest to 2 or more."
        )
    return low, high


class Sized(TaskDistribution):
    """A task distribution whose episodes have ``sizes``. Where these vary, the distribution itself has the largest."""

    sizes: Sizes[Any]
    seed: int
    query_unit: int = 1  # numbers of queries are multiples of it

    def at(self: AnySized, split: str, number: int) -> AnySized:
        """The distribution of meta-batch ``number`` of ``split``: itself, or a copy of one size that shares its data.

        Equal sizes give the same copy.
        """
        smallest, largest = self.sizes.smallest[split], self.sizes[split]
        if smallest == largest:
            return self
        u = uniform(self.seed, f"sizes/{split}", np.array([number]), len(largest))[0]
        units = {"num_queries": self.query_unit}
        drawn = []
        for key, low, high, share in zip(largest._fields, smallest, largest, u, strict=True):
            unit = units.get(key, 1)
            drawn.append(low + unit * int(share * ((high - low) // unit + 1)))
        size = type(largest)(*drawn)
        if (split, size) not in self.sizes.made:
            self.sizes.made[split, size] = self._with(split, self.sizes.with_size(split, size, size))
        return self.sizes.made[split, size]

    def with_shots(self: AnySized, split: str, num_shots: int) -> AnySized:
        """The same with ``num_shots`` in ``split``; raises ValueError where the data have too few examples for it."""
        ends = (self.sizes[split], self.sizes.smallest[split])
        sizes = self.sizes.with_size(split, *(end._replace(num_shots=num_shots) for end in ends))
        if problems := self.lacks(sizes, split):
            raise ValueError(" ".join(problems))
        return self._with(split, sizes)

    def apart(self: AnySized) -> AnySized:
        """A copy whose ``at`` gives copies of its own, so that it may be changed."""
        other = copy(self)
        other.sizes = Sizes({**self.sizes}, {**self.sizes.smallest})
        return other

    def lacks(self, sizes: Sizes[Any], split: str) -> list[str]:
        """What the data lack for episodes of ``split`` of these sizes: nothing, where not overridden."""
        return []

    def _with(self: AnySized, split: str, sizes: Sizes[Any]) -> AnySized:
        other = copy(self)
        other.sizes = sizes
        if isinstance(sizes[split], EpisodeSize):
            other.spec = with_ways(self.spec, sizes, "test" if split == "train" else split)
        return other


def with_ways(spec: TaskSpec, sizes: Sizes[EpisodeSize], split: str = "test") -> TaskSpec:
    """``spec`` with the ways of ``sizes``, outside training those of ``split``."""
    num_ways = sizes[split].num_ways
    return replace(spec, num_outputs=num_ways, num_ways=num_ways, train_num_ways=sizes["train"].num_ways)
