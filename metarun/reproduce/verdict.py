"""How far our figure is from the paper's, and the verdict by rule.

- *reproduced*: the paper's figure lies inside our 95% interval, or ours is within the paper's interval of it.
- *close*: within one point (percent); of errors that are no percentage, within a tenth of the paper's figure.
- *better*: farther away, on the good side.
- *missed*: farther away, on the bad side.
- *not judged*: the paper prints no number, or nobody here has read its source.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from metarun.evaluation.student import student_t
from metarun.output.paired import half_width_of_mean
from metarun.reproduce.registry import IN_PERCENT, Figure, Target

ORDER = ("missed", "close", "reproduced", "better", "not judged")  # the worst first
POINT, SHARE = 1.0, 0.1  # how close close is: a point of percent, or a share of an error


@dataclass(frozen=True)
class Measured:
    """A figure of ours, in the paper's units."""

    mean: float  # over the seeds
    ci95: float  # the half width over episodes, of that mean
    tasks: int  # episodes of each seed
    over_seeds: float | None  # the half width over seeds, where there are two or more

    @classmethod
    def kept(cls, ours: Mapping[str, Any]) -> "Measured":
        """As a card keeps it, beside more."""
        return cls(ours["mean"], ours["ci95"], ours["tasks"], ours["over_seeds"])


def measured(seeds: Sequence[tuple[float, float, int, str]]) -> Measured:
    """Of mean, half width over episodes, number of episodes and their manifest, of each seed.

    Seeds that were tested on the same episodes share their noise: there the mean of the half widths bounds it.
    """
    means, widths, tasks, manifests = zip(*seeds, strict=True)
    k = len(seeds)
    mean = sum(means) / k
    ci95 = half_width_of_mean(widths, alike=len(set(manifests)) == 1)
    deviation = math.sqrt(sum((m - mean) ** 2 for m in means) / (k - 1)) if k > 1 else 0.0
    return Measured(mean, ci95, min(tasks), student_t(k - 1) * deviation / math.sqrt(k) if k > 1 else None)


def verdict(target: Target, figure: Figure, ours: Measured) -> str:
    """The verdict on one figure."""
    if figure.value is None or not figure.is_target:
        return "not judged"
    difference = ours.mean - figure.value
    if abs(difference) <= max(ours.ci95, figure.interval or 0.0):
        return "reproduced"
    if abs(difference) <= (POINT if target.score in IN_PERCENT else SHARE * abs(figure.value)):
        return "close"
    return "better" if (difference > 0) == target.higher_is_better else "missed"


def of_all(verdicts: Sequence[str]) -> str:
    """The verdict on a target: the worst of those on its figures that are judged."""
    return min(verdicts, key=ORDER.index, default="not judged")


def about_seeds(target: Target, figures: Sequence[Mapping[str, Any]]) -> str:
    """What the seeds say of the verdicts on these figures of a card: that a difference is less than what seeds differ by,
    or that some seed alone would not have reproduced a figure that all together have."""
    if any(_within_seeds(figure) for figure in figures):
        return ", within the seeds"
    alone = [_alone_reproduces(target, figure) for figure in figures if figure["verdict"] == "reproduced"]
    fewest = min(alone, key=sum, default=[])
    return "" if all(fewest) else f", {sum(fewest)} of {len(fewest)} seeds alone"


def _within_seeds(figure: Mapping[str, Any]) -> bool:
    """Whether a verdict other than reproduced is on a difference that is less than what seeds differ by."""
    ours, spread = figure["ours"], figure["ours"]["over_seeds"]
    judged = figure["verdict"] in ("better", "close", "missed")
    return judged and spread is not None and abs(ours["mean"] - figure["paper"]["value"]) <= spread


def _alone_reproduces(target: Target, figure: Mapping[str, Any]) -> list[bool]:
    """Whether each seed alone reproduces the figure."""
    told = Figure(figure["name"], **figure["paper"])
    return [
        verdict(target, told, Measured(seed["mean"], seed["ci95"], seed["tasks"], None)) == "reproduced"
        for seed in figure["ours"]["seeds"]
    ]


def width_of_difference(ours: Measured, figure: Figure) -> float:
    """The half width of our figure minus the paper's: both intervals, where the paper prints one of 95%; else ours."""
    theirs = figure.interval if figure.interval and figure.interval_is.startswith("95%") else 0.0
    return math.hypot(ours.ci95, theirs)
