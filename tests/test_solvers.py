"""Closed-form and convex solvers against numpy, scikit-learn, optimality conditions and finite differences. float64.

EXACT is rounding (1e-16), grown by solving systems whose condition is up to 1e3.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.func import grad, vmap

from metarun.inner.solvers import crammer_singer, ridge

EXACT = 1e-10
SVMS = {"all_bounded": (15, 3, 20, 0.1), "few_bounded": (15, 3, 20, 10.0), "wide": (24, 4, 40, 0.5)}  # S, N, D, C


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def data(s: int, n: int, d: int) -> tuple[torch.Tensor, torch.Tensor]:
    return normal(s, d), F.one_hot(torch.arange(n).repeat(s // n), n).double()


# ---- ridge regression ----


@pytest.mark.parametrize(("s", "d"), [(4, 9), (9, 9), (20, 3)])
def test_ridge_is_the_least_squares_solution_with_the_regulariser_as_more_rows(s, d):
    x, y, r = normal(s, d), normal(s, 2, seed=1), 0.3
    rows = np.vstack([x.numpy(), np.sqrt(r) * np.eye(d)]), np.vstack([y.numpy(), np.zeros((d, 2))])
    expected, *_ = np.linalg.lstsq(*rows, rcond=None)
    torch.testing.assert_close(ridge(x, y, r), torch.from_numpy(expected), rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize(("s", "d"), [(4, 9), (20, 3)])
def test_ridge_has_the_first_and_second_derivatives_of_finite_differences(s, d):
    x, y = normal(s, d).requires_grad_(), normal(s, 2, seed=1).requires_grad_()
    r = torch.tensor(0.3).double().requires_grad_()
    assert torch.autograd.gradcheck(ridge, (x, y, r))
    assert torch.autograd.gradgradcheck(ridge, (x, y, r))


@pytest.mark.parametrize(("s", "d"), [(4, 9), (20, 3)])
def test_ridge_vmapped_has_the_first_and_second_derivatives_of_a_loop(s, d):
    xs, y = normal(3, s, d), normal(s, 2, seed=1)

    def curvature(x: torch.Tensor) -> torch.Tensor:
        slope = grad(lambda x: (ridge(x, y, 0.3) ** 3).sum())
        return grad(lambda x: (slope(x) ** 2).sum())(x)

    def first_order(xs: torch.Tensor) -> torch.Tensor:  # autograd outside vmap, as in training
        leaf = xs.clone().requires_grad_()
        (gradient,) = torch.autograd.grad((vmap(lambda x: ridge(x, y, 0.3))(leaf) ** 3).sum(), leaf)
        return gradient

    torch.testing.assert_close(vmap(curvature)(xs), torch.stack([curvature(x) for x in xs]), rtol=1e-8, atol=EXACT)
    expected = torch.cat([first_order(x[None]) for x in xs])
    torch.testing.assert_close(first_order(xs), expected, rtol=EXACT, atol=EXACT)


# ---- the multi-class support vector machine ----


@pytest.mark.parametrize("sizes", SVMS.values(), ids=SVMS)
def test_the_svm_is_that_of_scikit_learn(sizes):
    svm = pytest.importorskip("sklearn.svm")
    s, n, d, bound = sizes
    x, onehot = data(s, n, d)
    reference = svm.LinearSVC(
        multi_class="crammer_singer", C=bound, fit_intercept=False, tol=1e-8, max_iter=100_000, random_state=0
    )
    reference.fit(x.numpy(), onehot.argmax(1).numpy())
    weights = x.T @ crammer_singer(x @ x.T, onehot, bound, 20)
    # its coordinate descent stops at violations of 1e-8
    torch.testing.assert_close(weights.T, torch.from_numpy(reference.coef_), rtol=0, atol=1e-6)


@pytest.mark.parametrize("sizes", SVMS.values(), ids=SVMS)
def test_the_svm_has_no_duality_gap(sizes):
    s, n, d, bound = sizes
    x, onehot = data(s, n, d)
    a = crammer_singer(x @ x.T, onehot, bound, 20)
    assert (a <= bound * onehot + 1e-12).all()  # feasible
    assert a.sum(1).abs().max() < 1e-12
    w = x.T @ a
    logits = x @ w
    slack = (logits + 1 - onehot - (logits * onehot).sum(1, keepdim=True)).amax(1)  # hinge losses
    primal = (w * w).sum() / 2 + bound * slack.sum()
    dual = (a * onehot).sum() - (a * (x @ w)).sum() / 2
    assert abs(primal - dual) < 1e-9 * primal  # steps end where b * s is 1e-16 of the bound


@pytest.mark.parametrize("sizes", SVMS.values(), ids=SVMS)
def test_the_gradient_of_the_svm_equals_finite_differences(sizes):
    s, n, d, bound = sizes
    x, onehot = data(s, n, d)
    target, direction, eps = normal(d, n, seed=2), normal(s, d, seed=3), 1e-6

    def loss(x: torch.Tensor) -> torch.Tensor:
        gram = x @ x.T + torch.eye(s).double()
        return (x.T @ crammer_singer(gram, onehot, bound, 25) * target).sum()

    slope = (loss(x + eps * direction) - loss(x - eps * direction)) / (2 * eps)
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(loss(leaf), leaf)
    # the solution itself is exact to 1e-13, which eps makes 1e-7; the truncation is eps^2
    assert abs(slope - (gradient * direction).sum()) < 1e-5 * gradient.norm() * direction.norm()


def test_the_svm_vmapped_equals_a_loop_with_its_gradient():
    xs, onehot = normal(3, 12, 8), data(12, 3, 8)[1]

    def weights(x: torch.Tensor) -> torch.Tensor:
        return x.T @ crammer_singer(x @ x.T + torch.eye(12).double(), onehot, 0.5, 20)

    def gradient(xs: torch.Tensor) -> torch.Tensor:
        leaf = xs.clone().requires_grad_()
        return torch.autograd.grad((vmap(weights)(leaf) ** 3).sum(), leaf)[0]

    torch.testing.assert_close(vmap(weights)(xs), torch.stack([weights(x) for x in xs]), rtol=EXACT, atol=EXACT)
    expected = torch.cat([gradient(x[None]) for x in xs])
    torch.testing.assert_close(gradient(xs), expected, rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("scale", [0.0, 1e-3, 1.0, 30.0])
def test_the_svm_in_float32_is_that_of_float64_for_features_of_any_size(scale):
    x, onehot = data(20, 5, 64)
    gram = scale**2 * x @ x.T + torch.eye(20).double()
    single = crammer_singer(gram.float(), onehot.float(), 0.1, 20).double()
    exact = crammer_singer(gram, onehot, 0.1, 40)
    assert (single - exact).norm() < 1e-3 * exact.norm()  # float32 has 1e-7; a condition of 1e5 leaves 1e-3
