"""Half widths of 95% confidence intervals of a mean over episodes, by Student's t.

n episodes, C classes (or tasks of a table, or draws of sizes) that they were drawn from
"""

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from metarun.evaluation.student import student_t


class Over(NamedTuple):
    """How sure a mean is on other classes, tasks of a table or draws of sizes than the ``number`` that its episodes are of.

    ``kind``: one of evaluation.kinds.KINDS. ``ci95`` is NaN where it cannot be known.
    """

    kind: str
    ci95: float
    number: int


def half_width(deviation: float, n: int) -> float:
    """Of the mean of n independent values with that standard deviation (of a sample); infinite for a single one."""
    return student_t(n - 1) * deviation / math.sqrt(n) if n > 1 else math.inf


def over(kind: str, values: Mapping[str, np.ndarray], members: Sequence[Sequence[str]]) -> dict[str, Over]:
    """The intervals of the means of ``values`` [n] over other classes; episode i is of the classes ``members[i]``.

    The jackknife over classes: v sums (mean without class c - mean)^2 (Arvesen 1969, https://doi.org/10.1214/aoms/1177697287).
    It is exact for means of independent class effects, and too wide rather than too narrow where classes interact (Efron
    and Stein 1981). With one class an episode it is the usual interval over means of clusters. With several, each mean
    without a class has more noise of finitely many episodes than the mean: that is taken off, and Satterthwaite's rule says
    how many degrees of freedom the rest has. Classes that always come together count as one.
    """
    each = _without_each(tuple(map(tuple, members)))
    number, without = len(each), np.unique(each, axis=0)  # [C, n]
    (c, n), left = without.shape, without.sum(1)  # left [C]: episodes without each class
    if c < 2 or left.min() == 0:
        return {name: Over(kind, math.nan, number) for name in values}
    share, df = (c - 1) / c, min(c, n) - 1

    def width(scores: np.ndarray) -> float:
        centred = scores - scores.mean()
        noise = centred @ centred / (n - 1)  # the variance of an episode
        whole = share * ((without @ centred / left) ** 2).sum()
        rest = max(whole - share * (noise / left - noise / n).sum(), 0.0) + noise / n
        if not rest < whole:
            return student_t(df) * math.sqrt(rest)
        df_of_rest = max(1, int(df * (rest / whole) ** 2))
        return min(student_t(df_of_rest) * math.sqrt(rest), student_t(df) * math.sqrt(whole))

    return {name: Over(kind, width(scores), number) for name, scores in values.items()}


@lru_cache(maxsize=1)  # scores of one test, and pairs of runs, have the same members
def _without_each(members: tuple[tuple[str, ...], ...]) -> np.ndarray:
    """1 where a class has no part in an episode, else 0 [C, n]."""
    place = {name: c for c, name in enumerate(sorted({name for names in members for name in names}))}
    without = np.ones((len(place), len(members)))
    for i, names in enumerate(members):
        without[[place[name] for name in names], i] = 0
    return without
