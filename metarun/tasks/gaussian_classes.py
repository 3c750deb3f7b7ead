"""Points from random Gaussians, a class or several Gaussians each: problems for learned optimizers.

    cluster c:   x ~ N(m_c, A_c A_c'),  m_c ~ N(0, spread^2 I),  entries of A_c [d, d] ~ N(0, 1 / d);  class c mod N

A task is one problem: find the weights with the least cross-entropy on its points. ``base_learner=linear`` makes it logistic
regression (the last input is 1, for the bias), an ``mlp`` a small network. Support and query are the same points: the aim is
to minimise, not to generalise. The score is the mean cross-entropy itself, ln N where nothing is known.

After Li and Malik, ICLR 2017, https://arxiv.org/abs/1606.01885 (logistic regression: two Gaussians, 100 points of 3
dimensions; networks: four Gaussians, two of each class). Their regularisers and robust losses are left out.

B problems, M points, d dimensions, N classes, C clusters
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from metarun.core import Batch, Draw, Episode, TaskDistribution, TaskSpec
from metarun.counter import normal, uniform
from metarun.objectives import Objective


def detached_cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Mean cross-entropy of ``logits`` [M, N] for the classes ``y`` [M], without a gradient."""
    return F.cross_entropy(logits.detach(), y)


CROSS_ENTROPY_ITSELF = Objective(F.cross_entropy, detached_cross_entropy, "cross_entropy", higher_is_better=False)


class GaussianClasses(TaskDistribution):
    """Support and query: x [M, d + 1], y [M], with M = num_points and as many of each cluster, or one more."""

    def __init__(
        self,
        num_dims: int,
        num_points: int,
        num_classes: int,
        clusters_per_class: int,
        spread: float,
        seed: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        if min(num_dims, clusters_per_class) < 1 or num_classes < 2 or spread < 0:
            raise ValueError(
                f"task: num_dims {num_dims} and clusters_per_class {clusters_per_class} must be 1 or more, num_classes "
                f"{num_classes} 2 or more, and spread {spread} 0 or more."
            )
        self.num_clusters = num_classes * clusters_per_class
        if num_points < self.num_clusters:
            raise ValueError(
                f"task.num_points is {num_points}, but there are {self.num_clusters} clusters; use as many."
            )
        self.spec = TaskSpec((num_dims + 1,), num_classes, CROSS_ENTROPY_ITSELF, num_classes, num_classes)
        self.num_dims, self.num_points, self.spread = num_dims, num_points, spread
        self.seed, self.device, self.dtype = seed, device, dtype

    def draw(self, split: str, indices: Sequence[int] | np.ndarray) -> Draw:
        """Uniforms ``u`` behind means, matrices and points, in this order [B, d (C + C d + M)], one more where odd.

        ``order`` [B, M]: the place of each point, so that its class does not follow from where it stands.
        """
        count = self.num_dims * (self.num_clusters * (1 + self.num_dims) + self.num_points)
        stream, numbers = f"gaussian_classes/{split}", np.asarray(indices)
        order = uniform(self.seed, f"{stream}/order", numbers, self.num_points).argsort(1, kind="stable")
        return {"u": uniform(self.seed, stream, numbers, count + count % 2), "order": order}

    def episodes(self, draw: Draw) -> Episode:
        d, clusters = self.num_dims, np.arange(self.num_points) % self.num_clusters  # [M]
        numbers, ends = normal(draw["u"]), np.cumsum([self.num_clusters * d, self.num_clusters * d * d])
        means, matrices, points = np.split(numbers, ends, axis=1)
        means = self.spread * means.reshape(len(means), -1, d)[:, clusters]  # [B, M, d]
        matrices = matrices.reshape(len(means), -1, d, d)[:, clusters] / np.sqrt(d)  # [B, M, d, d]
        points = points[:, : self.num_points * d].reshape(len(means), -1, d, 1)
        x = means + (matrices @ points)[..., 0]
        x = np.concatenate([x, np.ones_like(x[..., :1])], -1)
        x, y = np.take_along_axis(x, draw["order"][..., None], 1), (clusters % self.spec.num_outputs)[draw["order"]]
        batch = Batch(torch.from_numpy(x).to(self.device, self.dtype), torch.from_numpy(y).to(self.device))
        return Episode(batch, batch)

    def fingerprint(self) -> str:
        sizes = f"{self.num_points} points of {self.num_dims} dimensions, {self.spec.num_outputs} classes"
        return f"gaussian classes: {sizes}, {self.num_clusters} clusters, spread {self.spread:g}"
