"""What every meta-learner must do: each YAML in configs/meta_learner is found and tried on each task and base learner.

float64 on the CPU. SAME is for the same sums in another order: rounding (1e-16), grown by inner steps and by batch
norms over few values; a wrong term or a leak between tasks shows at 1e-3. What metarun refuses to build is skipped, and
one test sees to it that no learner is refused everywhere.
"""

import random
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, cached_property
from inspect import signature
from unittest import mock

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn

from metarun.config.compose import composed as by_hydra
from metarun.config.experiment import Experiment
from metarun.config.targets import locate
from metarun.core import Episode, FewShotLearner, MetaLearner, Params, hyperparameters
from metarun.errors import ConfigError
from metarun.evaluation.eval_mode import eval_mode, modules_of
from metarun.evaluation.scoring import Subject, evaluate
from metarun.execution.execution import Looped, Vmapped
from metarun.models.exact.layers import BatchNormMode
from metarun.models.norm_state import norms
from metarun.output import checkpoint
from metarun.output.paired import higher_is_better
from metarun.paths import config_dir
from metarun.trees import num_elements, slice_tasks, tree_flatten, tree_leaves, tree_map
from tests import plain
from tests.composing import CHEAP, OUTSIDE, compose, experiment, last_of_each, options, train, unexamined
from tests.helpers import relative_error
from tests.running import identical, metarun

DATA_ROOT = tempfile.TemporaryDirectory(prefix="metarun-")  # what is prepared from the sentences
SAME = 1e-10
NUM_TASKS = 3
CPU = torch.device("cpu")

MODES: tuple[BatchNormMode, ...] = ("transductive", "running", "support")
MLPS = {
    f"mlp_{mode}": ["base_learner=mlp", "base_learner.hidden=[8,6]", f"base_learner.batch_norm={mode}"]
    for mode in ("null", *MODES)
}
CONVS = {
    f"{down}_{mode}": [
        "base_learner=conv4",
        "base_learner.channels=3",
        f"base_learner.downsample={down}",
        f"base_learner.batch_norm={mode}",
    ]
    for down in ("stride", "max_pool")
    for mode in MODES
}
WORDS = ["task=text_jsonl", f"task.path={OUTSIDE / 'requests.jsonl'}", f"data_root={DATA_ROOT.name}"]
WORDS += ["task.num_shots=2", "task.num_queries=2"]
TASKS = {
    "sinusoid": ["task=sinusoid", "task.num_queries=4", "task.train_num_queries=4"],
    "classes": ["task=prototypes", "task.num_classes=7"],  # for learners that need a fixed set of training classes
    "images": ["task=prototypes"],
    "words": [*WORDS, "task/features=tokens", "task.features.max_tokens=6", "task.features.unknown_buckets=10"],
    "sentences": [*WORDS, "task.features.num_buckets=30"],
}
TEXTS = {
    "transformer": [
        *("base_learner=transformer", "base_learner.width=4"),
        *("base_learner.layers=1", "base_learner.heads=2"),
    ],
    "residual": ["base_learner=residual", "base_learner.hidden=4"],
}
BASES = MLPS | CONVS | TEXTS
SIZES = {  # where a learner's own are made to train well, and not to be exact in a second
    "anp": ["width=8", "latent_width=8", "heads=2", "encoder_layers=2", "samples=3"],
    "baseline": ["inner_steps=4"],
    "baseline_plus_plus": ["inner_steps=4"],
    "convcnp": ["channels=4", "levels=2", "points_per_unit=16"],
    "fine_tune": ["inner_steps=4"],
    "imaml": ["inner_steps=3", "cg_steps=3"],
    "in_context": ["width=8", "depth=2", "heads=2"],
    "learned_optimizer": ["inner_steps=3", "network.hidden_size=5"],
    "pfn": ["width=8", "layers=2", "heads=2", "feedforward=8", "cells=4"],
    "snail": ["attention=[[4,4],[4,4],[4,4]]", "filters=4"],
    "tnp": ["width=8", "depth=2", "heads=2", "feedforward=8", "embedder_layers=2"],
}


def words_of(learner: str, task: str, base: str) -> list[str]:
    """What the command line says of a case."""
    sizes = [f"meta_learner.{size}" for size in SIZES.get(learner, [])]
    return [f"meta_learner={learner}", *sizes, *TASKS[task], *BASES[base]]


IMAGES = ["mlp_null", "stride_transductive", "stride_running", "max_pool_support"]  # each layer and each mode
CASES = [
    ("sinusoid", "mlp_null"),
    ("sinusoid", "mlp_support"),
    *[(t, b) for t in ("classes", "images") for b in IMAGES],
    ("words", "transformer"),  # the other networks of words have their second-order gradients tested by themselves
    ("sentences", "residual"),
]


def needs_classes(learner: str) -> bool:
    """Whether the learner asks for the number of training classes: it is tried on the task that has one, and only there."""
    text = (config_dir() / "meta_learner" / f"{learner}.yaml").read_text()  # composing all takes seconds
    node = yaml.safe_load(text) if "_target_" in text else compose(f"meta_learner={learner}").meta_learner
    return "num_train_classes" in signature(locate(node["_target_"])).parameters


def cases_of(learner: str) -> list[tuple[str, str, str]]:
    other = "images" if needs_classes(learner) else "classes"
    return [(learner, task, base) for task, base in CASES if task != other]


@dataclass(frozen=True)
class Case:
    """A learner on a task with a base learner, and what several tests need of it: computed once, and read only."""

    x: Experiment
    theta: Params
    episodes: Episode

    @property
    def learner(self) -> MetaLearner:
        return self.x.learner

    @cached_property
    def by_loop(self) -> tuple[Params, dict]:
        """The mean meta-gradient and metrics, one task after the other."""
        return Looped().mean_grad(self.learner.meta_loss, self.theta, self.episodes)

    @cached_property
    def phi(self) -> Params:
        """The parameters that are adapted to the first task."""
        return self.learner.adapt(self.theta, slice_tasks(self.episodes, 0).support)


@cache
def built(learner: str, task: str, base: str) -> Experiment | ConfigError:
    try:
        return experiment(*words_of(learner, task, base))
    except ConfigError as refusal:
        return refusal


@pytest.fixture(
    scope="module",  # what is found out of a case is then shared by all tests of it, which pytest runs one after the other
    params=[case for learner in options("meta_learner") for case in cases_of(learner)],
    ids="-".join,
)
def case(request: pytest.FixtureRequest) -> Case:
    learner, task, base = request.param
    if task == "classes" and isinstance(built(learner, "images", base), Experiment):
        pytest.skip("nothing new: it needs no training classes")
    x = built(learner, task, base)
    if isinstance(x, ConfigError):
        assert all(problem.startswith("meta_learner:") for problem in x.problems), x  # a refusal, not a mistake
        pytest.skip(f"{learner} refuses: {x.problems[0]}")
    torch.manual_seed(1)
    theta = tree_map(lambda p: p + 0.1 * torch.randn_like(p), x.theta_0)  # away from ones and zeros
    return Case(x, theta, x.task.sample("train", range(NUM_TASKS)))


@pytest.fixture(params=options("meta_learner"))
def learner(request: pytest.FixtureRequest) -> str:
    return request.param


def test_what_tests_compose_in_parts_is_what_hydra_composes():
    for i, learner in enumerate(options("meta_learner")):  # every case comes four times
        more = ["optimizer=adamw", "scheduler=cosine", "+rates.head=2"] if i % 4 else []
        words = last_of_each(*CHEAP, *words_of(learner, *CASES[i % len(CASES)]), *more)
        assert compose(*words) == by_hydra(words, [OUTSIDE])


BODY_ALONE = {"matchingnet", "proto_maml", "protonet"}  # all that they learn


@pytest.mark.parametrize("task", ["classes", "sinusoid"])
def test_a_body_without_parameters_will_do_where_something_else_is_learned(learner, task):
    try:
        x = experiment(f"meta_learner={learner}", *TASKS[task], "base_learner=linear")
    except ConfigError as refusal:
        assert all(problem.startswith("meta_learner:") for problem in refusal.problems), refusal
        assert ("no parameters: there is nothing to train" in str(refusal)) == (
            learner in BODY_ALONE and task == "classes"
        )
        return
    gradient, _ = Looped().mean_grad(x.learner.at(0).meta_loss, x.theta_0, x.task.sample("train", range(1)))
    assert tree_leaves(gradient) and all(leaf.dtype == torch.float64 for leaf in tree_leaves(gradient))


def assert_same(actual: object, expected: object) -> None:
    assert tree_flatten(actual)[1] == tree_flatten(expected)[1]
    for a, b in zip(tree_leaves(actual), tree_leaves(expected), strict=True):
        torch.testing.assert_close(a, b, rtol=SAME, atol=SAME)


def assert_equal(actual: object, expected: object) -> None:
    assert tree_flatten(actual)[1] == tree_flatten(expected)[1]
    assert all(torch.equal(a, b) for a, b in zip(tree_leaves(actual), tree_leaves(expected), strict=True))


def bytes_of_the_world(case: Case) -> list:
    """All that adaptation and evaluation could change: theta, the episodes, modules, and every generator."""
    modules = [m for net in modules_of(case.learner) for m in net.modules()]
    generators = [
        torch.get_rng_state().tolist(),
        random.getstate(),
        *[repr(part) if isinstance(part, str) else np.asarray(part).tolist() for part in np.random.get_state()],
    ]
    tensors = [t.tolist() for t in tree_leaves((case.theta, case.episodes))]
    flags = [t.requires_grad for t in tree_leaves(case.theta)]
    return [tensors, flags, [own_state(m) for m in modules], generators]


def own_state(module: nn.Module) -> dict:
    """Every attribute of a module: tensors by value (but on the meta device, where there is none), others by repr."""
    tables = {**module.__dict__, **module._parameters, **module._buffers}
    values = {name: v for name, v in tables.items() if name not in ("_parameters", "_buffers", "_modules")}
    return {name: readable(value) for name, value in values.items()}


def readable(value: object) -> object:
    if isinstance(value, Tensor):
        return (value.device.type, value.requires_grad, value.grad, None if value.is_meta else value.tolist())
    return repr(value)


# ---- a learner fits somewhere ----


def test_every_learner_accepts_a_task_and_a_base_learner(learner):
    assert any(isinstance(built(learner, task, base), Experiment) for task, base in CASES)


# ---- theta ----


def test_theta_is_a_tree_of_floating_tensors_in_the_dtype_of_the_run(case):
    leaves = tree_leaves(case.theta)
    assert leaves
    assert all(isinstance(leaf, Tensor) and leaf.dtype == torch.float64 and not leaf.is_meta for leaf in leaves)


def test_one_seed_gives_one_start_and_another_seed_another_of_the_same_size(learner):
    task, base = next((t, b) for t, b in CASES if isinstance(built(learner, t, b), Experiment))
    texts = words_of(learner, task, base)
    first = built(learner, task, base).theta_0
    again, other = (experiment(*texts, f"seed={seed}").theta_0 for seed in (0, 1))
    assert_equal(first, again)
    assert num_elements(first) == num_elements(other) > 0
    assert not all(torch.equal(a, b) for a, b in zip(tree_leaves(first), tree_leaves(other), strict=True))


def test_init_gives_copies_and_leaves_the_networks_as_they_are(learner):
    task, base = next((t, b) for t, b in CASES if isinstance(built(learner, t, b), Experiment))
    with mock.patch("metarun.config.build.take_theta"):
        made = experiment(*words_of(learner, task, base)).learner
    parameters = [p for net in modules_of(made) for p in net.parameters()]
    before = [own_state(module) for net in modules_of(made) for module in net.modules()]
    thetas = []
    for _ in range(2):
        torch.manual_seed(0)
        thetas.append(made.init())
    assert_equal(*thetas)
    assert [own_state(module) for net in modules_of(made) for module in net.modules()] == before
    memory = {leaf.untyped_storage().data_ptr() for leaf in tree_leaves(thetas)}
    assert not memory & {p.untyped_storage().data_ptr() for p in parameters}


def test_the_networks_of_a_learner_hold_values_only_outside_theta(case):
    for net in modules_of(case.learner):
        outside = any(net is getattr(case.learner, name) for name in case.learner.outside_theta)
        assert all(p.is_meta != outside for p in net.parameters())


def test_theta_saved_and_loaded_gives_identical_predictions(case, tmp_path):
    checkpoint.save(tmp_path / "theta.pt", {"format": 1, "theta": case.theta})
    loaded = torch.load(tmp_path / "theta.pt", weights_only=True)["theta"]
    assert_equal(replace(case, theta=loaded).phi, case.phi)


# ---- the meta-gradient ----


def test_the_meta_gradient_is_finite_and_not_all_zero(case):
    gradient, _ = case.by_loop
    assert tree_flatten(gradient)[1] == tree_flatten(case.theta)[1]
    assert all(torch.isfinite(g).all() for g in tree_leaves(gradient))
    assert any(g.abs().max() > 0 for g in tree_leaves(gradient))


def test_of_what_a_learner_reports_more_is_better_of_accuracy_alone(case):
    assert all(higher_is_better(name, {}) == ("accuracy" in name) for name in case.by_loop[1])


def test_vmap_and_loop_give_the_same_meta_gradient_and_metrics(case):
    gradient, metrics = Vmapped(2).mean_grad(case.learner.meta_loss, case.theta, case.episodes)  # 2 of 3, then the rest
    expected, expected_metrics = case.by_loop
    assert relative_error(gradient, expected) < SAME
    assert_same(metrics, expected_metrics)


def test_two_training_steps_by_vmap_end_in_the_same_parameters_as_a_plain_loop(learner, tmp_path):
    task, base = next((t, b) for t, b in reversed(CASES) if isinstance(built(learner, t, b), Experiment))
    # plain SGD: Adam divides by |g|, and would blow the rounding of a gradient near zero up to a whole step
    few = ["optimizer=sgd", "steps=2", "evaluation.num_val_tasks=2", "evaluation.num_tasks=2", "meta_batch_size=4"]
    texts = [*words_of(learner, task, base), *few]
    train(tmp_path, *texts, "execution=vmapped")
    by_vmap = checkpoint.load(tmp_path / "checkpoints/last.pt", CPU)["theta"]
    x, by_loop = plain.trained(texts)
    assert relative_error(by_vmap, by_loop) < SAME
    assert relative_error(by_vmap, x.theta_0) > 1e-5  # it did move


def test_a_run_stopped_halfway_and_resumed_ends_in_the_very_same_parameters(learner, tmp_path):
    task, base = next((t, b) for t, b in CASES if isinstance(built(learner, t, b), Experiment))
    few = ["evaluation.num_val_tasks=2", "evaluation.num_tasks=2", "evaluation.every=2", "meta_batch_size=2"]
    texts = [*CHEAP, *words_of(learner, task, base), *few]
    assert metarun(f"--config-dir={OUTSIDE}", *texts, "steps=4", f"run_dir={tmp_path / 'whole'}").code == 0
    with unexamined():
        assert metarun(f"--config-dir={OUTSIDE}", *texts, "steps=2", f"run_dir={tmp_path / 'halves'}").code == 0
        assert metarun(f"--config-dir={OUTSIDE}", f"resume={tmp_path / 'halves'}", "steps=4").code == 0
    whole, halves = (checkpoint.load(tmp_path / n / "checkpoints/last.pt", CPU) for n in ("whole", "halves"))
    assert_equal(halves["theta"], whole["theta"])
    assert identical(halves["optimizer"], whole["optimizer"])


# ---- one task ----


def test_adaptation_and_the_query_loss_change_nothing(case):
    before = bytes_of_the_world(case)
    for i in range(NUM_TASKS):
        support, query, _ = slice_tasks(case.episodes, i)
        case.learner.query_loss(case.learner.adapt(case.theta, support), query)
    assert bytes_of_the_world(case) == before


def test_step_k_of_a_trajectory_is_the_adaptation_of_k_steps(case):
    if "inner_steps" not in hyperparameters(case.learner):
        pytest.skip("takes no inner steps")
    support = slice_tasks(case.episodes, 0).support
    trajectory = list(case.learner.trajectory(case.theta, support, 3))
    assert len(trajectory) == 4
    for k, phi in enumerate(trajectory):
        assert_same(phi, replace(case.learner, inner_steps=k).adapt(case.theta, support))


def test_a_learner_without_inner_steps_left_still_predicts(case):
    if "inner_steps" not in hyperparameters(case.learner):
        pytest.skip("takes no inner steps")
    support, query, _ = slice_tasks(case.episodes, 0)
    still_there = replace(case.learner, inner_steps=0)
    loss, _ = still_there.query_loss(still_there.adapt(case.theta, support), query)
    assert torch.isfinite(loss)


def test_adaptation_depends_on_the_support_set_and_not_on_the_query_set(case):
    assert_equal(replace(case).phi, case.phi)  # the same each time
    elsewhere = case.learner.adapt(case.theta, slice_tasks(case.episodes, 1).support)
    pairs = zip(tree_leaves(elsewhere), tree_leaves(case.phi), strict=True)
    assert not all(torch.equal(a, b) for a, b in pairs)


def test_a_tasks_loss_depends_neither_on_the_order_of_the_tasks_nor_on_vmap(case):
    order = torch.tensor([2, 0, 1])
    straight = Looped().map(case.learner.meta_loss, case.theta, case.episodes)
    permuted = Vmapped(None).map(case.learner.meta_loss, case.theta, tree_map(lambda t: t[order], case.episodes))
    assert_same(permuted, tree_map(lambda t: t[order], straight))


def test_in_modes_support_and_running_a_prediction_is_independent_of_other_queries(case, request):
    if not isinstance(case.learner, FewShotLearner) or "transductive" in request.node.name:
        pytest.skip("transductive by choice")
    support, query, _ = slice_tasks(case.episodes, 0)
    with eval_mode(case.learner), torch.no_grad(), fixed_statistics(case.learner.base_learner):
        phi = case.learner.adapt(case.theta, support)
        together = case.learner.predict(phi, query.x)
        alone = torch.cat([case.learner.predict(phi, x[None]) for x in query.x])
    assert_same(alone, together)


@contextmanager
def fixed_statistics(net: nn.Module) -> Iterator[None]:
    """What ``calibrated`` does for norms in mode ``running``, with means of 0 and variances of 2."""
    layers = norms(net, "running").values()
    for layer in layers:
        layer.mean, layer.var = torch.zeros(len(layer.weight)).double(), torch.full((len(layer.weight),), 2.0).double()
    yield
    for layer in layers:
        layer.mean, layer.var = torch.empty(0).double(), torch.empty(0).double()


# ---- evaluation ----


def scores(case: Case) -> dict:
    subject = Subject(case.x.test_learner, case.theta, case.x.task, "train", NUM_TASKS, Vmapped(None))
    return evaluate(subject, curve=True)


def test_evaluation_changes_nothing_though_theta_asks_for_gradients(case):
    before = bytes_of_the_world(case)
    expected = scores(case)
    assert bytes_of_the_world(case) == before
    asking = replace(case, theta=tree_map(lambda p: p.clone().requires_grad_(), case.theta))  # as in training
    assert scores(asking) == expected  # the same each time
    assert all(p.grad is None and p.requires_grad for p in tree_leaves(asking.theta))
