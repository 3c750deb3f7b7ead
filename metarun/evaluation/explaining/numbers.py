"""The numbers of an explanation, as functions of tensors alone: change, similarity, alignment, calibration, confusion.

n examples, N ways, D and E features
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

BINS = 15  # Guo et al. 2017
LEVELS = tuple(level / 20 for level in range(1, 20))  # of intervals whose coverage is counted


def relative_change(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """|after - before| / |before| of all tensors together; infinite where something became of nothing."""
    moved = math.hypot(*(length(b.double() - a.double()) for a, b in zip(before, after, strict=True)))
    start = math.hypot(*map(length, before))
    return moved / start if start else math.inf if moved else 0.0


def length(values: Tensor) -> float:
    """The euclidean norm of all elements."""
    return torch.linalg.vector_norm(values.double()).item()


def linear_cka(a: Tensor, b: Tensor) -> float:
    """Linear centred kernel alignment of two representations [n, ...] of the same examples: 1 where they are equal but
    for a rotation, a scale and a shift. NaN where one of them is the same for all examples.

    Kornblith et al. 2019, https://arxiv.org/abs/1905.00414, equation 1, by the Gram matrices [n, n].
    """
    first, second = (_gram(x) for x in (a, b))
    scale = (first.square().sum() * second.square().sum()).sqrt()
    return ((first * second).sum() / scale).item() if scale > 0 else math.nan


def _gram(representation: Tensor) -> Tensor:
    rows = representation.flatten(1).double()
    rows = rows - rows.mean(0)
    rows = rows / rows.abs().max().clamp(min=torch.finfo(rows.dtype).tiny)  # fourth powers follow
    return rows @ rows.T


def cosines(rows: Tensor) -> Tensor:
    """The cosine of each two rows [n, D]: [n, n]; NaN where one of them is zero."""
    unit = rows.double() / rows.double().norm(dim=1, keepdim=True)
    return unit @ unit.T


def between(matrix: Tensor) -> Tensor:
    """The entries of a symmetric matrix [n, n] above its diagonal, one for each pair: [n (n - 1) / 2]."""
    n = len(matrix)
    return matrix[tuple(torch.triu_indices(n, n, 1))]


class Reliability(NamedTuple):
    """By bin of the confidence: the number of predictions, their mean confidence and their accuracy, NaN where there are
    none; and the expected calibration error, the mean of |accuracy - confidence| over all predictions."""

    counts: list[int]
    confidence: list[float]
    accuracy: list[float]
    error: float


def reliability(probabilities: Tensor, y: Tensor, bins: int = BINS) -> Reliability:
    """How often predictions [n, N] are right, by how sure they are, in ``bins`` of equal width.

    Bin b holds confidences in (b / bins, (b + 1) / bins]. Guo et al. 2017, https://arxiv.org/abs/1706.04599, equation 3.
    """
    confidence, predicted = probabilities.double().max(1)
    right = (predicted == y).double()
    which = (confidence * bins).ceil().long().clamp(1, bins) - 1
    counts, sure, correct = (
        torch.zeros(bins, dtype=torch.float64).index_add(0, which, values)
        for values in (torch.ones_like(confidence), confidence, right)
    )
    error = (correct - sure).abs().sum() / len(y)
    return Reliability(counts.long().tolist(), (sure / counts).tolist(), (correct / counts).tolist(), error.item())


def coverage(below: Tensor, levels: Sequence[float] = LEVELS) -> list[float]:
    """The share of targets within the central interval of each of ``levels``; ``below``: the probability below each."""
    least = (2 * below.double() - 1).abs()  # the level of the smallest interval that holds the target
    return [(least <= level).double().mean().item() for level in levels]


class Pair(NamedTuple):
    """``times`` of the ``number`` examples of class ``true``, in the episodes that had both, were taken for ``taken``."""

    true: str
    taken: str
    times: int
    number: int


class Guesses(NamedTuple):
    """The labels of the queries of an episode and those predicted [n], and the names of its classes [N]."""

    y: Sequence[int]
    predicted: Sequence[int]
    names: Sequence[str]


def confused(episodes: Iterable[Guesses]) -> list[Pair]:
    """Every class that was taken for another one, the most frequent mistake first."""
    count: Counter[tuple[str, str]] = Counter()
    number: Counter[tuple[str, str]] = Counter()
    for y, predicted, names in episodes:
        for label, guess in zip(y, predicted, strict=True):
            count[names[label], names[guess]] += 1
            number.update((names[label], other) for other in names)
    pairs = [Pair(*names, times, number[names]) for names, times in count.items() if names[0] != names[1]]
    return sorted(pairs, key=lambda pair: (-pair.times, pair.number, pair.true, pair.taken))


def recalled(episodes: Iterable[Guesses]) -> list[tuple[str, int, int]]:
    """Of each class its name, how many of its examples were recognised and how many there were; the hardest first."""
    right: Counter[str] = Counter()
    number: Counter[str] = Counter()
    for y, predicted, names in episodes:
        for label, guess in zip(y, predicted, strict=True):
            number[names[label]] += 1
            right[names[label]] += label == guess
    return sorted(
        ((name, right[name], n) for name, n in number.items()), key=lambda row: (row[1] / row[2], -row[2], row[0])
    )


def plane(features: Tensor) -> tuple[Tensor, Tensor, float]:
    """The mean [D] of features [n, D], the two axes [D, 2] along which they differ most, and these axes' share of the
    variance."""
    rows = features.double()
    mean = rows.mean(0)
    _, sizes, axes = torch.linalg.svd(rows - mean, full_matrices=False)
    two = axes[:2].T
    signs = two.gather(0, two.abs().argmax(0, keepdim=True)).sign()  # either direction is right; this one is the same
    total = sizes.square().sum()
    return mean, two * signs, (sizes[:2].square().sum() / total).item() if total else math.nan
