"""Draws from Gaussian processes: the regression tasks of the neural process literature.

    f ~ GP(0, scale^2 k(|x - x'| / length));   y = f(x) + noise_std e;   x ~ U[x_range];   length, scale ~ U[their ranges]

    rbf        exp(-r^2 / 2)                      matern12   exp(-r)
    matern32   (1 + sqrt(3) r) exp(-sqrt(3) r)    matern52   (1 + sqrt(5) r + 5 r^2 / 3) exp(-sqrt(5) r)
    periodic   exp(-2 sin^2(pi |x - x'| / period) / length^2),  period ~ U[its range]

Support and query are points of one draw; the covariance and its Cholesky factor are float64 on the CPU.
Garnelo et al. 2018, https://arxiv.org/abs/1807.01613; the ranges: Kim et al., ICLR 2019, https://arxiv.org/abs/1901.05761
(released code); kernels: Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006, chapter 4.

B episodes, K support and Q query points, M = K + Q
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from metarun.core import Batch, Draw, Episode, TaskSpec
from metarun.counter import normal
from metarun.objectives import SQUARED_ERROR
from metarun.tasks.episodes import uniforms
from metarun.tasks.sizes import Count, PointSize, Sized, sizes_by_split

if TYPE_CHECKING:
    from matplotlib.figure import Figure

JITTER = 1e-9  # of scale^2: a smooth kernel's matrix is singular to rounding, and Cholesky would stop

STATIONARY: dict[str, Callable[[Tensor], Tensor]] = {  # of the distance over the length scale
    "rbf": lambda r: torch.exp(-(r**2) / 2),
    "matern12": lambda r: torch.exp(-r),
    "matern32": lambda r: (1 + 3**0.5 * r) * torch.exp(-(3**0.5) * r),
    "matern52": lambda r: (1 + 5**0.5 * r + 5 / 3 * r**2) * torch.exp(-(5**0.5) * r),
}


class GaussianProcess(Sized):
    """Support x [K, 1], y [K, 1] and query x [Q, 1], y [Q, 1]."""

    spec = TaskSpec(input_shape=(1,), num_outputs=1, objective=SQUARED_ERROR)

    def __init__(  # noqa: PLR0913, PLR0917
        self,
        kernel: Literal["rbf", "matern12", "matern32", "matern52", "periodic"],
        length_scale: tuple[float, float],
        scale: tuple[float, float],
        period: tuple[float, float] | None,
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
        if (kernel == "periodic") != (period is not None):
            raise ValueError(f"task.period is {period}; give the periodic kernel [lowest, highest], and others null.")
        ranges = {"length_scale": length_scale, "scale": scale, "period": period or (1.0, 1.0)}
        for name, (low, high) in ranges.items():
            if not 0 < low <= high:
                raise ValueError(f"task.{name} is [{low}, {high}]; give [lowest, highest], both above 0.")
        if noise_std < 0 or x_range[0] >= x_range[1]:
            raise ValueError(
                f"task.noise_std is {noise_std} and task.x_range {list(x_range)}; use 0 or more, and [lowest, highest]."
            )
        self.sizes = sizes_by_split(PointSize, (num_shots, num_queries), train_num_shots, train_num_queries)
        self.kernel, self.ranges, self.noise_std, self.x_range = kernel, ranges, noise_std, x_range
        self.seed, self.device, self.dtype = seed, device, dtype

    def draw(self, split: str, indices: Sequence[int] | np.ndarray) -> Draw:
        """Uniforms: of the kernel [B, 3], and of each point [B, K or Q, 3]."""
        shots, queries = self.sizes[split]
        return uniforms(self.seed, f"gaussian_process/{split}", indices, len(self.ranges), (queries, 3), (shots, 3))

    def episodes(self, draw: Draw) -> Episode:
        u = np.concatenate([draw["query"], draw["support"]], 1)  # [B, M, 3]
        low, high = self.x_range
        x = torch.from_numpy(low + (high - low) * u[..., 0])  # [B, M]
        numbers = torch.from_numpy(normal(u[..., 1:])[..., :1])  # [B, M, 1]
        y = torch.linalg.cholesky(self.covariance(draw, x)) @ numbers
        tensors = [values.to(self.device, self.dtype) for values in (x[..., None], y)]
        queries = draw["query"].shape[1]
        return Episode(Batch(*(t[:, queries:] for t in tensors)), Batch(*(t[:, :queries] for t in tensors)))

    def covariance(self, draw: Draw, x: Tensor) -> Tensor:
        """Covariance of y at x [B, M]: float64 [B, M, M]."""
        low, high = np.array(list(self.ranges.values())).T
        length, scale, period = torch.from_numpy(low + (high - low) * draw["task"]).T[..., None, None]  # [B, 1, 1]
        distance = (x[:, :, None] - x[:, None, :]).abs()
        if self.kernel == "periodic":
            k = torch.exp(-2 * (torch.sin(torch.pi * distance / period) / length) ** 2)
        else:
            k = STATIONARY[self.kernel](distance / length)
        return scale**2 * k + (self.noise_std**2 + JITTER * scale**2) * torch.eye(x.shape[1]).double()

    def fingerprint(self) -> str:
        ranges = ", ".join(f"{name} {list(map(float, r))}" for name, r in self.ranges.items())
        return (
            f"gaussian process: {self.kernel}, {ranges}, noise {self.noise_std:g}, x {list(map(float, self.x_range))}"
        )

    def show(self, split: str, indices: Sequence[int]) -> "Figure":
        """Some draws: the query points joined in the order of x, with the support points."""
        from metarun.drawing import curves

        return curves(self.sample(split, indices), [f"{self.kernel}, episode {index}" for index in indices])
