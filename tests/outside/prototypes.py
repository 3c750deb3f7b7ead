"""A task of an outsider, found by its config folder: classes are random images, their examples those plus noise.

It needs no data on disk. N ways, K shots, Q queries, B episodes
"""

import numpy as np
import torch

from metarun.core import Batch, Draw, Episode, TaskDistribution
from metarun.objectives import CROSS_ENTROPY
from metarun.tasks.counter import uniform


class Prototypes(TaskDistribution):
    """x [B, N * K, 1, 16, 16], y [B, N * K]; every episode has classes of its own, so the splits share none."""

    input_shape = (1, 16, 16)
    objective = CROSS_ENTROPY

    def __init__(
        self,
        num_ways: int,
        num_shots: int,
        num_queries: int,
        noise: float,
        seed: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.num_outputs = self.num_ways = self.train_num_ways = num_ways
        self.num_shots, self.num_queries, self.noise = num_shots, num_queries, noise
        self.seed, self.device, self.dtype = seed, device, dtype

    def draw(self, split, indices) -> Draw:
        def normal(stream: str, count: int) -> np.ndarray:
            """Sums of twelve uniforms, minus six: near enough to N(0, 1)."""
            u = uniform(self.seed, f"prototypes/{split}/{stream}", np.asarray(indices), 12 * count * 256)
            return u.reshape(len(indices), 12, -1, 256).sum(1) - 6  # [B, count, 256]

        return {
            "means": normal("means", self.num_ways),
            "support": normal("support", self.num_ways * self.num_shots),
            "query": normal("query", self.num_ways * self.num_queries),
        }

    def episodes(self, draw: Draw) -> Episode:
        def batch(noise: np.ndarray) -> Batch:
            tasks, examples, _ = noise.shape
            each = examples // self.num_ways
            x = np.repeat(draw["means"], each, axis=1) + self.noise * noise
            y = torch.arange(self.num_ways, device=self.device).repeat_interleave(each).repeat(tasks, 1)
            return Batch(torch.from_numpy(x).to(self.device, self.dtype).view(tasks, examples, 1, 16, 16), y)

        return Episode(batch(draw["support"]), batch(draw["query"]))

    def fingerprint(self) -> str:
        return f"prototypes: noise {self.noise}"
