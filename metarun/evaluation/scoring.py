"""Scores on numbered, fixed episodes of a split. Evaluation touches nothing: no parameter, buffer or generator."""

import hashlib
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from metarun.core import Episode, MetaLearner, Metrics, Params, TaskDistribution, hyperparameters
from metarun.evaluation.suite import Scored
from metarun.execution.execution import Execution, Looped, TaskFunction, generators_kept
from metarun.execution.memory import memory_errors
from metarun.models.exact.layers import evaluating, norms, recording
from metarun.process import return_freed_memory
from metarun.trees import num_elements, slice_tasks, tree_leaves

logger = logging.getLogger(__name__)

CALIBRATION_TASKS = 32  # training tasks whose average gives the statistics of batch norms in mode ``running``
CHUNK, GPU_CHUNK = 25, 200  # evaluation tasks at a time, or fewer where the numbers in them exceed these:
CPU_ELEMENTS, GPU_ELEMENTS = 2**20, 2**24  # 25 tasks of 60 ways took Conv-4 7 GB, and no less time


class Estimate(NamedTuple):
    """A mean over episodes with the half width of its 95% confidence interval, 1.96 s / sqrt(n)."""

    mean: float
    ci95: float
    n: int


def estimate(values: Tensor) -> Estimate:
    """Mean and confidence interval of one score per episode [n]; the interval of a single episode is infinite."""
    n = len(values)
    deviation = values.double().std().item() if n > 1 else math.inf
    return Estimate(values.double().mean().item(), 1.96 * deviation / math.sqrt(n), n)


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


class Fitting:
    """``execution.map`` of as many tasks at a time as fit into memory: half of them, once they do not. It says so."""

    def __init__(self, execution: Execution) -> None:
        self.execution = execution
        self.most: int | None = None

    def __call__(self, fn: TaskFunction, theta: Params, episodes: Episode) -> list[Any]:
        """The results of the groups of tasks that were taken together. Raises torch.OutOfMemoryError for a single one."""
        n = size = len(tree_leaves(episodes)[0])
        while True:
            size = min(size, self.most or size)
            try:
                with memory_errors():
                    parts = [slice_tasks(episodes, slice(i, i + size)) for i in range(0, n, size)]
                    found = [self.execution.map(fn, theta, part) for part in parts]
                break
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
            size //= 2
            return_freed_memory()
        if size < min(n, self.most or n):
            self.most = size
            logger.info("evaluation: out of memory with %d tasks at a time; going on with %d", n, size)
        return found


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


def mean_of(estimates: Sequence[Estimate]) -> Estimate:
    """The mean of independent estimates, each counted alike; n is the number of all episodes."""
    k = len(estimates)
    ci95 = math.sqrt(sum(e.ci95**2 for e in estimates)) / k
    return Estimate(sum(e.mean for e in estimates) / k, ci95, sum(e.n for e in estimates))


def baseline_scores(
    scored: Mapping[str, Scored], split: str, num_tasks: int, execution: Execution
) -> dict[str, Estimate]:
    """``frozen_<score>`` of each task's learner without training, on the same episodes; nothing where it has none.

    Of several tasks it is <name>/frozen_<score>.
    """
    found = {}
    for name, x in scored.items():
        if x.task.baseline is not None and split != "train":  # training episodes may have other ways
            score, episodes = x.task.objective.score_name, chunks(x.task, split, num_tasks)
            scores = evaluate(x.task.baseline, x.task.baseline.init(), episodes, execution, curve=False)
            found[f"{name}/frozen_{score}" if name else f"frozen_{score}"] = scores[score]
    return found


def chunks(task: TaskDistribution, split: str, num_tasks: int) -> Iterator[Episode]:
    """Episodes 0 ... ``num_tasks`` - 1 of a split, a chunk at a time."""
    size = tasks_at_a_time(task.sample(split, [0]))
    for start in range(0, num_tasks, size):
        yield task.sample(split, range(start, min(start + size, num_tasks)))


def tasks_at_a_time(one: Episode) -> int:
    """How many tasks like the single one in ``one`` are evaluated together."""
    on_cpu = tree_leaves(one)[0].device.type == "cpu"
    most, elements = (CHUNK, CPU_ELEMENTS) if on_cpu else (GPU_CHUNK, GPU_ELEMENTS)
    return max(1, min(most, elements // num_elements(one)))


def manifest(task: TaskDistribution, split: str, num_tasks: int) -> str:
    """sha256 of the random choices behind episodes 0 ... ``num_tasks`` - 1: equal hash, equal episodes."""
    digest = hashlib.sha256()
    draw = task.draw(split, range(num_tasks))
    for name in sorted(draw):
        array = np.ascontiguousarray(draw[name])
        digest.update(f"{name}{array.dtype.str}{array.shape}".encode())
        digest.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()


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


def modules_of(learner: MetaLearner) -> list[nn.Module]:
    """The torch modules among the fields of ``learner``."""
    values = (getattr(learner, field.name) for field in fields(learner))  # type: ignore[arg-type]
    return [value for value in values if isinstance(value, nn.Module)]


@contextmanager
def fixed_draws() -> Iterator[None]:
    """Inside, a learner that draws gives the same score each time; on leaving, the generators are as they were."""
    with generators_kept():
        torch.manual_seed(0)
        yield


@contextmanager
def still(learner: MetaLearner) -> Iterator[None]:
    """Modules in evaluation mode, and generators that are set back on leaving."""
    with fixed_draws(), ExitStack() as stack:
        for module in modules_of(learner):
            stack.enter_context(evaluating(module))
        yield


@contextmanager
@torch.no_grad()
def calibrated(learner: MetaLearner, theta: Params, task: TaskDistribution, execution: Execution) -> Iterator[None]:
    """Inside, batch norms in mode ``running`` use the statistics of the first training tasks under ``theta``.

    They are a function of theta alone ("precise" batch norm, Wu and Johnson 2021, https://arxiv.org/abs/2105.07576)
    rather than an average over past thetas, so there is no state to checkpoint and training stays pure.
    """
    layers = {
        f"{i}.{name}": m for i, net in enumerate(modules_of(learner)) for name, m in norms(net, "running").items()
    }

    def seen(theta: Params, episode: Episode) -> dict[str, Any]:
        phi = learner.adapt(theta, episode.support)
        with recording(layers) as collected:
            learner.query_loss(phi, episode.query)
        return collected

    if layers:
        with fixed_draws():
            mapped = Fitting(execution)
            parts = [part for chunk in chunks(task, "train", CALIBRATION_TASKS) for part in mapped(seen, theta, chunk)]
        for name, layer in layers.items():
            means = torch.cat([part[f"{name}.mean"] for part in parts])  # [tasks, C]
            layer.mean = means.mean(0)
            layer.var = torch.cat([part[f"{name}.var"] for part in parts]).mean(0) + means.var(0, unbiased=False)
    try:
        yield
    finally:
        for layer in layers.values():
            layer.mean, layer.var = layer.mean.new_empty(0), layer.var.new_empty(0)
