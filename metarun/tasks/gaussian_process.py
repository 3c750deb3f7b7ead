"""Draws from Gaussian processes: the regression tasks of the neural process literature.

    f ~ GP(0, scale^2 k(|x - x'| / length));   y = f(x) + noise_std e;   x ~ U[x_range];   length, scale ~ U[their ranges]

    rbf        exp(-r^2 / 2)                      matern12   exp(-r)
    matern32   (1 + sqrt(3) r) exp(-sqrt(3) r)    matern52   (1 + sqrt(5) r + 5 r^2 / 3) exp(-sqrt(5) r)
    periodic         exp(-2 sin^2(pi |x - x'| / period) / length^2),  period ~ U[its range]
    weakly_periodic  exp(-r^2 / 2) exp(-2 sin^2(pi |x - x'| / period))                    Bruinsma's neuralprocesses

Support and query are points of one draw; the covariance and its Cholesky factor are float64 on the CPU. ``oracle`` is what
the process itself predicts of the query, given the support set and its own hyperparameters. A learner that predicts each
query on its own (CNP, TNP) is to be compared with ``negative_log_likelihood``, of each query on its own, too: no such
learner does better on average. One that predicts the query set as a whole, with ``joint_negative_log_likelihood``.
Garnelo et al. 2018, https://arxiv.org/abs/1807.01613; the ranges: Kim et al., ICLR 2019, https://arxiv.org/abs/1901.05761
(released code); kernels: Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006, chapter 4.

B episodes, K support and Q query points, M = K + Q
"""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from metarun.core import Batch, Draw, Episode, Metrics, TaskSpec
from metarun.counter import normal
from metarun.objectives import SQUARED_ERROR
from metarun.tasks.episodes import check_line, uniforms
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
        kernel: Literal["rbf", "matern12", "matern32", "matern52", "periodic", "weakly_periodic"],
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
        if ("periodic" in kernel) != (period is not None):
            raise ValueError(f"task.period is {period}; give the periodic kernels [lowest, highest], and others null.")
        ranges = {"length_scale": length_scale, "scale": scale, "period": period or (1.0, 1.0)}
        for name, (low, high) in ranges.items():
            if not 0 < low <= high:
                raise ValueError(f"task.{name} is [{low}, {high}]; give [lowest, highest], both above 0.")
        check_line(noise_std, x_range)
        self.sizes = sizes_by_split(PointSize, (num_shots, num_queries), train_num_shots, train_num_queries)
        self.kernel, self.ranges, self.noise_std, self.x_range = kernel, ranges, noise_std, x_range
        self.seed, self.device, self.dtype = seed, device, dtype

    def draw(self, split: str, indices: Sequence[int] | np.ndarray) -> Draw:
        """Uniforms: of the kernel [B, 3], and of each point [B, K or Q, 3]."""
        shots, queries = self.sizes[split]
        return uniforms(self.seed, f"gaussian_process/{split}", indices, len(self.ranges), (queries, 3), (shots, 3))

    def episodes(self, draw: Draw) -> Episode:
        x, y, _ = self.points(draw)
        queries = draw["query"].shape[1]
        tensors = [values[..., None].to(self.device, self.dtype) for values in (x, y)]
        return Episode(Batch(*(t[:, queries:] for t in tensors)), Batch(*(t[:, :queries] for t in tensors)))

    def points(self, draw: Draw) -> tuple[Tensor, Tensor, Tensor]:
        """x and y [B, M] of the query and then the support, and the covariance of y [B, M, M], all float64."""
        u = np.concatenate([draw["query"], draw["support"]], 1)  # [B, M, 3]
        low, high = self.x_range
        x = torch.from_numpy(low + (high - low) * u[..., 0])
        numbers = torch.from_numpy(normal(u[..., 1:])[..., :1])  # [B, M, 1]
        covariance = self.covariance(draw, x)
        return x, (torch.linalg.cholesky(covariance) @ numbers)[..., 0], covariance

    def oracle(self, draw: Draw) -> Metrics:
        if not self.noise_std:  # the density of what is known to rounding says nothing
            return {}
        _, y, covariance = self.points(draw)
        queries = draw["query"].shape[1]
        factor = torch.linalg.cholesky(covariance[:, queries:, queries:])
        across = torch.linalg.solve_triangular(factor, covariance[:, queries:, :queries], upper=False)  # [B, K, Q]
        white = torch.linalg.solve_triangular(factor, y[:, queries:, None], upper=False)  # [B, K, 1]
        error = y[:, :queries] - (across.mT @ white)[..., 0]
        left = covariance[:, :queries, :queries] - across.mT @ across  # of the query, given the support [B, Q, Q]
        variance = left.diagonal(dim1=1, dim2=2)
        constant = math.log(2 * math.pi) / 2
        root = torch.linalg.cholesky(left)
        joint = torch.linalg.solve_triangular(root, error[..., None], upper=False)[..., 0].square() / 2
        return {
            "negative_log_likelihood": (error.square() / variance / 2 + variance.log() / 2).mean(1) + constant,
            "joint_negative_log_likelihood": (joint + root.diagonal(dim1=1, dim2=2).log()).mean(1) + constant,
            self.spec.objective.score_name: error.square().mean(1),
        }

    def covariance(self, draw: Draw, x: Tensor) -> Tensor:
        """Covariance of y at x [B, M]: float64 [B, M, M]."""
        low, high = np.array(list(self.ranges.values())).T
        length, scale, period = torch.from_numpy(low + (high - low) * draw["task"]).T[..., None, None]  # [B, 1, 1]
        distance = (x[:, :, None] - x[:, None, :]).abs()
        if self.kernel in STATIONARY:
            k = STATIONARY[self.kernel](distance / length)
        else:
            weak = self.kernel == "weakly_periodic"
            k = torch.exp(-2 * (torch.sin(torch.pi * distance / period) / (1 if weak else length)) ** 2)
            k = k * STATIONARY["rbf"](distance / length) if weak else k
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
