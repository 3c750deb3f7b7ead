"""Inputs that are not those of training: the prompts beyond its distribution of Garg et al. 2022, section 4 (released code).

    skewed      x ~ N(0, R), the deviations along a random basis as 1, 1/2, 1/3, ..., 1/d
    subspace    x in a random half of the dimensions
    orthants    the support in one random orthant, the query anywhere
    orthogonal  the query orthogonal to all of the support, as long as before
    repeated    each query is a point of the support

E |x|^2 = d in all of them. Each takes x ~ N(0, I) and moves it. B episodes, K support and Q query points, d dimensions
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from metarun.counter import normal

Moved = tuple[np.ndarray, np.ndarray]  # support [B, K, d] and query [B, Q, d]


class Shift(NamedTuple):
    """How inputs are moved: by how many uniform numbers, of d and Q, and how, by these [B, n], support and query."""

    takes: Callable[[int, int], int]
    move: Callable[[np.ndarray, np.ndarray, np.ndarray], Moved]


def along_random_axes(u: np.ndarray, deviations: np.ndarray) -> np.ndarray:
    """Symmetric maps [B, d, d] with these deviations [d], up to one factor, along axes that are drawn anew for each."""
    d = len(deviations)
    axes = np.linalg.qr(normal(u)[:, : d * d].reshape(-1, d, d)).Q
    return (axes * deviations) @ axes.swapaxes(1, 2) * np.sqrt(d / (deviations**2).sum())


def skewed(u: np.ndarray, support: np.ndarray, query: np.ndarray) -> Moved:
    """Inputs whose deviations fall along random axes."""
    t = along_random_axes(u, 1 / np.arange(1, support.shape[-1] + 1))
    return support @ t, query @ t


def subspace(u: np.ndarray, support: np.ndarray, query: np.ndarray) -> Moved:
    """Inputs in half of the dimensions, rounded down, and one at least."""
    d = support.shape[-1]
    t = along_random_axes(u, (np.arange(d) < max(1, d // 2)).astype(float))
    return support @ t, query @ t


def orthants(u: np.ndarray, support: np.ndarray, query: np.ndarray) -> Moved:
    """Support points all with the same signs."""
    return np.abs(support) * np.where(u < 0.5, -1, 1)[:, None], query


def orthogonal(u: np.ndarray, support: np.ndarray, query: np.ndarray) -> Moved:
    """Query points without their part in the span of the support, at their old lengths."""
    span = np.linalg.qr(support.swapaxes(1, 2)).Q  # [B, d, K]
    rest = query - query @ span @ span.swapaxes(1, 2)
    lengths = (np.linalg.norm(v, axis=-1, keepdims=True) for v in (query, rest))
    return support, rest * np.divide(*lengths)


def repeated(u: np.ndarray, support: np.ndarray, query: np.ndarray) -> Moved:
    """Query points that are support points, all alike."""
    chosen = np.floor(support.shape[1] * u).astype(np.int64)  # [B, Q]
    return support, np.take_along_axis(support, chosen[..., None], 1)


SHIFTS: dict[str, Shift] = {
    "skewed": Shift(lambda d, q: d * d + d % 2, skewed),
    "subspace": Shift(lambda d, q: d * d + d % 2, subspace),
    "orthants": Shift(lambda d, q: d, orthants),
    "orthogonal": Shift(lambda d, q: 0, orthogonal),
    "repeated": Shift(lambda d, q: q, repeated),
}
