"""Meta-Curvature against Kronecker products, a closed form on a quadratic, plain autograd and MAML.

float64; EXACT is for the same sums in another order, grown by a few steps.
"""

import pytest
import torch
from torch.func import functional_call

from metarun.meta_learners.maml import MAML
from metarun.meta_learners.meta_curvature import MetaCurvature, curved, identities
from metarun.objectives import CROSS_ENTROPY, SQUARED_ERROR
from metarun.trees import tree_leaves, tree_map
from tests.helpers import BASES, meta_gradient, one_episode, relative_error
from tests.test_oracles import LinearModel, quadratic

EXACT = 1e-9


def moved_off_the_identity(theta: dict) -> dict:
    return {**theta, "curvature": tree_map(lambda m: m + 0.2 * torch.randn_like(m), theta["curvature"])}


@pytest.mark.parametrize("shape", [(3,), (3, 4), (3, 4, 2, 2)])
def test_the_matrices_act_on_a_gradient_as_their_kronecker_product(shape):
    torch.manual_seed(0)
    gradient = torch.randn(shape).double()
    matrices = tree_map(torch.randn_like, identities(gradient))
    product = torch.eye(1).double()
    for matrix in matrices.values():
        product = torch.kron(product, matrix)
    expected = (product @ gradient.flatten()).view(shape)
    assert relative_error(curved(gradient, matrices), expected) < EXACT


@pytest.mark.parametrize("base", ["mlp_transductive", "stride_support"])
def test_at_the_start_it_is_maml(base):
    torch.manual_seed(0)
    net = BASES[base]().double()
    curvature, maml = MetaCurvature(net, CROSS_ENTROPY, 0.3, 3), MAML(net, CROSS_ENTROPY, 0.3, 3, False, "all", "sgd")
    theta = curvature.init()
    actual = meta_gradient(curvature, theta, one_episode())["base"]
    assert relative_error(actual, meta_gradient(maml, theta["base"], one_episode())) < EXACT


@pytest.mark.parametrize("steps", [1, 5])
def test_on_a_quadratic_thetas_meta_gradient_is_by_the_preconditioned_jacobian(steps):
    problem = quadratic(steps)
    torch.manual_seed(0)
    learner = MetaCurvature(LinearModel(4).double(), SQUARED_ERROR, problem.lr, steps)
    theta = moved_off_the_identity(learner.init()) | {"base": {"head.weight": problem.theta[None]}}
    m = theta["curvature"]["head.weight"]["input"] * theta["curvature"]["head.weight"]["output"]
    (x, y, _), (query_x, query_y, _), _ = problem.episode
    hessian = 2 / len(x) * x.T @ x
    jacobian = torch.linalg.matrix_power(torch.eye(4).double() - problem.lr * m @ hessian, steps)
    minimum = torch.linalg.solve(x.T @ x, x.T @ y[:, 0])
    phi = minimum + jacobian @ (problem.theta - minimum)
    expected = jacobian.T @ (2 / len(query_x) * query_x.T @ (query_x @ phi - query_y[:, 0]))
    assert relative_error(meta_gradient(learner, theta, problem.episode)["base"]["head.weight"][0], expected) < EXACT


@pytest.mark.parametrize("base", ["mlp_transductive", "stride_transductive"])
def test_the_meta_gradient_is_that_of_a_plain_loop(base):
    torch.manual_seed(0)
    net = BASES[base]().double()
    learner = MetaCurvature(net, CROSS_ENTROPY, 0.3, 3)
    theta = moved_off_the_identity(learner.init())
    leaves = tree_map(lambda p: p.clone().requires_grad_(), theta)
    (x, y, _), (query_x, query_y, _), _ = one_episode()
    phi = dict(leaves["base"])
    for _ in range(3):
        loss = torch.nn.functional.cross_entropy(functional_call(net, phi, (x,)), y)
        gradients = torch.autograd.grad(loss, list(phi.values()), create_graph=True)
        for (name, p), g in zip(list(phi.items()), gradients, strict=True):
            m = list(leaves["curvature"][name].values())
            subscripts = {1: "aA,A->a", 2: "aA,bB,AB->ab", 3: "aA,bB,cC,ABC->abc"}[len(m)]
            phi[name] = p - 0.3 * torch.einsum(subscripts, *m, g.flatten(2) if g.dim() > 2 else g).view_as(p)
    loss = torch.nn.functional.cross_entropy(functional_call(net, phi, (query_x,)), query_y)
    expected = torch.autograd.grad(loss, tree_leaves(leaves))
    assert relative_error(tree_leaves(meta_gradient(learner, theta, one_episode())), expected) < EXACT
