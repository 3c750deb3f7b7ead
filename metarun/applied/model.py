"""A trained run as a model in Python: adapted to labelled examples of a user's own, it predicts the rest.

    model = metarun.load("runs/DATE/RUN")
    adapted = model.adapt(x, y)            x: arrays, image files, sentences or rows; y: class names or targets
    adapted.predict(x), adapted.predict_proba(x)

n examples, N ways, Q queries, P outputs
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from metarun.applied.adapted import Adapted, AdaptedClassifier, AdaptedRegressor
from metarun.applied.arguments import load_arguments
from metarun.applied.calibrated import calibrate_once
from metarun.applied.labels import array_of, classes_of
from metarun.applied.trained import Trained, trained
from metarun.config.compose import assigned
from metarun.config.networks import transductive
from metarun.config.trust import trust
from metarun.core import Batch, FewShotLearner, Params, hyperparameters
from metarun.counter import uniform
from metarun.errors import ConfigError, DataError, listed
from metarun.evaluation.eval_mode import eval_mode
from metarun.execution.execution import Looped, generators_kept
from metarun.tasks.doubtful import notes_on_labels, warn_of
from metarun.tasks.reading import ArrayReader, Reader, columns_of
from metarun.tasks.repeated import refuse_two_classes
from metarun.trees import slice_tasks, tree_leaves, tree_map

if TYPE_CHECKING:
    from metarun.applied.estimators import Classifier, Regressor
    from metarun.applied.tables import TableClassifier, TableRegressor


def load(
    run: str | PathLike[str],
    *overrides: str,
    checkpoint: str = "best",
    device: str | None = None,
    config_dir: str | PathLike[str] | Sequence[str | PathLike[str]] = (),
    allow: str | Sequence[str] = (),
) -> "Model":
    """The trained model of a run's folder, under ``overrides`` as of ``metarun evaluate`` (evaluation.inner_steps=10).

    ``checkpoint`` is best or last. ``device`` is cpu, cuda, cuda:N or mps: that of the run, where it is None.
    ``config_dir`` and ``allow`` are those of the command line, one or a list. Raises ConfigError where the run cannot be
    used.
    """
    where, given, folders, packages = load_arguments(run, overrides, config_dir, allow)
    given += [] if device is None else [assigned("device", device)]
    threads = torch.get_num_threads()
    try:
        with ALONE, generators_kept():  # a program that uses a model keeps its own draws and threads
            return model_of(trained(Path(where), given, checkpoint, trust(folders, packages)))
    finally:
        torch.set_num_threads(threads)


def model_of(run: Trained) -> "Model":
    """The model of a finished run; raises ConfigError where its learner has nothing to predict."""
    learner, task = run.experiment.test_learner, run.experiment.task
    if not isinstance(learner, FewShotLearner):
        why = f"{type(learner).__name__} learns no labelled examples"
        raise ConfigError([f"{run.folder.path}: {why}, so there is nothing to predict."])
    calibrate_once(run)
    dtype = next(leaf.dtype for leaf in tree_leaves(run.theta))
    reader = task.reader() or ArrayReader(task.spec, run.experiment.device, dtype)
    return Model(run, learner, reader, bool(transductive(run.experiment)))


# One computation at a time: networks are put into another mode and hold phi while they compute, and generators are set.
ALONE = threading.RLock()


class Task(NamedTuple):
    """A support set, the learner with its number of ways, and the names of its classes (None: regression)."""

    learner: FewShotLearner
    support: Batch
    classes: np.ndarray | None


@dataclass(frozen=True)
class Model:
    """A trained learner, ready to be adapted: a value that never changes. Threads may share it: they compute in turn."""

    run: Trained
    learner: FewShotLearner
    reader: Reader
    looks_at_all_queries: bool  # whether a prediction depends on the other queries that are asked with it

    def __repr__(self) -> str:
        return f"Model({str(self.run.folder.path)!r})"

    def __deepcopy__(self, memo: dict[int, Any]) -> "Model":
        return self  # scikit-learn copies the settings of an estimator, and this holds the training data

    @property
    def classifies(self) -> bool:
        """Whether it tells classes apart; else it predicts numbers."""
        return self.run.experiment.task.spec.num_ways is not None

    @property
    def any_ways(self) -> bool:
        """Whether it can be adapted to any number of classes."""
        return self.learner.any_ways and "num_ways" in hyperparameters(self.learner)

    def adapt(self, x: Any, y: Any) -> Adapted:
        """The model adapted to examples ``x`` and their labels ``y``: names of classes [n], or targets [n] or [n, P].

        The order of the classes does not matter. Raises DataError (a ValueError) where they do not fit the model, or one
        example is of two classes.
        """
        inputs, labels = self.reader.inputs(x), array_of(y)
        if labels.ndim == 0 or len(labels) != len(inputs):
            count = "no list" if labels.ndim == 0 else f"{len(labels)} of them"
            raise DataError(f"there are {len(inputs)} examples and {count} as labels; give one for each.")
        if self.classifies:
            classes, places = classes_of(labels)
            warn_of(notes_on_labels([*map(str, classes.tolist())]), stacklevel=3)
            items = [f"example {i}" for i in range(len(inputs))]
            refuse_two_classes("counted from 0", items, self.reader.keys(inputs, x), [*map(str, classes[places])])
        return self.adapted_to(inputs, labels)

    def adapted_to(self, x: Tensor, y: np.ndarray) -> Adapted:
        """The model adapted to inputs x [n, ...] that ``reader`` gave."""
        learner, support, classes = self.task_of(x, y)
        phi = self._adapted(learner, support)
        if classes is None:
            return AdaptedRegressor(self, learner, phi, flat=y.ndim == 1)
        return AdaptedClassifier(self, learner, phi, classes)

    def task_of(self, x: Tensor, y: np.ndarray) -> "Task":
        """The support set as the learner sees it. Targets are in the model's units; examples of classes are mixed, as in the
        episodes of training, in an order that does not depend on that of the classes.
        """
        return self._of_classes(x, y) if self.classifies else self._of_targets(x, y)

    def as_classifier(self, **settings: Any) -> "Classifier | TableClassifier":
        """An estimator after scikit-learn's conventions, whose ``fit`` adapts. Raises DataError for a regression model.

        ``settings`` are those of ``TableClassifier``, for a model of tables.
        """
        from metarun.applied.estimators import Classifier

        if self.run.experiment.task.spec.most_rows is None or not self.classifies:
            return Classifier(self, **settings)
        from metarun.applied.tables import TableClassifier

        return TableClassifier(self, **settings)

    def as_regressor(self, **settings: Any) -> "Regressor | TableRegressor":
        """An estimator after scikit-learn's conventions, whose ``fit`` adapts. Raises DataError for a classifier.

        ``settings`` are those of ``TableRegressor``, for a model of tables.
        """
        from metarun.applied.estimators import Regressor

        if self.run.experiment.task.spec.most_rows is None or self.classifies:
            return Regressor(self, **settings)
        from metarun.applied.tables import TableRegressor

        return TableRegressor(self, **settings)

    def _of_classes(self, x: Tensor, y: np.ndarray) -> "Task":
        classes, labels = classes_of(y)
        mixed = uniform(0, "applied/order", np.zeros(1), len(labels))[0].argsort(kind="stable")
        order = np.argsort(labels, kind="stable")[mixed]
        places = torch.from_numpy(labels[order]).to(x.device)
        support = Batch(x[torch.from_numpy(order).to(x.device)], places)
        return Task(self._for_ways(len(classes), classes), support, classes)

    def _of_targets(self, x: Tensor, y: np.ndarray) -> "Task":
        targets = columns_of(y, self.run.experiment.task.spec.num_outputs)
        if not np.isfinite(targets).all():
            gone = np.flatnonzero(~np.isfinite(targets).all(1))
            raise DataError(f"example {gone[0]} has no target ({len(gone)} have none); leave such examples out.")
        own = torch.from_numpy(self.reader.targets(targets)).to(x.device, self.reader.dtype)
        return Task(self.learner, Batch(x, own), None)

    def _for_ways(self, ways: int, classes: np.ndarray) -> FewShotLearner:
        if self.any_ways:
            return replace(self.learner, num_ways=ways)  # type: ignore[call-arg]
        head = self.run.experiment.task.spec.num_outputs
        if ways > head:
            raise DataError(
                f"the support has {ways} classes ({listed([str(name) for name in classes])}), but the head of "
                f"{type(self.learner).__name__} has {head}. Leave classes out, or train with task.num_ways={ways}, or a "
                "learner for any number of ways, as protonet."
            )
        return self.learner

    def _adapted(self, learner: FewShotLearner, support: Batch) -> Params:
        try:
            phi = self.computed(learner.adapt, self.run.theta, support)
        except ValueError as error:  # more support examples than a sequence model has places for, say
            raise DataError(str(error)) from error
        if not all(torch.isfinite(leaf).all() for leaf in tree_leaves(phi) if leaf.is_floating_point()):
            raise DataError(
                f"{type(learner).__name__} adapts to numbers that are not finite on these examples: are they like those of "
                "the training? Else lower meta_learner.inner_lr or evaluation.inner_steps."
            )
        return phi

    @torch.no_grad()
    def computed(self, function: Callable[[Any, Any], Any], params: Params, inputs: Any) -> Any:
        """function(params, inputs) of one task, in the state in which learners are evaluated."""
        one_task = tree_map(lambda leaf: leaf[None], inputs)
        with ALONE, eval_mode(self.learner):
            return slice_tasks(Looped().map(function, params, one_task), 0)
