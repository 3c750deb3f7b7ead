"""The cross-entropy method as a planner: draw sequences of actions, keep the best by the model, draw around them again.

    a ~ N(mean, deviation^2) cut to [-1, 1];   mean, deviation <- those of the ``num_elites`` of lowest predicted cost

The first action of the last mean is taken, and the rest, moved on by one, is where the next plan begins (model-predictive
control). One iteration with one elite is random shooting. Chua et al., NeurIPS 2018, https://arxiv.org/abs/1805.12114;
the method: de Boer et al., Annals of Operations Research 134, 2005.

T tasks, N sequences, H steps, A actions
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Model = Callable[[Tensor, Tensor], Tensor]  # states [T, N, 2n] and actions [T, N, A] to the states that follow
Cost = Callable[[Tensor, Tensor], Tensor]  # the same to costs [T, N]


@dataclass(frozen=True)
class CrossEntropy:
    """Settings of the search: ``population`` sequences of ``horizon`` actions in each of ``iterations`` rounds.

    Raises ValueError for a number below 1, and for more elites than sequences.
    """

    horizon: int
    population: int
    num_elites: int
    iterations: int

    def __post_init__(self) -> None:
        if min(self.horizon, self.population, self.num_elites, self.iterations) < 1:
            raise ValueError("task.planner: horizon, population, num_elites and iterations must all be 1 or more.")
        if self.num_elites > self.population:
            raise ValueError(
                f"task.planner.num_elites is {self.num_elites}, but only {self.population} sequences are drawn; lower "
                "it, or raise task.planner.population."
            )

    def plan(self, model: Model, cost: Cost, state: Tensor, mean: Tensor, noise: Tensor) -> Tensor:
        """Search for the best actions from ``state`` [T, 2n], beginning around ``mean`` [T, H, A].

        Returns the mean of the last elites [T, H, A]. ``noise`` [iterations, N, H, A] ~ N(0, 1) is the same for every
        task.
        """
        deviation = torch.ones_like(mean)
        for draw in noise:
            candidates = (mean[:, None] + deviation[:, None] * draw).clamp(-1, 1)  # [T, N, H, A]
            costs = predicted_costs(model, cost, state, candidates)
            best = costs.topk(self.num_elites, dim=1, largest=False).indices  # [T, elites]
            elites = candidates[torch.arange(len(best), device=best.device)[:, None], best]
            mean, deviation = elites.mean(1), elites.std(1, unbiased=False)
        return mean


def predicted_costs(model: Model, cost: Cost, state: Tensor, actions: Tensor) -> Tensor:
    """Sum the costs along each of ``actions`` [T, N, H, A] from ``state`` [T, 2n]: [T, N]."""
    states = state[:, None].expand(-1, actions.shape[1], -1)
    total = state.new_zeros(actions.shape[:2])
    for action in actions.unbind(2):
        states = model(states, action)
        total = total + cost(states, action)
    return total


def moved_on(plan: Tensor) -> Tensor:
    """Shift the plan [T, H, A] by one step; the last action, for which nothing is planned, is zero."""
    return torch.cat([plan[:, 1:], torch.zeros_like(plan[:, :1])], 1)
