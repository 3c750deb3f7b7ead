"""The meta-gradients are right: closed forms, finite differences, plain autograd loops and the ``higher`` library.

Everything is float64 on the CPU. EXACT is for two ways of computing the same number: rounding (1e-16) grows through a
few inner steps and through batch norms over six values, and 1e-8 leaves room for both while a wrong term shows at 1e-3.

The plain implementations below call nothing of metarun: torch.nn.functional, torch.autograd and dictionaries.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from metarun.config.experiment import take_theta
from metarun.core import Batch, Episode, FewShotLearner, surrogate
from metarun.evaluation.baselines import ClassMeans
from metarun.meta_learners.anil import ANIL
from metarun.meta_learners.cnp import CNP
from metarun.meta_learners.hypernetwork import Hypernetwork
from metarun.meta_learners.maml import MAML
from metarun.meta_learners.matchingnet import MatchingNet
from metarun.meta_learners.proto_maml import ProtoMAML
from metarun.meta_learners.protonet import ProtoNet
from metarun.meta_learners.relationnet import RelationNet
from metarun.meta_learners.reptile import Reptile
from metarun.objectives import CROSS_ENTROPY, SQUARED_ERROR, among
from metarun.trees import detach, tree_map
from tests.helpers import (
    BASES,
    IMAGE,
    INNER_LR,
    INNER_STEPS,
    SHOTS,
    WAYS,
    check_order_of_classes,
    check_slope,
    make,
    meta_gradient,
    one_episode,
    relative_error,
)

EXACT = 1e-8

# ---- a quadratic, where every meta-gradient has a closed form ----


class LinearModel(nn.Module):
    """x -> <theta, x>: the squared error is a quadratic in theta."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.body = nn.Identity()
        self.head = nn.Linear(features, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


@dataclass(frozen=True)
class Quadratic:
    """Support loss |Xw - y|^2 / S with Hessian H and minimum w*, and the query gradient g(w)."""

    episode: Episode
    theta: Tensor  # [D]
    steps: int
    lr: float = 0.1

    @property
    def jacobian(self) -> Tensor:
        """d phi / d theta = (I - lr H)^steps."""
        x = self.episode.support.x
        hessian = 2 / len(x) * x.T @ x
        return torch.linalg.matrix_power(torch.eye(len(self.theta)).to(x) - self.lr * hessian, self.steps)

    @property
    def phi(self) -> Tensor:
        """w* + (I - lr H)^steps (theta - w*)."""
        x, y = self.episode.support[:2]
        minimum = torch.linalg.solve(x.T @ x, x.T @ y[:, 0])
        return minimum + self.jacobian @ (self.theta - minimum)

    @property
    def query_gradient(self) -> Tensor:
        x, y = self.episode.query[:2]
        return 2 / len(x) * x.T @ (x @ self.phi - y[:, 0])


def quadratic(steps: int) -> Quadratic:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    episode = Episode(Batch(normal(6, 4), normal(6, 1)), Batch(normal(5, 4), normal(5, 1)))
    return Quadratic(episode, normal(4), steps)


def gradient_on(problem: Quadratic, learner: type, *settings: object) -> Tensor:
    built = learner(LinearModel(4).double(), SQUARED_ERROR, problem.lr, problem.steps, *settings)
    take_theta(built)
    return meta_gradient(built, {"head.weight": problem.theta[None]}, problem.episode)["head.weight"][0]


steps_of_a_quadratic = pytest.mark.parametrize("problem", [quadratic(1), quadratic(5)], ids=["1_step", "5_steps"])


@steps_of_a_quadratic
def test_maml_gradient_on_a_quadratic_is_the_jacobian_times_the_query_gradient(problem):
    expected = problem.jacobian.T @ problem.query_gradient
    assert relative_error(gradient_on(problem, MAML, False, "all", "sgd"), expected) < EXACT


@steps_of_a_quadratic
def test_first_order_maml_gradient_on_a_quadratic_is_the_query_gradient_at_phi(problem):
    assert relative_error(gradient_on(problem, MAML, True, "all", "sgd"), problem.query_gradient) < EXACT


@steps_of_a_quadratic
def test_reptile_gradient_on_a_quadratic_is_theta_minus_phi(problem):
    assert relative_error(gradient_on(problem, Reptile, None), problem.theta - problem.phi) < EXACT


@steps_of_a_quadratic
def test_anil_gradient_on_a_quadratic_is_the_jacobian_times_the_query_gradient(problem):
    expected = problem.jacobian.T @ problem.query_gradient
    assert relative_error(gradient_on(problem, ANIL), expected) < EXACT


# ---- plain implementations ----


def plain_norm(x: Tensor, weight: Tensor, bias: Tensor, reference: int) -> Tensor:
    """Normalise all rows by the statistics of the first ``reference`` rows."""
    if reference == len(x):
        return F.batch_norm(x, None, None, weight, bias, training=True, eps=1e-5)
    axes = [0, *range(2, x.dim())]
    var, mean = torch.var_mean(x[:reference], axes, correction=0, keepdim=True)
    column = (-1,) + (1,) * (x.dim() - 2)
    return (x - mean) / torch.sqrt(var + 1e-5) * weight.view(column) + bias.view(column)


def plain_features(base: str, p: dict[str, Tensor], x: Tensor, reference: int) -> Tensor:
    def part(i: int) -> tuple[Tensor, Tensor]:
        return p[f"body.{i}.weight"], p[f"body.{i}.bias"]

    if base == "mlp":
        return F.relu(F.linear(F.relu(F.linear(x.flatten(1), *part(1))), *part(3)))
    if base.startswith("mlp"):
        x = F.relu(plain_norm(F.linear(x.flatten(1), *part(1)), *part(2), reference))
        return F.relu(plain_norm(F.linear(x, *part(4)), *part(5), reference))
    if base.startswith("stride"):
        for i in (0, 3, 6, 9):
            x = F.relu(plain_norm(F.conv2d(x, *part(i), stride=2, padding=1), *part(i + 1), reference))
        return F.adaptive_avg_pool2d(x, 1).flatten(1)
    for i in (0, 4, 8, 12):
        x = F.relu(plain_norm(F.conv2d(x, *part(i), stride=1, padding=1), *part(i + 1), reference))
        x = F.max_pool2d(x, 2)
    return x.flatten(1)


def plain_outputs(base: str, p: dict[str, Tensor], x: Tensor, reference: int) -> Tensor:
    return F.linear(plain_features(base, p, x, reference), p["head.weight"], p["head.bias"])


def plain_query_outputs(base: str, p: dict[str, Tensor], episode: Episode) -> Tensor:
    """In mode ``support`` the queries follow the support set through the network, whose rows alone give statistics."""
    if not base.endswith("support"):
        return plain_outputs(base, p, episode.query.x, len(episode.query.x))
    num_support = len(episode.support.x)
    return plain_outputs(base, p, torch.cat([episode.support.x, episode.query.x]), num_support)[num_support:]


def leaves_of(theta: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: p.detach().clone().requires_grad_() for name, p in theta.items()}


def grads_of(loss: Tensor, p: dict[str, Tensor], **settings: bool) -> dict[str, Tensor]:
    grads = torch.autograd.grad(loss, list(p.values()), **settings)
    return dict(zip(p, grads, strict=True))


def plain_maml(base, theta, episode, adapted, steps=INNER_STEPS):
    start = leaves_of(theta)
    phi = dict(start)
    for _ in range(steps):
        inside = {name: p for name, p in phi.items() if adapted == "all" or name.startswith(adapted)}
        loss = F.cross_entropy(plain_outputs(base, phi, episode.support.x, len(episode.support.x)), episode.support.y)
        grads = grads_of(loss, inside, create_graph=True)
        phi.update({name: p - INNER_LR * grads[name] for name, p in inside.items()})
    return grads_of(F.cross_entropy(plain_query_outputs(base, phi, episode), episode.query.y), start)


def plain_sgd(base, theta, support, adapted="all"):
    """phi by torch.optim.SGD, without a graph."""
    phi = leaves_of(theta)
    optimizer = torch.optim.SGD([p for n, p in phi.items() if adapted == "all" or n.startswith(adapted)], INNER_LR)
    for _ in range(INNER_STEPS):
        optimizer.zero_grad()
        F.cross_entropy(plain_outputs(base, phi, support.x, len(support.x)), support.y).backward()
        optimizer.step()
    return detach(phi)


def plain_first_order_maml(base, theta, episode, adapted):
    phi = leaves_of(plain_sgd(base, theta, episode.support, adapted))
    return grads_of(F.cross_entropy(plain_query_outputs(base, phi, episode), episode.query.y), phi)


def plain_reptile(base, theta, episode):
    phi = plain_sgd(base, theta, episode.support)
    return {name: p - phi[name] for name, p in theta.items()}


def plain_protonet(base, theta, episode):
    p = leaves_of({f"body.{name}": p for name, p in theta.items()})
    num_support = len(episode.support.x)
    z = plain_features(base, p, episode.support.x, num_support)
    centres = torch.stack([z[episode.support.y == n].mean(0) for n in range(WAYS)])  # [N, D]
    if base.endswith("support"):
        queries = plain_features(base, p, torch.cat([episode.support.x, episode.query.x]), num_support)[num_support:]
    else:
        queries = plain_features(base, p, episode.query.x, len(episode.query.x))
    logits = -((queries[:, None] - centres) ** 2).sum(-1)
    grads = grads_of(F.cross_entropy(logits, episode.query.y), p)
    return {name.removeprefix("body."): g for name, g in grads.items()}


PLAIN = {
    "maml": lambda *args: plain_maml(*args, "all"),
    "maml_body": lambda *args: plain_maml(*args, "body"),
    "maml_head": lambda *args: plain_maml(*args, "head"),
    "fomaml": lambda *args: plain_first_order_maml(*args, "all"),
    "fomaml_head": lambda *args: plain_first_order_maml(*args, "head"),
    "anil": lambda *args: plain_maml(*args, "head"),
    "reptile": plain_reptile,
    "protonet": plain_protonet,
}


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("learner", PLAIN)
def test_meta_gradient_equals_a_plain_autograd_loop(learner, base):
    built, theta = make(learner, base)
    expected = PLAIN[learner](base, theta, one_episode())
    assert relative_error(meta_gradient(built, theta, one_episode()), expected) < EXACT


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("learner", ["maml", "anil", "protonet"])
def test_meta_gradient_equals_finite_differences(learner, base):
    built, theta = make(learner, base)
    check_slope(built, theta, one_episode())


# ---- MAML against the library ``higher`` ----


def torch_network(base: str) -> nn.Module:
    """The same network from torch.nn alone, with parameter names equal to metarun's."""
    if base == "mlp":
        body = [nn.Flatten(), nn.Linear(256, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU()]
        return nn.ModuleDict({"body": nn.Sequential(*body), "head": nn.Linear(6, WAYS)})
    strided = base.startswith("stride")
    layers: list[nn.Module] = []
    for fan_in in (1, 3, 3, 3):
        layers += [nn.Conv2d(fan_in, 3, 3, stride=2 if strided else 1, padding=1)]
        layers += [nn.BatchNorm2d(3, track_running_stats=False), nn.ReLU(), *([] if strided else [nn.MaxPool2d(2)])]
    return nn.ModuleDict({"body": nn.Sequential(*layers, nn.Flatten()), "head": nn.Linear(3, WAYS)})


@pytest.mark.parametrize("base", ["mlp", "stride_transductive", "max_pool_transductive"])
def test_maml_gradient_equals_the_higher_library(base):
    higher = pytest.importorskip("higher")
    built, theta = make("maml", base)
    parts = torch_network(base).double()
    parts.load_state_dict(theta)
    net = nn.Sequential(parts["body"], parts["head"])
    episode = one_episode()
    optimizer = torch.optim.SGD(net.parameters(), INNER_LR)
    with higher.innerloop_ctx(net, optimizer, copy_initial_weights=False) as (functional, differentiable):
        for _ in range(INNER_STEPS):
            differentiable.step(F.cross_entropy(functional(episode.support.x), episode.support.y))
        F.cross_entropy(functional(episode.query.x), episode.query.y).backward()
    expected = {name: p.grad for name, p in parts.named_parameters()}
    assert relative_error(meta_gradient(built, theta, episode), expected) < EXACT


# ---- ANIL and MAML with parts ----


@pytest.mark.parametrize("base", BASES)
def test_anil_equals_maml_that_adapts_the_head(base):
    anil, theta = make("anil", base)
    maml, _ = make("maml_head", base)
    expected = meta_gradient(maml, theta, one_episode())
    # the same sums in the same order but for the features, computed once instead of every step: rounding only
    assert relative_error(meta_gradient(anil, theta, one_episode()), expected) < 1e-12


@pytest.mark.parametrize(("learner", "kept"), [("maml_body", "head"), ("maml_head", "body"), ("anil", "body")])
def test_the_part_that_is_not_adapted_stays_as_it_was(learner, kept):
    built, theta = make(learner, "stride_transductive")
    phi = built.adapt(theta, one_episode().support)
    moved = {name.split(".")[0] for name, p in theta.items() if not torch.equal(phi[name], p)}
    assert moved == {"body", "head"} - {kept}


# ---- ProtoNet ----


def embed(learner, theta, x):
    return torch.func.functional_call(learner.base_learner.body, theta, (x,))


def test_protonet_logits_are_minus_squared_distances_to_the_class_means():
    built, theta = make("protonet", "stride_transductive")
    support, query, _ = one_episode()
    means = embed(built, theta, support.x).unflatten(0, (WAYS, SHOTS)).mean(1)  # helpers give classes in blocks
    distances = torch.cdist(embed(built, theta, query.x), means, compute_mode="donot_use_mm_for_euclid_dist")
    logits = built.predict(built.adapt(theta, support), query.x)
    # metarun expands the square, which cancels digits of |z|^2, about 1 here
    torch.testing.assert_close(logits, -(distances**2), rtol=1e-10, atol=1e-12)


def test_protonet_on_one_shot_gives_a_support_image_the_logit_zero_for_its_own_class():
    built, theta = make("protonet", "mlp")
    x = one_episode().support.x[[0, -1]]
    logits = built.predict(built.adapt(theta, Batch(x, torch.arange(WAYS))), x)
    torch.testing.assert_close(logits.diagonal(), torch.zeros(WAYS).double(), rtol=0, atol=1e-12)  # as above


def test_protonet_does_not_depend_on_the_order_of_the_support_set():
    built, theta = make("protonet", "stride_transductive")
    support, query, _ = one_episode()
    order = torch.randperm(WAYS * SHOTS, generator=torch.Generator().manual_seed(3))
    shuffled = built.predict(built.adapt(theta, Batch(support.x[order], support.y[order])), query.x)
    straight = built.predict(built.adapt(theta, support), query.x)
    torch.testing.assert_close(shuffled, straight, rtol=1e-10, atol=1e-12)  # sums in another order


def test_permuting_the_class_labels_permutes_the_outputs_of_protonet():
    check_order_of_classes(*make("protonet", "stride_transductive"), one_episode(), atol=1e-12)


# ---- identities of every learner ----


@pytest.mark.parametrize("base", ["mlp", "stride_support"])
@pytest.mark.parametrize("learner", ["maml", "fomaml", "maml_head", "anil", "reptile"])
def test_step_k_of_a_trajectory_is_the_adaptation_of_k_steps(learner, base):
    built, theta = make(learner, base)
    support = one_episode().support
    trajectory = list(built.trajectory(theta, support, 4))
    assert len(trajectory) == 5
    for k, phi in enumerate(trajectory):
        expected = replace(built, inner_steps=k).adapt(theta, support)
        assert phi.keys() == expected.keys()
        assert all(torch.equal(phi[name], p) for name, p in expected.items())  # the same operations: bitwise


@pytest.mark.parametrize("base", ["mlp", "stride_support"])
@pytest.mark.parametrize("learner", ["maml", "fomaml", "anil", "reptile"])
def test_no_inner_step_means_no_adaptation(learner, base):
    built, theta = make(learner, base)
    [phi] = built.trajectory(theta, one_episode().support, 0)
    assert all(torch.equal(phi[name], p) for name, p in theta.items())


def test_the_gradient_of_the_surrogate_is_the_given_gradient():
    theta = {"a": torch.randn(3, 2).double().requires_grad_(), "b": torch.randn(()).double().requires_grad_()}
    g = {"a": torch.randn(3, 2).double(), "b": torch.randn(()).double().requires_grad_()}
    grads = torch.autograd.grad(surrogate(theta, g), list(theta.values()))
    assert all(torch.equal(actual, expected) for actual, expected in zip(grads, g.values(), strict=True))


@pytest.mark.parametrize("learner", PLAIN)
def test_reported_query_loss_is_the_loss_of_the_adapted_learner(learner):
    built, theta = make(learner, "stride_support")
    episode = one_episode()
    _, metrics = built.meta_loss(theta, episode)
    logits = built.predict(built.adapt(theta, episode.support), episode.query.x)
    expected = F.cross_entropy(logits, episode.query.y)
    torch.testing.assert_close(metrics["query_loss"], expected, rtol=1e-12, atol=0)  # rounding


# ---- reptile's minibatches ----


@pytest.mark.parametrize("steps", [1, 3, 5])
def test_reptile_steps_through_minibatches_that_together_are_the_support_set(steps):
    built, theta = make("reptile", "mlp")
    built = replace(built, inner_batch_size=2, inner_steps=steps)  # S = 6: three minibatches, each of both classes
    episode = one_episode()
    weights = {name: p.clone().requires_grad_() for name, p in theta.items()}
    for k in range(steps):
        rows = [k % 3, k % 3 + 3]
        loss = F.cross_entropy(
            functional_call(built.base_learner, weights, (episode.support.x[rows],)), rows_of(episode, rows)
        )
        gradient = torch.autograd.grad(loss, list(weights.values()))
        weights = {
            name: (p - INNER_LR * g).detach().requires_grad_()
            for (name, p), g in zip(weights.items(), gradient, strict=True)
        }
    expected = {name: theta[name] - p.detach() for name, p in weights.items()}
    assert relative_error(meta_gradient(built, theta, episode), expected) < 1e-10


def rows_of(episode, rows):
    y = episode.support.y[rows]
    assert set(y.tolist()) == {0, 1}
    return y


# ---- a class without support examples ----

COMPARING: dict[str, Callable[[nn.Module, int], FewShotLearner]] = {
    "protonet": lambda net, ways: ProtoNet(net, CROSS_ENTROPY, ways, "euclidean"),
    "protonet_cosine": lambda net, ways: ProtoNet(net, CROSS_ENTROPY, ways, "cosine"),
    "proto_maml": lambda net, ways: ProtoMAML(net, CROSS_ENTROPY, ways, 0.1, 3, False),
    "proto_maml_first_order": lambda net, ways: ProtoMAML(net, CROSS_ENTROPY, ways, 0.1, 3, True),
    "matchingnet": lambda net, ways: MatchingNet(net, CROSS_ENTROPY, ways, IMAGE, 0),
    "relationnet": lambda net, ways: RelationNet(net, CROSS_ENTROPY, ways, IMAGE, 8),
    "hypernetwork": lambda net, ways: Hypernetwork(net, CROSS_ENTROPY, IMAGE, ways, ways, "head", 5, 2, 1),
    "cnp": lambda net, ways: CNP(net, CROSS_ENTROPY, IMAGE, ways, ways, "mean", 8, 2, 1),
    "cnp_attention": lambda net, ways: CNP(net, CROSS_ENTROPY, IMAGE, ways, ways, "attention", 8, 2, 1),
}


@pytest.mark.parametrize("name", COMPARING)
def test_a_class_that_the_support_lacks_changes_nothing_and_never_wins(name):
    torch.manual_seed(0)
    learner = COMPARING[name](BASES["mlp"]().double(), WAYS)
    theta = tree_map(lambda p: p + 0.1 * torch.randn_like(p), learner.init())
    (x, y, _), query, _ = one_episode()
    more = replace(learner, num_ways=4, **({"num_outputs": 4} if hasattr(learner, "num_outputs") else {}))
    support, places = Batch(x, 1 + 2 * y), torch.tensor([1, 3])  # 0 and 2 are absent
    far = torch.cat([query.x, 100 * query.x])
    few, many = (
        one.probabilities(one.adapt(theta, own), far) for one, own in ((learner, Batch(x, y)), (more, support))
    )
    torch.testing.assert_close(many[:, places], few, rtol=1e-9, atol=1e-9)
    assert many.isfinite().all() and many[:, ::2].max() < 1e-9
    episode = Episode(support, Batch(query.x, 1 + 2 * query.y))
    share = 0.5 if name == "relationnet" else 1.0  # its loss is a mean over the classes
    expected = tree_map(lambda g: share * g, meta_gradient(learner, theta, one_episode()))
    assert relative_error(meta_gradient(more, theta, episode), expected) < EXACT


def test_the_nearest_class_mean_is_never_that_of_a_class_without_examples():
    (x, y, _), query, _ = one_episode()
    few, many = ClassMeans(CROSS_ENTROPY, WAYS), ClassMeans(CROSS_ENTROPY, 4)
    expected = few.predict(few.adapt({}, Batch(x, y)), query.x)
    found = many.predict(many.adapt({}, Batch(x, 1 + 2 * y)), query.x)
    torch.testing.assert_close(found[:, 1::2], expected)
    assert (found.argmax(1) == 1 + 2 * expected.argmax(1)).all()


@pytest.mark.parametrize("size", [1.0, 1e4, 1e12])
def test_absent_classes_are_below_all_others_whatever_the_size_of_the_logits(size):
    logits = size * torch.tensor([[3.0, -1.0, 2.0], [1.0, 1.0, -5.0], [-3.0, -3.0, -3.0]])
    found = among(torch.tensor([False, True, False]), logits)
    assert (found[:, 1] == logits[:, 1]).all() and (found.argmax(1) == 1).all()
