"""The score over the number of support examples: the same tasks and queries, with the first k examples of the support.

B episodes, N ways, k shots, S support examples
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F

from metarun.core import Batch, Draw, Episode, MetaLearner, TaskDistribution
from metarun.errors import ConfigError
from metarun.evaluation.records import SHOTS
from metarun.evaluation.scoring import Evaluator, Subject, Values, score_episodes
from metarun.evaluation.suite import Suite
from metarun.tasks.resized import Resized
from metarun.tasks.sizes import Sized
from metarun.trees import tree_leaves


@dataclass(frozen=True)
class OverShots(Evaluator):
    """``<name>_shots_k`` for each k of ``shots``: the metrics of the query loss after adaptation to k shots.

    ``beside``: what scores the same episodes in passes of its own, as methods without training.
    """

    shots: Sequence[int]
    beside: Sequence[Evaluator] = ()

    def episode_scores(self, subject: Subject) -> Values:
        try:
            most = with_shots(subject.task, subject.split, max(self.shots))
        except ValueError as error:
            raise ConfigError([str(error)]) from error
        found: Values = {}
        for k in self.shots:
            of_k = replace(subject, task=FirstShots(most, k))
            values = score_episodes(of_k)
            for evaluator in self.beside:
                values |= evaluator.episode_scores(of_k)
            found |= {f"{name}{SHOTS}{k}": of_episodes for name, of_episodes in values.items()}
        return found


class FirstShots(TaskDistribution):
    """The episodes of ``task`` with the first ``num_shots`` of their support, in classes those of each class."""

    def __init__(self, task: TaskDistribution, num_shots: int) -> None:
        self.task, self.num_shots = task, num_shots
        self.spec, self.splits, self.frozen, self.references = task.spec, task.splits, task.frozen, task.references

    def at(self, split: str, number: int) -> "FirstShots":
        task = self.task.at(split, number)
        return self if task is self.task else FirstShots(task, self.num_shots)

    def draw(self, split: str, indices: Sequence[int] | np.ndarray) -> Draw:
        return self.task.draw(split, indices)

    def episodes(self, draw: Draw) -> Episode:
        episodes = self.task.episodes(draw)
        first = first_of_classes if self.spec.num_ways is not None else first_points
        return episodes._replace(support=first(episodes.support, self.num_shots))

    def fingerprint(self) -> str:
        return self.task.fingerprint()


def first_points(support: Batch, num_shots: int) -> Batch:
    """The first ``num_shots`` rows of x and y [B, S, ...]."""
    return Batch(support.x[:, :num_shots], support.y[:, :num_shots])


def first_of_classes(support: Batch, num_shots: int) -> Batch:
    """The first ``num_shots`` rows of each class, in the order in which they stand; each class has as many or more."""
    members = F.one_hot(support.y)  # [B, S, N]
    rank = (members.cumsum(1) * members).sum(-1)  # [B, S], from 1
    rows = (rank <= num_shots).nonzero()[:, 1].view(len(rank), -1)  # [B, N * k]
    tasks = torch.arange(len(rows), device=rows.device)[:, None]
    return Batch(support.x[tasks, rows], support.y[tasks, rows])


def check_shots(tasks: Sequence[TaskDistribution], shots: Sequence[int] | None) -> None:
    """Raise ConfigError unless the test episodes of all ``tasks`` can have so many shots."""
    problems = []
    for task in tasks if shots else ():
        try:
            with_shots(task, "test", max(shots or ()))
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError(problems)


def too_large(suite: Suite, split: str, evaluators: Sequence[Evaluator] = (), together: bool = False) -> list[str]:
    """What learners say against the largest episodes of ``split``, with the most shots that ``evaluators`` give them.

    ``together``: queries are read together with the support, as in training.
    """
    problems = []
    for scored in suite.elsewhere.values() or [suite.own]:
        if type(scored.learner).refuse_size is MetaLearner.refuse_size:
            continue  # nothing to draw an episode for
        for most in [None, *(max(evaluator.shots) for evaluator in evaluators if isinstance(evaluator, OverShots))]:
            where = split if most is None else f"{split} with the {most} shots of evaluation.shots"
            try:
                at = scored.task if most is None else with_shots(scored.task, split, most)
                rows = [tree_leaves(part)[0].shape[1] for part in at.sample(split, [0])[:2]]
                scored.learner.refuse_size(rows[0], rows[1] if together else 1)
            except ValueError as error:
                problems.append(f"episodes of {where}: {error}")
    return problems


def with_shots(task: TaskDistribution, split: str, num_shots: int) -> TaskDistribution:
    """``task`` with so many shots in ``split``. Raises ValueError where it cannot have them."""
    if isinstance(task, Resized):
        return task.of(with_shots(task.task, split, num_shots))
    if not isinstance(task, Sized):
        raise ValueError(
            f"evaluation.shots has no effect on {type(task).__name__}: its episodes have a fixed number of examples. Set it "
            "to null."
        )
    try:
        return task.with_shots(split, num_shots)
    except ValueError as error:
        raise ValueError(f"evaluation.shots holds {num_shots}, in place of task.num_shots: {error}") from error
