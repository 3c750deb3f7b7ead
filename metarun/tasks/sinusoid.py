"""Sine waves: y = amplitude * sin(frequency x - phase), the regression family of the MAML paper.

    amplitude ~ U[0.1, 5], phase ~ U[0, pi], x ~ U[-5, 5]; a task is one wave        Finn et al. 2017, section 5.1
    frequency 1 there; U[0.8, 1.2] in Li et al. 2017 (Meta-SGD, section 4.1)

The paper trains on 10 points a task and tests the same model on 5, 10 and 20 (``train_num_shots`` against ``num_shots``).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from metarun.core import Batch, Draw, Episode, TaskSpec
from metarun.counter import uniform
from metarun.objectives import SQUARED_ERROR
from metarun.tasks.sizes import Count, PointSize, Sized, sizes_by_split

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Sinusoid(Sized):
    """Regression of a number; K = num_shots support and Q = num_queries query points a task, each x [K, 1], y [K, 1].

    ``query_grid``: validation and test queries lie evenly over [-5, 5] (CAVIA's protocol) instead of at random.
    ``frequency``: drawn between these two for each task. Raises ValueError unless they are in order, and above 0.
    """

    spec = TaskSpec(input_shape=(1,), num_outputs=1, objective=SQUARED_ERROR)

    def __init__(  # noqa: PLR0913, PLR0917
        self,
        num_shots: Count,
        num_queries: Count,
        train_num_shots: Count | None,
        train_num_queries: Count | None,
        query_grid: bool,
        seed: int,
        device: torch.device,
        dtype: torch.dtype,
        frequency: Sequence[float] = (1.0, 1.0),  # runs of an earlier metarun do not say it
    ) -> None:
        self.sizes = sizes_by_split(PointSize, (num_shots, num_queries), train_num_shots, train_num_queries)
        if len(frequency) != 2 or not 0 < frequency[0] <= frequency[1]:
            raise ValueError(f"task.frequency is {list(frequency)}; two numbers above 0, the smaller one first.")
        self.frequency = float(frequency[0]), float(frequency[1])
        self.query_grid, self.seed, self.device, self.dtype = query_grid, seed, device, dtype

    def draw(self, split: str, indices: Sequence[int] | np.ndarray) -> Draw:
        shots, queries = self.sizes[split]
        u = uniform(self.seed, f"sinusoid/{split}", np.asarray(indices), 2 + shots + queries)
        x = u[:, 2:] * 10 - 5
        if self.query_grid and split != "train":
            x[:, shots:] = np.linspace(-5, 5, queries)
        amplitude, phase = 0.1 + 4.9 * u[:, 0], np.pi * u[:, 1]
        waves = {"amplitude": amplitude, "phase": phase}
        if self.frequency != (1.0, 1.0):  # a draw is what it was before there were others
            low, high = self.frequency
            share = uniform(self.seed, f"sinusoid/frequency/{split}", np.asarray(indices), 1)[:, 0]
            waves["frequency"] = low + (high - low) * share
        return {**waves, "support_x": x[:, :shots], "query_x": x[:, shots:]}

    def episodes(self, draw: Draw) -> Episode:
        frequency = draw.get("frequency", np.ones_like(draw["phase"]))

        def batch(x: np.ndarray) -> Batch:
            y = draw["amplitude"][:, None] * np.sin(frequency[:, None] * x - draw["phase"][:, None])
            both = torch.from_numpy(np.stack([x, y])).to(self.device, self.dtype)[..., None]
            return Batch(both[0], both[1])

        return Episode(batch(draw["support_x"]), batch(draw["query_x"]))

    def fingerprint(self) -> str:
        frequency = "" if self.frequency == (1.0, 1.0) else f", frequency {list(self.frequency)}"
        return f"sinusoid: amplitude [0.1, 5], phase [0, pi], x [-5, 5]{frequency}"

    def show(self, split: str, indices: Sequence[int]) -> "Figure":
        """The waves of some episodes, with their support points."""
        from metarun.drawing import curves

        draw = self.draw(split, indices)
        dense = self.episodes({**draw, "query_x": np.tile(np.linspace(-5, 5, 200), (len(indices), 1))})
        names = [f"amplitude {a:.2f}, phase {p:.2f}" for a, p in zip(draw["amplitude"], draw["phase"], strict=True)]
        return curves(dense, names)
