"""Meta-SGD: MAML with a learned step size for every parameter, its direction included.

    theta = (weights, rates), rates in the shape of weights;   phi_0 = weights
    phi_{k+1} = phi_k - rates * grad L(phi_k, support)         elementwise, the same rates at each step
    meta-gradient = d L(phi_K, query) / d (weights, rates)

Rates may become negative: nothing keeps them above zero, as in the paper. One number, drawn from
U[initial_rate_low, initial_rate_high], is where all of them start. The paper takes one step; more are allowed here.
``rates.rates`` of the run multiplies the outer rate of the rates alone; the paper uses one for both.

Li et al., 2017, https://arxiv.org/abs/1707.09835. Cost: as MAML, and twice the parameters.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.func import grad

from metarun.core import Batch, Params, parameters_of
from metarun.inner.loops import repeat
from metarun.meta_learners.base import GradientLearner
from metarun.trees import tree_map, zip_map


@dataclass(frozen=True)
class MetaSGD(GradientLearner):
    """Gradient descent with a learned step size for every parameter.

    ``inner_steps`` is the number of steps. All step sizes start at one number, drawn evenly from ``initial_rate_low``
    to ``initial_rate_high``; low above high raises ValueError.
    """

    inner_steps: int
    initial_rate_low: float
    initial_rate_high: float

    def __post_init__(self) -> None:
        low, high = self.initial_rate_low, self.initial_rate_high
        if low > high:
            raise ValueError(
                f"initial_rate_low is {low} and initial_rate_high is {high}, but low must not be above high; "
                f"swap them, or set both to one number to start there."
            )

    def init(self) -> Params:
        weights = parameters_of(self.base_learner)
        rate = self.initial_rate_low + (self.initial_rate_high - self.initial_rate_low) * torch.rand(()).item()
        return {"weights": weights, "rates": tree_map(lambda p: torch.full_like(p, rate), weights)}

    def path(self, theta: Params, support: Batch, steps: int) -> Iterator[Params]:
        def step(phi: Params, rates: Params, support: Batch) -> Params:
            return zip_map(lambda p, rate, g: p - rate * g, phi, rates, grad(self.support_loss)(phi, support))

        return repeat(step, theta["weights"], steps, theta["rates"], support)
