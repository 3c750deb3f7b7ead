"""Targets of drawn tables: classes of nodes and clusters, and standardised numbers.

B tables, R rows (the reference rows first), N classes
"""

import numpy as np

from metarun.core import Draw
from metarun.tasks.tabular_network import REFERENCE, Shapes, normals, uniforms

TREES, DEPTH = 3, 3
FURTHEST = 10.0  # deviations of a target: one of thousands would outweigh all others


def label_shapes(num_nodes: int, num_classes: int) -> Shapes:
    """What the targets of a table draw once: an order of the nodes, and of classes their shares and order."""
    return {
        **{"order": (num_nodes,), "share": (num_classes,), "class": (num_classes,)},
        **{"split": (2, TREES, DEPTH), "leaf": (TREES, 2**DEPTH, num_classes)},
    }


def tree_targets(choice: Draw, table: Draw, x: np.ndarray) -> np.ndarray:
    """Sums [B, R, N] of the leaves that rows x [B, R, F] reach in ``TREES`` trees; a level asks all rows the same."""
    split = uniforms(table["split"])  # [B, 2, TREES, DEPTH]
    column = (split[:, 0] * choice["features"][:, None, None]).astype(int).reshape(len(x), -1)
    asked = np.take_along_axis(x, column[:, None], 2)  # [B, R, TREES * DEPTH]
    at = (split[:, 1].reshape(len(x), 1, -1) * REFERENCE).astype(int)
    right = asked > np.take_along_axis(asked[:, :REFERENCE], at, 1)
    code = right.reshape(*x.shape[:2], TREES, DEPTH) @ (1 << np.arange(DEPTH))  # [B, R, TREES]
    leaf = normals(table["leaf"])  # [B, TREES, 2 ** DEPTH, N]
    return sum(np.take_along_axis(leaf[:, m], code[:, :, m, None], 1) for m in range(TREES)) / TREES**0.5


def labelled(choice: Draw, table: Draw, rows: Draw, t: np.ndarray, cluster: np.ndarray) -> np.ndarray:
    """The class of each row [B, R]: of its cluster, or of the nodes t [B, R, N]; a few are wrong by the table's choice."""
    number = choice["classes"][:, None]
    used = np.arange(t.shape[-1]) < number  # [B, N]
    share = choice["imbalance"][:, None] * normals(table["share"])
    largest = np.where(used[:, None], t + 0.5 * share[:, None], -np.inf).argmax(-1)
    weight = np.where(used, np.exp(share), 0).cumsum(1)
    at = (weight / weight[:, -1:] * REFERENCE).astype(int).clip(0, REFERENCE - 1)  # [B, N], the last is no bound
    bounds = np.take_along_axis(np.sort(t[:, :REFERENCE, 0], 1), at, 1)
    between = ((t[..., :1] > bounds[:, None]) & used[:, None]).sum(-1).clip(0, number - 1)
    y = np.where((choice["way"] < 0.5)[:, None], largest, between)
    y = np.where(choice["clustered"][:, None], cluster % number, y)
    wrong, other = (uniforms(rows["flip"][..., k]) for k in range(2))
    y = np.where(wrong < choice["flips"][:, None], np.floor(other * number).astype(int), y)
    return np.take_along_axis(table["class"].argsort(1, kind="stable"), y, 1)


def shared_classes(y: np.ndarray, queries: int) -> tuple[np.ndarray, np.ndarray]:
    """An order of the rows y [B, R], the first ``queries`` being the query, so that the support has all their classes.

    A row of a class that the support lacks changes places with one of the support's largest class. Returns the order
    [B, R], and the classes in that order, numbered anew without gaps.
    """
    order, y = np.tile(np.arange(y.shape[1]), (len(y), 1)), y.copy()
    for own, labels in zip(order, y, strict=True):
        for label in np.setdiff1d(labels[:queries], labels[queries:]):
            counts = np.bincount(labels[queries:])
            if counts.max() > 1:
                here = int(np.argmax(labels == label))
                there = queries + int(np.argmax(labels[queries:] == counts.argmax()))
                for values in (own, labels):
                    values[[here, there]] = values[[there, here]]
            else:
                labels[:queries][labels[:queries] == label] = labels[queries]
        labels[:] = np.unique(labels, return_inverse=True)[1]
    return order, y


def standard_targets(choice: Draw, t: np.ndarray, first: int) -> np.ndarray:
    """Targets t [B, R], some skewed, with the mean 0 and the deviation 1 on the rows from ``first`` on."""
    t = np.where((choice["skewed"] < 0.25)[:, None], np.exp(choice["skew"][:, None] * t.clip(-4, 4)), t)
    mean, deviation = t[:, first:].mean(1, keepdims=True), t[:, first:].std(1, keepdims=True)
    return ((t - mean) / np.where(deviation > 1e-9, deviation, 1.0)).clip(-FURTHEST, FURTHEST)
