"""A mean of scores, with how sure it is."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from metarun.evaluation.intervals import half_width


class Estimate(NamedTuple):
    """A mean over episodes with the half width of its 95% confidence interval, by Student's t."""

    mean: float
    ci95: float
    n: int


def estimate(values: Tensor) -> Estimate:
    """Mean and confidence interval of one score per episode [n]; the interval of a single episode is infinite."""
    n = len(values)
    deviation = values.double().std().item() if n > 1 else math.inf
    return Estimate(values.double().mean().item(), half_width(deviation, n), n)


def mean_of(estimates: Sequence[Estimate]) -> Estimate:
    """The mean of independent estimates, each counted alike; n is the number of all episodes.

    Its interval covers 95% or a little more: the quantiles are those of the single estimates, of fewer episodes.
    """
    k = len(estimates)
    ci95 = math.sqrt(sum(e.ci95**2 for e in estimates)) / k
    return Estimate(sum(e.mean for e in estimates) / k, ci95, sum(e.n for e in estimates))
