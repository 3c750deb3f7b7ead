"""The Gaussian likelihood of regression: its loss and metrics, by the same names for every learner that has one.

Q query, P outputs
"""

import math

import torch.nn.functional as F
from torch import Tensor

from metarun.core import Batch, Metrics
from metarun.objectives import Objective, examples_of, mean_of_rows, of_examples


def deviation_of(raw: Tensor, smallest: float) -> Tensor:
    """Deviations, each above ``smallest``, of any numbers ``raw``: what networks give is without bounds."""
    return smallest + (1 - smallest) * F.softplus(raw)


def check_smallest(smallest: float) -> None:
    """Raise ValueError unless ``smallest`` is a bound of deviations: 0 for none, and below 1."""
    if not 0 <= smallest < 1:
        raise ValueError(f"smallest_deviation is {smallest}; use 0 (no bound) or more, and below 1.")


def surprise(mean: Tensor, deviation: Tensor, y: Tensor) -> Tensor:
    """Negative log density of y under N(mean, deviation^2), number by number."""
    return ((y - mean) / deviation).square() / 2 + deviation.log() + math.log(2 * math.pi) / 2


def mean_of(values: Tensor, batch: Batch) -> Tensor:
    """Mean of ``values`` [Q, P] over the rows that are examples."""
    examples = examples_of(batch)
    return values.mean() if examples is None else mean_of_rows(values.mean(1), examples)


def scored(objective: Objective, mean: Tensor, deviation: Tensor, query: Batch) -> tuple[Tensor, Metrics]:
    """Mean surprise of the query, and the metrics of a prediction ``mean`` with ``deviation`` [Q, P] each."""
    loss = mean_of(surprise(mean, deviation, query.y), query)
    return loss, {**of_mean(objective, mean, query), "negative_log_likelihood": loss.detach()}


def of_mean(objective: Objective, mean: Tensor, query: Batch) -> Metrics:
    """Loss and score of the predicted ``mean`` [Q, P], as of learners that know no deviation."""
    objective = of_examples(objective, examples_of(query))
    loss = objective.loss(mean, query.y).detach()
    return {"query_loss": loss, objective.score_name: objective.score(mean, query.y)}
