"""Episodes: what they need of the classes they are drawn from, and the random choices.

N ways, K shots, Q queries, B episodes
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from metarun.core import Batch, Draw, TaskSpec
from metarun.counter import uniform, without_replacement
from metarun.errors import DataProblems, listed
from metarun.objectives import CROSS_ENTROPY
from metarun.tasks.sizes import EpisodeSize, Sizes, with_ways

Shape = tuple[int, int]


@dataclass(frozen=True)
class ClassPool:
    """The classes of a split: class c owns the examples first[c], ..., first[c] + count[c] - 1."""

    names: tuple[str, ...]
    first: np.ndarray  # [C]
    count: np.ndarray  # [C]

    @staticmethod
    def of(names: tuple[str, ...], counts: np.ndarray, members: list[bool]) -> "ClassPool":
        """The classes c with members[c], of data in which class follows class, counts[c] examples of names[c]."""
        chosen, first = np.flatnonzero(members), np.cumsum(counts) - counts
        return ClassPool(tuple(names[c] for c in chosen), first[chosen], counts[chosen])

    def repeated(self, times: int) -> "ClassPool":
        """Every class ``times`` times, as classes of their own: c becomes times * c, ..., times * c + times - 1."""
        names = tuple(name for name in self.names for _ in range(times))
        return ClassPool(names, np.repeat(self.first, times), np.repeat(self.count, times))


def class_spec(input_shape: tuple[int, ...], sizes: Sizes[EpisodeSize], num_train_classes: int) -> TaskSpec:
    """The spec of a task that is to tell the classes of an episode apart."""
    vary = any(size.num_ways != sizes[split].num_ways for split, size in sizes.smallest.items())
    fewest = min(size.num_ways for size in sizes.smallest.values()) if vary else None
    spec = TaskSpec(input_shape, 0, CROSS_ENTROPY, fewest_ways=fewest, num_train_classes=num_train_classes)
    return with_ways(spec, sizes)


def check_pools(pools: dict[str, ClassPool], sizes: Mapping[str, EpisodeSize], of: str = "example") -> None:
    """Raise DataProblems unless the pool of every split can fill episodes of its size; ``of``: what classes hold."""
    if problems := pool_problems(pools, sizes, of):
        raise DataProblems(problems)


def pool_problems(pools: dict[str, ClassPool], sizes: Mapping[str, EpisodeSize], of: str = "example") -> list[str]:
    """All that the pools lack for episodes of these sizes; ``of``: what the classes hold, in the singular."""
    prefix_of = {split: "task." if sizes[split] == sizes["test"] else "task.train_" for split in pools}
    need, have = [sizes[split].num_ways for split in pools], sum(len(pool.names) for pool in pools.values())
    problems = [_too_few_in_all(need, have)] if len(need) > 1 < min(need) and sum(need) > have else []
    problems += [p for split, pool in pools.items() for p in _of_ways(sizes[split], pool, split, prefix_of[split])]
    for prefix in dict.fromkeys(prefix_of.values()):
        alike = {split: pool for split, pool in pools.items() if prefix_of[split] == prefix}
        problems += _of_examples(sizes[next(iter(alike))], alike, prefix, of)
    return list(dict.fromkeys(problems))


def _too_few_in_all(need: list[int], have: int) -> str:
    """What is to be done where all splits together have ``have`` classes, and need those."""
    most = have // len(need)
    what = (
        f"{len(need)} splits x {need[0]} ways" if len({*need}) == 1 else f"splits of {' + '.join(map(str, need))} ways"
    )
    shares = ",".join(
        f"{split}:{(have + k) // 3}" for split, k in zip(("train", "val", "test"), (2, 1, 0), strict=True)
    )
    lower = f"lower task.num_ways to {most} or add classes. With {most} ways each split needs as many: "
    fix = f"{lower}'task.split={{{shares}}}', say." if most >= 2 and len(need) == 3 else "add classes."
    return f"{what} need {sum(need)} classes, there are {have}: {fix}"


def _of_ways(size: EpisodeSize, pool: ClassPool, split: str, prefix: str) -> list[str]:
    have = len(pool.names)
    if size.num_ways < 2:
        rule = "but with one class every answer is right. Set it to 2 or more."
        return [f"{prefix}num_ways is {size.num_ways}, {rule}"]
    if size.num_ways <= have:
        return []
    return [
        f"{prefix}num_ways is {size.num_ways}, but the split {split!r} has only {counted(have, 'class', 'classes')}. "
        f"{_lower(f'{prefix}num_ways', have, f'the split {split!r} needs more classes')}"
    ]


def _of_examples(size: EpisodeSize, pools: dict[str, ClassPool], prefix: str, of: str) -> list[str]:
    """One message of all classes that hold too few for episodes of ``size``, the smallest first."""
    need = size.num_shots + size.num_queries
    small = [
        (int(count), name, split)
        for split, pool in pools.items()
        for name, count in zip(pool.names, pool.count, strict=True)
        if count < need
    ]
    if not small:
        return []
    (least, name, split), *others = sorted(small, key=lambda one: one[0])
    more = listed([f"{other!r} {count}" for count, other, _ in others], most=20)
    also = f", and too few have {counted(len(others), 'other', 'others')}: {more}" if others else ""
    return [
        f"{prefix}num_shots + {prefix}num_queries is {need}, but the class {name!r} of the split {split!r} has only "
        f"{counted(least, of, f'{of}s')}{also}. {_lower('their sum', least, f'the class needs more {of}s')}"
    ]


def counted(number: int, one: str, many: str) -> str:
    """``number`` with its noun."""
    return f"{number} {one if number == 1 else many}"


def _lower(what: str, most: int, otherwise: str) -> str:
    """The fix: ``what`` at most ``most``, or ``otherwise`` where that is below the 2 that every episode takes."""
    return f"Lower {what} to at most {most}." if most >= 2 else f"An episode takes 2 or more: {otherwise}."


def draw_examples(u: np.ndarray, pool: ClassPool, size: EpisodeSize) -> Draw:
    """The choices that the uniforms u [B, N + N * (K + Q)] make: classes [B, N], support [B, N, K], query [B, N, Q].

    ``classes`` are places in ``pool``. Column n has the label n: draws are ordered, so every assignment of labels is
    equally likely. ``support`` and ``query`` are numbers of examples, drawn together without replacement, hence disjoint.
    """
    ways, shots, queries = size
    classes = without_replacement(u[:, :ways], len(pool.names))  # [B, N]
    ranks = without_replacement(u[:, ways:].reshape(-1, ways, shots + queries), pool.count[classes])
    examples = ranks + pool.first[classes][..., None]  # [B, N, K + Q]
    return {"classes": classes, "support": examples[..., :shots], "query": examples[..., shots:]}


def ordered(draw: Draw, seed: int, stream: str, indices: Sequence[int] | np.ndarray) -> Draw:
    """``draw`` with an order of its examples: ``support_order`` [B, N * K] and ``query_order`` [B, N * Q].

    Each row is a random permutation of the places in [N, K]. If the examples stood class after class, a network with a
    state along the batch would know the labels without a look at the examples.
    """
    _, ways, shots = draw["support"].shape
    u = uniform(seed, f"{stream}/order", np.asarray(indices), ways * (shots + draw["query"].shape[2]))
    parts = np.split(u, [ways * shots], axis=1)
    orders = (part.argsort(1, kind="stable") for part in parts)
    return {**draw, **dict(zip(("support_order", "query_order"), orders, strict=True))}


def rows_of(draw: Draw, part: str) -> tuple[np.ndarray, np.ndarray]:
    """The examples draw[part] [B, N, K] in their order [B, N * K], and their labels [B, N * K]."""
    examples, order = draw[part], draw[f"{part}_order"]
    return np.take_along_axis(examples.reshape(order.shape), order, 1), order // examples.shape[2]


def uniforms(
    seed: int, stream: str, indices: Sequence[int] | np.ndarray, of_task: int, query: Shape, support: Shape
) -> Draw:
    """Uniform numbers of generated episodes: ``task`` [B, of_task], ``query`` [B, *query] and ``support`` [B, *support].

    The support comes last, so that with other K the tasks and their queries are the same.
    """
    ends = np.cumsum([of_task, query[0] * query[1], support[0] * support[1]])
    first, second, third = np.split(uniform(seed, stream, np.asarray(indices), int(ends[-1])), ends[:-1], axis=1)
    return {"task": first, "query": second.reshape(-1, *query), "support": third.reshape(-1, *support)}


def batch_of(x: np.ndarray, y: np.ndarray, device: torch.device, dtype: torch.dtype) -> Batch:
    """Points as tensors on ``device``."""
    return Batch(*(torch.from_numpy(values).to(device, dtype) for values in (x, y)))


def check_line(noise_std: float, x_range: tuple[float, float]) -> None:
    """Raise ValueError unless curves can have this noise, and inputs in this interval."""
    if noise_std < 0 or x_range[0] >= x_range[1]:
        raise ValueError(
            f"task.noise_std is {noise_std} and task.x_range {list(x_range)}; use 0 or more, and [lowest, highest]."
        )
