"""Scores on numbered, fixed episodes of a split. Evaluation touches nothing: no parameter, buffer or generator."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch

from metarun.core import Episode, MetaLearner, Metrics, Params, TaskDistribution, hyperparameters
from metarun.evaluation.episodes import chunks
from metarun.evaluation.estimates import Estimate, estimate, mean_of
from metarun.evaluation.still import still
from metarun.evaluation.suite import Scored, baseline_of
from metarun.execution.execution import Execution, Looped
from metarun.execution.fitting import Fitting
from metarun.trees import num_elements, slice_tasks, tree_leaves

logger = logging.getLogger(__name__)


@torch.no_grad()
def evaluate(
    learner: MetaLearner,
    theta: Params,
    episodes: Iterator[Episode],
    execution: Execution,
    curve: bool,
    between: Callable[[], None] = lambda: None,
    further: Callable[[Any, Params, Episode], Metrics] = lambda learner, phi, episode: {},
) -> dict[str, Estimate]:
    """Scores of ``learner`` after adaptation, by name; with ``curve`` also ``<name>_step_k`` for every step k.

    ``between`` is called before each chunk of tasks (to stop early, it raises). ``further`` adds scores of a task's phi.
    """
    curve = curve and "inner_steps" in hyperparameters(learner)

    def scores(theta: Params, episode: Episode) -> list[Metrics]:
        if curve:
            phis = learner.trajectory(theta, episode.support, learner.inner_steps)  # type: ignore[attr-defined]
        else:
            phis = iter([learner.adapt(theta, episode.support)])
        return [learner.query_loss(phi, episode.query)[1] | further(learner, phi, episode) for phi in phis]

    rows: list[list[Metrics]] = []
    mapped = Fitting(execution)
    with still(learner):
        for chunk in episodes:
            between()
            rows += mapped(scores, theta, chunk)
    if not rows:
        raise ValueError("there are no episodes to evaluate on.")
    steps = [{name: torch.cat([row[k][name] for row in rows]) for name in rows[0][k]} for k in range(len(rows[0]))]
    result = {name: estimate(values) for name, values in steps[-1].items()}
    if curve:
        for k, values_of in enumerate(steps):
            result |= {f"{name}_step_{k}": estimate(values) for name, values in values_of.items()}
    return result


def evaluate_all(
    scored: Mapping[str, Scored],
    theta: Params,
    split: str,
    num_tasks: int,
    execution: Execution,
    curve: bool,
    between: Callable[[], None] = lambda: None,
) -> dict[str, Estimate]:
    """Scores on the first episodes of a split: of the training task alone (""), as ``evaluate`` names them; of others as
    <name>/<score>, beside the means over these task distributions, each counted alike."""
    each = {
        name: evaluate(
            x.learner, theta, chunks(x.task, split, num_tasks), execution, curve, between, x.task.further_scores
        )
        for name, x in scored.items()
    }
    if list(each) == [""]:
        return each[""]
    common = set.intersection(*map(set, each.values()))
    means = {name: mean_of([scores[name] for scores in each.values()]) for name in sorted(common)}
    return means | {f"{name}/{score}": value for name, scores in each.items() for score, value in scores.items()}


def baseline_scores(
    scored: Mapping[str, Scored], split: str, num_tasks: int, execution: Execution
) -> dict[str, Estimate]:
    """``frozen_<score>`` of each task's learner without training, on the same episodes; nothing where it has none.

    Of several tasks it is <name>/frozen_<score>.
    """
    found = {}
    for name, x in scored.items():
        baseline = baseline_of(x.task)
        if baseline is not None and split != "train":  # training episodes may have other ways
            score, episodes = x.task.spec.objective.score_name, chunks(x.task, split, num_tasks)
            scores = evaluate(baseline, baseline.init(), episodes, execution, curve=False)
            found[f"{name}/frozen_{score}" if name else f"frozen_{score}"] = scores[score]
    return found


@torch.no_grad()
def adaptation_milliseconds(learner: MetaLearner, theta: Params, episodes: Episode) -> float:
    """Median time of one task's adaptation, alone on the device."""
    times = []
    with still(learner):
        for i in range(len(tree_leaves(episodes)[0])):
            start = time.perf_counter()
            Looped().map(lambda theta, episode: learner.adapt(theta, episode.support), theta, _one(episodes, i))
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
    return float(np.median(times[len(times) // 4 :])) * 1e3  # the first quarter warms up


def complexity(learner: MetaLearner, theta: Params, task: TaskDistribution, split: str) -> dict[str, float]:
    """The number of parameters and the time of one adaptation."""
    milliseconds = adaptation_milliseconds(learner, theta, task.sample(split, range(8)))
    return {"parameters": num_elements(theta), "adaptation_ms": milliseconds}


def _one(episodes: Episode, i: int) -> Episode:
    return slice_tasks(episodes, slice(i, i + 1))
