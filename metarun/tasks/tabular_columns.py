"""Columns of tables: from numbers to what a model reads, for drawn tables and for those of a user alike.

B tables, R rows, F columns
"""

import numpy as np

from metarun.core import Draw
from metarun.tasks.tabular_network import REFERENCE, Shapes, uniforms

MAX_LEVELS = 10
CLIP = 5.0  # deviations: a value further out says no more


def standard_columns(x: np.ndarray, context: np.ndarray) -> np.ndarray:
    """Columns x [..., R, F], NaN where missing, with mean 0 and deviation 1 on the rows ``context`` [..., S, F].

    A missing value is 0, and so is a column that does not vary there. Values end at ``CLIP`` deviations.
    """
    known = ~np.isnan(context)
    count = np.maximum(known.sum(-2, keepdims=True), 1)
    mean = np.where(known, context, 0.0).sum(-2, keepdims=True) / count
    deviation = np.sqrt(np.where(known, (context - mean) ** 2, 0.0).sum(-2, keepdims=True) / count)
    varies = deviation > 1e-9 * np.maximum(np.abs(mean), 1e-30)
    z = np.where(varies, (x - mean) / np.where(varies, deviation, 1.0), 0.0)
    return np.where(np.isnan(z), 0.0, z).clip(-CLIP, CLIP)


def column_shapes(num_features: int) -> Shapes:
    """What the columns of a table draw once."""
    return {
        "kind": (6, num_features),
        "level": (MAX_LEVELS - 1, num_features),
        "code": (MAX_LEVELS, num_features),
    }


def warped(choice: Draw, table: Draw, x: np.ndarray) -> np.ndarray:
    """Columns x [B, R, F] as tables have them: some are skewed, floored or rounded, some are codes of categories."""
    u = uniforms(table["kind"])  # [B, 6, F]
    floored, skewed, rounded = u[:, 0] < 0.15, (u[:, 0] > 0.1) & (u[:, 0] < 0.35), u[:, 0] > 0.85
    floor = np.take_along_axis(x, (u[:, 2:3] * REFERENCE).astype(int), 1)  # [B, 1, F], so many rows have the same value
    x = np.where(floored[:, None], np.maximum(x, floor), x)
    x = np.where(skewed[:, None], np.exp((0.3 + 1.2 * u[:, None, 1]) * x.clip(-4, 4)), x)
    x = np.where(rounded[:, None], np.round(x * (1 + 3 * u[:, None, 1])), x)
    tables, columns = np.nonzero(u[:, 3] < choice["categorical"][:, None])
    x[tables, :, columns] = _codes(u[:, 4:], table, x, tables, columns)
    return x


def _codes(u: np.ndarray, table: Draw, x: np.ndarray, tables: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """The categories [C, R] of C columns: x between random reference values, numbered in a random order or the right one."""
    levels = 2 + np.floor((MAX_LEVELS - 1) * u[tables, 0, columns] ** 2).astype(int)  # [C], few are likely
    own = x[tables, :, columns]
    at = (uniforms(table["level"][tables, :, columns]) * REFERENCE).astype(int)  # [C, MAX_LEVELS - 1]
    bounds = np.take_along_axis(own, at, 1)
    used = np.arange(MAX_LEVELS - 1) < levels[:, None] - 1
    code = ((own[:, None] > bounds[..., None]) & used[..., None]).sum(1)
    shuffled = table["code"][tables, :, columns].argsort(1, kind="stable")
    ordered = u[tables, 1, columns] < 0.3
    return np.where(ordered[:, None], code, np.take_along_axis(shuffled, code, 1))


def with_gaps(choice: Draw, rows: Draw, x: np.ndarray, used: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Columns x [B, R, F] with NaN where values are missing, and the number of columns ``used`` [B] with what is added.

    High values are missing more often in half of these tables. Columns that say what is missing follow, where there is
    room for them.
    """
    rate = choice["missing"][:, None, None]
    centre, scale = x[:, :REFERENCE].mean(1, keepdims=True), x[:, :REFERENCE].std(1, keepdims=True) + 1e-9
    slope = np.where(choice["reason"] < 0.5, 3.0, 0.0)[:, None, None]
    chance = 2 * rate / (1 + np.exp(-slope * ((x - centre) / scale).clip(-CLIP, CLIP)))
    own = np.arange(x.shape[-1]) < used[:, None]
    gaps = (uniforms(rows["missing"]) < chance * choice["which"][:, None, None]) & own[:, None]
    x = np.where(gaps, np.nan, x)
    for b in np.flatnonzero(choice["missing"] > 0):
        told = np.flatnonzero(gaps[b].any(0))[: x.shape[-1] - used[b]]
        x[b, :, used[b] : used[b] + len(told)] = gaps[b][:, told]
        used = used + len(told) * (np.arange(len(used)) == b)
    return x, used
