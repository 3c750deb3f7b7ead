"""Rows of a table as vectors: what each column says of the target decides how its values enter.

    s_j   = statistics of column j and the targets over the context: means by class (or moments with y), skewness, ...
    g_j, b_j = perceptron(s_j);   c_ij = GELU(A [z_ij, |z_ij|, tanh 2 z_ij] + b_j)
    row_i = W_1 (g_j z_ij)_j / sqrt F + W_2 sum_j c_ij / sqrt F + W_3 ridge_i

``ridge_i`` are the outputs of ridge regressions of the targets, one a penalty: for a row of the context those that are
fitted without it (leave-one-out), in closed form. Columns that do not vary in the context are left out. Only the sums run
over rows, so their order does not matter, and a row of weight 0 changes nothing.

S context rows, Q other rows, D columns (F of them used), T target columns, C width of a row, H hidden units of a cell
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from metarun.core import Params
from metarun.models.dense import dense, perceptron

BASIS = 3  # functions of a value
SHRINK = 1.0  # rows at zero that are added to each class's mean


def row_encoder(
    columns: int, targets: int, width: int, hidden: int, penalties: Sequence[float], like: Tensor
) -> Params:
    """theta_0 of the encoder."""
    return {
        "column": dense([2 * targets + 6, hidden, hidden + 1], like),
        "cell": dense([BASIS, hidden], like)[0],
        "linear": dense([columns, width], like)[0]["weight"],
        "cells": dense([hidden, width], like)[0],
        "ridge": dense([max(len(penalties) * targets, 1), width], like)[0]["weight"],
    }


def statistics(z: Tensor, t: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """What the columns z [S, D] and targets t [S, T] of the context have in common: [D, 2 T + 6], and which vary [D]."""
    total = weight.sum()
    w = weight[:, None]
    mean = (w * z).sum(0) / total
    variance = (w * (z - mean).square()).sum(0) / total
    used = (variance > 1e-12).to(z.dtype)
    share = (w * t.abs()).sum(0) / total  # [T]
    by_target = (z - mean).T @ (w * t) / (total * share + SHRINK)  # [D, T]
    x = (z - mean) / (variance + 1e-6).sqrt()
    extent = torch.stack(
        [
            (by_target.square() * share).sum(1),
            (w * x**3).sum(0) / total / 4,
            (w * x**4).sum(0) / total / 10,
            (w * (z == 0)).sum(0) / total,
            used.sum().clamp(min=1).log().expand(len(used)) / 4,
            total.log().expand(len(used)) / 6,
        ],
        1,
    )
    return torch.cat([by_target, share.expand(len(used), -1), extent], 1), used


def ridges(z: Tensor, t: Tensor, weight: Tensor, penalties: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Outputs of ridge regressions without each row itself [S, P T], and their weights [D + 1, P T] for other rows."""
    root, total = weight[:, None].sqrt(), weight.sum()
    x = torch.cat([z, z.new_ones(len(z), 1)], 1) * root  # [S, D + 1]
    own, maps = [], []
    for penalty in penalties:
        inverse = inverse_gram(x, penalty * total)
        solution = inverse @ (x.T @ (t * root))  # [D + 1, T]
        leverage = ((x @ inverse) * x).sum(1, keepdim=True)
        own.append((x @ solution - leverage * t * root) / (1 - leverage))
        maps.append(solution)
    return torch.cat(own, 1), torch.cat(maps, 1)


def inverse_gram(x: Tensor, penalty: Tensor) -> Tensor:
    """(x' x + penalty I)^-1 [D, D] for x [S, D], by a system of S x S where that is smaller (Woodbury)."""
    s, d = x.shape
    one = torch.eye(d, dtype=x.dtype, device=x.device)
    if s < d:
        gram = x @ x.T + penalty * torch.eye(s, dtype=x.dtype, device=x.device)
        return (one - x.T @ torch.linalg.solve(gram, x)) / penalty
    return torch.linalg.inv(x.T @ x + penalty * one)


def fitted_columns(
    theta: Params, z: Tensor, t: Tensor, weight: Tensor, penalties: Sequence[float]
) -> tuple[Params, Tensor]:
    """What other rows need of the context z [S, D], t [S, T], and the ridge outputs of its rows [S, P T]."""
    found, used = statistics(z, t, weight)
    column = perceptron(theta["column"], found)  # [D, H + 1]
    scale = used / used.sum().clamp(min=1).sqrt()
    fit = {"gate": (1 + column[:, 0]) * scale, "shift": column[:, 1:], "scale": scale}
    if not penalties:
        return {**fit, "ridge": z.new_zeros(z.shape[1] + 1, 1)}, z.new_zeros(len(z), 1)
    own, maps = ridges(z * used, t, weight, penalties)
    return {**fit, "ridge": maps * torch.cat([used, used.new_ones(1)])[:, None]}, own


def encoded_rows(theta: Params, fit: Params, z: Tensor, ridge: Tensor) -> Tensor:
    """Vectors [R, C] of the rows z [R, D], whose ridge outputs are ``ridge`` [R, P T]."""
    basis = torch.stack([z, z.abs(), (2 * z).tanh()], -1)  # [R, D, BASIS]
    cells = F.gelu(F.linear(basis, **theta["cell"]) + fit["shift"])  # [R, D, H]
    cells = (cells * fit["scale"][:, None]).sum(1)
    return (
        F.linear(z * fit["gate"], theta["linear"]) + F.linear(cells, **theta["cells"]) + F.linear(ridge, theta["ridge"])
    )


def ridge_outputs(fit: Params, z: Tensor) -> Tensor:
    """The ridge outputs [Q, P T] of rows z [Q, D] outside the context."""
    return z @ fit["ridge"][:-1] + fit["ridge"][-1]
