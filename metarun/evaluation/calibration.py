"""The statistics of batch norms in mode ``running``, computed before an evaluation."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from metarun.core import Episode, MetaLearner, Params, TaskDistribution
from metarun.evaluation.episodes import chunks_of
from metarun.evaluation.eval_mode import fixed_draws, modules_of
from metarun.evaluation.suite import with_ways
from metarun.execution.execution import Execution
from metarun.execution.halving import HalvingMap
from metarun.models.exact.layers import BatchNorm
from metarun.models.norm_state import norms, recording

CALIBRATION_TASKS = 32  # training tasks whose average gives the statistics of batch norms in mode ``running``


def calibrates(learner: MetaLearner) -> bool:
    """Whether the learner has batch norms in mode ``running``, so that ``calibrated`` reads training tasks."""
    return any(norms(network, "running") for network in modules_of(learner))


def running_norms(learner: MetaLearner) -> dict[str, BatchNorm]:
    """The batch norms in mode ``running`` of the learner's networks, by number of the network and name."""
    networks = enumerate(modules_of(learner))
    return {f"{i}.{name}": m for i, net in networks for name, m in norms(net, "running").items()}


@contextmanager
def calibrated(learner: MetaLearner, theta: Params, task: TaskDistribution, execution: Execution) -> Iterator[None]:
    """A context where batch norms in mode ``running`` use the statistics that ``calibrate`` gives them."""
    layers = calibrate(learner, theta, task, execution)
    try:
        yield
    finally:
        for layer in layers:
            layer.mean, layer.var = layer.mean.new_empty(0), layer.var.new_empty(0)


@torch.no_grad()
def calibrate(learner: MetaLearner, theta: Params, task: TaskDistribution, execution: Execution) -> list[BatchNorm]:
    """Give the batch norms in mode ``running`` the statistics of the first training tasks under ``theta``; return them.

    They are a function of theta alone ("precise" batch norm, Wu and Johnson 2021, https://arxiv.org/abs/2105.07576)
    rather than an average over past thetas, so there is no state to checkpoint and training stays pure. Tasks are adapted by
    the steps of training, whatever number an evaluation takes: one set serves all points of its curve.
    """
    layers = running_norms(learner)

    def seen(learner: MetaLearner, theta: Params, episode: Episode) -> dict[str, Any]:
        phi = learner.adapt(theta, episode.support)
        with recording(layers) as collected:
            learner.query_loss(phi, episode.query)
        return collected

    if layers:
        with fixed_draws():
            mapped = HalvingMap(execution)
            parts = [
                part
                for at, indices in chunks_of(task, "train", CALIBRATION_TASKS)
                for part in mapped(partial(seen, with_ways(learner, at, "train")), theta, at.sample("train", indices))
            ]
        for name, layer in layers.items():
            means = torch.cat([part[f"{name}.mean"] for part in parts])  # [tasks, C]
            layer.mean = means.mean(0)
            layer.var = torch.cat([part[f"{name}.var"] for part in parts]).mean(0) + means.var(0, unbiased=False)
    return [*layers.values()]
