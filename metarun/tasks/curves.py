"""Curves of one variable from one or several families: the regression tasks beside the sine waves of ``sinusoid``.

    sine        a sin(x - b)                a ~ U[0.1, 5], b ~ U[0, pi]              Finn et al. 2017
    line        a x + b                     a, b ~ U[-3, 3]                          Finn et al. 2018 and those below
    quadratic   a (x - c)^2 + b             |a| ~ U[0.02, 0.15], b, c ~ U[-3, 3]     Vuorio et al. 2019 (MMAML),
    tanh        a tanh(x - c) + b           a, b, c ~ U[-3, 3]                       released code; 2 to 5 families,
    absolute    a |x - c| + b               a, b, c ~ U[-3, 3]                       noise 0.3 in the paper
    harmonics   a sin(w x + b) + a' sin(2 w x + b')    a, a' ~ N(0, 1), w ~ U[5, 7], b, b' ~ U[0, 2 pi]
                                            Lacoste et al. 2018, https://arxiv.org/abs/1806.07528: ``inputs: local``
    step        a where x < c, else b       a, b ~ U[-3, 3], c ~ U[-3, 3]            metarun's own: an edge to be found

    inputs: uniform, x ~ U[-5, 5];   local, x ~ N(m, 1) with m ~ U[-4, 4] for each task

A task is of one family, each as likely as the other. MMAML: https://arxiv.org/abs/1910.13616; its code draws phases from
[0, pi], where the paper has [0, 2 pi] and a frequency besides.

B episodes, K support and Q query points
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from metarun.core import Batch, Draw, Episode, TaskSpec
from metarun.counter import normal
from metarun.objectives import SQUARED_ERROR
from metarun.tasks.episodes import batch_of, uniforms
from metarun.tasks.sizes import Count, PointSize, Sized, sizes_by_split

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Family = Callable[[np.ndarray, np.ndarray], np.ndarray]  # uniforms of the task [B, PARAMETERS], x [B, M] -> y [B, M]
PARAMETERS = 5


def between(low: float, high: float, u: np.ndarray) -> np.ndarray:
    """Numbers u [B] in [0, 1) scaled to [low, high), as a column [B, 1]."""
    return (low + (high - low) * u)[:, None]


def sine(u: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Sine waves a sin(x - b)."""
    return between(0.1, 5, u[:, 0]) * np.sin(x - between(0, np.pi, u[:, 1]))


def line(u: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Straight lines a x + b."""
    return between(-3, 3, u[:, 0]) * x + between(-3, 3, u[:, 1])


def quadratic(u: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Parabolas a (x - c)^2 + b, with a of either sign."""
    sign = np.where(u[:, 3:4] < 0.5, -1, 1)
    return sign * between(0.02, 0.15, u[:, 0]) * (x - between(-3, 3, u[:, 1])) ** 2 + between(-3, 3, u[:, 2])


def tanh(u: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Smooth steps a tanh(x - c) + b."""
    return between(-3, 3, u[:, 0]) * np.tanh(x - between(-3, 3, u[:, 1])) + between(-3, 3, u[:, 2])


def absolute(u: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Straight lines with a kink, a |x - c| + b."""
    return between(-3, 3, u[:, 0]) * np.abs(x - between(-3, 3, u[:, 1])) + between(-3, 3, u[:, 2])


def harmonics(u: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Sums of two sine waves, the second of twice the frequency of the first."""
    a, frequency = normal(u[:, :2]), between(5, 7, u[:, 2])
    first, second = between(0, 2 * np.pi, u[:, 3]), between(0, 2 * np.pi, u[:, 4])
    return a[:, :1] * np.sin(frequency * x + first) + a[:, 1:] * np.sin(2 * frequency * x + second)


def step(u: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Steps: a where x < c, else b."""
    return np.where(x < between(-3, 3, u[:, 0]), between(-3, 3, u[:, 1]), between(-3, 3, u[:, 2]))


FAMILIES: dict[str, Family] = {
    family.__name__: family for family in (sine, line, quadratic, tanh, absolute, harmonics, step)
}


class Curves(Sized):
    """Support x [K, 1], y [K, 1] and query x [Q, 1], y [Q, 1]; ``noise_std`` is that of every y, the query's too."""

    spec = TaskSpec(input_shape=(1,), num_outputs=1, objective=SQUARED_ERROR)

    def __init__(  # noqa: PLR0913, PLR0917
        self,
        families: Sequence[Literal["sine", "line", "quadratic", "tanh", "absolute", "harmonics", "step"]],
        inputs: Literal["uniform", "local"],
        noise_std: float,
        num_shots: Count,
        num_queries: Count,
        train_num_shots: Count | None,
        train_num_queries: Count | None,
        seed: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        if not families or len(set(families)) < len(families):
            raise ValueError(
                f"task.families is {list(families)}; name at least one of {', '.join(FAMILIES)}, once each."
            )
        if noise_std < 0:
            raise ValueError(f"task.noise_std is {noise_std}; use 0 or more.")
        self.sizes = sizes_by_split(PointSize, (num_shots, num_queries), train_num_shots, train_num_queries)
        self.families, self.inputs, self.noise_std = tuple(families), inputs, noise_std
        self.seed, self.device, self.dtype = seed, device, dtype

    def draw(self, split: str, indices: Sequence[int] | np.ndarray) -> Draw:
        """Uniforms: of the task [B, 2 + PARAMETERS], for family, m and parameters; of each point [B, K or Q, 3]."""
        shots, queries = self.sizes[split]
        return uniforms(self.seed, f"curves/{split}", indices, 2 + PARAMETERS, (queries, 3), (shots, 3))

    def episodes(self, draw: Draw) -> Episode:
        def batch(u: np.ndarray) -> Batch:
            local, noise = np.moveaxis(normal(u[..., 1:]), -1, 0)
            x = 10 * u[..., 0] - 5 if self.inputs == "uniform" else between(-4, 4, draw["task"][:, 1]) + local
            return self._batch(x, self.values(draw, x) + self.noise_std * noise)

        return Episode(batch(draw["support"]), batch(draw["query"]))

    def _batch(self, x: np.ndarray, y: np.ndarray) -> Batch:
        return batch_of(x[..., None], y[..., None], self.device, self.dtype)

    def family_of(self, draw: Draw) -> np.ndarray:
        """Numbers of the families that the tasks are of [B]."""
        return np.floor(len(self.families) * draw["task"][:, 0]).astype(np.int64)

    def values(self, draw: Draw, x: np.ndarray) -> np.ndarray:
        """The curves at x [B, M], without noise."""
        y, family = np.empty_like(x), self.family_of(draw)
        for i, name in enumerate(self.families):
            rows = family == i
            y[rows] = FAMILIES[name](draw["task"][rows, 2:], x[rows])
        return y

    def fingerprint(self) -> str:
        return f"curves: {', '.join(self.families)}, {self.inputs} inputs, noise {self.noise_std:g}"

    def show(self, split: str, indices: Sequence[int]) -> "Figure":
        """The curves behind some episodes, with their support points."""
        from metarun.drawing import curves

        draw = self.draw(split, indices)
        support, query, _ = self.episodes(draw)
        both = torch.cat([support.x, query.x], 1).cpu().numpy()
        x = np.linspace(both.min(axis=(1, 2)), both.max(axis=(1, 2)), 300, axis=1)
        names = [f"{self.families[family]}, episode {index}" for family, index in zip(self.family_of(draw), indices)]  # noqa: B905
        return curves(Episode(support, self._batch(x, self.values(draw, x))), names)
