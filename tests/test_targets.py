"""What a config may name: everything that can be reached below the allowed modules is tried, most of it to be refused."""

import importlib
import inspect
import pkgutil
import re
import warnings
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any, Literal, Protocol

import pytest
import torch
import torchvision
from torch import nn

from metarun.config.build import check
from metarun.config.calls import BASES
from metarun.config.targets import OURS, bases_of, locate
from metarun.core import TaskDistribution
from tests.composing import OUTSIDE, compose, options, outsider
from tests.running import ROOT, TINY, metarun, process

TORCHS = ("torch.nn", "torch.optim", "torchvision.models", "torchvision.transforms")


def modules(prefix: str) -> list[str]:
    """``prefix`` and every module below it, private ones too."""
    package = importlib.import_module(prefix)
    return [prefix, *(found.name for found in pkgutil.walk_packages(getattr(package, "__path__", []), prefix + "."))]


@cache
def reachable(prefixes: tuple[str, ...]) -> dict[str, object]:
    """Every callable below the prefixes by its path, as an attacker would spell it."""
    found = {}
    for name in (name for prefix in prefixes for name in modules(prefix)):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                module = importlib.import_module(name)
        except Exception:  # of an optional dependency that is not here
            continue
        found |= {f"{name}.{key}": value for key, value in vars(module).items() if callable(value)}
    return found


def private(path: str) -> bool:
    return any(part.startswith("_") for part in path.split("."))


def of_torch(path: str, value: object) -> bool:
    """The rule of the documentation, spelled again: kinds of module, optimizer, scheduler, transforms, listed models."""
    if private(path) or not str(value.__module__).startswith(TORCHS):
        return False
    if inspect.isclass(value):
        kinds = (nn.Module, torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler)
        old = value.__module__ == "torchvision.transforms.transforms" and value.__name__ not in ("InterpolationMode",)
        return not inspect.isabstract(value) and (
            (issubclass(value, kinds) and value not in kinds)
            or (old and value.__name__ in torchvision.transforms.transforms.__all__)
        )
    return value in MODELS


MODELS = [torchvision.models.get_model_builder(name) for name in torchvision.models.list_models()]


@cache
def accepted(path: str, base: type = object) -> bool:
    try:
        locate(path, base)
    except ValueError:
        return False
    return True


def test_of_torch_and_torchvision_only_public_networks_and_optimizers_are_admitted():
    wrong = [
        path for path, value in reachable(TORCHS).items() if accepted(path) != of_torch(path, value)
    ]  # thousands of functions, type aliases, private classes and what modules import
    assert wrong == []
    assert len(reachable(TORCHS)) > 4000
    assert 300 < sum(map(accepted, reachable(TORCHS))) < 3000


@pytest.mark.parametrize("group", BASES)
def test_each_place_takes_only_what_derives_from_its_base(group):
    base = BASES[group]
    for path, value in (reachable(TORCHS) | reachable(OURS)).items():
        if accepted(path) and accepted(path, base):
            made = value if inspect.isclass(value) else inspect.get_annotations(value, eval_str=True)["return"]
            assert inspect.isclass(made) and issubclass(made, base), path


def test_of_metarun_no_function_can_be_called_but_those_that_return_a_task():
    for path, value in reachable(OURS).items():
        if not inspect.isclass(value) and accepted(path):
            assert issubclass(inspect.get_annotations(value, eval_str=True)["return"], TaskDistribution), path


def test_a_private_module_named_by_a_runs_config_is_refused_before_it_is_imported(tmp_path):
    assert metarun(*TINY, "steps=2", f"run_dir={tmp_path / 'run'}").code == 0
    path = tmp_path / "run" / "config.yaml"
    head, _, tail = path.read_text().partition("task:\n")
    rest = tail[tail.index("\nbase_learner:") + 1 :]
    evil = "task: {_target_: torch.nn.attention._fa4.register_flash_attention_fa4, module_path: evilmod}\n"
    path.write_text(head + evil + rest)
    (tmp_path / "evilmod.py").write_text("print('code of a config has run')")
    done = process("evaluate", str(tmp_path / "run"), cwd=tmp_path)
    assert done.code == 2 and "It is private" in done.err
    assert "has run" not in done.text


def test_a_runs_config_that_names_a_function_is_refused_by_evaluate_too(tmp_path):
    assert metarun(*TINY, "steps=2", f"run_dir={tmp_path / 'run'}").code == 0
    path = tmp_path / "run" / "config.yaml"
    text = path.read_text()
    path.write_text(text.replace("metarun.tasks.sinusoid.Sinusoid", "torch.nn.init.trunc_normal_"))
    outcome = metarun("evaluate", str(tmp_path / "run"))
    assert outcome.code == 2
    assert "task._target_: 'torch.nn.init.trunc_normal_' is not something that a config may call" in outcome.err
    assert "must be a class derived from TaskDistribution" in outcome.err


def test_every_option_that_metarun_ships_is_admitted_at_its_place():
    for group, base in BASES.items():
        for name in options(group):
            with outsider():
                node = compose(f"{group}={name}")[group]
                for one in node.values() if group == "logger" else [node]:
                    locate(one._target_, base)


def test_every_target_of_metarun_that_a_document_or_docstring_names_is_admitted():
    files = [*(ROOT / "docs").rglob("*.md"), *(ROOT / "metarun").rglob("*.py"), ROOT / "metarun" / "DESIGN.md"]
    named = {path for file in files for path in re.findall(r"_target_[=:] ?(metarun\.[\w.]+\w)", file.read_text())}
    assert {"metarun.evaluation.autoregressive.Autoregressive"} < named
    assert [path for path in sorted(named) if not accepted(path)] == []


@pytest.mark.parametrize(("override", "base"), [
    ("base_learner={_target_: torch.optim.SGD}", "Module"),
    ("optimizer={_target_: torch.nn.Linear, _partial_: true}", "Optimizer"),
    ("scheduler={_target_: torch.optim.Adam, _partial_: true}", "LRScheduler"),
    ("meta_learner={_target_: metarun.tasks.sinusoid.Sinusoid}", "MetaLearner"),
    ("execution._target_=metarun.execution.choosing.choose_execution", "Eager"),
    ("task._target_=metarun.tasks.text_features.Hashed", "TaskDistribution"),
])  # fmt: skip
def test_a_class_in_the_wrong_place_is_named_with_the_kind_that_belongs_there(override, base, tmp_path):
    outcome = metarun(override, f"run_dir={tmp_path / 'run'}")
    assert outcome.code == 2, outcome.text
    assert f"derived from {base}" in outcome.err
    assert not (tmp_path / "run").exists()


def test_a_trusted_module_may_offer_functions(monkeypatch):
    monkeypatch.syspath_prepend(str(OUTSIDE))
    monkeypatch.setenv("METARUN_ALLOW", "prototypes")
    assert callable(locate("prototypes.Prototypes", TaskDistribution))
    with pytest.raises(ValueError, match="derived from Module"):
        locate("prototypes.Prototypes", nn.Module)


RELU = "{_target_: torch.nn.ReLU}"
VALUES = [
    ("base_learner=conv4", "base_learner.batch_norm", "'transductive' or 'running' or 'support'"),
    ("meta_learner=maml", "meta_learner.inner_optimizer", "'sgd' or 'momentum' or 'rmsprop' or 'adam'"),
    ("meta_learner=maml", "meta_learner.adapted", "'all' or 'body' or 'head'"),
    ("optimizer=adam", "optimizer.lr", "float"),
    ("task=sinusoid", "task.num_shots", "int or a list of int and int"),
    ("meta_learner=maml", "meta_learner.inner_lr", "float"),
]


@pytest.mark.parametrize(("choice", "key", "rule"), VALUES, ids=[key for _, key, _ in VALUES])
def test_a_nested_target_does_not_stand_where_a_plain_value_belongs(choice, key, rule):
    problems = check(compose("task=sinusoid", "base_learner=mlp", choice, f"++{key}={RELU}"))
    assert f"{key} is {{'_target_': 'torch.nn.ReLU'}}, but must be {rule}." in problems
    assert sum(key in problem for problem in problems) == 1


def test_a_part_stands_where_an_annotation_admits_its_class():
    class Theirs(Protocol):
        def forward(self) -> None: ...

    given = [bases_of(kind) for kind in (nn.Module | None, Callable[[], nn.Module] | None, Any, Theirs, Iterable[int])]
    assert given == [(nn.Module,), (object,), (object,), (object,), (Iterable,)]
    assert [bases_of(kind) for kind in (type, type[nn.Module], type[nn.Module] | None)] == [(object,)] * 3
    assert [bases_of(kind) for kind in (float | torch.Tensor, Literal["a", 1], list[int], dict[str, int])] == [()] * 4
    problems = check(compose("meta_learner=teacher", "meta_learner.teacher={_target_: torch.optim.SGD}"))
    assert any("meta_learner.teacher._target_" in text and "derived from Module" in text for text in problems)
