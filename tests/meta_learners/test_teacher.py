"""The teacher's weights and the meta-gradients of both networks, against plain autograd and MAML.

float64; EXACT is for the same sums in another order, grown by the inner steps.
"""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from metarun.core import Batch
from metarun.errors import ConfigError
from metarun.meta_learners.maml import MAML
from metarun.meta_learners.teacher import Teacher
from metarun.models.mlp import MLP
from metarun.objectives import CROSS_ENTROPY
from metarun.trees import tree_map
from tests.composing import OUTSIDE, experiment
from tests.helpers import BASES, IMAGE, INNER_LR, INNER_STEPS, WAYS, meta_gradient, moved, one_episode, relative_error

EXACT = 1e-8
MAX = 10.0


def built(guidance: float, base: str = "mlp") -> tuple[Teacher, dict]:
    torch.manual_seed(0)
    net, teacher = BASES[base]().double(), MLP(IMAGE, WAYS, [7], None, "torch").double()
    learner = Teacher(net, CROSS_ENTROPY, teacher, guidance, MAX, INNER_LR, INNER_STEPS)
    return moved(learner)


def plain_mlp(p: dict, x: torch.Tensor, layers: tuple[str, ...]) -> torch.Tensor:
    x = x.flatten(1)
    for name in layers:
        x = F.relu(F.linear(x, p[f"{name}.weight"], p[f"{name}.bias"]))
    return F.linear(x, p["head.weight"], p["head.bias"])


def test_the_meta_gradients_of_both_networks_are_those_of_a_plain_autograd_loop():
    learner, theta = built(2.0)
    (x, y, _), (query_x, query_y, _), _ = one_episode()
    theta = tree_map(lambda p: p.requires_grad_(), theta)
    says = plain_mlp(theta["teacher"], x, ("body.1",))[range(len(y)), y]
    weights = MAX / (1 + (MAX - 1) * torch.exp(-2.0 * says))
    phi = dict(theta["base"])
    for _ in range(INNER_STEPS):
        losses = F.cross_entropy(plain_mlp(phi, x, ("body.1", "body.3")), y, reduction="none")
        slopes = torch.autograd.grad((weights * losses).mean(), list(phi.values()), create_graph=True)
        phi = {name: p - INNER_LR * g for (name, p), g in zip(phi.items(), slopes, strict=True)}
    F.cross_entropy(plain_mlp(phi, query_x, ("body.1", "body.3")), query_y).backward()
    expected = tree_map(lambda p: p.grad, theta)
    actual = meta_gradient(learner, theta, one_episode())
    for part in ("teacher", "base"):
        assert relative_error(actual[part], expected[part]) < EXACT
    assert all(g.abs().max() > 0 for g in expected["teacher"].values())


@pytest.mark.parametrize("base", ["mlp", "stride_transductive"])
def test_without_guidance_it_is_maml_and_the_teacher_has_no_gradient(base):
    learner, theta = built(0.0, base)
    maml = MAML(learner.base_learner, CROSS_ENTROPY, INNER_LR, INNER_STEPS, False, "all", "sgd")
    actual = meta_gradient(learner, theta, one_episode())
    assert relative_error(actual["base"], meta_gradient(maml, theta["base"], one_episode())) < EXACT
    assert all(g.abs().max() == 0 for g in actual["teacher"].values())


def test_an_example_counts_one_where_the_teacher_says_nothing_and_at_most_max_weight():
    learner, theta = built(2.0)
    silent = {**theta, "teacher": tree_map(torch.zeros_like, theta["teacher"])}
    torch.testing.assert_close(learner.weights(silent, one_episode().support), torch.ones(6).double())
    loud = {**theta, "teacher": {**silent["teacher"], "head.bias": torch.tensor([-1e3, 1e3]).double()}}
    support = one_episode().support
    torch.testing.assert_close(learner.weights(loud, support), MAX * support.y.double())


def test_an_example_that_counts_nothing_teaches_nothing():
    learner, theta = built(2.0)
    theta["teacher"] = tree_map(torch.zeros_like, theta["teacher"])
    theta["teacher"]["head.bias"] = torch.tensor([0.0, -1e3]).double()  # examples of class 1 count 0
    support = one_episode().support
    elsewhere = Batch(torch.where((support.y == 1)[:, None, None, None], support.x + 1, support.x), support.y)
    phi, other = learner.adapt(theta, support), learner.adapt(theta, elsewhere)
    assert relative_error(other, phi) < EXACT


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"guidance": -1.0}, "guidance is -1.0; use 0 to do without the teacher"),
        ({"max_weight": 1.0}, "max_weight is 1.0, but an example counts 1 to begin with; use more than 1"),
    ],
)
def test_wrong_settings_are_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        replace(built(1.0)[0], **setting)


def test_a_task_without_classes_is_refused():
    with pytest.raises(ConfigError, match="Teacher classifies, but the task Sinusoid has no classes"):
        experiment("meta_learner=teacher", "task=sinusoid")


def test_training_with_another_number_of_classes_than_the_test_is_refused(tmp_path):
    words = ["task=text_jsonl", f"task.path={OUTSIDE / 'requests.jsonl'}", f"data_root={tmp_path}"]
    message = "task.train_num_ways is 6 and task.num_ways is 2, .* leave task.train_num_ways at null"
    with pytest.raises(ConfigError, match=message):
        experiment("meta_learner=teacher", *words, "task.num_ways=2", "task.train_num_ways=6")
