"""What metarun is made of: theta* = argmin E_T [ L_T( phi_T(theta) ) ], turned into types.

A meta-learner is written for ONE task: ``adapt(theta, support) -> phi`` and ``query_loss(phi, query)``. Batches of tasks,
devices, optimizers, logging and configuration exist once, elsewhere.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
from torch import Tensor, nn
from torch.func import functional_call

from metarun.objectives import Objective, examples_of, of_examples
from metarun.trees import frozen as frozen  # noqa: PLC0414 (what learners need)
from metarun.trees import parameters_of as parameters_of  # noqa: PLC0414
from metarun.trees import surrogate as surrogate  # noqa: PLC0414 (for learners with a meta-gradient of their own)
from metarun.trees import trainable as trainable  # noqa: PLC0414

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from metarun.tasks.reading import Reader

Params = Any  # pytree of tensors
Metrics = dict[str, Tensor]  # scalars
Draw = dict[str, np.ndarray]  # the random choices behind episodes; every array leads with the task axis [B, ...]


class Batch(NamedTuple):
    """Examples of one task: x [S, ...], y [S] (classes) or [S, ...] (targets).

    ``mask`` [S], bool: which rows are examples; an empty tuple where all are. Only learners that read masks see others.
    """

    x: Tensor
    y: Tensor
    mask: Any = ()


class Episode(NamedTuple):
    """One task's data. Not generic at run time: vmap must see a plain named tuple on every supported Python.

    ``classes``: what the labels 0 ... N-1 of a training episode are among all training classes [N], where a task
    distribution has a fixed number of them (``TaskSpec.num_train_classes``); an empty tuple elsewhere.
    """

    support: Any
    query: Any
    classes: Any = ()


class Origin(NamedTuple):
    """What episodes are drawn from again and again, "classes" or "tasks" of a table, and the names of each one's own."""

    kind: str
    names: list[list[str]]


@dataclass(frozen=True)
class TaskSpec:
    """Shapes, classes and score of a task distribution's episodes: all that networks and learners must know of it."""

    input_shape: tuple[int, ...]
    num_outputs: int
    objective: Objective
    num_ways: int | None = None  # classes of a validation or test episode; None where there are no classes
    train_num_ways: int | None = None  # classes of a training episode
    fewest_ways: int | None = None  # where the numbers of classes vary, the lowest of all; those above are the highest
    num_test_tasks: int | None = None  # of a test set with a fixed number of episodes
    num_train_classes: int | None = None  # classes that training episodes are drawn from; None: no fixed number
    num_tokens: int | None = None  # inputs are integers below it; None: they are floats
    vocabulary: str | None = None  # a name for what these integers stand for; equal for equal numbering
    inverted: bool = False  # images are 1 where files are black: ink is 1 and paper 0
    most_rows: int | None = None  # inputs are rows of a table: the most that a support set of training has


class TaskDistribution(ABC):
    """Numbered episodes of the splits ``train``, ``val`` and ``test``; number i of a split is always the same episode."""

    spec: TaskSpec
    splits: tuple[str, ...] = ("train", "val", "test")  # those that have episodes
    frozen: nn.Module | None = None  # features without training, scored by their nearest class means at the final test
    # settings that only training episodes follow: without effect on an evaluation task
    of_training: ClassVar[frozenset[str]] = frozenset(
        {"train_num_ways", "train_num_shots", "train_num_queries", "train_fraction"}
    )
    references: tuple[str, ...] = ()  # methods of ``evaluation/references.py`` that are scored at the final test, too

    @abstractmethod
    def draw(self, split: str, indices: Sequence[int] | np.ndarray) -> Draw:
        """The random choices of the episodes ``indices``, from (seed, split, index) alone, on the CPU."""

    @abstractmethod
    def episodes(self, draw: Draw) -> Episode:
        """The episodes behind a draw, on the run's device; leaves lead with the task axis [B, ...]."""

    def at(self, split: str, number: int) -> "TaskDistribution":
        """The distribution of meta-batch ``number`` of ``split``: itself, unless sizes vary or grow in training.

        For "train" ``number`` is the step; else ``index // 20``, for so many episodes share a size. It must depend on
        ``split``, ``number`` and the settings alone: that is what makes resuming exact.
        """
        return self

    def for_evaluation(self) -> "TaskDistribution":
        """The distribution whose training episodes are made as those of other splits: of full size, not augmented."""
        return self

    @abstractmethod
    def fingerprint(self) -> str:
        """A name for the data the episodes come from; equal for equal data."""

    def fitted(self) -> dict[str, Any]:
        """What was found out on the training tasks and is used on others, as means and a vocabulary, as JSON can hold it.

        A run keeps it, and gives it as the argument ``fitted`` to the tasks that it is evaluated on, which then take these
        values instead of their own. Nothing, where not overridden.
        """
        return {}

    def verify(self) -> None:
        """Read all the prepared data again; raises DataError unless it is what its index says. Generated: nothing to do."""
        return None

    def show(self, split: str, indices: Sequence[int]) -> "Figure | None":
        """A picture of those episodes; None where ``drawing.picture`` of numbers or nameless images will do."""
        return None

    def class_names(self, split: str) -> Sequence[str]:
        """The names of the classes, or of a table's tasks, that episodes of ``split`` are drawn from; () where nameless."""
        return ()

    def drawn_from(self, split: str, draw: Draw) -> Origin | None:
        """What the episodes behind ``draw`` share with others of ``split``: their named classes, where not overridden.

        None where every episode is drawn anew. Scores are then told with an interval over other classes, too.
        """
        names = self.class_names(split)
        if not names or "classes" not in draw:
            return None
        return Origin("classes", [[names[c] for c in classes] for classes in draw["classes"]])

    def reader(self) -> "Reader | None":
        """What makes new examples of a user into inputs as those of the training were; None where they come as arrays."""
        return None

    def further_scores(self, learner: Any, phi: Params, episode: Episode) -> Metrics:
        """Scores of one task's phi that an evaluation adds to the metrics of its query loss: none, where not overridden.

        Runs under vmap, without gradients; ``learner`` is one that can be trained on this task distribution.
        """
        return {}

    def oracle(self, draw: Draw) -> Metrics:
        """Scores [B] of one who knows how the episodes behind ``draw`` were made; none, where it cannot be computed."""
        return {}

    def sample(self, split: str, indices: Sequence[int] | np.ndarray) -> Episode:
        """Episodes ``indices`` of ``split``, stacked along a leading task axis."""
        return self.episodes(self.draw(split, indices))


class MetaLearner(ABC):
    """Frozen hyperparameters; holds no learned state. Concrete learners are frozen dataclasses.

    The class variables declare what a learner can do, and metarun refuses a task beyond it.
    """

    regresses: ClassVar[bool] = True  # learns tasks without classes, too
    any_ways: ClassVar[bool] = False  # training and evaluation may have different numbers of classes
    reads_masks: ClassVar[bool] = False  # leaves rows out that ``Batch.mask`` says are no examples
    needs_train_classes: ClassVar[bool] = False  # learns only where training has a fixed set of classes
    outside_theta: ClassVar[tuple[str, ...]] = ()  # fields with networks whose parameters are not in theta, and stay

    @abstractmethod
    def init(self) -> Params:
        """theta_0, with copies of what it takes from the learner's networks (``parameters_of``): they stay as they are."""

    @abstractmethod
    def adapt(self, theta: Params, support: Any) -> Params:
        """phi = phi_T(theta): all that is needed to predict."""

    @abstractmethod
    def query_loss(self, phi: Params, query: Any) -> tuple[Tensor, Metrics]:
        """L_T(phi) on the query set, and scalars worth logging."""

    def meta_loss(self, theta: Params, episode: Episode) -> tuple[Tensor, Metrics]:
        """A scalar whose autograd gradient with respect to theta is this task's meta-gradient."""
        return self.query_loss(self.adapt(theta, episode.support), episode.query)

    def at(self, step: int) -> "MetaLearner":
        """The learner of training step ``step``: itself, unless its hyperparameters are annealed. Evaluation uses ``self``.

        It must depend on ``step`` and the hyperparameters alone: that is what makes resuming exact.
        """
        return self

    def refuse_size(self, num_support: int, num_query: int = 1) -> None:  # noqa: B027 (most take any)
        """Raise ValueError where a support set, with so many queries read beside it (in training alone), is too large."""

    def trajectory(self, theta: Params, support: Any, steps: int) -> Iterator[Params]:
        """phi after 0, 1, ..., ``steps`` adaptation steps, one by one. Learners that pass through them override this."""
        return (replace(self, inner_steps=k).adapt(theta, support) for k in range(steps + 1))  # type: ignore[type-var]


@dataclass(frozen=True)
class FewShotLearner(MetaLearner):
    """A meta-learner for supervised tasks: labelled support and query sets.

    theta and phi are the base learner's parameters by name; where they are not, a learner has its own ``init`` and
    ``predict``.
    """

    base_learner: nn.Module
    objective: Objective

    def init(self) -> Params:
        return parameters_of(self.base_learner)

    def predict(self, phi: Params, x: Tensor) -> Tensor:
        """Outputs [Q, num_outputs] for the inputs x [Q, ...]."""
        return functional_call(self.base_learner, phi, (x,))

    def probabilities(self, phi: Params, x: Tensor) -> Tensor:
        """Probabilities of the classes [Q, N] for the inputs x [Q, ...]; outputs are logits, where not overridden."""
        return self.predict(phi, x).softmax(-1)

    def posterior(self, phi: Params, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Mean and deviation [Q, num_outputs] of a target at each x; None where a learner knows no deviation."""
        return self.predict(phi, x), None

    def below(self, phi: Params, x: Tensor, y: Tensor) -> Tensor | None:
        """The probability [Q, num_outputs] of less than y at each x, by a normal where not overridden; None as above."""
        mean, deviation = self.posterior(phi, x)
        return None if deviation is None else ((mean - y) / (2**0.5 * deviation)).erfc() / 2

    def query_loss(self, phi: Params, query: Batch) -> tuple[Tensor, Metrics]:
        outputs, objective = self.predict(phi, query.x), of_examples(self.objective, examples_of(query))
        loss = objective.loss(outputs, query.y)
        return loss, {"query_loss": loss.detach(), objective.score_name: objective.score(outputs, query.y)}


def hyperparameters(learner: MetaLearner) -> set[str]:
    """The names that ``dataclasses.replace`` can change on ``learner``."""
    return {field.name for field in fields(learner)}  # type: ignore[arg-type]
