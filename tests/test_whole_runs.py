"""Whole runs against a loop in plain PyTorch: gradients that are right do not make a trained theta that is right.

The loop is ``tests/plain.py``. Every base learner is found by its YAML; a new one is tried at its own size, unless SMALL
gives it another. With each learner it meets every optimizer and every execution; which of them together turns from row to
row, so that all pairs occur. (Without the gradients' layout of ``execution/update.py``, a fault that this file found, Adam
and AdamW fail on max-pooled Conv-4 and on ResNet-12.) float64; SAME is rounding (1e-16), which five steps of Adam and norms
over few values let grow. A gradient in a wrong order differs by 1e-3 after one step.
"""

import math
import tempfile
from contextlib import nullcontext
from functools import cache
from inspect import signature
from typing import Any

import pytest
import torch
from scipy.stats import t
from torch import Tensor
from torchvision import models
from torchvision.models.regnet import BlockParams, RegNet

from metarun.config.targets import locate
from metarun.trees import tree_flatten, tree_leaves
from tests import plain
from tests.composing import OUTSIDE, compose, options, train, unexamined
from tests.running import checkpoint, read

SAME = 1e-9
PREPARED = tempfile.TemporaryDirectory(prefix="metarun-")  # sentences
STEPS, TASKS, INNER_LR, INNER_STEPS = 5, 3, 0.1, 2
BUDGET = [f"steps={STEPS}", f"meta_batch_size={TASKS}", "log_every=2"]
HARDLY_SCORED = ["evaluation.every=5", "evaluation.num_val_tasks=2", "evaluation.num_tasks=2"]
WELL_SCORED = ["evaluation.every=3", "evaluation.num_val_tasks=4", "evaluation.num_tasks=7"]
LARGE = ("resnet12", "torchvision", "wrn_28_10")  # one inner step must do

SMALL: dict[str, dict[str, list[str]]] = {  # the rows of a base learner, each with the settings that make it small
    "conv4": {
        "max_pool": ["base_learner.channels=4", "base_learner.downsample=max_pool"],
        "stride": ["base_learner.channels=4", "base_learner.downsample=stride"],
    },
    "embedding_bag": {"": ["base_learner.width=5"]},
    "mlp": {"": ["base_learner.hidden=[8,6]"], "regression": ["base_learner.hidden=[8,6]", "task=sinusoid"]},
    "r2d2_conv": {"": ["base_learner.channels=[3,4,5,6]", "base_learner.dropout=0.2"]},
    "relation_conv": {"": ["base_learner.channels=3", "task.padding=6"]},
    "residual": {"": ["base_learner.hidden=4"]},
    "resnet12": {"": ["base_learner.channels=[3,4,5,6]", "base_learner.drop_block_steps=0"]},
    "text_cnn": {"": ["base_learner.width=5", "base_learner.filters=4"]},
    "torchvision": {"": ["base_learner.name=regnet_x_400mf", "task.padding=8"]},
    "transformer": {"": ["base_learner.width=4", "base_learner.layers=1", "base_learner.heads=2"]},
    "wrn_28_10": {"": ["base_learner.depth=10", "base_learner.width=1", "base_learner.dropout=0.3"]},
}
ROWS = [(base, row) for base in options("base_learner") for row in SMALL.get(base, {"": []})]
OPTIMIZERS = {
    "adam": ["optimizer=adam", "optimizer.lr=0.01", "clip_norm=0.5", "scheduler=step", "scheduler.step_size=2"],
    "adamw": ["optimizer=adamw", "optimizer.lr=0.01", "optimizer.weight_decay=0.1"],
    "momentum": [
        *("optimizer=sgd", "optimizer.lr=0.1", "optimizer.momentum=0.9", "optimizer.nesterov=true"),
        *("optimizer.weight_decay=0.01", "clip_value=0.05", "scheduler=cosine", "scheduler.T_max=5"),
    ],
}
EXECUTIONS = {
    "looped": ["execution=looped"],
    "vmapped": ["execution=vmapped"],
    "chunked": ["execution=vmapped", "execution.chunk=2"],
    "recomputed": ["execution=looped", "execution.inner_memory=recomputed"],
    "compiled": ["execution=vmapped", "execution.compile=true"],
}
VECTORS = ("residual", "weighted")
QUICK_TO_COMPILE = ("mlp", "linear")
FIRST_ALONE = 3.0  # multiple of the rate for the first part of theta, with adamw


@cache
def task_of(base: str) -> list[str]:
    """The overrides of a task that the base learner can read."""
    target = locate(compose(f"base_learner={base}").base_learner._target_)
    words = [f"task.path={OUTSIDE / 'requests.jsonl'}", f"data_root={PREPARED.name}"]
    words += ["task.num_shots=2", "task.num_queries=2"]
    if "num_tokens" in signature(target).parameters:
        return ["task=text_jsonl", *words, "task/features=tokens", "task.features.max_tokens=6"]
    return ["task=text_jsonl", *words, "task.features.num_buckets=30"] if base in VECTORS else ["task=prototypes"]


def learner_of(name: str, base: str) -> list[str]:
    """The overrides of the learner that is tried; a body for pairs of images has one learner alone."""
    if base == "relation_conv":
        return ["meta_learner=relationnet"]
    steps = [f"meta_learner.inner_lr={INNER_LR}", f"meta_learner.inner_steps={1 if base in LARGE else INNER_STEPS}"]
    return [f"meta_learner={name}", *(steps if name == "maml" else ["meta_learner.distance=euclidean"])]


@pytest.fixture(autouse=True)
def _tiny_regnet(monkeypatch):
    """torchvision's smallest RegNet in a size that none of its models has. None of its norms is followed by another, which
    would take its bias out again: Adam makes whole steps of the rounding noise that is then the bias's gradient."""
    parts = BlockParams.from_init_params(depth=3, w_0=8, w_a=8.0, w_m=2.0, group_width=4)
    monkeypatch.setattr(models, "get_model", lambda name, **_: RegNet(parts, num_classes=10, stem_width=4))


# ---- trained theta ----


@cache
def expected(overrides: tuple[str, ...]) -> Any:
    return plain.trained(list(overrides))[1]


def first_part(overrides: list[str]) -> str:
    """The part of theta that stands first, which ``rates`` can name."""
    return next(iter(plain.start(compose(*overrides))[1])).split(".", maxsplit=1)[0]


def assert_same(actual: Any, wanted: Any) -> None:
    assert tree_flatten(actual)[1] == tree_flatten(wanted)[1]
    for a, b in zip(tree_leaves(actual), tree_leaves(wanted), strict=True):
        torch.testing.assert_close(a, b, rtol=SAME, atol=SAME)


def cases(learner: str, executions: list[str], turn: int) -> list[tuple[str, str, str, str, str]]:
    """Each row with every execution and every optimizer, beginning with another optimizer in the next row."""
    kinds, found = list(OPTIMIZERS), []
    for number, (base, row) in enumerate(ROWS, turn):
        for i, execution in enumerate(executions):
            found.append((base, row, learner, kinds[(number + i + i // len(kinds)) % len(kinds)], execution))
    return found


MAML = cases("maml", ["looped", "vmapped", "chunked", "recomputed"], turn=0)
PROTONET = [
    case
    for case in cases("protonet", ["looped", "vmapped", "chunked"], turn=1)
    if case[0] not in ("linear", "relation_conv") and case[1] != "regression"
]
COMPILED = [(base, row, "maml", "adam", "compiled") for base, row in ROWS if base in QUICK_TO_COMPILE]


@pytest.mark.parametrize(("base", "row", "learner", "kind", "execution"), [*MAML, *PROTONET, *COMPILED])
def test_theta_after_five_steps_is_that_of_a_plain_loop(base, row, learner, kind, execution, tmp_path):
    made = [*task_of(base), f"base_learner={base}", *SMALL.get(base, {"": []})[row]]
    made += [*learner_of(learner, base), *BUDGET, *HARDLY_SCORED]
    made += OPTIMIZERS[kind]
    made += [f"+rates.{first_part(made)}={FIRST_ALONE}"] if kind == "adamw" else []
    with nullcontext() if execution == "looped" else unexamined():
        train(tmp_path / "run", *made, *EXECUTIONS[execution])
    last = checkpoint(tmp_path / "run", "last")
    assert last["step"] == STEPS
    assert_same(last["theta"], expected(tuple(made)))


# ---- a network of somebody else ----


def standardised(z: Tensor, groups: int) -> Tensor:
    """Rows z [S, D] by the mean and variance of each of so many groups of their numbers."""
    parts = z.view(len(z), groups, -1)
    centred = parts - parts.mean(-1, keepdim=True)
    return (centred / ((centred**2).mean(-1, keepdim=True) + 1e-5).sqrt()).view_as(z)


def shared_outputs(net: Any, theta: dict[str, Tensor], x: Tensor) -> Tensor:
    """What the network ``shared`` is, written out: of its own it has what is no part of theta."""

    def affine(name: str, z: Tensor) -> Tensor:
        return z * theta[f"{name}.weight"] + theta[f"{name}.bias"]

    weight = theta["one.weight"]
    z = torch.tanh((x.flatten(1) + net.offset) @ net.kept.weight.T + net.kept.bias)
    z = affine("norm", standardised(z, 1))
    z = torch.tanh(z @ weight.T + theta["one.bias"]) + torch.sin(z @ weight.T + theta["other.bias"])
    z = affine("groups", standardised(z, 2))
    z = torch.tanh(z @ weight.T + theta["one.bias"])
    return z @ theta["last.weight"].T + theta["last.bias"]


@pytest.mark.parametrize("execution", ["looped", "chunked"])
def test_shared_frozen_and_normalised_layers_are_trained_and_scored_as_written_out(execution, tmp_path, monkeypatch):
    overrides = ["base_learner=shared", "task=prototypes", *learner_of("maml", ""), *OPTIMIZERS["momentum"]]
    overrides += [*BUDGET, *WELL_SCORED, "evaluation.inner_steps=3"]
    with unexamined():
        train(tmp_path / "run", *overrides, *EXECUTIONS[execution])
    monkeypatch.setattr(plain, "functional_call", lambda net, theta, inputs: shared_outputs(net, theta, *inputs))
    x, theta = plain.trained(overrides)
    assert_same(checkpoint(tmp_path / "run", "last")["theta"], theta)
    scores = plain.scores(x, checkpoint(tmp_path / "run", "best")["theta"], 7)
    results = read(tmp_path / "run" / "results.json")
    for k in range(4):
        assert_estimate(results[f"test/accuracy_step_{k}"], scores[:, k])


# ---- scores ----

SCORED = {
    "maml": [*learner_of("maml", "conv4"), "base_learner=conv4", *SMALL["conv4"]["max_pool"], "task=prototypes"],
    "sinusoid": [*learner_of("maml", "mlp"), "base_learner.hidden=[8,6]", "task=sinusoid"],
    "protonet": ["meta_learner=protonet", "base_learner=conv4", *SMALL["conv4"]["max_pool"], "task=prototypes"],
    "running": [
        *("meta_learner=protonet", "base_learner=conv4", "base_learner.batch_norm=running", "task=prototypes"),
        *SMALL["conv4"]["max_pool"],
    ],
    "maml running": [
        *(*learner_of("maml", "conv4"), "base_learner=conv4", "base_learner.batch_norm=running", "task=prototypes"),
        *SMALL["conv4"]["max_pool"],
    ],
}


@pytest.mark.parametrize("execution", ["looped", "vmapped", "chunked"])
@pytest.mark.parametrize("name", SCORED)
def test_the_scores_of_the_final_test_are_those_of_a_plain_loop(name, execution, tmp_path):
    overrides = [*SCORED[name], *BUDGET, *WELL_SCORED]
    train(tmp_path / "run", *overrides, *EXECUTIONS[execution])
    x, _ = plain.start(compose(*overrides))
    theta = checkpoint(tmp_path / "run", "best")["theta"]
    results = read(tmp_path / "run" / "results.json")
    scores = plain.scores(x, theta, 7)
    key = "test/mse" if name == "sinusoid" else "test/accuracy"
    assert_estimate(results[key], scores[:, -1])
    if scores.shape[1] > 1:
        for k in range(scores.shape[1]):
            assert_estimate(results[f"{key}_step_{k}"], scores[:, k])


def assert_estimate(found: dict[str, float], values: Tensor) -> None:
    n = len(values)
    assert found["n"] == n
    assert found["mean"] == pytest.approx(values.mean().item(), abs=SAME)
    assert found["ci95"] == pytest.approx(t.ppf(0.975, n - 1) * values.std().item() / math.sqrt(n), abs=SAME)
