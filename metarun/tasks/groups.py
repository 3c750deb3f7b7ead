"""Groups of kindred examples, as the frames of a burst or the images of a patient: none in both support and query.

N ways, K shots, Q queries, B episodes, G groups of a class at most
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from metarun.core import Draw
from metarun.counter import uniform, uniform_at, without_replacement
from metarun.tasks.episodes import ClassPool, draw_examples, ordered, pool_problems
from metarun.tasks.sizes import EpisodeSize, Sizes

ATTEMPTS = 100  # draws of an episode, of which the first that keeps all groups apart is taken


def draw_in_order(
    seed: int,
    stream: str,
    indices: Sequence[int] | np.ndarray,
    size: EpisodeSize,
    pool: ClassPool,
    grouped: "GroupedPool | None",
) -> Draw:
    """Classes [B, N], support [B, N, K] and query [B, N, Q] of ``pool``, with their orders; of the examples of ``grouped``
    no two of one group, where there are groups."""
    if grouped is None:
        u = uniform(seed, stream, np.asarray(indices), size.num_ways * (1 + size.num_shots + size.num_queries))
        draw = draw_examples(u, pool, size)
    else:
        draw = grouped.draw(seed, stream, indices, size)
    return ordered(draw, seed, stream, indices)


@dataclass(frozen=True)
class GroupedPool:
    """The classes of a split, and in each its groups. A cell is what a class has of a group."""

    classes: ClassPool  # whose counts are those of groups
    groups: np.ndarray  # [C, G], numbers of groups; -1 beyond those that a class has
    first: np.ndarray  # [C, G], where a cell begins in ``order``
    count: np.ndarray  # [C, G], examples of a cell
    order: np.ndarray  # numbers of examples, cell after cell
    num_groups: int

    @staticmethod
    def of(pool: ClassPool, group_of: np.ndarray) -> "GroupedPool":
        """The classes of ``pool``, whose example i is of the group group_of[i]."""
        found = []
        for first, count in zip(pool.first, pool.count, strict=True):
            examples = np.arange(first, first + count)
            examples = examples[np.argsort(group_of[examples], kind="stable")]
            found.append((examples, *np.unique(group_of[examples], return_counts=True)))
        num_cells = np.array([len(groups) for _, groups, _ in found], dtype=np.int64)
        groups, first, count = (np.full((len(found), num_cells.max(initial=0)), -1) for _ in range(3))
        begin = 0
        for c, (_, numbers, counts) in enumerate(found):
            groups[c, : len(numbers)], count[c, : len(numbers)] = numbers, counts
            first[c, : len(numbers)] = begin + np.cumsum(counts) - counts
            begin += counts.sum()
        order = np.concatenate([np.arange(0), *(examples for examples, _, _ in found)])
        classes = ClassPool(pool.names, pool.first, num_cells)
        return GroupedPool(classes, groups, first, count, order, int(group_of.max(initial=-1)) + 1)

    def draw(self, seed: int, stream: str, indices: Sequence[int] | np.ndarray, size: EpisodeSize) -> Draw:
        """Classes [B, N], and one example each of K + Q groups of every class: support [B, N, K], query [B, N, Q].

        Every group of a class is equally likely, and so is every example of a group. A group that several classes share
        is in the support set alone or in the query set alone; an episode where that fails is drawn again. Raises
        ValueError where it fails ATTEMPTS times.
        """
        numbers = np.asarray(indices)
        ways, shots, queries = size
        draw = {
            "classes": np.zeros((len(numbers), ways), dtype=np.int64),
            "support": np.zeros((len(numbers), ways, shots), dtype=np.int64),
            "query": np.zeros((len(numbers), ways, queries), dtype=np.int64),
        }
        left = np.arange(len(numbers))
        for attempt in range(ATTEMPTS):
            found, apart = self._attempt(seed, f"{stream}/groups/{attempt}", numbers[left], size)
            for name, values in found.items():
                draw[name][left[apart]] = values[apart]
            left = left[~apart]
            if not len(left):
                return draw
        raise ValueError(
            f"no draw of {ways} classes keeps support and query in different groups, in {ATTEMPTS} tries: the classes share "
            "too many groups. Lower task.num_shots, task.num_queries or task.num_ways."
        )

    def _attempt(self, seed: int, stream: str, numbers: np.ndarray, size: EpisodeSize) -> tuple[Draw, np.ndarray]:
        """A draw of the episodes ``numbers``, and in which of them [B] all classes had enough groups.

        Each group of an episode has a random key, whatever class it is seen in. A class takes the groups with its K
        lowest keys for the support set, so classes that share groups take the same, and then the Q highest left.
        """
        ways, shots, queries = size
        u = uniform(seed, stream, numbers, ways * (1 + shots + queries))
        classes = without_replacement(u[:, :ways], len(self.classes.names))  # [B, N]
        groups = self.groups[classes]  # [B, N, G]
        keys = np.where(groups < 0, np.inf, uniform_at(seed, f"{stream}/keys", numbers, groups.clip(0)))
        support = keys.argsort(-1, kind="stable")[..., :shots]  # places among the groups of the class
        taken = np.zeros((len(numbers), self.num_groups + 1), dtype=bool)  # the last is that of -1
        chosen = np.take_along_axis(groups, support, -1).reshape(len(numbers), -1)
        np.put_along_axis(taken, chosen, True, 1)
        taken[:, -1] = True
        gone = np.take_along_axis(taken, groups.reshape(len(numbers), -1), 1).reshape(groups.shape)
        query = np.where(gone, np.inf, -keys).argsort(-1, kind="stable")[..., :queries]
        apart = ((~gone).sum(-1) >= queries).all(-1)
        picks = np.concatenate([support, query], -1)  # [B, N, K + Q]
        of_class = classes[..., None]
        count, first = self.count[of_class, picks], self.first[of_class, picks]
        ranks = np.floor(u[:, ways:].reshape(count.shape) * count).astype(np.int64)
        examples = self.order[np.where(count > 0, first + ranks, 0)]
        return {"classes": classes, "support": examples[..., :shots], "query": examples[..., shots:]}, apart


def groups_digest(group_of: np.ndarray | None) -> str:
    """What a fingerprint says of the groups: nothing where there are none."""
    return "" if group_of is None else f", groups {hashlib.sha256(group_of.tobytes()).hexdigest()[:16]}"


def lacking(
    pools: Mapping[str, ClassPool], grouped: Mapping[str, GroupedPool], sizes: Sizes[EpisodeSize], split: str
) -> list[str]:
    """What the classes of ``split``, or their groups where it has them, lack for episodes of these ``sizes``."""
    groups = grouped.get(split)
    pool, of = (groups.classes, "group") if groups else (pools[split], "example")
    return pool_problems({split: pool}, sizes, of)
