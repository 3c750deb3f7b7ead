"""The classes of functions of d inputs that in-context learners are trained on (Garg et al. 2022, released code).

    linear         y = <w, x>                                   w ~ N(0, I_d)
    sparse         the same, ``nonzero`` weights are not 0      which ones: all choices alike
    relu_network   y = sqrt(2 / h) <v, relu(W x)>               v, W ~ N(0, I), h = ``hidden`` units
    decision_tree  y = the value of the leaf that x falls into  ``depth`` questions x_j > 0, all j alike; values ~ N(0, 1)

B functions, M points each, U uniform numbers behind a function
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from metarun.counter import normal, without_replacement


class FunctionClass(Protocol):
    """A distribution of functions."""

    def count(self, num_dims: int) -> int:
        """U, the uniform numbers that a function of ``num_dims`` inputs takes."""
        ...

    def values(self, u: np.ndarray, x: np.ndarray) -> np.ndarray:
        """The functions behind u [B, U] at their points x [B, M, d]: y [B, M]."""
        ...

    def variance(self, num_dims: int) -> float:
        """That of y where x ~ N(0, I) on ``num_dims`` coordinates: the squared error of predicting 0."""
        ...


def even(count: int) -> int:
    """``count``, or one more: normal numbers come in pairs."""
    return count + count % 2


@dataclass(frozen=True)
class Linear:
    """Linear functions."""

    def count(self, num_dims: int) -> int:
        return even(num_dims + 1)  # one is not used: the task and its points had the same width from the beginning

    def values(self, u: np.ndarray, x: np.ndarray) -> np.ndarray:
        return (x * normal(u)[:, None, : x.shape[-1]]).sum(-1)

    def variance(self, num_dims: int) -> float:
        return num_dims


@dataclass(frozen=True)
class Sparse:
    """Linear functions of ``nonzero`` among the first ``among`` inputs."""

    nonzero: int
    among: int

    def count(self, num_dims: int) -> int:
        return even(num_dims) + self.nonzero

    def values(self, u: np.ndarray, x: np.ndarray) -> np.ndarray:
        d = x.shape[-1]
        chosen = without_replacement(u[:, even(d) :], self.among)  # [B, nonzero]
        kept = np.zeros((len(u), d))
        np.put_along_axis(kept, chosen, 1, 1)
        return (x * (kept * normal(u[:, : even(d)])[:, :d])[:, None]).sum(-1)

    def variance(self, num_dims: int) -> float:
        return self.nonzero


@dataclass(frozen=True)
class ReluNetwork:
    """Networks of one hidden layer of ``hidden`` units, without offsets."""

    hidden: int

    def count(self, num_dims: int) -> int:
        return even((num_dims + 1) * self.hidden)

    def values(self, u: np.ndarray, x: np.ndarray) -> np.ndarray:
        d, h = x.shape[-1], self.hidden
        weights = normal(u)[:, : (d + 1) * h].reshape(-1, d + 1, h)
        units = np.maximum(x @ weights[:, :d], 0)  # [B, M, h]
        return np.sqrt(2 / h) * (units @ weights[:, d, :, None])[..., 0]

    def variance(self, num_dims: int) -> float:
        return num_dims


@dataclass(frozen=True)
class DecisionTree:
    """Full binary trees of ``depth`` questions on the way to a leaf; the questions may repeat."""

    depth: int

    @property
    def inner(self) -> int:
        """The number of questions: those below question i are 2 i + 1 (no) and 2 i + 2 (yes)."""
        return 2**self.depth - 1

    def count(self, num_dims: int) -> int:
        return self.inner + 2**self.depth

    def values(self, u: np.ndarray, x: np.ndarray) -> np.ndarray:
        asked = np.floor(x.shape[-1] * u[:, : self.inner]).astype(np.int64)  # the coordinate of each question
        leaves, positive = normal(u[:, self.inner :]), x > 0
        place = np.zeros(x.shape[:2], dtype=np.int64)  # [B, M]
        for _ in range(self.depth):
            coordinate = np.take_along_axis(asked, place, 1)
            place = 2 * place + 1 + np.take_along_axis(positive, coordinate[..., None], 2)[..., 0]
        return np.take_along_axis(leaves, place - self.inner, 1)

    def variance(self, num_dims: int) -> float:
        return 1.0
