"""MetaOptNet: its heads inside the learner; the solvers themselves are in tests/test_solvers.py. float64."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.func import functional_call

from metarun.meta_learners.metaoptnet import MetaOptNet
from metarun.objectives import CROSS_ENTROPY
from tests.helpers import BASES, WAYS, check_order_of_classes, check_slope, moved, one_episode

SETTINGS = (0.1, 25, 2.0)  # C, steps of the solver, regulariser of the ridge


def optimal(head: str, base: str):
    torch.manual_seed(0)
    learner = MetaOptNet(BASES[base]().double(), CROSS_ENTROPY, WAYS, head, *SETTINGS)
    return moved(learner)


def features(learner, theta, x):
    return functional_call(learner.base_learner.body, theta["embedding"], (x,)).detach().numpy()


@pytest.mark.parametrize("base", ["mlp", "stride_transductive"])
def test_the_svm_logits_are_those_of_the_quadratic_program_solved_by_scipy(base):
    optimize = pytest.importorskip("scipy.optimize")
    learner, theta = optimal("svm", base)
    support, query, _ = one_episode()
    z, y = features(learner, theta, support.x), np.eye(WAYS)[support.y.numpy()]
    gram = z @ z.T + np.eye(len(z))

    def objective(a):
        a = a.reshape(y.shape)
        return np.sum(a * (gram @ a)) / 2 - np.sum(a * y)

    found = optimize.minimize(
        objective,
        np.zeros(y.size),
        jac=lambda a: (gram @ a.reshape(y.shape) - y).ravel(),
        bounds=[(None, upper) for upper in (0.1 * y).ravel()],
        constraints={"type": "eq", "fun": lambda a: a.reshape(y.shape).sum(1), "jac": lambda _: sums(y.shape)},
        method="SLSQP",
        options={"ftol": 1e-15, "maxiter": 1000},
    )
    expected = theta["scale"].item() * features(learner, theta, query.x) @ z.T @ found.x.reshape(y.shape)
    logits = learner.predict(learner.adapt(theta, support), query.x)
    torch.testing.assert_close(logits, torch.from_numpy(expected), rtol=1e-6, atol=1e-6)  # SLSQP's own accuracy


def sums(shape):
    """The matrix that takes the entries of an array of that shape to the sums of its rows."""
    return np.kron(np.eye(shape[0]), np.ones((1, shape[1])))


def test_the_ridge_logits_are_those_of_the_normal_equations():
    learner, theta = optimal("ridge", "mlp")
    support, query, _ = one_episode()
    z, y = features(learner, theta, support.x), np.eye(WAYS)[support.y.numpy()]
    w = np.linalg.solve(z.T @ z + 2.0 * np.eye(z.shape[1]), z.T @ y)
    expected = theta["scale"].item() * features(learner, theta, query.x) @ w
    logits = learner.predict(learner.adapt(theta, support), query.x)
    torch.testing.assert_close(logits, torch.from_numpy(expected), rtol=1e-10, atol=1e-10)  # rounding


@pytest.mark.parametrize("base", ["mlp_support", "stride_transductive", "max_pool_transductive"])
@pytest.mark.parametrize("head", ["svm", "ridge"])
def test_meta_gradient_equals_finite_differences(head, base):
    check_slope(*optimal(head, base), one_episode())


@pytest.mark.parametrize("head", ["svm", "ridge"])
def test_permuting_the_class_labels_permutes_the_logits(head):
    check_order_of_classes(*optimal(head, "stride_transductive"), one_episode(), exact=1e-9)  # through the solver


@pytest.mark.parametrize("name", ["svm_bound", "solver_steps", "ridge_regulariser"])
def test_a_setting_of_zero_is_refused(name):
    learner, _ = optimal("svm", "mlp")
    with pytest.raises(ValueError, match=f"{name} is 0; it must be above 0"):
        replace(learner, **{name: 0})
