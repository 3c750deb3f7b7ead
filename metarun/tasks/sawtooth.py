"""Sawtooth waves: regression with edges, which a process of smooth curves has none of.

    y = (frequency (direction x - offset)) mod 1 + noise_std e;   x ~ U[x_range]
    frequency ~ U[its range];   direction is 1 or -1;   offset ~ U[0, 1 / frequency]

As in Bruinsma's neuralprocesses (data/sawtooth.py, data/predefined.py), where no noise is added.

B episodes, K support and Q query points
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from metarun.core import Batch, Draw, Episode, TaskSpec
from metarun.counter import normal
from metarun.objectives import SQUARED_ERROR
from metarun.tasks.episodes import batch_of, check_line, uniforms
from metarun.tasks.sizes import Count, PointSize, Sized, sizes_by_split

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Sawtooth(Sized):
    """Support x [K, 1], y [K, 1] and query x [Q, 1], y [Q, 1]; y without noise is in [0, 1)."""

    spec = TaskSpec(input_shape=(1,), num_outputs=1, objective=SQUARED_ERROR)

    def __init__(  # noqa: PLR0913, PLR0917
        self,
        frequency: tuple[float, float],
        noise_std: float,
        x_range: tuple[float, float],
        num_shots: Count,
        num_queries: Count,
        train_num_shots: Count | None,
        train_num_queries: Count | None,
        seed: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        if not 0 < frequency[0] <= frequency[1]:
            raise ValueError(f"task.frequency is {list(frequency)}; give [lowest, highest], both above 0.")
        check_line(noise_std, x_range)
        self.sizes = sizes_by_split(PointSize, (num_shots, num_queries), train_num_shots, train_num_queries)
        self.frequency, self.noise_std, self.x_range = frequency, noise_std, x_range
        self.seed, self.device, self.dtype = seed, device, dtype

    def draw(self, split: str, indices: Sequence[int] | np.ndarray) -> Draw:
        """Uniforms: of the wave [B, 3], and of each point [B, K or Q, 3], for its x and its noise."""
        shots, queries = self.sizes[split]
        return uniforms(self.seed, f"sawtooth/{split}", indices, 3, (queries, 3), (shots, 3))

    def episodes(self, draw: Draw) -> Episode:
        def batch(u: np.ndarray) -> Batch:
            low, high = self.x_range
            x = low + (high - low) * u[..., 0]
            y = self.values(draw, x) + self.noise_std * normal(u[..., 1:])[..., 0]
            return self._batch(x, y)

        return Episode(batch(draw["support"]), batch(draw["query"]))

    def values(self, draw: Draw, x: np.ndarray) -> np.ndarray:
        """The waves at x [B, M], without noise."""
        low, high = self.frequency
        share, side, offset = draw["task"].T[..., None]  # [B, 1]
        frequency, direction = low + (high - low) * share, np.where(side < 0.5, -1.0, 1.0)
        return (frequency * direction * x - offset) % 1  # an offset of U[0, 1 / frequency], times the frequency

    def _batch(self, x: np.ndarray, y: np.ndarray) -> Batch:
        return batch_of(x[..., None], y[..., None], self.device, self.dtype)

    def fingerprint(self) -> str:
        frequency, x_range = list(map(float, self.frequency)), list(map(float, self.x_range))
        return f"sawtooth: frequency {frequency}, noise {self.noise_std:g}, x {x_range}"

    def show(self, split: str, indices: Sequence[int]) -> "Figure":
        """The waves behind some episodes, with their support points."""
        from metarun.drawing import curves

        draw = self.draw(split, indices)
        x = np.tile(np.linspace(*self.x_range, 500), (len(indices), 1))
        shown = Episode(self.episodes(draw).support, self._batch(x, self.values(draw, x)))
        return curves(shown, [f"sawtooth, episode {index}" for index in indices])
