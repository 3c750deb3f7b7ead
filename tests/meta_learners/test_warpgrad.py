"""WarpGrad against closed forms on a quadratic, a network with real warp layers, finite differences, and MAML.

float64; EXACT is for the same sums in another order, grown by a few steps.
"""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metarun.config.experiment import take_theta
from metarun.meta_learners.maml import MAML
from metarun.meta_learners.warpgrad import WarpGrad, warped
from metarun.objectives import CROSS_ENTROPY, SQUARED_ERROR
from metarun.trees import tree_map
from tests.helpers import BASES, meta_gradient, one_episode, relative_error
from tests.test_oracles import LinearModel, quadratic

EXACT = 1e-9


def built(base: str, steps: int) -> tuple[WarpGrad, dict]:
    torch.manual_seed(0)
    learner = WarpGrad(BASES[base]().double(), CROSS_ENTROPY, 0.3, steps)
    theta = learner.init()
    return learner, {**theta, "warp": tree_map(lambda t: t + 0.2 * torch.randn_like(t), theta["warp"])}


@pytest.mark.parametrize("steps", [1, 4])
def test_both_meta_gradients_on_a_quadratic_are_their_closed_forms(steps):
    problem, t, lr = quadratic(steps), 1.3, 0.1
    learner = WarpGrad(LinearModel(4).double(), SQUARED_ERROR, lr, steps)
    take_theta(learner)
    theta = {
        "base": {"head.weight": problem.theta[None]},
        "warp": {"head.weight": torch.tensor([[t]], dtype=torch.float64)},
    }
    (x, y, _), (query_x, query_y, _), _ = problem.episode
    hessian, eye = 2 / len(x) * x.T @ x, torch.eye(4).double()

    def gradient(v: Tensor) -> Tensor:
        return 2 / len(x) * x.T @ (x @ v - y[:, 0])

    def query_gradient(v: Tensor) -> Tensor:
        return 2 / len(query_x) * query_x.T @ (query_x @ v - query_y[:, 0])

    w, expected_warp = problem.theta, 0.0
    for _ in range(steps):  # the layer is v = t w, so a step is w <- w - lr t gradient(t w)
        ahead = w - lr * t * gradient(t * w)
        slope = ahead - lr * t * (gradient(t * w) + t * hessian @ w)  # d (t ahead) / d t, w fixed
        expected_warp += query_gradient(t * ahead) @ slope / steps
        w = ahead
    jacobian = t * torch.linalg.matrix_power(eye - lr * t * t * hessian, steps)
    actual = meta_gradient(learner, theta, problem.episode)
    assert relative_error(actual["base"]["head.weight"][0], jacobian.T @ query_gradient(t * w)) < EXACT
    assert relative_error(actual["warp"]["head.weight"], expected_warp.view(1, 1)) < EXACT


@pytest.mark.parametrize("base", ["mlp_transductive", "stride_support"])
def test_without_a_warp_theta_has_the_meta_gradient_of_maml(base):
    learner, theta = built(base, 3)
    theta["warp"] = tree_map(lambda t: torch.eye(len(t)).double(), theta["warp"])
    maml = MAML(learner.base_learner, CROSS_ENTROPY, 0.3, 3, False, "all", "sgd")
    expected = meta_gradient(maml, theta["base"], one_episode())
    assert relative_error(meta_gradient(learner, theta, one_episode())["base"], expected) < EXACT


def test_a_warped_convolution_is_the_convolution_and_then_one_of_a_single_pixel():
    torch.manual_seed(0)
    layer, warp = nn.Conv2d(2, 3, 3, padding=1).double(), torch.randn(3, 3).double()
    x = torch.randn(4, 2, 5, 5).double()
    own = dict(layer.named_parameters())
    expected = F.conv2d(F.conv2d(x, own["weight"], padding=1), warp[:, :, None, None]) + own["bias"].view(1, -1, 1, 1)
    actual = torch.func.functional_call(layer, warped(own, {"weight": warp}), (x,))
    assert relative_error(actual, expected) < EXACT


def test_the_warps_meta_gradient_is_the_slope_of_one_step_from_each_point_held_fixed():
    learner, theta = built("mlp_transductive", 3)
    support, query, _ = one_episode()
    points = [tree_map(torch.clone, w) for w in learner.unwarped(theta["base"], theta["warp"], support, 3)][:-1]
    direction = tree_map(torch.randn_like, theta["warp"])

    def objective(eps: float) -> Tensor:
        warp = {name: t + eps * direction[name] for name, t in theta["warp"].items()}
        ahead = replace(learner, inner_steps=1)
        losses = [ahead.query_loss(ahead.adapt({"base": w, "warp": warp}, support), query)[0] for w in points]
        return sum(losses) / len(losses)

    slope = (objective(1e-5) - objective(-1e-5)) / 2e-5
    gradient = meta_gradient(learner, theta, one_episode())["warp"]
    actual = sum((gradient[name] * direction[name]).sum() for name in gradient)
    torch.testing.assert_close(actual, slope, rtol=1e-6, atol=1e-8)  # central differences: eps^2 and rounding / eps


def test_a_base_learner_without_layers_is_refused():
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

    with pytest.raises(ValueError, match=r"Scale has no weight of two axes or more to warp; choose a base learner"):
        WarpGrad(Scale(), SQUARED_ERROR, 0.1, 1).init()
