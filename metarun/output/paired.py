"""Differences of scores on the same episodes: how large, how sure, how often, and how likely without any.

n episodes, k seeds. Everything is by Student's t, of which interval and p value agree: p < 0.05 exactly where the interval
of 95% leaves out 0. A rank test would answer another question, of medians, and accuracies are too often equal for it.
"""

import math
import re
from collections.abc import Mapping, Sequence
from statistics import fmean, variance
from typing import Any, NamedTuple

from metarun.evaluation.intervals import Over
from metarun.evaluation.student import student_t, two_sided
from metarun.output.tables import Score

# in the name of a score
LOWER_IS_BETTER: tuple[str, ...] = ("loss", "mse", "mae", "error", "nll", "entropy", "sum_of_squares")
LOWER_IS_BETTER += ("negative_", "divergence", "residual", "gradient", "regret", "cost")


class Difference(NamedTuple):
    """A mean difference with its interval, and the p value of there being none."""

    score: Score
    p: float | None  # None where one value says nothing of how sure it is


def higher_is_better(name: str, protocol: Mapping[str, Any]) -> bool:
    """Whether more of the score ``name`` is better: as the ``protocol`` of a results.json says of the task's own score; of
    others, and where an earlier version of metarun wrote it, as the name says."""
    told = protocol.get("score")
    if isinstance(told, dict) and isinstance(told.get("higher_is_better"), bool):
        own = re.sub(r"_(?:step|shots)_\d+$", "", name)  # after some steps, at some shots
        if told.get("name") in (own, own.removeprefix("baseline_"), own.removeprefix("frozen_")):
            return told["higher_is_better"]
    return not any(word in name for word in LOWER_IS_BETTER)


def of_values(values: Sequence[float]) -> Difference:
    """Mean of n independent differences; interval and p value by Student's t with n - 1 degrees of freedom."""
    n = len(values)
    return _by_student(fmean(values), math.sqrt(variance(values) / n) if n > 1 else None, n - 1, n)


def of_strata(strata: Sequence[Sequence[float]]) -> Difference:
    """The mean of the means of k strata of episodes, as of seeds, for these k: what varies is the episodes of each."""
    counts, mean = list(map(len, strata)), fmean(map(fmean, strata))
    if min(counts) < 2:
        return _by_student(mean, None, 0, sum(counts))
    squares = [variance(values) / len(values) for values in strata]
    return _by_student(mean, math.sqrt(math.fsum(squares)) / len(strata), _freedom(squares, counts), sum(counts))


def _freedom(squares: Sequence[float], counts: Sequence[int]) -> int:
    """Degrees of freedom of a sum of independent squared errors, each of so many episodes. Satterthwaite's rule (1946): the
    strata need not vary alike, as where one seed's scores scatter more. Equal squares have the sum of their own."""
    scale = max(squares) or 1.0  # so that no square of a square overflows
    parts = [square / scale for square in squares]
    spread = math.fsum(part**2 / (n - 1) for part, n in zip(parts, counts, strict=True))
    return int(math.fsum(parts) ** 2 / spread + 1e-9) if spread else sum(counts) - len(counts)


def of_others(mean: float, over: Over) -> Difference:
    """A mean difference as it is sure for other classes or tasks than those of the test; the p value agrees with the
    interval, and neither is known where the test has too few."""
    df = over.number - 1
    return _by_student(mean, None if math.isnan(over.ci95) else over.ci95 / student_t(df), df, over.number)


def half_width_of_mean(widths: Sequence[float], alike: bool) -> float:
    """Of the mean of scores with these half widths, where no more is known: of episodes of their own, or ``alike`` of the
    very same ones, whose noise the scores share. Of few episodes it is a little wider than that of ``of_strata``."""
    return fmean(widths) if alike else math.sqrt(sum(width**2 for width in widths)) / len(widths)


def _by_student(mean: float, error: float | None, df: int, n: int) -> Difference:
    """``error``: the standard error of the mean, where it is known."""
    if error is None:
        return Difference(Score(mean, None, n), None)
    p = two_sided(mean / error, df) if error > 0 else float(mean == 0)
    return Difference(Score(mean, student_t(df) * error, n), p)


def win_rate(differences: Sequence[float], higher: bool) -> float:
    """The share of episodes on which the first is better: ``higher``, or lower; equal ones count half."""
    sign = 1 if higher else -1
    return fmean(0.5 + 0.5 * ((sign * value > 0) - (sign * value < 0)) for value in differences)


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """p values corrected for their number (Holm 1979): that any is below 0.05 by chance has a probability of 5%."""
    order = sorted((i for i, p in enumerate(ps) if p is not None), key=lambda i: ps[i] or 0.0)
    corrected: list[float | None] = [None] * len(ps)
    largest = 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * (ps[i] or 0.0)))
        corrected[i] = largest
    return corrected
