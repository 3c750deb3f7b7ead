"""A task of an outsider, found by its config folder, that needs no data on disk and can be learned in seconds.

A class is a random mixture of eight patterns that all tasks share, an example that plus noise in every pixel. Whoever
finds the patterns can look past most of the noise. With ``num_classes`` training episodes draw from that many classes;
without, every episode has classes of its own. N ways, K shots, Q queries, C training classes, B episodes
"""

import numpy as np
import torch
import torch.nn.functional as F

from metarun.core import Batch, Draw, Episode, TaskDistribution, TaskSpec
from metarun.counter import uniform, without_replacement
from metarun.objectives import CROSS_ENTROPY

PATTERNS, PIXELS = 8, 256


class Prototypes(TaskDistribution):
    """x [B, N * K, 1, 16, 16] within ``padding`` zeros, y [B, N * K]; the splits share no class."""

    def __init__(  # noqa: PLR0913, PLR0917 (the settings of its YAML)
        self,
        num_ways: int,
        num_shots: int,
        num_queries: int,
        strength: float,
        num_classes: int | None,
        padding: int,
        seed: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.spec = TaskSpec(
            input_shape=(1, 16 + 2 * padding, 16 + 2 * padding),
            num_outputs=num_ways,
            objective=CROSS_ENTROPY,
            num_ways=num_ways,
            train_num_ways=num_ways,
            num_train_classes=num_classes,
        )
        self.num_ways, self.num_shots, self.num_queries = num_ways, num_shots, num_queries
        self.strength, self.num_classes, self.padding = strength, num_classes, padding
        self.seed, self.device, self.dtype = seed, device, dtype

        patterns = normal(seed, "prototypes/patterns", [0], PATTERNS * PIXELS).reshape(PATTERNS, PIXELS)
        self.patterns = patterns / np.linalg.norm(patterns, axis=1, keepdims=True)
        mixtures = normal(seed, "prototypes/training", [0], PATTERNS * (num_classes or 0))
        self.mixtures = mixtures.reshape(-1, PATTERNS)  # [C, patterns], of the training classes

    def draw(self, split, indices) -> Draw:
        def numbers(what: str, *shape: int) -> np.ndarray:
            flat = normal(self.seed, f"prototypes/{split}/{what}", indices, int(np.prod(shape)))
            return flat.reshape(len(indices), *shape)

        draw = {
            "mixtures": numbers("mixtures", self.num_ways, PATTERNS),
            "support": numbers("support", self.num_ways * self.num_shots, PIXELS),
            "query": numbers("query", self.num_ways * self.num_queries, PIXELS),
        }
        if split == "train" and self.num_classes is not None:
            u = uniform(self.seed, "prototypes/classes", np.asarray(indices), self.num_ways)
            draw["classes"] = without_replacement(u, self.num_classes)  # [B, N]
            draw["mixtures"] = self.mixtures[draw["classes"]]
        return draw

    def episodes(self, draw: Draw) -> Episode:
        def batch(noise: np.ndarray) -> Batch:
            tasks, examples, _ = noise.shape
            each = examples // self.num_ways
            means = self.strength * np.einsum("bnp,px->bnx", draw["mixtures"], self.patterns)
            x = np.repeat(means, each, axis=1) + noise
            y = torch.arange(self.num_ways, device=self.device).repeat_interleave(each).repeat(tasks, 1)
            images = torch.from_numpy(x).to(self.device, self.dtype).view(tasks, examples, 1, 16, 16)
            return Batch(F.pad(images, (self.padding,) * 4), y)

        classes = torch.from_numpy(draw["classes"]).to(self.device) if "classes" in draw else ()
        return Episode(batch(draw["support"]), batch(draw["query"]), classes)

    def fingerprint(self) -> str:
        return f"prototypes: strength {self.strength}, training classes {self.num_classes}"


def normal(seed: int, stream: str, indices, count: int) -> np.ndarray:
    """Sums of four uniforms, scaled to variance 1: near enough to N(0, 1), [B, count]."""
    u = uniform(seed, stream, np.asarray(indices), 4 * count).reshape(len(indices), 4, count)
    return (u.sum(1) - 2) * np.sqrt(3)
