"""Random networks whose nodes become the columns and targets of a table: the structural part of ``tabular_prior``.

    causes   z_0 ~ normal, uniform, bimodal, skewed or of few values, around the centre of a row's cluster
    layers   z_l = f_l(gain W_l z_{l-1} + shift) + noise e,   W_l sparse, each node standardised before and after f_l

A table's mechanism is fixed before its rows: means, deviations and thresholds are those of ``REFERENCE`` rows that no
episode has. So support and query rows are drawn alike, and a table is the same whatever their numbers.

B tables, R rows (the reference rows first), L layers, H nodes of a layer, M = (L + 1) H nodes
"""

from collections.abc import Callable

import numpy as np
import torch

from metarun.core import Draw
from metarun.counter import uniform, words

REFERENCE = 128  # rows that fix the mechanism of a table
MAX_CLUSTERS = 20
Shapes = dict[str, tuple[int, ...]]

ACTIVATIONS: tuple[Callable[[np.ndarray], np.ndarray], ...] = (
    lambda z: z,
    np.tanh,
    lambda z: np.maximum(z, 0),
    np.abs,
    np.sin,
    np.sign,
    lambda z: z * np.exp(-np.abs(z)),
)
_NORMAL = torch.special.ndtri((torch.arange(65536, dtype=torch.float64) + 0.5) / 65536).numpy()


def normals(bits: np.ndarray) -> np.ndarray:
    """Numbers ~ N(0, 1) of 16 random bits each: the middles of 65536 equally likely parts."""
    return _NORMAL[bits]


def uniforms(bits: np.ndarray) -> np.ndarray:
    """Numbers between 0 and 1, of 16 random bits each."""
    return (bits + 0.5) / 65536


def drawn(seed: int, stream: str, indices: np.ndarray, choices: int, sizes: tuple[int, int, int]) -> Draw:
    """The random numbers of tables: ``choices`` [B, choices], ``table`` [B, sizes[0]] and ``rows`` [B, R, sizes[2]].

    The bits of a table come first, then those of its sizes[1] = R rows in turn: with more rows, the first are the same.
    """
    of_table, num_rows, of_row = sizes
    bits = np.stack([words(seed, f"{stream}/{index}", of_table + num_rows * of_row) for index in indices])
    return {
        "choices": uniform(seed, stream, indices, choices),
        "table": bits[:, :of_table],
        "rows": bits[:, of_table:].reshape(len(indices), num_rows, of_row),
    }


def parted(bits: np.ndarray, shapes: Shapes) -> Draw:
    """``bits`` [..., n] by name, in the order of ``shapes``: [..., *shape] each."""
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes.values()])
    parts = np.split(bits[..., : ends[-1]], ends[:-1], axis=-1)
    return {
        name: part.reshape(*bits.shape[:-1], *shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)
    }


def between(u: np.ndarray, low: float, high: float) -> np.ndarray:
    """Uniforms u as numbers from ``low`` to ``high``, even in the logarithm."""
    return low * (high / low) ** u


def whole(u: np.ndarray, low: int, high: int) -> np.ndarray:
    """Uniforms u as whole numbers from ``low`` to ``high``, even in the logarithm."""
    return np.floor(between(u, low, high + 1)).astype(int).clip(low, high)


def table_shapes(num_layers: int, width: int) -> Shapes:
    """What the mechanism of a table draws once."""
    layer = (num_layers, width)
    return {
        "weights": (*layer, width),
        "kept": (*layer, width),
        "shift": layer,
        "noise": layer,
        "cause": (3, width),
        "centres": (MAX_CLUSTERS, width),
        "shares": (MAX_CLUSTERS,),
        "activation": (num_layers,),
    }


def row_shapes(num_layers: int, width: int) -> Shapes:
    """What the mechanism draws for each row."""
    return {"cause": (width,), "noise": (num_layers, width), "cluster": (1,)}


def clusters(choice: Draw, table: Draw, rows: Draw, number: np.ndarray) -> np.ndarray:
    """The cluster of each row [B, R], below ``number`` [B]; their shares are unequal by the table's choice."""
    shares = np.exp(choice["imbalance"][:, None] * normals(table["shares"]))
    shares = np.where(np.arange(MAX_CLUSTERS) < number[:, None], shares, 0).cumsum(1)
    at = uniforms(rows["cluster"][..., 0]) * shares[:, -1:]
    return (at[..., None] > shares[:, None]).sum(-1).clip(0, MAX_CLUSTERS - 1)


def causes(choice: Draw, table: Draw, rows: Draw, active: np.ndarray, cluster: np.ndarray) -> np.ndarray:
    """The inputs of the networks [B, R, H]: the first ``active`` [B] of each, again and again."""
    z, u = normals(rows["cause"]), uniforms(rows["cause"])
    odd, kind, level = (uniforms(table["cause"][:, k])[:, None] for k in range(3))
    kind = np.where(odd < choice["odd_causes"][:, None, None], 1 + np.floor(4 * kind), 0)
    levels = 2 + np.floor(level * 5)
    others = [
        (u - 0.5) * 12**0.5,
        (np.floor(u * levels) - (levels - 1) / 2) / levels * 3,
        0.4 * z + np.sign(u - level),
        np.expm1(0.8 * z),
    ]
    z = np.select([kind == k for k in range(1, 5)], others, z)
    centres = choice["spread"][:, None, None] * normals(table["centres"])
    z = z + np.take_along_axis(centres, cluster[..., None], 1)
    return np.take_along_axis(z, (np.arange(z.shape[-1]) % active[:, None])[:, None], -1)


def standardised(z: np.ndarray) -> np.ndarray:
    """Each node z [B, R, H] with the mean 0 and the deviation 1 on the reference rows; constant ones are 0."""
    mean, deviation = (moment(z[:, :REFERENCE], axis=1, keepdims=True) for moment in (np.mean, np.std))
    return np.where(deviation > 1e-9, (z - mean) / np.maximum(deviation, 1e-9), 0.0)


def nodes(choice: Draw, table: Draw, rows: Draw, inputs: np.ndarray) -> np.ndarray:
    """The values of all nodes [B, R, M], layer after layer from the causes ``inputs`` [B, R, H] on."""
    weights = normals(table["weights"])
    kept = uniforms(table["kept"]) > choice["sparsity"][:, None, None, None]
    kept |= table["kept"] == table["kept"].max(2, keepdims=True)  # no node without a parent
    kind = (uniforms(table["activation"]) * len(ACTIVATIONS)).astype(int)
    noise = choice["noise"][:, None, None] * np.abs(normals(table["noise"]))
    z, layers = inputs, [standardised(inputs)]
    for k in range(weights.shape[1]):
        z = standardised(z @ (weights[:, k] * kept[:, k]))
        z = choice["gain"][:, None, None] * z + normals(table["shift"][:, None, k])
        for number, activation in enumerate(ACTIVATIONS):
            own = kind[:, k] == number
            z[own] = activation(z[own])
        z = standardised(z) + noise[:, None, k] * normals(rows["noise"][:, :, k])
        layers.append(z)
    return np.concatenate(layers, -1)
