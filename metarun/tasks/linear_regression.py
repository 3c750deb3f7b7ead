"""Regression from few points: the tasks of the in-context learning literature, linear functions before all.

    w ~ N(0, I_d);   x ~ N(0, I_d);   y = w x + noise_std e,  e ~ N(0, 1)

``family`` has other functions in the place of w x (``function_classes``), ``shift`` other inputs (``shifts``), which is
meant for evaluation: ``evaluation.task=linear_regression evaluation.task.linear_regression.shift=skewed``.

``mse_per_dimension`` is the squared error over the variance of y without noise, shift and scales, the unit of the papers:
d for linear functions and networks, the number of weights for sparse ones, 1 for trees. So 1 is what predicting 0 gives,
and for linear functions without noise least squares gives 1 - K / d for K < d points, and 0 from d points on. With noise
the best prediction of all is that of a ridge regression with regulariser noise_std^2, the mean of the posterior.

The curriculum: in training only so many coordinates are not 0, and the support has so many points, as ``grow_dims`` and
``grow_shots`` say for the step. Both end at the full size, at which everything is evaluated.

Garg et al., NeurIPS 2022, https://arxiv.org/abs/2208.01066 (d = 20, no noise; released code).
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from metarun.core import Batch, Draw, Episode, TaskSpec
from metarun.counter import normal, uniform
from metarun.objectives import Objective
from metarun.tasks.episodes import batch_of, uniforms
from metarun.tasks.function_classes import DecisionTree, FunctionClass, Linear, ReluNetwork, Sparse
from metarun.tasks.shifts import SHIFTS
from metarun.tasks.sizes import Count, PointSize, Sized, Sizes, sizes_by_split

FamilyName = Literal["linear", "sparse", "relu_network", "decision_tree"]
ShiftName = Literal["skewed", "subspace", "orthants", "orthogonal", "repeated"]
SIZES = {"sparse": 3, "relu_network": 100, "decision_tree": 4}  # Garg et al. 2022
REFERENCES = {  # those of the paper's figures, save networks trained by gradient descent and XGBoost
    "linear": ("least_squares", "nearest_3", "averaging"),
    "sparse": ("least_squares", "lasso", "nearest_3", "averaging"),
    "relu_network": ("least_squares", "nearest_3"),
    "decision_tree": ("greedy_tree", "nearest_3"),
}


class LinearRegression(Sized):
    """Support x [K, d], y [K, 1]; query x [Q, d], y [Q, 1], with d = num_dims.

    ``family_size`` is the number of weights of ``sparse`` that are not 0, of hidden units of a ``relu_network``, and the
    depth of a ``decision_tree``; None: the paper's. ``used_dims``: only so many coordinates are not 0; None: all.
    ``grow_dims`` and ``grow_shots`` are (first, more each time, steps between).
    """

    of_training = Sized.of_training | {"grow_dims", "grow_shots"}

    def __init__(  # noqa: PLR0913, PLR0917
        self,
        num_dims: int,
        noise_std: float,
        family: FamilyName,
        family_size: int | None,
        shift: ShiftName | None,
        used_dims: int | None,
        x_scale: float,
        y_scale: float,
        grow_dims: tuple[int, int, int] | None,
        grow_shots: tuple[int, int, int] | None,
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
        self.num_dims, self.noise_std, self.x_scale, self.y_scale = num_dims, noise_std, x_scale, y_scale
        self.family, self.family_size, self.shift = family, family_size, shift
        self.used_dims = num_dims if used_dims is None else used_dims
        self.grow_dims, self.grow_shots = grow_dims, grow_shots
        self.seed, self.device, self.dtype = seed, device, dtype
        self.references = REFERENCES[family]
        self.stages: dict[tuple[int, int], LinearRegression] = {}  # of the curriculum, as far as it was asked for
        self._check()
        self.spec = TaskSpec(input_shape=(num_dims,), num_outputs=1, objective=self._objective())

    @property
    def size(self) -> int:
        """That of the functions: as given, or the paper's; linear ones have none."""
        return SIZES.get(self.family, 0) if self.family_size is None else self.family_size

    @property
    def functions(self) -> FunctionClass:
        """The class of functions."""
        of_name: dict[str, FunctionClass] = {
            "linear": Linear(),
            "sparse": Sparse(self.size, self.used_dims),
            "relu_network": ReluNetwork(self.size),
            "decision_tree": DecisionTree(self.size),
        }
        return of_name[self.family]

    def _check(self) -> None:
        """Raise ValueError where settings do not go together."""
        least = self.grow_dims[0] if self.grow_dims else self.used_dims
        most = {"sparse": least, "relu_network": 10**6, "decision_tree": 16}.get(self.family)
        if self.family_size is not None and most is None:
            raise ValueError(
                f"task.family_size is {self.family_size}, but linear functions have no size; leave it null."
            )
        if most and not 1 <= self.size <= most:
            raise ValueError(f"task.family_size of {self.family} is {self.size}; use 1 to {most}.")
        if not 1 <= self.used_dims <= self.num_dims:
            raise ValueError(f"task.used_dims is {self.used_dims}; use 1 to task.num_dims, {self.num_dims}.")
        if problems := [p for split in self.sizes for p in self.lacks(self.sizes, split)]:
            raise ValueError(problems[0])
        smallest, largest = self.sizes.smallest["train"], self.sizes["train"]
        if self.grow_shots and smallest != largest:
            raise ValueError("task.grow_shots: the sizes of training episodes cannot vary, too; give numbers for them.")
        for name, schedule, last in (
            ("grow_dims", self.grow_dims, self.used_dims),
            ("grow_shots", self.grow_shots, largest.num_shots),
        ):
            if schedule and (min(schedule) < 1 or schedule[0] > last):
                raise ValueError(
                    f"task.{name} is {list(schedule)}; give [first, more each time, steps between], all 1 or more and "
                    f"the first at most the full size, {last}."
                )

    def lacks(self, sizes: Sizes[PointSize], split: str) -> list[str]:
        if self.shift != "orthogonal" or sizes[split].num_shots < self.used_dims:
            return []
        return [
            f"task.shift=orthogonal: points orthogonal to {sizes[split].num_shots} others do not exist in {self.used_dims} "
            "dimensions; lower the number of shots below these."
        ]

    def _objective(self) -> Objective:
        variance = self.functions.variance(self.used_dims)

        def error_per_dimension(outputs: Tensor, y: Tensor) -> Tensor:
            return F.mse_loss(outputs.detach(), y) / variance

        return Objective(F.mse_loss, error_per_dimension, "mse_per_dimension", higher_is_better=False)

    def at(self, split: str, number: int) -> "LinearRegression":
        """The curriculum: the task of training step ``number``; episodes of other splits have the full size."""
        if split != "train" or not (self.grow_dims or self.grow_shots):
            return super().at(split, number)
        size = self.sizes["train"]
        stage = grown(self.grow_dims, number, self.used_dims), grown(self.grow_shots, number, size.num_shots)
        if stage not in self.stages:
            of_shots = size._replace(num_shots=stage[1])
            other = self._with(split, self.sizes.with_size(split, of_shots, of_shots))
            other.used_dims = stage[0]
            self.stages[stage] = other
        return self.stages[stage]

    def for_evaluation(self) -> "LinearRegression":
        other = self.apart()
        other.grow_dims = other.grow_shots = None
        return other

    def draw(self, split: str, indices: Sequence[int] | np.ndarray) -> Draw:
        """Uniforms behind the function [B, U] and the query [B, Q, W] and support [B, K, W] points, W >= d + 1 and even.

        A shift has uniforms of its own [B, n].
        """
        shots, queries = self.sizes[split]
        width = self.num_dims + 1 + (self.num_dims + 1) % 2
        stream, count = f"linear_regression/{split}", self.functions.count(self.num_dims)
        draw = uniforms(self.seed, stream, indices, count, (queries, width), (shots, width))
        if self.shift is None:
            return draw
        moved = SHIFTS[self.shift].takes(self.used_dims, queries)
        return {**draw, "shift": uniform(self.seed, f"{stream}/shift", np.asarray(indices), moved)}

    def episodes(self, draw: Draw) -> Episode:
        d, numbers = self.num_dims, [normal(draw[part]) for part in ("support", "query")]
        x, noise = [n[..., : self.used_dims] for n in numbers], [n[..., d] for n in numbers]
        if self.shift is not None:
            x = list(SHIFTS[self.shift].move(draw["shift"], *x))

        def batch(x: np.ndarray, noise: np.ndarray) -> Batch:
            x = self.x_scale * np.pad(x, ((0, 0), (0, 0), (0, d - self.used_dims)))
            y = self.y_scale * self.functions.values(draw["task"], x) + self.noise_std * noise
            return batch_of(x, y[..., None], self.device, self.dtype)

        return Episode(batch(x[0], noise[0]), batch(x[1], noise[1]))

    def fingerprint(self) -> str:
        name = f"{self.family} regression".replace("_", " ")
        settings: list[tuple[str, object, object]] = [
            ("size", self.family_size, None),
            ("shift", self.shift, None),
            ("dimensions used", self.used_dims, self.num_dims),
            ("x scale", self.x_scale, 1.0),
            ("y scale", self.y_scale, 1.0),
        ]
        told = "".join(f", {key} {value}" for key, value, usual in settings if value != usual)
        return f"{name}: {self.num_dims} dimensions, noise {self.noise_std:g}{told}"


def grown(schedule: tuple[int, int, int] | None, step: int, last: int) -> int:
    """What has grown for ``step`` steps by (first, more each time, steps between); ``last`` where it is None or beyond."""
    if schedule is None:
        return last
    first, more, every = schedule
    return min(first + more * (step // every), last)
