import numpy as np
import pytest
import torch

from metarun.counter import normal
from metarun.models.linear import Linear
from metarun.tasks.quadratics import Quadratics


def quadratics(**changed) -> Quadratics:
    arguments = {"num_dims": 10, "entries": "gaussian", "seed": 0}
    arguments |= {"device": torch.device("cpu"), "dtype": torch.float64}
    return Quadratics(**{**arguments, **changed})


def test_normals_are_those_of_box_and_muller():
    u = np.array([[0.0, 0.3, 0.75, 0.5]])
    radius = np.sqrt(-2 * np.log(0.25))
    np.testing.assert_allclose(normal(u), [[0, 0, -radius, 0]], rtol=0, atol=1e-15)


@pytest.mark.parametrize(("entries", "mean", "deviation"), [("gaussian", 0, 1), ("uniform", 0.5, 12**-0.5)])
def test_entries_of_w_and_y_have_their_laws_mean_and_deviation_and_no_correlation(entries, mean, deviation):
    (x, y, _), _, _ = quadratics(entries=entries).sample("test", range(2000))
    rows = torch.cat([x, y], -1).flatten(1)  # [B, 110]
    standard = (rows - mean) / deviation
    assert standard.mean().abs() < 5 / standard.numel() ** 0.5
    assert (standard.var() - 1).abs() < 5 * 2**0.5 / standard.numel() ** 0.5  # the deviation of a normal's variance
    correlation = torch.corrcoef(standard.T) - torch.eye(standard.shape[1])
    assert correlation.abs().max() < 6 / 2000**0.5  # of 6000 pairs


def test_the_loss_of_a_linear_base_learner_is_the_squared_distance_of_wz_and_y():
    task, net = quadratics(), Linear((10,), 1, 1.0).double()
    (x, y, _), query, _ = task.sample("train", [3])
    z = net.head.weight[0]
    expected = torch.linalg.vector_norm(x[0] @ z - y[0, :, 0]) ** 2
    torch.testing.assert_close(task.spec.objective.loss(net(x[0]), y[0]), expected)
    torch.testing.assert_close(task.spec.objective.score(net(x[0]), y[0]), expected.detach())
    assert torch.equal(query.x, x) and torch.equal(query.y, y)  # the same problem


def test_a_problem_is_the_same_alone_and_in_company_and_differs_by_split_and_seed():
    together = quadratics().sample("val", [3, 1]).support.x
    assert torch.equal(together[1], quadratics().sample("val", [1]).support.x[0])
    others = [quadratics().sample("test", [1]), quadratics(seed=1).sample("val", [1])]
    assert not any(torch.equal(together[1], other.support.x[0]) for other in others)


def test_a_linear_base_learner_begins_near_zero_and_takes_images_too():
    torch.manual_seed(0)
    net = Linear((1, 28, 28), 5, 0.01)
    assert net(torch.ones(3, 1, 28, 28)).shape == (3, 5)
    assert abs(net.head.weight.std().item() - 0.01) < 5 * 0.01 / (2 * 784 * 5) ** 0.5
    assert [name for name, _ in net.named_parameters()] == ["head.weight"]


def test_wrong_sizes_are_refused_with_the_rule():
    with pytest.raises(ValueError, match=r"task.num_dims is 0; use 1 or more"):
        quadratics(num_dims=0)
    with pytest.raises(ValueError, match=r"init_std is -1.0; use 0 to start at zero, or more"):
        Linear((10,), 1, -1.0)
