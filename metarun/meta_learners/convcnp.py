"""Convolutional conditional neural process: examples are laid on a grid, where a U-Net reads them.

    to the grid:  density(t) = sum over s of k(x_s - t);   signal(t) = sum over s of k(x_s - t) y_s / (density(t) + 1e-4)
    on it:        F = U-Net of [density, signal]
    and back:     (mean, raw) of y at x = sum over t of k'(x - t) F(t);   deviation = smallest + (1 - smallest) softplus(raw)

    k(d) = exp(-d^2 / (2 l^2)), k' has another l; both are learned, and begin at the distance of two places t

A shift of all inputs shifts the predictions, but for what the ends of the grid do. The grid is the same for all tasks, so
that it does not depend on the query: ``interval`` must hold all inputs, with a margin. The base learner is not used.

Gordon et al., ICLR 2020, https://arxiv.org/abs/1910.13556; the network and the sizes are those of the authors' later code,
https://github.com/wesselb/neuralprocesses. Cost: one forward and backward pass, most of it the U-Net: adaptation runs
it, and a query is then a sum over the grid.

S support, Q query, G places of the grid, P outputs
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from metarun.core import Batch, FewShotLearner, Metrics, Params
from metarun.meta_learners.likelihood import check_smallest, deviation_of, scored
from metarun.models.unet import through, unet
from metarun.objectives import examples_of

EPSILON = 1e-4  # neuralprocesses: far from all examples the signal is 0, and not noise


@dataclass(frozen=True)
class ConvCNP(FewShotLearner):
    """A convolutional conditional neural process, for regression of ``num_outputs`` targets on one number.

    The grid has ``points_per_unit`` places in a unit of x over ``interval`` [lowest, highest], and on both sides as many
    more as make their number a multiple of 2^``levels``. The U-Net has that many ``levels``, of ``channels`` each. No
    deviation is below ``smallest_deviation``; 0 is the unbounded form.
    """

    reads_masks: ClassVar[bool] = True

    input_shape: tuple[int, ...]
    num_outputs: int
    num_ways: int | None  # None: regression, as it must be
    interval: Sequence[float]
    points_per_unit: int
    channels: int
    levels: int
    smallest_deviation: float

    def __post_init__(self) -> None:
        check_smallest(self.smallest_deviation)
        if self.num_ways is not None or self.input_shape != (1,):
            raise ValueError(
                "convcnp predicts numbers at places along a line, but the task has "
                + ("classes" if self.num_ways is not None else f"inputs of shape {list(self.input_shape)}")
                + "; choose tnp, anp or cnp for other inputs, and protonet or cnp for classes."
            )
        if min(self.points_per_unit, self.channels, self.levels) < 1:
            raise ValueError(
                f"points_per_unit is {self.points_per_unit}, channels {self.channels} and levels {self.levels}; use 1 or "
                "more."
            )
        if len(self.interval) != 2 or self.interval[0] >= self.interval[1]:
            raise ValueError(f"interval is {list(self.interval)}; use [lowest, highest].")

    def init(self) -> Params:
        like = next(self.base_learner.parameters())
        spacing = like.new_tensor(-math.log(self.points_per_unit))
        return {
            "log_length": {"to": spacing, "back": spacing.clone()},
            "net": unet(1 + self.num_outputs, 2 * self.num_outputs, self.channels, self.levels, like),
        }

    def grid(self, like: Tensor) -> Tensor:
        """The places t [G]."""
        low, high = self.interval
        unit = 2**self.levels
        number = unit * math.ceil(((high - low) * self.points_per_unit + 1) / unit)
        places = torch.arange(number, dtype=like.dtype, device=like.device) - (number - 1) / 2
        return (low + high) / 2 + places / self.points_per_unit

    def adapt(self, theta: Params, support: Batch) -> Params:
        weights = near(support.x, self.grid(support.x), theta["log_length"]["to"])  # [S, G]
        mask = examples_of(support)
        weights = weights if mask is None else torch.where(mask[:, None], weights, 0)
        density = weights.sum(0)
        signal = support.y.flatten(1).T @ weights / (density + EPSILON)  # [P, G]
        return {"field": through(theta["net"], torch.cat([density[None], signal])), "back": theta["log_length"]["back"]}

    def predict(self, phi: Params, x: Tensor) -> Tensor:
        return self.posterior(phi, x)[0]

    def posterior(self, phi: Params, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, raw = (near(x, self.grid(x), phi["back"]) @ phi["field"].T).chunk(2, 1)
        return mean, deviation_of(raw, self.smallest_deviation)

    def query_loss(self, phi: Params, query: Batch) -> tuple[Tensor, Metrics]:
        return scored(self.objective, *self.posterior(phi, query.x), query)


def near(x: Tensor, places: Tensor, log_length: Tensor) -> Tensor:
    """Weights exp(-d^2 / (2 l^2)) between x [S, 1] and the places [G]: [S, G]."""
    return (-((x - places) / log_length.exp()).square() / 2).exp()
