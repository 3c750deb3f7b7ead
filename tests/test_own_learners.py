"""Learners and tasks of somebody else are tried before a run, as own networks are: mistakes are told with fix and line."""

import random
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.func import grad

from metarun.config.episodes_of import check_episodes
from metarun.config.networks import suited
from metarun.core import Batch, Episode, TaskDistribution, TaskSpec, parameters_of
from metarun.counter import uniform
from metarun.errors import ConfigError, place_of
from metarun.execution.execution import Auto, Looped
from metarun.inner.loops import repeat
from metarun.meta_learners.base import GradientLearner
from metarun.models.mlp import MLP
from metarun.objectives import CROSS_ENTROPY, SQUARED_ERROR
from metarun.tasks.sinusoid import Sinusoid
from metarun.trees import tree_map, zip_map
from tests.composing import built, compose

AUTO = Auto(None)
CALLS: list[int] = []


@dataclass(frozen=True)
class Steps(GradientLearner):
    """MAML, by one step; what derives from it makes a mistake."""

    inner_lr: float = 0.1
    inner_steps: int = 1

    def step(self, phi, support):
        return zip_map(lambda p, g: p - self.rate(phi, support) * g, phi, grad(self.support_loss)(phi, support))

    def rate(self, phi, support):
        return self.inner_lr

    def path(self, theta, support, steps):
        return repeat(self.step, theta, steps, support)


class ByItem(Steps):
    def rate(self, phi, support):
        return self.inner_lr / max(1.0, self.support_loss(phi, support).item())


class FusedNorm(Steps):
    def init(self):
        return {**parameters_of(self.base_learner), "norm": torch.ones(3)}

    def predict(self, phi, x):
        network = {name: p for name, p in phi.items() if name != "norm"}
        z = torch.cat([super().predict(network, x), x, x * x], 1)
        return F.layer_norm(z, (3,), phi["norm"])[:, :1]


class Detached(Steps):
    def query_loss(self, phi, query):
        loss, metrics = super().query_loss(phi, query)
        return loss.detach(), metrics


class WithoutGrad(Steps):
    def query_loss(self, phi, query):
        with torch.no_grad():
            return super().query_loss(phi, query)


class ByAutograd(Steps):
    def step(self, phi, support):
        gradients = torch.autograd.grad(self.support_loss(phi, support), list(phi.values()), create_graph=True)
        return {name: p - self.inner_lr * g for (name, p), g in zip(phi.items(), gradients, strict=True)}


class InPlace(Steps):
    def step(self, phi, support):
        for name, g in grad(self.support_loss)(phi, support).items():
            phi[name] -= self.inner_lr * g
        return phi


class Overwrites(Steps):
    def step(self, phi, support):
        for name, g in grad(self.support_loss)(phi, support).items():
            phi[name].data -= self.inner_lr * g.data
        return phi


class Counts(Steps):
    def rate(self, phi, support):
        CALLS.append(1)
        return self.inner_lr / len(CALLS)


class DrawsByPython(Steps):
    def rate(self, phi, support):
        return self.inner_lr * random.random()


class NumberAsMetric(Steps):
    def query_loss(self, phi, query):
        loss, metrics = super().query_loss(phi, query)
        return loss, {**metrics, "mine": 0.5}


class LossAlone(Steps):
    def query_loss(self, phi, query):
        return super().query_loss(phi, query)[0]


class VectorAsLoss(Steps):
    def query_loss(self, phi, query):
        loss, metrics = super().query_loss(phi, query)
        return loss * torch.ones(3), metrics


class WithoutScore(Steps):
    def query_loss(self, phi, query):
        loss, _ = super().query_loss(phi, query)
        return loss, {"query_loss": loss}


class WholeNumber(Steps):
    def init(self):
        return {**parameters_of(self.base_learner), "count": torch.tensor(3)}


REFUSED = {
    Detached: r"no meta-gradient through Detached: .*does not require grad.* leave out detach\(\)",
    WithoutGrad: r"no meta-gradient through WithoutGrad: .*torch.no_grad\(\)",
    ByAutograd: r"test_own_learners.py, line \d+\). In a learner take inner gradients by torch.func.grad",
    InPlace: r"in-place operation \(test_own_learners.py, line \d+\)",
    Overwrites: r"changes theta\.body.*theta: make new tensors of it",
    Counts: r"the meta-gradient of Counts is another each time .* off, relative",
    DrawsByPython: r"the meta-gradient of DrawsByPython is another each time .* Draw by torch",
    NumberAsMetric: r"query_loss must return a pair: .*; metric 'mine' is 0.5 \(float\)",
    LossAlone: r"query_loss must return a pair: .*; it returns a tensor of the shape \[\]",
    VectorAsLoss: r"query_loss must return a pair: .*; the loss is a tensor of the shape \[3\]",
    WithoutScore: r"the metrics of query_loss lack 'mse'",
    WholeNumber: r"its theta holds what is no fraction \(count\)",
}


def parts(kind: type[Steps]) -> tuple[Steps, Sinusoid]:
    x = built(compose("task=sinusoid", "base_learner=mlp", "base_learner.hidden=[5]"))
    torch.manual_seed(0)
    return kind(MLP((1,), 1, [5], None, "torch"), SQUARED_ERROR), x.task


def test_a_learner_without_mistakes_is_taken_as_it_is():
    learner, task = parts(Steps)
    assert suited(AUTO, learner, task, 3) == (AUTO, [])


@pytest.mark.parametrize("kind", [ByItem, FusedNorm])
def test_a_learner_that_vmap_gets_wrong_is_looped_with_the_reason_or_refused(kind):
    learner, task = parts(kind)
    execution, (note,) = suited(AUTO, learner, task, 3)
    assert execution == Looped() and f"looped, because {kind.__name__} cannot be vmapped" in note


@pytest.mark.parametrize("kind", REFUSED)
def test_a_mistake_in_a_learner_is_told_before_the_run_begins(kind):
    learner, task = parts(kind)
    with pytest.raises(ConfigError, match=f"(?s)meta_learner: .*{REFUSED[kind]}"):
        suited(AUTO, learner, task, 3)


def test_the_place_of_an_error_is_the_last_line_of_the_user():
    def mine() -> None:
        torch.zeros(2) @ torch.zeros(3)  # torch raises it

    with pytest.raises(RuntimeError) as caught:
        mine()
    assert place_of(caught.value) == f"test_own_learners.py, line {mine.__code__.co_firstlineno + 1}"
    with pytest.raises(ValueError) as caught:
        int("no number")
    caught.value.__traceback__ = None
    assert place_of(caught.value) == ""


# ---- tasks ----


class Lines(TaskDistribution):
    """Lines through 0; what derives from it makes a mistake."""

    spec = TaskSpec((1,), 1, SQUARED_ERROR)

    def draw(self, split, indices):
        u = uniform(0, split, np.asarray(indices), 6)
        return {"x": u[:, 1:, None], "y": u[:, :1, None] * u[:, 1:, None]}

    def episodes(self, draw):
        x, y = (torch.from_numpy(draw[name]).float() for name in ("x", "y"))
        return Episode(Batch(x[:, :2], self.targets(y[:, :2])), Batch(x[:, 2:], self.targets(y[:, 2:])))

    def targets(self, y):
        return y

    def fingerprint(self):
        return "lines"


class ByNumpy(Lines):
    def draw(self, split, indices):
        x = np.random.rand(len(indices), 5, 1)
        return {"x": x, "y": x}


class ByCompany(Lines):
    def draw(self, split, indices):
        x = np.random.default_rng(indices[0]).random((len(indices), 5, 1))
        return {"x": x, "y": x}


class Explodes(Lines):
    def draw(self, split, indices):
        raise KeyError("no line")


class Flat(Lines):
    def targets(self, y):
        return y[..., 0]


class NotFinite(Lines):
    def targets(self, y):
        return y / 0


class OtherShape(Lines):
    spec = TaskSpec((3,), 1, SQUARED_ERROR)


class WithoutTaskAxis(Lines):
    def episodes(self, draw):
        return tree_map(lambda v: v[0], super().episodes(draw))


class FloatLabels(Lines):
    spec = TaskSpec((1,), 2, CROSS_ENTROPY, 2, 2)

    def targets(self, y):
        return (y[..., 0] > 0.2).float()


class HighLabels(FloatLabels):
    def targets(self, y):
        return super().targets(y).long() + 1


REFUSED_TASKS = {
    ByNumpy: "split train: they are others each time they are drawn, or beside others",
    ByCompany: "split train: they are others each time",
    Explodes: r"split train: KeyError: 'no line' \(test_own_learners.py, line \d+\)",
    Flat: r"support.y of a task has the shape \[2\], but must have \[examples, 1\]",
    NotFinite: "support holds numbers that are not finite",
    OtherShape: r"support.x of a task has the shape \[2, 1\], but spec.input_shape is \[3\]",
    WithoutTaskAxis: "must lead with the task axis",
    FloatLabels: r"support.y of a task is float32 of the shape \[2\], but classes are int64",
    HighLabels: r"support.y has labels 1 to 2, but must have 0 to 1|support.y has labels 2 to 2",
}


def test_a_task_without_mistakes_is_taken_as_it_is():
    check_episodes(Lines())


@pytest.mark.parametrize("kind", REFUSED_TASKS)
def test_a_mistake_in_a_task_is_told_before_the_run_begins(kind):
    with pytest.raises(ConfigError, match=f"task: episodes of .*({REFUSED_TASKS[kind]})"):
        check_episodes(kind())
