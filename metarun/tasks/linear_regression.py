"""Linear regression from few points: the tasks of the in-context learning literature.

    w ~ N(0, I_d);   x ~ N(0, I_d);   y = w x + noise_std e,  e ~ N(0, 1)

``mse_per_dimension`` is the squared error over d, the unit of the papers: 1 is what predicting 0 gives, and without noise
least squares gives 1 - K / d for K < d points, and 0 from d points on. With noise the best prediction of all is that of
a ridge regression with regulariser noise_std^2, the mean of the posterior.

Garg et al., NeurIPS 2022, https://arxiv.org/abs/2208.01066 (d = 20, no noise).
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from metarun.core import Batch, Draw, Episode, TaskSpec
from metarun.counter import normal
from metarun.objectives import Objective
from metarun.tasks.episodes import uniforms
from metarun.tasks.sizes import Count, PointSize, Sized, sizes_by_split


class LinearRegression(Sized):
    """Support x [K, d], y [K, 1]; query x [Q, d], y [Q, 1], with d = num_dims."""

    def __init__(  # noqa: PLR0913, PLR0917
        self,
        num_dims: int,
        noise_std: float,
        num_shots: Count,
        num_queries: Count,
        train_num_shots: Count | None,
        train_num_queries: Count | None,
        seed: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        if num_dims < 1 or noise_std < 0:
            raise ValueError(f"task.num_dims is {num_dims} and noise_std {noise_std}; use 1 or more, and 0 or more.")
        self.sizes = sizes_by_split(PointSize, (num_shots, num_queries), train_num_shots, train_num_queries)
        self.num_dims, self.noise_std = num_dims, noise_std
        self.seed, self.device, self.dtype = seed, device, dtype

        def error_per_dimension(outputs: Tensor, y: Tensor) -> Tensor:
            return F.mse_loss(outputs.detach(), y) / num_dims

        objective = Objective(F.mse_loss, error_per_dimension, "mse_per_dimension", higher_is_better=False)
        self.spec = TaskSpec(input_shape=(num_dims,), num_outputs=1, objective=objective)

    def draw(self, split: str, indices: Sequence[int] | np.ndarray) -> Draw:
        """Uniforms behind w [B, W] and behind the query [B, Q, W] and support [B, K, W] points, W >= d + 1 and even."""
        shots, queries = self.sizes[split]
        width = self.num_dims + 1 + (self.num_dims + 1) % 2
        stream = f"linear_regression/{split}"
        return uniforms(self.seed, stream, indices, width, (queries, width), (shots, width))

    def episodes(self, draw: Draw) -> Episode:
        d = self.num_dims
        w = normal(draw["task"])[:, None, :d]

        def batch(u: np.ndarray) -> Batch:
            numbers = normal(u)
            x, noise = numbers[..., :d], numbers[..., d : d + 1]
            y = (x * w).sum(-1, keepdims=True) + self.noise_std * noise
            return Batch(*(torch.from_numpy(values).to(self.device, self.dtype) for values in (x, y)))

        return Episode(batch(draw["support"]), batch(draw["query"]))

    def fingerprint(self) -> str:
        return f"linear regression: {self.num_dims} dimensions, noise {self.noise_std:g}"
