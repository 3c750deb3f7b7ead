"""A model that was trained on drawn tables, as scikit-learn estimators of a user's own: ``fit`` keeps the labelled rows.

    metarun.load(RUN).as_classifier().fit(X, y).predict_proba(X_new)

X is an array or a data frame with numbers, texts and categories, and values may be missing. A prediction is the mean of
``num_orders`` readings, each with another order of the columns and another numbering of the classes, every second of
ranks in the place of values. More columns or rows than the model knows are shared out among the readings, with a
warning. Needs scikit-learn: pip install 'metarun[tables]'.

n labelled rows, Q rows, F columns, N classes
"""

from collections.abc import Iterator
from dataclasses import dataclass
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from metarun.applied.table_inputs import (
    Levels,
    check_targets,
    may_have_texts,
    model_inputs,
    of_rows,
    uniform_columns,
    with_indicators,
)
from metarun.errors import DataError, MetarunError
from metarun.tasks.doubtful import notes_on_labels, warn_of
from metarun.tasks.table_numbers import look_of

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
    from sklearn.utils import check_random_state
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data
except ImportError as error:
    raise MetarunError("estimators for tables need scikit-learn: pip install 'metarun[tables]'.") from error

if TYPE_CHECKING:
    from metarun.applied.model import Model

UP_TO_FIT = 5  # levels from a warning to the line of the caller's that fits


@dataclass(frozen=True)
class Reading:
    """One way to show the table to the model: its rows, columns, whether by ranks, numbers of classes; and what it said."""

    rows: np.ndarray
    columns: np.ndarray
    ranks: bool
    codes: np.ndarray
    adapted: Any  # an AdaptedClassifier or AdaptedRegressor


class TableEstimator(BaseEstimator):
    """What both kinds share. ``max_rows`` None: as many as the model was trained on."""

    def __init__(self, model: "Model", num_orders: int = 4, max_rows: int | None = None, random_state: Any = 0) -> None:
        self.model = model
        self.num_orders = num_orders
        self.max_rows = max_rows
        self.random_state = random_state

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = tags.input_tags.string = tags.input_tags.categorical = True
        return tags

    def _numbers(self, X: Any, reset: bool) -> np.ndarray:
        """X as numbers [n, F]; ``reset``: its columns become those of this estimator."""
        X = of_rows(X)
        if not may_have_texts(X):
            x = validate_data(self, X=X, reset=reset, ensure_all_finite="allow-nan", dtype=np.float64)
            if reset:
                self.levels_ = Levels((None,) * x.shape[1])
            return x
        validate_data(self, X=X, reset=reset, skip_check_array=True)
        if reset:
            self.levels_ = Levels.found(X)
        warn_of(self.levels_.doubts(X) if reset else self.levels_.unknown(X), UP_TO_FIT)
        x = self.levels_.numbers(X)
        if np.isinf(x).any():
            raise DataError("X holds infinity; give finite numbers, and NaN where a value is missing.")
        return x

    def _read(self, x: np.ndarray, y: np.ndarray, num_classes: int) -> None:
        """Show the labelled rows x [n, F] and their targets y [n] to the model, in each of the orders."""
        for name, number in (("num_orders", self.num_orders), ("max_rows", self.max_rows)):
            if number is not None and not (isinstance(number, Integral) and number >= 1):
                raise DataError(f"{name} is {number}; use a whole number, 1 or more.")
        self.context_ = x
        size = self.model.run.experiment.task.spec.input_shape[0]
        context = with_indicators(x, x, size - x.shape[1])
        told = ~np.isnan(context)
        spread = [len(np.unique(context[told[:, k], k])) > 1 for k in range(context.shape[1])]
        self.readings_ = [
            self._reading(context, y, num_classes, size, *order)
            for order in self._orders(np.flatnonzero(spread), y, num_classes, size)
        ]

    def _orders(
        self, varying: np.ndarray, y: np.ndarray, num_classes: int, size: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray, bool, np.ndarray]]:
        """Rows, columns, whether by ranks, and numbers of the classes, of each reading."""
        random = check_random_state(self.random_state)
        most = self.max_rows or self.model.run.experiment.task.spec.most_rows or len(y)
        if most < num_classes:
            raise DataError(
                f"each reading takes {most} rows at most, but has a row of each of {num_classes} classes: set max_rows to "
                f"{num_classes} or more."
            )
        parts = max(-(-len(varying) // size), 1)
        number = max(self.num_orders, parts * -(-self.num_orders // 2) if parts > 1 else 1)
        if parts > 1:
            said = f"{len(varying)} columns vary, and the model reads {size}: each of {number} readings takes a part."
            warn_of([said], UP_TO_FIT)
        if len(y) > most:
            said = f"there are {len(y)} rows, and the model was trained on {most} at most: each of {number} readings takes "
            warn_of([f"{said}as many by lot. Raise max_rows to show it more."], UP_TO_FIT)
        for k in range(number):
            if k % parts == 0:
                order = random.permutation(varying)
            columns = np.array_split(order, parts)[k % parts]
            rows = np.arange(len(y)) if len(y) <= most else _lot(random, y if num_classes else 0 * y, most)
            codes = random.permutation(num_classes) if k else np.arange(num_classes)
            yield rows, columns, (k // parts) % 2 == 1, codes

    def _reading(
        self,
        context: np.ndarray,
        y: np.ndarray,
        num_classes: int,
        size: int,
        rows: np.ndarray,
        columns: np.ndarray,
        ranks: bool,
        codes: np.ndarray,
    ) -> Reading:
        x = self._inputs(context, context[rows], columns, ranks, size)[rows]
        labels = codes[y[rows]] if num_classes else y[rows]
        return Reading(rows, columns, ranks, codes, self.model.adapted_to(self._tensor(x), labels))

    def _inputs(self, x: np.ndarray, context: np.ndarray, columns: np.ndarray, ranks: bool, size: int) -> np.ndarray:
        if ranks:
            x, context = uniform_columns(x, context), uniform_columns(context, context)
        return model_inputs(x, context, columns, size)

    def _tensor(self, x: np.ndarray) -> torch.Tensor:
        experiment = self.model.run.experiment
        return torch.from_numpy(np.ascontiguousarray(x)).to(experiment.device, self.model.reader.dtype)

    def _queries(self, X: Any) -> Iterator[tuple[Reading, torch.Tensor]]:
        """Each reading, and the rows X as the model sees them in it."""
        check_is_fitted(self)
        x = self._numbers(X, reset=False)
        size = self.model.run.experiment.task.spec.input_shape[0]
        room = size - x.shape[1]
        x, context = with_indicators(x, self.context_, room), with_indicators(self.context_, self.context_, room)
        for one in self.readings_:
            yield one, self._tensor(self._inputs(x, context[one.rows], one.columns, one.ranks, size))


class TableClassifier(ClassifierMixin, TableEstimator):
    """A classifier of the rows of tables, for up to as many classes as the model has."""

    def fit(self, X: Any, y: Any) -> "TableClassifier":
        """Keep the rows X [n, F] and their classes y [n], of any names."""
        x, y = self._numbers(X, reset=True), column_or_1d(y, warn=True)
        check_targets(x, y)
        check_classification_targets(y)
        self.classes_, places = np.unique(y, return_inverse=True)
        warn_of(notes_on_labels([*map(str, self.classes_)]), stacklevel=3)
        most = self.model.run.experiment.task.spec.num_outputs
        if len(self.classes_) > most:
            raise DataError(
                f"there are {len(self.classes_)} classes, and the model tells {most} apart. Join classes, wrap it in "
                "sklearn.multiclass.OutputCodeClassifier, or train with a larger task.num_classes."
            )
        if len(self.classes_) == 1:
            self.context_, self.readings_ = x, []
        else:
            self._read(x, places, len(self.classes_))
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """The probability of each of ``classes_`` [Q, N]."""
        found = [one.adapted.probabilities(x)[:, one.codes] for one, x in self._queries(X)]
        return np.mean(found, 0) if found else np.ones((len(self._numbers(X, reset=False)), 1))

    def predict(self, X: Any) -> np.ndarray:
        """The most probable class of each row [Q]."""
        probabilities = self.predict_proba(X)
        return self.classes_[probabilities.argmax(1)]


class TableRegressor(RegressorMixin, TableEstimator):
    """A regressor on the rows of tables, with one target."""

    def fit(self, X: Any, y: Any) -> "TableRegressor":
        """Keep the rows X [n, F] and their targets y [n]."""
        x, y = self._numbers(X, reset=True), column_or_1d(y, warn=True)
        check_targets(x, y)
        if y.dtype.kind in "mM":
            raise DataError("y holds times, which are of no unit; give numbers, as days since the first.")
        try:
            y = y.astype(np.float64)
        except (TypeError, ValueError) as error:
            look = look_of([*map(str, y)])
            cure = look.cure if look else "Use as_classifier() for classes."
            raise DataError(f"y holds what is no number ({error}). {cure}") from error
        if not np.isfinite(y).all():
            raise DataError("y holds NaN or infinity; leave rows without a target out.")
        self.mean_, self.deviation_ = float(y.mean()), float(y.std()) or 1.0
        self._read(x, (y - self.mean_) / self.deviation_, 0)
        return self

    def predict(self, X: Any, return_std: bool = False) -> Any:
        """The mean of each target [Q]; with ``return_std`` also its deviation."""
        found = [one.adapted.moments(x) for one, x in self._queries(X)]
        means = np.array([mean for mean, _ in found])
        mean = means.mean(0)
        centre = self.mean_ + self.deviation_ * mean
        if not return_std:
            return centre
        if any(deviation is None for _, deviation in found):
            raise DataError(f"{type(self.model.learner).__name__} knows no deviation; pfn does.")
        second = np.mean([deviation**2 for _, deviation in found], 0) + means.var(0)
        return centre, self.deviation_ * np.sqrt(second)


def _lot(random: Any, y: np.ndarray, most: int) -> np.ndarray:
    """``most`` rows by lot, in ascending order; each class of y keeps its share, and one row at least where that fits."""
    order = random.permutation(len(y))
    _, place = np.unique(y[order], return_inverse=True)
    counts = np.bincount(place)
    within = np.zeros(len(y), dtype=int)
    for label in range(len(counts)):
        own = place == label
        within[own] = np.arange(own.sum())
    key = np.where(within == 0, -1.0, (within + 0.5) / counts[place])
    return np.sort(order[np.argsort(key, kind="stable")[:most]])
