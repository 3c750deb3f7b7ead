"""Every number of every setting has a range, and is checked before anything is built."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch import nn
from torch.optim import lr_scheduler

from metarun.config.ranges import LARGEST_FLOAT, LARGEST_INT, numbers_in, range_problems
from metarun.config.targets import locate, problems_of_call
from metarun.errors import ConfigError
from metarun.output.kept import Loader
from metarun.paths import config_dir
from tests.composing import OUTSIDE, experiment
from tests.running import metarun


def nodes(content: Any) -> Iterator[dict[str, Any]]:
    """The nodes of a YAML file that name a class, the outermost first."""
    if isinstance(content, dict):
        if "_target_" in content:
            yield content
        for value in content.values():
            yield from nodes(value)


def options() -> list[Any]:
    """Each class that metarun's configuration names, with its arguments there."""
    found = []
    for path in sorted(config_dir().rglob("*.yaml")):
        for node in nodes(yaml.load(path.read_bytes(), Loader)):
            arguments = {name: value for name, value in node.items() if not isinstance(value, dict)}
            arguments = {name: value for name, value in arguments.items() if name != "defaults" and name[0] != "_"}
            name = node["_target_"].rpartition(".")[2]
            place = path.relative_to(config_dir()).with_suffix("")
            found.append(pytest.param(node["_target_"], arguments, id=f"{place}-{name}"))
    return found


def with_number(value: Any, number: float) -> Any:
    """A value of the same form, all of whose numbers are ``number``."""
    return [with_number(item, number) for item in value] if isinstance(value, list) else number


def problems(target: str, arguments: dict[str, Any]) -> list[str]:
    return [text for text in problems_of_call(locate(target), arguments, (), "group") if " is missing; " not in text]


@pytest.mark.parametrize(("target", "arguments"), options())
def test_no_number_of_any_option_may_be_infinite_or_too_large_for_torch(target, arguments):
    for name, value in arguments.items():
        for wrong in (float("nan"), float("inf"), -float("inf"), 10**25, 1e300) if list(numbers_in(value)) else ():
            (problem,) = problems(target, {name: with_number(value, wrong)})
            assert f"group.{name} " in problem


@pytest.mark.parametrize(("target", "arguments"), options())
def test_every_number_that_metarun_ships_is_in_its_range(target, arguments):
    written = {name: value for name, value in arguments.items() if "${" not in str(value) and value != "???"}
    assert problems(target, written) == []


@pytest.mark.parametrize(("override", "message"), [
    ("meta_learner.inner_lr=0", "meta_learner.inner_lr is 0, but must be above 0"),
    ("meta_learner.inner_lr=-0.1", "meta_learner.inner_lr is -0.1, but must be above 0"),
    ("meta_learner.inner_steps=-1", "meta_learner.inner_steps is -1, but must be 0 or more"),
    ("meta_learner.inner_steps=999999999999999999999", "but must be 9223372036854775807 or less: torch's numbers have 64"),
    ("meta_learner.inner_steps=2000000000", "but must be 100000 or less: memory grows with each"),
    ("task.num_queries=2000000000", "task.num_queries is 2000000000, but must be 1000000 or less: what is counted"),
    ("base_learner.hidden=[40,2000000000]", "base_learner.hidden holds 2000000000; each must be 1000000 or less"),
    ("base_learner.hidden=[40,0]", "base_learner.hidden holds 0; each must be 1 or more"),
    ("base_learner.hidden=[-1]", "base_learner.hidden holds -1; each must be 1 or more"),
    ("steps=10000000000000", "steps is 10000000000000, but must be 1000000000000 or less: a run must end"),
    ("evaluation.num_tasks=2000000000", "evaluation.num_tasks is 2000000000, but must be 1000000000 or less"),
    ("execution.threads=100000", "execution.threads is 100000, but must be 1024 or less"),
    ("clip_norm=nan", "clip_norm is nan, but must be a finite number"),
    ("clip_value=-1", "clip_value is -1.0, but must be above 0, or null for no clipping"),
    ("+rates.head=inf", "rates.head is inf, but must be a finite number"),
    ("rates='${seed}'", "rates is 0, but must be a mapping"),
    ("optimizer.betas=[0.9,nan]", "optimizer.betas holds nan; each must be a finite number"),
])  # fmt: skip
def test_a_number_outside_its_range_is_refused_with_the_rule(override, message, tmp_path):
    outcome = metarun(override, f"run_dir={tmp_path / 'run'}")
    assert (outcome.code, outcome.out) == (2, "")
    assert message in outcome.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("overrides", "message"), [
    (["scheduler=cosine", "scheduler.eta_min=-1"], "scheduler.eta_min is -1, but must be 0 or more"),
    (["scheduler=step", "scheduler.gamma=-1"], "scheduler.gamma is -1, but must be above 0"),
    (["scheduler=multistep", "scheduler.gamma=abc"], "scheduler.gamma is 'abc' (str), but must be float"),
    (["scheduler=multistep", "scheduler.milestones=abc"], "scheduler.milestones is 'abc' (str), but must be a list of int"),
    (["scheduler=multistep", "scheduler.milestones=['50']"], "scheduler.milestones is ['50'] (list), but must be a list"),
    (["scheduler=multistep", "scheduler.milestones=5"], "scheduler.milestones is 5 (int), but must be a list of int"),
    (["scheduler=multistep", "scheduler.milestones=[-5]"], "scheduler.milestones holds -5; each must be 1 or more"),
    (["~optimizer.betas", "~optimizer.fused", "optimizer._target_=torch.optim.RMSprop", "+optimizer.alpha=2"],
     "optimizer.alpha is 2, but must be 1 or less"),
    (["optimizer=sgd", "optimizer.momentum=5"], "optimizer.momentum is 5, but must be 1 or less"),
    (["~optimizer.betas", "~optimizer.fused", "optimizer._target_=torch.optim.LBFGS"], "LBFGS cannot step by a"),
    (["~optimizer.betas", "~optimizer.fused", "optimizer._target_=torch.optim.SparseAdam"], "SparseAdam cannot step by a"),
    (["+scheduler.last_epoch=5"], "scheduler.last_epoch is set by metarun itself"),
    (["optimizer.lr=abc"], "optimizer.lr is 'abc' (str), but must be float."),
    (["optimizer._partial_=abc"], "optimizer._partial_ is 'abc', but must be true"),
    (["+task._partial_=true"], "task._partial_ is True, but must be left out"),
    (["task._target_=null"], "task._target_ is None, but must name a class"),
])  # fmt: skip
def test_torchs_own_classes_are_checked_as_metaruns_are(overrides, message):
    outcome = metarun(*overrides)
    assert outcome.code == 2, outcome.text
    assert message in outcome.err


@pytest.mark.parametrize(("settings", "message"), [
    (["task=prototypes", "meta_learner=relationnet", "base_learner=relation_conv", "base_learner.channels=0"],
     "base_learner.channels is 0, but must be 1 or more."),
    (["meta_learner=tnp", "meta_learner.depth=0"], "meta_learner.depth is 0, but must be 1 or more"),
    (["task=prototypes", "meta_learner=teacher", "meta_learner.teacher.hidden=[4,0]"],
     "meta_learner.teacher.hidden holds 0; each must be 1 or more."),
])  # fmt: skip
def test_a_network_without_units_is_one_problem_before_the_first_step(settings, message):
    with pytest.raises(ConfigError) as refused:
        experiment(*settings)
    (problem,) = refused.value.problems
    assert problem.startswith(message)


def test_types_are_found_where_a_class_of_torchs_does_not_resolve_its_own():
    arguments = {"base_lr": 0.1, "max_lr": "abc", "step_size_up": "abc", "cycle_momentum": 5}
    found = problems_of_call(lr_scheduler.CyclicLR, arguments, {"optimizer"}, "scheduler")
    assert [text.split()[0] for text in found] == [
        f"scheduler.{name}" for name in ("max_lr", "step_size_up", "cycle_momentum")
    ]


def test_what_somebody_elses_class_means_by_a_name_is_not_guessed():
    class Theirs(nn.Module):
        def __init__(self, width: int, inner_lr: float) -> None:
            super().__init__()

    assert problems_of_call(Theirs, {"width": -1, "inner_lr": -1.0}, (), "base_learner") == []
    assert len(problems_of_call(Theirs, {"width": 2**63, "inner_lr": float("nan")}, (), "base_learner")) == 2


def test_numbers_at_the_ends_of_their_types_are_inside():
    assert list(range_problems("mine", [LARGEST_INT, -LARGEST_INT, LARGEST_FLOAT], "mine")) == []
    assert list(numbers_in({"a": [1, {"b": 2.5}], "c": True, "d": "3"})) == [1, 2.5]


def test_a_task_elsewhere_has_the_same_ranges():
    outcome = metarun("evaluation.task=harmonics", "evaluation.task.harmonics.noise_std=nan")
    assert outcome.code == 2
    assert "evaluation.task.harmonics.noise_std is nan, but must be a finite number" in outcome.err


def test_a_number_of_a_run_is_checked_again_when_the_run_is_scored(tmp_path):
    run = Path(OUTSIDE, "runs", "sinusoid")
    outcome = metarun("evaluate", str(run), "meta_learner.inner_lr=nan")
    assert outcome.code == 2
    assert "meta_learner.inner_lr is nan" in outcome.err


@pytest.mark.parametrize("key", ["base_learner.depth", "base_learner.layers", "task.num_layers", "meta_learner.cells"])
@pytest.mark.parametrize("number", [-1, 0])
def test_a_number_of_layers_is_refused_below_one_with_the_true_bound(key, number):
    assert list(range_problems(key, number)) == [f"{key} is {number}, but must be 1 or more."]


@pytest.mark.parametrize(
    "name", ["depth", "layers", "encoder_layers", "decoder_layers", "embedder_layers", "generator_layers"]
)
def test_layers_of_which_making_a_million_takes_for_ever_are_bounded(name):
    (problem,) = range_problems(f"meta_learner.{name}", 1_000_000)
    assert problem == f"meta_learner.{name} is 1000000, but must be 1000 or less: each is made and computed by itself."
