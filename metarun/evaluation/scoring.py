"""Scores on numbered, fixed episodes of a split. Evaluation touches nothing: no parameter, buffer or generator."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from metarun.core import Episode, MetaLearner, Metrics, Params, TaskDistribution, hyperparameters
from metarun.evaluation.episodes import Chunk, chunks_of
from metarun.evaluation.estimates import Estimate, estimate
from metarun.evaluation.eval_mode import eval_mode
from metarun.evaluation.records import STEP
from metarun.evaluation.suite import Scored, with_ways
from metarun.execution.execution import Execution, Looped
from metarun.execution.halving import HalvingMap
from metarun.trees import num_elements, slice_tasks

Values = dict[str, Tensor]  # scores by name, one of each episode [n]
TIMED = 8  # tasks, of which the first quarter warms up


@dataclass(frozen=True)
class Subject:
    """A learner with its theta, and the first episodes of a split of a task, on which it is evaluated.

    ``between`` is called before each chunk of tasks (to stop early, it raises).
    """

    learner: MetaLearner
    theta: Params
    task: TaskDistribution
    split: str
    num_tasks: int
    execution: Execution
    between: Callable[[], None] = lambda: None

    def on(self, scored: Scored) -> "Subject":
        """The same theta on another task, in the learner that fits it."""
        return replace(self, learner=scored.learner, task=scored.task)


class Evaluator:
    """A way to score a trained learner, beside the metrics of its query loss. A subclass overrides one method or more."""

    def scores(self, subject: Subject, phi: Params, episode: Episode) -> Metrics:
        """Scores of one adapted task, at every validation and at the test.

        They run in the pass that adapts it, under vmap and without gradients, for each phi of an adaptation curve.
        """
        return {}

    def episode_scores(self, subject: Subject) -> Values:
        """Scores of each episode that take a pass of their own; at the final test and in ``metarun evaluate`` alone."""
        return {}

    def estimates(self, subject: Subject) -> dict[str, Estimate]:
        """Estimates that are of something else than a score of each episode; then alone, too."""
        return {}


def evaluate(subject: Subject, evaluators: Sequence[Evaluator] = (), curve: bool = False) -> dict[str, Estimate]:
    """The means of ``score_episodes``, by name."""
    return {name: estimate(values) for name, values in score_episodes(subject, evaluators, curve).items()}


@torch.no_grad()
def score_episodes(subject: Subject, evaluators: Sequence[Evaluator] = (), curve: bool = False) -> Values:
    """Scores after adaptation, by name: the metrics of the query loss, and what ``evaluators`` score in the same pass.

    With ``curve`` also ``<name>_step_k`` for every adaptation step k.
    """
    learner, split = subject.learner, subject.split
    curve = curve and "inner_steps" in hyperparameters(learner)

    def score(subject: Subject, phi: Params, episode: Episode) -> Metrics:
        _, metrics = subject.learner.query_loss(phi, episode.query)
        return metrics | {name: value for e in evaluators for name, value in e.scores(subject, phi, episode).items()}

    def scores(subject: Subject, theta: Params, episode: Episode) -> list[Metrics]:
        learner = subject.learner
        if not curve:
            return [score(subject, learner.adapt(theta, episode.support), episode)]
        phis = learner.trajectory(theta, episode.support, learner.inner_steps)  # type: ignore[attr-defined]
        return [score(subject, phi, episode) for phi in phis]

    mapped = HalvingMap(subject.execution)

    def rows_of(chunk: Chunk) -> list[list[Metrics]]:
        subject.between()
        task, indices = chunk
        of_size = replace(subject, learner=with_ways(learner, task, split), task=task)
        return mapped(partial(scores, of_size), subject.theta, task.sample(split, indices))

    with eval_mode(learner):
        parts = chunks_of(subject.task, split, subject.num_tasks)
        rows = list(chain.from_iterable(subject.execution.spread(parts, rows_of)))
    if not rows:
        raise ValueError("there are no episodes to evaluate on.")
    steps = [{name: torch.cat([row[k][name] for row in rows]) for name in rows[0][k]} for k in range(len(rows[0]))]
    result = dict(steps[-1])
    for k, values_of in enumerate(steps if curve else ()):
        result |= {f"{name}{STEP}{k}": values for name, values in values_of.items()}
    return result


class OfTheTask(Evaluator):
    """The scores that a task distribution adds itself."""

    def scores(self, subject: Subject, phi: Params, episode: Episode) -> Metrics:
        return subject.task.further_scores(subject.learner, phi, episode)


class Complexity(Evaluator):
    """``parameters``: their number. ``adaptation_ms``: the median time of one task's adaptation, alone on the device."""

    @torch.no_grad()
    def estimates(self, subject: Subject) -> dict[str, Estimate]:
        learner, episodes, times = subject.learner, subject.task.sample(subject.split, range(TIMED)), []
        with eval_mode(learner):
            for i in range(TIMED):
                one, start = slice_tasks(episodes, slice(i, i + 1)), time.perf_counter()
                Looped().map(lambda theta, episode: learner.adapt(theta, episode.support), subject.theta, one)
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                times.append(time.perf_counter() - start)
        median = Estimate(float(np.median(times[TIMED // 4 :])) * 1e3, math.nan, TIMED)  # its interval is not known
        return {"parameters": Estimate(num_elements(subject.theta), 0.0, 1), "adaptation_ms": median}
