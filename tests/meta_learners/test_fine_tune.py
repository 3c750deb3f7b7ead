"""Fine-tuning against plain torch: ordinary training on everything, then torch.optim on a copy of the network.

float64; EXACT is for the same sums in another order, grown by a few steps.
"""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from metarun.core import Batch, Episode
from metarun.errors import ConfigError
from metarun.meta_learners.fine_tune import FineTune
from metarun.models.mlp import MLP
from metarun.objectives import CROSS_ENTROPY, SQUARED_ERROR
from tests.composing import experiment
from tests.helpers import BASES, IMAGE, WAYS, meta_gradient, one_episode, relative_error

EXACT = 1e-8
CLASSES, STEPS, LR = 5, 4, 0.3
CLASSIFIERS = pytest.mark.parametrize("base", ["mlp", "stride_transductive"])


def classifier(base: str, adapted: object = "all", optimizer: str = "sgd") -> tuple[FineTune, dict]:
    torch.manual_seed(0)
    learner = FineTune(BASES[base]().double(), CROSS_ENTROPY, WAYS, CLASSES, adapted, LR, STEPS, optimizer)
    return learner, learner.init()


def regressor() -> tuple[FineTune, dict, Episode]:
    torch.manual_seed(0)
    learner = FineTune(
        MLP((1,), 1, [6, 5], None, "torch").double(), SQUARED_ERROR, None, None, "all", 0.05, STEPS, "sgd"
    )
    support, query = (Batch(x, x.sin()) for x in (torch.randn(4, 1).double(), torch.randn(7, 1).double()))
    return learner, learner.init(), Episode(support, query)


def network(body: nn.Module, theta: dict) -> nn.Sequential:
    """A plain network with those weights."""
    body.load_state_dict(theta["body"], strict=False)
    head = nn.Linear(*reversed(theta["head"]["weight"].shape)).double()
    head.load_state_dict(theta["head"])
    return nn.Sequential(body, head)


def parameters(net: nn.Sequential) -> dict[str, dict]:
    return {name: {p: v.detach() for p, v in net[i].named_parameters()} for i, name in enumerate(("body", "head"))}


def gradients(net: nn.Sequential) -> dict[str, dict]:
    return {name: {p: v.grad for p, v in net[i].named_parameters()} for i, name in enumerate(("body", "head"))}


@CLASSIFIERS
def test_the_meta_gradient_is_that_of_plain_training_on_all_training_classes(base):
    learner, theta = classifier(base)
    episode = one_episode()._replace(classes=torch.tensor([4, 1]))  # label 0 is class 4 of 5, label 1 class 1
    net = network(BASES[base]().double().body, theta)
    y = torch.cat([episode.support.y, episode.query.y])
    F.cross_entropy(net(torch.cat([episode.support.x, episode.query.x])), torch.where(y == 0, 4, 1)).backward()
    actual = meta_gradient(learner, theta, episode)
    for part, expected in gradients(net).items():
        assert relative_error(actual[part], expected) < EXACT


def test_in_regression_the_meta_gradient_is_of_the_loss_on_every_point_of_the_task():
    learner, theta, episode = regressor()
    net = network(MLP((1,), 1, [6, 5], None, "torch").double().body, theta)
    points = torch.cat([episode.support.x, episode.query.x])
    ((net(points) - points.sin()) ** 2).mean().backward()
    actual = meta_gradient(learner, theta, episode)
    for part, expected in gradients(net).items():
        assert relative_error(actual[part], expected) < EXACT


@CLASSIFIERS
@pytest.mark.parametrize(
    ("name", "plain"), [("sgd", torch.optim.SGD), ("momentum", lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9))]
)
def test_a_task_takes_the_steps_of_torch_on_all_weights_and_a_new_head_of_zeros(base, name, plain):
    learner, theta = classifier(base, "all", name)
    support = one_episode().support
    features = theta["head"]["weight"].shape[1]
    zeros = {"weight": torch.zeros(WAYS, features).double(), "bias": torch.zeros(WAYS).double()}
    net = network(BASES[base]().double().body, {"body": theta["body"], "head": zeros})
    optimizer = plain(net.parameters(), lr=LR)
    for _ in range(STEPS):
        optimizer.zero_grad()
        F.cross_entropy(net(support.x), support.y).backward()
        optimizer.step()
    phi = learner.adapt(theta, support)
    for part, expected in parameters(net).items():
        assert relative_error(phi[part], expected) < EXACT


def test_in_regression_a_task_goes_on_from_the_trained_head():
    learner, theta, (support, query, _) = regressor()
    net = network(MLP((1,), 1, [6, 5], None, "torch").double().body, theta)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    for _ in range(STEPS):
        optimizer.zero_grad()
        ((net(support.x) - support.y) ** 2).mean().backward()
        optimizer.step()
    actual = learner.predict(learner.adapt(theta, support), query.x)
    torch.testing.assert_close(actual, net(query.x).detach(), rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize(("adapted", "moves"), [([], set()), (["9", "10"], {"9", "10"}), (["10.bias"], {"10.bias"})])
def test_only_the_named_parts_of_the_body_move_and_the_head_always_does(adapted, moves):
    learner, theta = classifier("stride_transductive", adapted)
    phi = learner.adapt(theta, one_episode().support)
    moved = {name for name, p in phi["body"].items() if not torch.equal(p, theta["body"][name])}
    expected = {name for name in theta["body"] if any(f"{name}.".startswith(f"{part}.") for part in moves)}
    # a convolution's bias is undone by the batch norm after it: its gradient is rounding, or exactly 0
    assert moved - {"9.bias"} == expected - {"9.bias"}
    assert phi["head"]["weight"].abs().max() > 0


def test_a_part_that_the_body_lacks_is_refused():
    with pytest.raises(ValueError, match=r"adapted names layer4, but the body has 1, 3. Name those, or use all"):
        classifier("mlp", ["3", "layer4"])


def test_a_head_that_cannot_be_replaced_is_refused():
    net = BASES["mlp"]().double()
    net.head = nn.Sequential(net.head)
    with pytest.raises(ValueError, match=r"a new linear head, but self.head is a Sequential"):
        FineTune(net, CROSS_ENTROPY, WAYS, CLASSES, "all", LR, STEPS, "sgd")


def test_tasks_whose_classes_are_no_fixed_set_are_refused_and_regression_is_not():
    with pytest.raises(ConfigError, match=r"the task has no fixed set of them. Choose a task that has"):
        experiment("meta_learner=fine_tune", "task=prototypes")
    assert experiment("meta_learner=fine_tune", "task=sinusoid").learner.num_train_classes is None


def test_a_new_task_may_have_more_ways_than_the_training_episodes():
    learner, theta = classifier("mlp")
    phi = replace(learner, num_ways=7).adapt(theta, one_episode().support)
    assert learner.predict(phi, torch.zeros(3, *IMAGE).double()).shape == (3, 7)
