"""A model that is adapted to the examples of one task: what it predicts of others.

N classes, Q queries, P outputs
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from metarun.core import FewShotLearner, Params
from metarun.errors import DataError

if TYPE_CHECKING:
    from metarun.applied.model import Model

AT_ONCE = 500  # queries of one forward pass
OF_ALL_QUERIES = "the model is transductive: each prediction depends on all queries of its task."


@dataclass(frozen=True)
class Adapted:
    """A model adapted to the examples of one task: ``phi`` is all that it needs to predict."""

    model: "Model"
    learner: FewShotLearner
    phi: Params

    def outputs(self, function: Callable[[Params, Tensor], Any], inputs: Tensor) -> list[np.ndarray]:
        """What function(phi, inputs) gives: arrays [Q, ...] as doubles. ``inputs`` are what the model's reader gave."""
        size = len(inputs) if self.model.looks_at_all_queries else AT_ONCE
        parts = [self.model.computed(function, self.phi, part) for part in inputs.split(size)]
        return [torch.cat(column).double().cpu().numpy() for column in zip(*parts, strict=True)]


@dataclass(frozen=True)
class AdaptedClassifier(Adapted):
    """Knows the classes that it was adapted to, in ascending order: ``classes_``."""

    classes_: np.ndarray

    def predict(self, x: Any) -> np.ndarray:
        """The most probable class of each example [Q]."""
        return self.classes_[self.predict_proba(x).argmax(1)]

    def predict_proba(self, x: Any) -> np.ndarray:
        """The probability of each of ``classes_`` [Q, N]."""
        return self.probabilities(self.model.reader.inputs(x))

    def probabilities(self, inputs: Tensor) -> np.ndarray:
        """The probabilities [Q, N] for inputs that the model's reader gave."""
        (every,) = self.outputs(lambda phi, x: [self.learner.probabilities(phi, x)], inputs)
        own = every[:, : len(self.classes_)]  # a head may have more
        with np.errstate(invalid="ignore"):  # 0 / 0, where the other classes have all
            return _told(own / own.sum(1, keepdims=True))


@dataclass(frozen=True)
class AdaptedRegressor(Adapted):
    """Predicts numbers in the units of the targets that it was adapted to; ``flat``: one an example, [Q]."""

    flat: bool

    def predict(self, x: Any) -> np.ndarray:
        """The mean of each target [Q, P], or [Q]."""
        return self.posterior(x)[0]

    def posterior(self, x: Any) -> tuple[np.ndarray, np.ndarray | None]:
        """Mean and deviation of each target [Q, P], or [Q]; the deviation is None where the learner knows none."""
        return self.moments(self.model.reader.inputs(x))

    def moments(self, inputs: Tensor) -> tuple[np.ndarray, np.ndarray | None]:
        """The same for inputs that the model's reader gave."""
        found = self.outputs(lambda phi, x: [v for v in self.learner.posterior(phi, x) if v is not None], inputs)
        mean, deviation = self.model.reader.in_own_units(_told(found[0]), found[1] if len(found) > 1 else None)
        _told(mean)
        if not self.flat:
            return mean, deviation
        return mean[:, 0], None if deviation is None else deviation[:, 0]


def _told(predictions: np.ndarray) -> np.ndarray:
    """The predictions [Q, ...]. Raises DataError where one is no number, for the class that it would name means nothing."""
    if (gone := np.flatnonzero(~np.isfinite(predictions).all(1))).size:
        raise DataError(
            f"the prediction of query {gone[0]}, counted from 0, is not finite ({len(gone)} of {len(predictions)} are not): "
            "is it like the examples of the training? Correct it, or leave it out."
        )
    return predictions
