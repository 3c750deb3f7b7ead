"""Whole runs against a loop in plain PyTorch: gradients that are right do not make a trained theta that is right.

The loop below takes the network, its start and the episodes from metarun, and nothing else: autograd task by task, an
optimizer of torch that is not fused, clipping and schedules of torch. Every base learner is found by its YAML; one of
yours is tried at its own size, unless SMALL gives it another. float64; SAME is rounding (1e-16), which five steps of Adam
and norms over few values let grow. A gradient in a wrong order differs by 1e-3 after one step.
"""

import json
import math
import tempfile
from collections.abc import Callable
from functools import cache
from inspect import signature
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torchvision import models
from torchvision.models.regnet import BlockParams, RegNet

from metarun.models.dropout import dropping
from metarun.targets import locate
from metarun.trees import slice_tasks, tree_flatten, tree_leaves, tree_map, tree_unflatten
from tests.composing import OUTSIDE, compose, experiment, options, train
from tests.running import checkpoint

SAME = 1e-9
PREPARED = tempfile.TemporaryDirectory(prefix="metarun-")  # sentences
STEPS, TASKS, INNER_LR, INNER_STEPS = 5, 3, 0.1, 2
CALIBRATION_TASKS = 32
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
    "mlp": {"": ["base_learner.hidden=[8,6]"]},
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
QUICK_TO_COMPILE = ("mlp", "linear")
FIRST_ALONE = 3.0  # the multiple of the rate of the first part of theta, with adamw


def task_of(base: str) -> list[str]:
    """The overrides of a task that the base learner can read."""
    target = locate(compose(f"base_learner={base}").base_learner._target_)
    words = [f"task.path={OUTSIDE / 'requests.jsonl'}", f"data_root={PREPARED.name}"]
    words += ["task.num_shots=2", "task.num_queries=2"]
    if "num_tokens" in signature(target).parameters:
        return ["task=text_jsonl", *words, "task/features=tokens", "task.features.max_tokens=6"]
    return ["task=text_jsonl", *words, "task.features.num_buckets=30"] if base == "residual" else ["task=prototypes"]


def learner_of(name: str, base: str) -> list[str]:
    """The overrides of the learner that is tried; a body for pairs of images has one learner alone."""
    if base == "relation_conv":
        return ["meta_learner=relationnet"]
    steps = [f"meta_learner.inner_lr={INNER_LR}", f"meta_learner.inner_steps={1 if base in LARGE else INNER_STEPS}"]
    return [f"meta_learner={name}", *(steps if name == "maml" else [])]


class Start(NamedTuple):
    """What the loop takes from metarun: the objects of the run and theta_0."""

    x: Any
    theta: Any


def start(overrides: list[str]) -> Start:
    x = experiment(*overrides)
    return Start(x, tree_map(lambda p: p.detach().clone().contiguous(), x.learner.init()))


@pytest.fixture(autouse=True)
def _tiny_regnet(monkeypatch):
    """torchvision's smallest RegNet in a size that none of its models has. None of its norms is followed by another, which
    would take its bias out again: Adam makes whole steps of the rounding noise that is then the bias's gradient."""
    parts = BlockParams.from_init_params(depth=3, w_0=8, w_a=8.0, w_m=2.0, group_width=4)
    monkeypatch.setattr(models, "get_model", lambda name, **_: RegNet(parts, num_classes=10, stem_width=4))


# ---- the loop ----


def maml_outputs(learner: Any, theta: dict[str, Tensor], episode: Any) -> list[Tensor]:
    """Outputs for the query after 0 ... ``inner_steps`` inner steps."""
    net, support = learner.base_learner, episode.support
    loss = F.mse_loss if support.y.is_floating_point() else F.cross_entropy
    phi, outputs = dict(theta), [functional_call(net, theta, (episode.query.x,))]
    for _ in range(learner.inner_steps):
        inner = loss(functional_call(net, phi, (support.x,)), support.y)
        grads = torch.autograd.grad(inner, list(phi.values()), create_graph=True, allow_unused=True)
        phi = {name: p if g is None else p - INNER_LR * g for (name, p), g in zip(phi.items(), grads, strict=True)}
        outputs.append(functional_call(net, phi, (episode.query.x,)))
    return outputs


def protonet_outputs(learner: Any, theta: dict[str, Tensor], episode: Any) -> list[Tensor]:
    """Minus the squared distances of the queries to the class means."""
    body, (support, query, *_) = learner.base_learner.body, episode
    z = functional_call(body, theta, (support.x,))
    means = torch.stack([z[support.y == n].mean(0) for n in range(learner.num_ways)])
    return [-((functional_call(body, theta, (query.x,))[:, None] - means) ** 2).sum(-1)]


def task_loss(learner: Any, theta: Any, episode: Any) -> Tensor:
    kind = type(learner).__name__
    if kind == "RelationNet":  # its own oracles test its loss
        return learner.meta_loss(theta, episode)[0]
    outputs = (maml_outputs if kind == "MAML" else protonet_outputs)(learner, theta, episode)[-1]
    y = episode.query.y
    return F.mse_loss(outputs, y) if y.is_floating_point() else F.cross_entropy(outputs, y)


def optimizer_of(kind: str, leaves: list[Tensor], first: list[Tensor]) -> torch.optim.Optimizer:
    plain: dict[str, Any] = {"foreach": False, "fused": False}
    if kind == "adam":
        return torch.optim.Adam(leaves, lr=0.01, **plain)
    if kind == "adamw":
        others = [leaf for leaf in leaves if all(leaf is not other for other in first)]
        groups = [{"params": first, "lr": 0.01 * FIRST_ALONE}, {"params": others}]
        return torch.optim.AdamW([group for group in groups if group["params"]], lr=0.01, weight_decay=0.1, **plain)
    return torch.optim.SGD(leaves, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01, **plain)


def clip(kind: str, leaves: list[Tensor]) -> None:
    if kind == "adam":
        nn.utils.clip_grad_norm_(leaves, 0.5, foreach=False)
    if kind == "momentum":
        nn.utils.clip_grad_value_(leaves, 0.05, foreach=False)


def scheduler_of(kind: str, optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    if kind == "adam":
        return torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5).step
    if kind == "momentum":
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=5).step
    return lambda: None


def trained_plainly(start: Start, kind: str, first: str) -> Any:
    """theta after STEPS steps."""
    x, learner = start.x, start.x.learner
    theta = tree_map(lambda p: p.clone().requires_grad_(), start.theta)
    leaves, structure = tree_flatten(theta)
    optimizer = optimizer_of(kind, leaves, tree_leaves({n: p for n, p in theta.items() if part(n) == first}))
    schedule = scheduler_of(kind, optimizer)
    for step in range(STEPS):
        episodes = x.task.sample("train", range(step * TASKS, (step + 1) * TASKS))
        optimizer.zero_grad()
        with dropping([learner.base_learner], x.seed, step):
            for i in range(TASKS):
                (task_loss(learner, tree_unflatten(leaves, structure), slice_tasks(episodes, i)) / TASKS).backward()
        for leaf in leaves:
            leaf.grad = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad.contiguous()
        clip(kind, leaves)
        optimizer.step()
        schedule()
    return tree_map(torch.Tensor.detach, theta)


def part(name: str) -> str:
    return name.split(".", maxsplit=1)[0]


# ---- trained theta ----


@cache
def expected(overrides: tuple[str, ...], kind: str, first: str) -> Any:
    return trained_plainly(start(list(overrides)), kind, first)


def first_part(overrides: list[str]) -> str:
    """The part of theta that stands first, which ``rates`` can name."""
    return part(next(iter(start(overrides).theta)))


def assert_same(actual: Any, wanted: Any) -> None:
    assert tree_flatten(actual)[1] == tree_flatten(wanted)[1]
    for a, b in zip(tree_leaves(actual), tree_leaves(wanted), strict=True):
        torch.testing.assert_close(a, b, rtol=SAME, atol=SAME)


CASES = [
    (base, row, learner, kind, execution)
    for base, row in ROWS
    for learner in ("maml", "protonet")
    for kind in OPTIMIZERS
    for execution in EXECUTIONS
    if not (learner == "protonet" and (base in ("linear", "relation_conv") or execution == "recomputed"))
    and (execution != "compiled" or (base in QUICK_TO_COMPILE and kind == "adam" and learner == "maml"))
]


@pytest.mark.parametrize(("base", "row", "learner", "kind", "execution"), CASES)
def test_theta_after_five_steps_is_that_of_a_plain_loop(base, row, learner, kind, execution, tmp_path):
    made = [*task_of(base), f"base_learner={base}", *SMALL.get(base, {"": []})[row]]
    made += [*learner_of(learner, base), *BUDGET, *HARDLY_SCORED]
    first = first_part(made) if kind == "adamw" else ""
    rates = [f"+rates.{first}={FIRST_ALONE}"] if first else []
    train(tmp_path / "run", *made, *OPTIMIZERS[kind], *rates, *EXECUTIONS[execution])
    last = checkpoint(tmp_path / "run", "last")
    assert last["step"] == STEPS
    assert_same(last["theta"], expected(tuple(made), kind, first))


# ---- scores ----

SCORED = {
    "maml": [*learner_of("maml", "conv4"), "base_learner=conv4", *SMALL["conv4"]["max_pool"], "task=prototypes"],
    "sinusoid": [*learner_of("maml", "mlp"), "base_learner.hidden=[8,6]", "task=sinusoid"],
    "protonet": ["meta_learner=protonet", "base_learner=conv4", *SMALL["conv4"]["max_pool"], "task=prototypes"],
    "running": [
        *("meta_learner=protonet", "base_learner=conv4", "base_learner.batch_norm=running", "task=prototypes"),
        *SMALL["conv4"]["max_pool"],
    ],
}


def calibrate(learner: Any, theta: Any, task: Any) -> None:
    """Give norms in mode ``running`` the moments that the queries of the first training tasks have under theta: the mean
    over tasks, and the variance within tasks plus that of their means."""
    norms = [m for m in learner.base_learner.modules() if type(m).__name__ == "BatchNorm" and m.mode == "running"]
    seen: dict[int, list[tuple[Tensor, Tensor]]] = {id(m): [] for m in norms}
    for i in range(CALIBRATION_TASKS) if norms else ():
        episode = slice_tasks(task.sample("train", [i]), 0)
        hooks = [m.register_forward_pre_hook(lambda m, given: seen[id(m)].append(moments(given[0]))) for m in norms]
        functional_call(learner.base_learner.body, theta, (episode.query.x,))
        for hook in hooks:
            hook.remove()
    for m in norms:
        means, variances = map(torch.stack, zip(*seen[id(m)], strict=True))
        m.mean, m.var = means.mean(0), variances.mean(0) + means.var(0, unbiased=False)
    learner.base_learner.eval()


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of each channel of x [S, C, H, W]."""
    return x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)


@pytest.mark.parametrize("execution", ["looped", "vmapped", "chunked"])
@pytest.mark.parametrize("name", SCORED)
def test_the_scores_of_the_final_test_are_those_of_a_plain_loop(name, execution, tmp_path):
    overrides = [*SCORED[name], *BUDGET, *WELL_SCORED]
    train(tmp_path / "run", *overrides, *EXECUTIONS[execution])
    x, _ = start(overrides)
    theta = checkpoint(tmp_path / "run", "best")["theta"]
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    calibrate(x.learner, theta, x.task)
    rows = []
    for i in range(7):
        episode = slice_tasks(x.task.sample("test", [i]), 0)
        wanted = maml_outputs if name in ("maml", "sinusoid") else protonet_outputs
        theta = tree_map(lambda p: p.detach().requires_grad_(), theta)
        rows.append([score(outputs, episode.query.y) for outputs in wanted(x.test_learner, theta, episode)])
    scores = torch.tensor(rows, dtype=torch.float64)  # [episodes, steps]
    key = "test/mse" if name == "sinusoid" else "test/accuracy"
    assert_estimate(results[key], scores[:, -1])
    if scores.shape[1] > 1:
        for k in range(scores.shape[1]):
            assert_estimate(results[f"{key}_step_{k}"], scores[:, k])


def score(outputs: Tensor, y: Tensor) -> float:
    return (F.mse_loss(outputs, y) if y.is_floating_point() else (outputs.argmax(1) == y).double().mean()).item()


def assert_estimate(found: dict[str, float], values: Tensor) -> None:
    n = len(values)
    assert found["n"] == n
    assert found["mean"] == pytest.approx(values.mean().item(), abs=SAME)
    assert found["ci95"] == pytest.approx(1.96 * values.std().item() / math.sqrt(n), abs=SAME)
