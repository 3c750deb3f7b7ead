"""Learning speed: how soon an adaptation curve is where it ends.

n episodes, K adaptation steps
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from metarun.evaluation.records import EpisodeScores

PART = 0.9  # of the change between step 0 and step K


def learning_speed(part: EpisodeScores, told: Callable[[EpisodeScores], dict[str, Any]]) -> dict[str, Any]:
    """By score: ``area`` under the curve as its mean height, ``change`` from step 0 to K, ``steps`` K, and
    ``steps_to_90_percent`` of the change. ``told`` turns scores of episodes into means with their intervals."""
    curves = {name: curve for name, curve in part.curves().items() if curve.shape[1] > 1}  # [n, K + 1]
    areas = told(_like(part, {name: area(curve) for name, curve in curves.items()}))
    changes = told(_like(part, {name: curve[:, -1] - curve[:, 0] for name, curve in curves.items()}))
    return {
        name: {
            "area": areas[name],
            "change": changes[name],
            "steps": curve.shape[1] - 1,
            "steps_to_90_percent": steps_to(PART, curve.mean(0)),
        }
        for name, curve in curves.items()
    }


def _like(part: EpisodeScores, values: dict[str, np.ndarray]) -> EpisodeScores:
    return EpisodeScores(part.split, values, kind=part.kind, members=part.members)


def area(curve: np.ndarray) -> np.ndarray:
    """The area under each curve [n, K + 1] by the trapezoidal rule, divided by K: in the unit of the score."""
    return (curve[:, 1:] + curve[:, :-1]).mean(1) / 2


def steps_to(part: float, curve: np.ndarray) -> int | None:
    """The first step at which ``curve`` [K + 1] has made ``part`` of its change; None where it ends as it began."""
    change = curve[-1] - curve[0]
    if not np.isfinite(change) or change == 0:
        return None
    return int(np.argmax((curve - curve[0]) / change >= part))
