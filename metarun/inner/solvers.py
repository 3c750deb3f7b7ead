"""Convex problems with an exact solution: linear heads that are fitted, not descended to. Pure, differentiable, vmap-safe.

S examples, D features, N classes or outputs.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def ridge(x: Tensor, y: Tensor, regulariser: Tensor | float) -> Tensor:
    """Weights W [D, N] = argmin |x W - y|^2 + regulariser |W|^2 for x [S, D], y [S, N].

    The system solved is S x S or D x D, whichever is smaller: (x'x + r I)^-1 x' = x' (x x' + r I)^-1  (Woodbury).
    """
    s, d = x.shape
    if s < d:
        return x.T @ torch.linalg.solve(x @ x.T + regulariser * _identity(s, x), y)
    return torch.linalg.solve(x.T @ x + regulariser * _identity(d, x), x.T @ y)


def crammer_singer(gram: Tensor, onehot: Tensor, bound: float, steps: int) -> Tensor:
    """The dual variables [S, N] of a multi-class support vector machine (Crammer and Singer, JMLR 2001).

        argmin  tr(a' gram a) / 2 - sum(a * onehot)    over  a <= bound * onehot,  rows of a sum to 0

    ``gram`` [S, S] is positive definite; W = x' a [D, N] are the weights, logits(x) = x W, where gram = x x'.
    By ``steps`` steps of a primal-dual interior-point method (Mehrotra 1992) without a graph, then a Newton step whose
    right-hand side has one: its derivative is that of the implicit function theorem, so first derivatives with respect
    to ``gram`` are exact; second ones are zero. A step solves N systems of S x S and one more that ties the classes
    together, S^3 (N + 1) rather than (S N)^3 operations.
    """
    with torch.no_grad():
        b, s = _interior_point(gram, onehot, bound, steps)
        newton = _newton_system(gram, b, s)
    slack = gram @ (b - bound * onehot) + onehot - s  # zero at a solution, but for a constant in every row
    return bound * onehot - b - newton(-slack)


def _interior_point(gram: Tensor, onehot: Tensor, bound: float, steps: int) -> tuple[Tensor, Tensor]:
    """Slacks b = bound * onehot - a >= 0, whose rows sum to ``bound``, and their multipliers s >= 0; both start feasible."""
    b = torch.full_like(onehot, bound / onehot.shape[1])
    slope = gram @ (b - bound * onehot) + onehot  # of the objective in b
    s = slope - slope.amin(1, keepdim=True) + 1
    least = 1e-3 * bound * torch.finfo(b.dtype).eps  # of b * s: neither may vanish
    for _ in range(steps):
        newton = _newton_system(gram, b, s)
        slope = gram @ (b - bound * onehot) + onehot
        db = newton(-slope)  # towards b * s = 0
        ds = -s - s / b * db
        t = _longest_step(b, db, s, ds)
        target = (((b + t * db) * (s + t * ds)).mean() ** 3 / (b * s).mean() ** 2).clamp(min=least)
        change = (target - db * ds) / b
        db = newton(change - slope)  # towards b * s = target, with the second-order term of the first attempt
        ds = change - s - s / b * db
        t = 0.99 * _longest_step(b, db, s, ds)
        b, s = b + t * db, s + t * ds
    return b, s


def _newton_system(gram: Tensor, b: Tensor, s: Tensor) -> Callable[[Tensor], Tensor]:
    """Solver r [S, N] -> d: (gram + diag(s_k / b_k)) d_k = r_k + v for every class k; v [S] makes the rows of d sum to 0."""
    root = (b / s).sqrt().T  # [N, S]
    scaled = _identity(len(gram), gram) + root[:, :, None] * gram * root[:, None, :]
    inverse = root[:, :, None] * torch.linalg.inv(scaled) * root[:, None, :]  # [N, S, S]

    def solve(r: Tensor) -> Tensor:
        free = (inverse @ r.T[:, :, None])[:, :, 0]  # [N, S]
        v = torch.linalg.solve(inverse.sum(0), -free.sum(0))
        return (free + inverse @ v).T

    return solve


def _longest_step(b: Tensor, db: Tensor, s: Tensor, ds: Tensor) -> Tensor:
    """The largest t of at most 1 that keeps b + t db and s + t ds at 0 or above."""
    value, change = torch.stack([b, s]), torch.stack([db, ds])
    return torch.where(change < 0, -value / change, 1.0).amin().clamp(max=1)


def _identity(size: int, like: Tensor) -> Tensor:
    return torch.eye(size, dtype=like.dtype, device=like.device)
