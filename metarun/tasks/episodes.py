"""Episodes over classes: their sizes, what they need, and the random choices.

N ways, K shots, Q queries, B episodes
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from metarun.core import Draw
from metarun.counter import without_replacement


class EpisodeSize(NamedTuple):
    """N, K and Q: classes in an episode, support and query images of each."""

    num_ways: int
    num_shots: int
    num_queries: int

    def for_training(self, num_ways: int | None, num_shots: int | None, num_queries: int | None) -> "EpisodeSize":
        """This size with what is not None replaced."""
        chosen = zip(self, (num_ways, num_shots, num_queries), strict=True)
        return EpisodeSize(*(mine if theirs is None else theirs for mine, theirs in chosen))


class Classes(Protocol):
    """A data set in which example follows example, class after class: ``counts[c]`` of class c."""

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the classes."""
        ...

    @property
    def counts(self) -> np.ndarray:
        """How many examples each class has [C]."""
        ...


@dataclass(frozen=True)
class ClassPool:
    """The classes of a split: class c owns the images first[c], ..., first[c] + count[c] - 1."""

    names: tuple[str, ...]
    first: np.ndarray  # [C]
    count: np.ndarray  # [C]

    @staticmethod
    def of(data: "Classes", members: list[bool]) -> "ClassPool":
        """The classes c of ``data`` with members[c], in its order."""
        chosen = np.flatnonzero(members)
        first = np.cumsum(data.counts) - data.counts
        return ClassPool(tuple(data.names[c] for c in chosen), first[chosen], data.counts[chosen])

    def repeated(self, times: int) -> "ClassPool":
        """Every class ``times`` times, as classes of their own: c becomes times * c, ..., times * c + times - 1."""
        names = tuple(name for name in self.names for _ in range(times))
        return ClassPool(names, np.repeat(self.first, times), np.repeat(self.count, times))


def episode_sizes(test: EpisodeSize, *training: int | None) -> dict[str, EpisodeSize]:
    """The sizes of the splits: ``test``, and for "train" with what of ``training`` (N, K, Q) is not None."""
    train = test.for_training(*training)
    check_positive(test, "task.")
    check_positive(train, "task.train_")
    return {"train": train, "val": test, "test": test}


def check_episode_sizes(sizes: dict[str, EpisodeSize], pools: dict[str, ClassPool]) -> None:
    """Raise ValueError unless the pool of every split can fill episodes of its size."""
    for split, pool in pools.items():
        check_episode_size(sizes[split], pool, split, "task." if sizes[split] == sizes["test"] else "task.train_")


class Counts(Protocol):
    """A named tuple of whole numbers."""

    def _asdict(self) -> dict[str, Any]: ...


def check_positive(size: Counts, prefix: str) -> None:
    """Raise ValueError unless all of ``size`` is; ``prefix`` and the field make the configuration key."""
    for key, value in size._asdict().items():
        if value < 1:
            raise ValueError(f"{prefix}{key} is {value}, but an episode needs at least 1. Set it to 1 or more.")


def check_episode_size(size: EpisodeSize, pool: ClassPool, split: str, prefix: str) -> None:
    """Raise ValueError unless ``pool`` can fill episodes of ``size``; ``prefix`` and the field make the key."""
    if size.num_ways < 2:
        raise ValueError(
            f"{prefix}num_ways is {size.num_ways}, but with one class every answer is right. Set it to 2 or more."
        )
    have = len(pool.names)
    if size.num_ways > have:
        raise ValueError(
            f"{prefix}num_ways is {size.num_ways}, but the split {split!r} has only {_counted(have, 'class', 'classes')}. "
            f"{_lower(f'{prefix}num_ways', have, f'the split {split!r} needs more classes')}"
        )
    need, smallest = size.num_shots + size.num_queries, int(np.argmin(pool.count))
    have = int(pool.count[smallest])
    if need > have:
        raise ValueError(
            f"{prefix}num_shots + {prefix}num_queries is {need}, but the class {pool.names[smallest]!r} of the split "
            f"{split!r} has only {_counted(have, 'example', 'examples')}. "
            f"{_lower('their sum', have, 'the class needs more examples')}"
        )


def _counted(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _lower(what: str, most: int, otherwise: str) -> str:
    """The fix: ``what`` at most ``most``, or ``otherwise`` where that is below the 2 that every episode takes."""
    return f"Lower {what} to at most {most}." if most >= 2 else f"An episode takes 2 or more: {otherwise}."


def draw_images(u: np.ndarray, pool: ClassPool, size: EpisodeSize) -> Draw:
    """The choices that the uniforms u [B, N + N * (K + Q)] make: classes [B, N], support [B, N, K], query [B, N, Q].

    ``classes`` are places in ``pool``. Column n has the label n: draws are ordered, so every assignment of labels is
    equally likely. ``support`` and ``query`` are image numbers, drawn together without replacement, hence disjoint.
    """
    ways, shots, queries = size
    classes = without_replacement(u[:, :ways], len(pool.names))  # [B, N]
    ranks = without_replacement(u[:, ways:].reshape(-1, ways, shots + queries), pool.count[classes])
    images = ranks + pool.first[classes][..., None]  # [B, N, K + Q]
    return {"classes": classes, "support": images[..., :shots], "query": images[..., shots:]}
