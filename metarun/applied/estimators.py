"""A trained model as estimators after scikit-learn's conventions, which need not be installed: ``fit`` adapts the model.

sklearn.model_selection.cross_val_score(metarun.load(RUN).as_classifier(), x, y)
"""

from typing import TYPE_CHECKING, Any, cast

import numpy as np

from metarun.errors import DataError
from metarun.tasks.reading import absent, as_array, columns_of

if TYPE_CHECKING:
    from typing import TypeVar

    from metarun.applied.adapted import AdaptedClassifier, AdaptedRegressor
    from metarun.applied.model import Model

    Own = TypeVar("Own", bound="Estimator")


class Estimator:
    """What both kinds share: the settings by which scikit-learn copies an estimator."""

    kind = ""
    adapted_: Any  # after ``fit``

    def __init__(self, model: "Model") -> None:
        self.model = model

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The settings by name."""
        return {"model": self.model}

    def set_params(self: "Own", **params: Any) -> "Own":
        """Set settings by name; raises ValueError for others."""
        for name, value in params.items():
            if name != "model":
                raise ValueError(f"{name} is no setting of {type(self).__name__}; it has model.")
            self.model = value
        return self

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "adapted_")

    def fitted(self) -> Any:
        """The adapted model; raises DataError before ``fit``."""
        if not self.__sklearn_is_fitted__():
            raise DataError(
                f"this {type(self).__name__} has seen no examples: call fit(X, y) with labelled ones first."
            )
        return self.adapted_

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import ClassifierTags, InputTags, RegressorTags, Tags, TargetTags

        classifies = self.kind == "classifier"
        return Tags(
            estimator_type=self.kind,
            target_tags=TargetTags(required=True),
            classifier_tags=ClassifierTags() if classifies else None,
            regressor_tags=None if classifies else RegressorTags(),
            input_tags=InputTags(one_d_array=True, two_d_array=True, three_d_array=True, string=True),
        )


class Classifier(Estimator):
    """A classifier whose ``fit`` adapts ``model`` to the examples."""

    kind = _estimator_type = "classifier"
    adapted_: "AdaptedClassifier"

    def __init__(self, model: "Model") -> None:
        if not classifies(model):
            raise DataError("the run was trained on a task without classes; use as_regressor().")
        super().__init__(model)

    def fit(self, X: Any, y: Any) -> "Classifier":
        """Adapt the model to the examples X and their classes y [n]."""
        self.adapted_ = cast("AdaptedClassifier", self.model.adapt(X, y))
        self.classes_ = self.adapted_.classes_
        return self

    def predict(self, X: Any) -> np.ndarray:
        """The most probable class of each example [Q]."""
        return self.fitted().predict(X)

    def predict_proba(self, X: Any) -> np.ndarray:
        """The probability of each of ``classes_`` [Q, N]."""
        return self.fitted().predict_proba(X)

    def score(self, X: Any, y: Any) -> float:
        """The accuracy."""
        predicted = self.predict(X)
        truth = shaped(y, predicted)
        if gone := [i for i, label in enumerate(truth.tolist()) if absent(label)]:
            raise DataError(f"example {gone[0]} has no label ({len(gone)} have none); score examples that have one.")
        return float(np.mean(predicted == truth))


class Regressor(Estimator):
    """A regressor whose ``fit`` adapts ``model`` to the examples."""

    kind = _estimator_type = "regressor"
    adapted_: "AdaptedRegressor"

    def __init__(self, model: "Model") -> None:
        if classifies(model):
            raise DataError("the run was trained to tell classes apart; use as_classifier().")
        super().__init__(model)

    def fit(self, X: Any, y: Any) -> "Regressor":
        """Adapt the model to the examples X and their targets y [n] or [n, P]."""
        self.adapted_ = cast("AdaptedRegressor", self.model.adapt(X, y))
        return self

    def predict(self, X: Any, return_std: bool = False) -> Any:
        """The mean of each target; with ``return_std`` also its deviation, where the learner knows one (else DataError)."""
        mean, deviation = self.fitted().posterior(X)
        if not return_std:
            return mean
        if deviation is None:
            raise DataError(
                f"{type(self.model.learner).__name__} knows no deviation; gaussian_process, cnp, anp, tnp and convcnp do."
            )
        return mean, deviation

    def score(self, X: Any, y: Any) -> float:
        """The coefficient of determination R^2, mean over the outputs."""
        predicted = self.predict(X)
        truth = columns_of(y, self.model.run.experiment.task.spec.num_outputs)
        truth = shaped(truth, predicted)
        if not np.isfinite(truth).all():
            raise DataError("the targets hold NaN or infinity; score examples that have a target.")
        errors, spread = ((truth - predicted) ** 2).sum(0), ((truth - truth.mean(0)) ** 2).sum(0)
        if not np.all(spread):
            raise DataError("the targets are all the same, so R^2 is not defined: score examples that differ.")
        return float(np.mean(1 - errors / spread))


def classifies(model: Any) -> bool:
    """Whether ``model`` tells classes apart. Raises DataError for what is no model."""
    try:
        return bool(model.classifies)
    except AttributeError:
        raise DataError(f"the model is {type(model).__name__}, but must be what metarun.load(RUN) gives.") from None


def shaped(y: Any, like: np.ndarray) -> np.ndarray:
    """Labels in the shape of predictions, as [n, 1] for [n]. Raises DataError where their number is another."""
    labels = as_array(y, "labels")
    if labels.dtype.kind == "V":
        raise DataError(f"the labels are {labels.dtype}; give texts, or numbers.")
    if labels.size != like.size:
        raise DataError(
            f"predictions have shape {list(like.shape)} and labels {list(labels.shape)}: give one for each."
        )
    return labels.reshape(like.shape)
