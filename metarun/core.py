"""What metarun is made of: theta* = argmin E_T [ L_T( phi_T(theta) ) ], turned into types.

A meta-learner is written for ONE task: ``adapt(theta, support) -> phi`` and ``query_loss(phi, query)``. Batches of tasks,
devices, optimizers, logging and configuration exist once, elsewhere.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from torch import Tensor, nn

from metarun.objectives import Objective
from metarun.trees import tree_leaves

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Params = Any  # pytree of tensors
Metrics = dict[str, Tensor]  # scalars
Draw = dict[str, np.ndarray]  # the random choices behind episodes; every array leads with the task axis [B, ...]


class Batch(NamedTuple):
    """Examples of one task: x [S, ...], y [S] (classes) or [S, ...] (targets)."""

    x: Tensor
    y: Tensor


class Episode(NamedTuple):
    """One task's data. Not generic at run time: vmap must see a plain named tuple on every supported Python.

    ``classes``: what the labels 0 ... N-1 of a training episode are among all training classes [N], where a task
    distribution has a fixed number of them (``num_train_classes``); an empty tuple elsewhere.
    """

    support: Any
    query: Any
    classes: Any = ()


class TaskDistribution(ABC):
    """Numbered episodes of the splits ``train``, ``val`` and ``test``; number i of a split is always the same episode."""

    input_shape: tuple[int, ...]
    num_outputs: int
    objective: Objective
    num_ways: int | None = None  # classes of a validation or test episode; None where there are no classes
    train_num_ways: int | None = None  # classes of a training episode
    num_test_tasks: int | None = None  # of a test set with a fixed number of episodes
    num_train_classes: int | None = None  # classes that training episodes are drawn from; None: no fixed number
    num_tokens: int | None = None  # inputs are integers below it; None: they are floats
    vocabulary: str | None = None  # a name for what these integers stand for; equal for equal numbering
    frozen: nn.Module | None = None  # features without training, scored by their nearest class means at the final test

    @abstractmethod
    def draw(self, split: str, indices: Sequence[int] | np.ndarray) -> Draw:
        """The random choices of the episodes ``indices``, from (seed, split, index) alone, on the CPU."""

    @abstractmethod
    def episodes(self, draw: Draw) -> Episode:
        """The episodes behind a draw, on the run's device; leaves lead with the task axis [B, ...]."""

    @abstractmethod
    def fingerprint(self) -> str:
        """A name for the data the episodes come from; equal for equal data."""

    def verify(self) -> None:
        """Read all the prepared data again; raises DataError unless it is what its index says. Generated: nothing to do."""
        return None

    def show(self, split: str, indices: Sequence[int]) -> "Figure | None":
        """A picture of those episodes; None where ``drawing.picture`` of numbers or nameless images will do."""
        return None

    def further_scores(self, learner: Any, phi: Params, episode: Episode) -> Metrics:
        """What an evaluation tells of one task's phi beside the metrics of its query loss: nothing, where not overridden.

        Runs under vmap, without gradients; ``learner`` is one that can be trained on this task distribution.
        """
        return {}

    def sample(self, split: str, indices: Sequence[int] | np.ndarray) -> Episode:
        """Episodes ``indices`` of ``split``, stacked along a leading task axis."""
        return self.episodes(self.draw(split, indices))


class MetaLearner(ABC):
    """Frozen hyperparameters; holds no learned state. Concrete learners are frozen dataclasses."""

    @abstractmethod
    def init(self) -> Params:
        """theta_0. Called once; afterwards the base learner's own weights are gone (see ``take_parameters``)."""

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

    def trajectory(self, theta: Params, support: Any, steps: int) -> Iterator[Params]:
        """phi after 0, 1, ..., ``steps`` adaptation steps, one by one. Learners that pass through them override this."""
        return (replace(self, inner_steps=k).adapt(theta, support) for k in range(steps + 1))  # type: ignore[type-var]


@dataclass(frozen=True)
class FewShotLearner(MetaLearner):
    """A meta-learner for supervised tasks: labelled support and query sets."""

    base_learner: nn.Module
    objective: Objective

    @abstractmethod
    def predict(self, phi: Params, x: Tensor) -> Tensor:
        """Outputs [Q, num_outputs] for the inputs x [Q, ...]."""

    def query_loss(self, phi: Params, query: Batch) -> tuple[Tensor, Metrics]:
        outputs = self.predict(phi, query.x)
        loss = self.objective.loss(outputs, query.y)
        return loss, {"query_loss": loss.detach(), self.objective.score_name: self.objective.score(outputs, query.y)}


def hyperparameters(learner: MetaLearner) -> set[str]:
    """The names that ``dataclasses.replace`` can change on ``learner``."""
    return {field.name for field in fields(learner)}  # type: ignore[arg-type]


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """The module's parameters that ask for a gradient, by name: those that theta holds and inner loops move."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def frozen(module: nn.Module) -> dict[str, nn.Parameter]:
    """The module's other parameters, by name: no part of theta, they stay in the module as they are."""
    return {name: p for name, p in module.named_parameters() if not p.requires_grad}


def take_parameters(module: nn.Module) -> dict[str, Tensor]:
    """The module's ``trainable`` parameters by name; those left in the module move to the ``meta`` device.

    A forward pass that forgets ``functional_call`` then raises, instead of silently using stale weights. Buffers and frozen
    parameters stay. A parameter that stands in several places is still one afterwards.
    """
    taken = {name: p.detach().clone() for name, p in trainable(module).items()}
    left = {p: nn.Parameter(p.to("meta")) for p in trainable(module).values()}
    for child in module.modules():
        for name, p in child.named_parameters(recurse=False, remove_duplicate=False):
            setattr(child, name, left.get(p, p))
    return taken


def surrogate(theta: Params, gradient: Params) -> Tensor:
    """A scalar whose gradient with respect to ``theta`` equals ``gradient``; its value means nothing."""
    pairs = zip(tree_leaves(theta), tree_leaves(gradient), strict=True)
    return sum((p * g.detach()).sum() for p, g in pairs)
