"""A mixture of processes: each episode is a draw of one of several Gaussian processes, or a sawtooth wave.

    rbf, matern52     length scale 0.25                        weakly_periodic  length scale 0.5, period 0.25
    all three         scale 1, noise of variance 0.05          sawtooth         frequency ~ U[2, 4], no noise

The processes and their numbers are those of Bruinsma's neuralprocesses (data/predefined.py), which draws one for each
meta-batch; here it is one for each episode.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from metarun.core import Draw, Episode, TaskSpec
from metarun.objectives import SQUARED_ERROR
from metarun.tasks.episodes import uniforms
from metarun.tasks.gaussian_process import GaussianProcess
from metarun.tasks.sawtooth import Sawtooth
from metarun.tasks.sizes import Count, PointSize, Sized, sizes_by_split
from metarun.trees import zip_map

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NOISE_STD = 0.05**0.5
LENGTHS = {"rbf": 0.25, "matern52": 0.25, "weakly_periodic": 0.5}
PERIOD = 0.25


class ProcessMixture(Sized):
    """Support x [K, 1], y [K, 1] and query x [Q, 1], y [Q, 1]; each of ``processes`` is as likely as the others."""

    spec = TaskSpec(input_shape=(1,), num_outputs=1, objective=SQUARED_ERROR)

    def __init__(  # noqa: PLR0913, PLR0917
        self,
        processes: Sequence[Literal["rbf", "matern52", "weakly_periodic", "sawtooth"]],
        x_range: tuple[float, float],
        num_shots: Count,
        num_queries: Count,
        train_num_shots: Count | None,
        train_num_queries: Count | None,
        seed: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        if not processes or len(set(processes)) < len(processes):
            names = ", ".join([*LENGTHS, "sawtooth"])
            raise ValueError(f"task.processes is {list(processes)}; name at least one of {names}, once each.")
        self.sizes = sizes_by_split(PointSize, (num_shots, num_queries), train_num_shots, train_num_queries)
        common = (x_range, num_shots, num_queries, train_num_shots, train_num_queries, seed, device, dtype)
        self.seed, self.processes = seed, {name: process(name, *common) for name in processes}

    def draw(self, split: str, indices: Sequence[int] | np.ndarray) -> Draw:
        """Uniforms: of the process and its curve [B, 1 + 3], and of each point [B, K or Q, 3]."""
        shots, queries = self.sizes[split]
        return uniforms(self.seed, f"process_mixture/{split}", indices, 4, (queries, 3), (shots, 3))

    def episodes(self, draw: Draw) -> Episode:
        chosen = self.process_of(draw)
        own = {**draw, "task": draw["task"][:, 1:]}
        parts, rows = [], []
        for i, task in enumerate(self.processes.values()):
            of_it = np.flatnonzero(chosen == i)
            if len(of_it):
                parts.append(task.episodes({name: values[of_it] for name, values in own.items()}))
                rows.append(of_it)
        order = torch.from_numpy(np.concatenate(rows).argsort())
        return zip_map(lambda *leaves: torch.cat(leaves)[order.to(leaves[0].device)], *parts)

    def process_of(self, draw: Draw) -> np.ndarray:
        """Numbers of the processes that the episodes are drawn from [B]."""
        return np.floor(len(self.processes) * draw["task"][:, 0]).astype(np.int64)

    def fingerprint(self) -> str:
        return f"mixture: {'; '.join(task.fingerprint() for task in self.processes.values())}"

    def show(self, split: str, indices: Sequence[int]) -> "Figure":
        """Some draws: the query points joined in the order of x, with the support points."""
        from metarun.drawing import curves

        draw = self.draw(split, indices)
        names = [list(self.processes)[i] for i in self.process_of(draw)]
        titles = [f"{name}, episode {index}" for name, index in zip(names, indices, strict=True)]
        return curves(self.episodes(draw), titles)


def process(name: str, x_range: tuple[float, float], *common: object) -> GaussianProcess | Sawtooth:
    """The process ``name``, with the numbers of the table above."""
    if name == "sawtooth":
        return Sawtooth((2.0, 4.0), 0.0, x_range, *common)  # type: ignore[arg-type]
    length, period = LENGTHS[name], (PERIOD, PERIOD) if name == "weakly_periodic" else None
    return GaussianProcess(name, (length, length), (1.0, 1.0), period, NOISE_STD, x_range, *common)  # type: ignore[arg-type]
