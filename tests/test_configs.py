"""Every config file composes and builds, every experiment says what it claims, and schema and root file agree."""

import os
import re
import tempfile
import typing
from dataclasses import fields
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml
from omegaconf import DictConfig, OmegaConf

from metarun.annotations import conforms
from metarun.config.build import check
from metarun.config.calls import GIVEN, GROUPS
from metarun.config.experiment import Experiment
from metarun.config.schema import Config, EvaluationConfig
from metarun.config.targets import Part, locate, problems_of_call
from metarun.errors import ConfigError
from metarun.paths import config_dir
from tests.composing import OUTSIDE, compose, experiment, options, train
from tests.tasks.pictures_of import picture
from tests.tasks.test_generated import PROBLEMS, REGRESSION, SYSTEMS
from tests.tasks.test_npz_classification import windows

TINY = ["base_learner=mlp", "steps=10", "evaluation.every=5"]
# A group's option must build beside the defaults, on one of these tasks at least: not every learner classifies, and not
# every network takes numbers.
DATA_ROOT = tempfile.TemporaryDirectory(prefix="metarun-")  # for what is prepared of the user's files
OF_THE_USER = {  # tasks that read files of the user's, and some for the tests
    "text_jsonl": OUTSIDE / "requests.jsonl",
    "image_folder": Path(DATA_ROOT.name, "photos"),
    "csv_regression": OUTSIDE / "measurements.csv",
    "npz_classification": Path(DATA_ROOT.name, "windows.npz"),
}
COLUMNS = {
    "csv_regression": ["task.task_column=subject", "task.input_columns=[dose]", "task.output_columns=[response]"]
}
for c, i in ((c, i) for c in range(10) for i in range(10)):
    picture(OF_THE_USER["image_folder"] / f"class{c}" / f"{i}.png", (25 * c, 25 * i, 0))
windows(OF_THE_USER["npz_classification"])
TASKS = {
    "sinusoid": ["task=sinusoid"],
    "images": ["task=prototypes", "task.num_classes=7"],
    "words": ["task=text_jsonl", "task/features=tokens"],
}

BY_HAND = ("mini_imagenet", "tiered_imagenet", "cub")  # that nobody may pass on, or that are too large to ask for

EXPERIMENTS = options("experiment")
WITHOUT_DATA = (*REGRESSION, *SYSTEMS, *PROBLEMS)  # tasks that are drawn, not read


def root() -> dict:
    return yaml.safe_load((config_dir() / "config.yaml").read_text())


def text_of(name: str) -> str:
    return (config_dir() / "experiment" / f"{name}.yaml").read_text()


def file_for(*tasks: str) -> list[str]:
    """The overrides that give one of these tasks the user's files that it reads."""
    chosen = [task for task in tasks if task in OF_THE_USER]
    return [text for task in chosen for text in (f"task.path={OF_THE_USER[task]}", *COLUMNS.get(task, []))]


@cache
def tasks_of(name: str) -> list[str]:
    """The tasks that an experiment, and those that it extends, choose."""
    defaults = yaml.safe_load(text_of(name)).get("defaults", [])
    tasks = [entry["override /task"] for entry in defaults if isinstance(entry, dict) and "override /task" in entry]
    parents = [entry for entry in defaults if isinstance(entry, str) and entry in EXPERIMENTS]
    return [*tasks, *(task for parent in parents for task in tasks_of(parent))]


def needs_data(name: str) -> bool:
    """Whether an experiment chooses a task whose data somebody publishes."""
    return any(task not in (*WITHOUT_DATA, *OF_THE_USER) for task in tasks_of(name))


def where_for(request: pytest.FixtureRequest, data: bool, *tasks: str) -> list[str]:
    """The overrides that say where the data of these tasks lies."""
    return [f"data_root={request.getfixturevalue('data_root') if data else DATA_ROOT.name}", *file_for(*tasks)]


def experiments(*more_marks: pytest.MarkDecorator) -> list:
    marks = {name: [pytest.mark.data] if needs_data(name) else [] for name in EXPERIMENTS}
    return [pytest.param(name, marks=[*marks[name], *more_marks]) for name in EXPERIMENTS]


def built_on_some_task(*overrides: str) -> Experiment:
    problems = []
    for task in TASKS.values():
        try:
            return experiment(*TINY, *task, *file_for(task[0].split("=")[1]), f"data_root={DATA_ROOT.name}", *overrides)
        except ConfigError as error:
            problems += error.problems
    raise ConfigError(problems)


def call_problems(cfg: DictConfig, group: str) -> list[str]:
    node = OmegaConf.to_container(cfg, resolve=True)[group]
    arguments = {name: value for name, value in node.items() if not name.startswith("_")}
    parts = {name: Part(dict) for name, value in arguments.items() if isinstance(value, dict) and "_target_" in value}
    arguments |= parts
    return problems_of_call(locate(node["_target_"]), arguments, GIVEN[group], group)


# ---- groups ----


def test_the_groups_are_the_folders_of_the_config_tree():
    folders = {path.name for path in config_dir().iterdir() if path.is_dir() and any(path.glob("*.yaml"))}
    assert folders == {*GROUPS, "evaluation", "experiment", "launcher", "logger", "per_learner"}


@pytest.mark.parametrize(("group", "option"), [(group, name) for group in GROUPS for name in options(group)])
def test_every_option_of_every_group_passes_the_check_of_its_arguments(group, option):
    assert call_problems(compose(f"{group}={option}", *file_for(option)), group) == []


@pytest.mark.parametrize(
    ("group", "option"), [(group, name) for group in GROUPS if group != "task" for name in options(group)]
)
def test_every_option_of_every_group_builds_beside_the_defaults(group, option):
    assert isinstance(built_on_some_task(f"{group}={option}"), Experiment)


@pytest.mark.parametrize(
    "option",
    [pytest.param(n, marks=[pytest.mark.data] * (n not in (*WITHOUT_DATA, *OF_THE_USER))) for n in options("task")],
)
def test_every_task_builds_and_gives_episodes(option, request):
    where = where_for(request, option not in (*WITHOUT_DATA, *OF_THE_USER), option)
    try:
        task = experiment(*TINY, f"task={option}", *where).task
    except ConfigError as error:
        if option in BY_HAND and "METARUN_DATA" in str(error):
            pytest.skip("its images are not in METARUN_DATA")
        raise
    for split in ("train", "val", "test"):
        support, query, _ = task.sample(split, [0, 7])
        assert len(support.x) == len(query.x) == 2
        assert support.x.shape[2:] == query.x.shape[2:] == task.spec.input_shape


@pytest.mark.parametrize("option", options("evaluation"))
def test_every_evaluation_composes_with_the_keys_of_the_schema(option):
    assert set(compose(f"evaluation={option}").evaluation) == {field.name for field in fields(EvaluationConfig)}


# ---- experiments ----


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_composes_and_its_nodes_pass_the_check(name):
    cfg = compose(f"experiment={name}", *file_for(*tasks_of(name)))
    problems = [problem for group in GROUPS for problem in call_problems(cfg, group)]
    assert problems == []


@pytest.mark.parametrize("name", experiments())
def test_every_experiment_builds_as_it_stands(name, request):
    where = where_for(request, needs_data(name), *tasks_of(name))
    assert experiment(f"experiment={name}", *where).steps >= 1


@pytest.mark.parametrize("name", experiments())
def test_every_experiment_trains_under_the_smoke_budget(name, request, tmp_path):
    where = where_for(request, needs_data(name), *tasks_of(name))
    small = ["steps=2", "dtype=float32", "evaluation.num_val_tasks=2", "evaluation.num_tasks=2"]
    whole = f"experiment={name if name == 'smoke' else f'[{name},smoke]'}"
    cfg = compose(whole, *where)
    if needs_data(name):  # the published sizes take half a minute on one core
        small += ["meta_batch_size=2"]
        small += ["base_learner.channels=4"] if "channels" in cfg.base_learner else []
        small += ["task.train_num_ways=8"] if (cfg.task.get("train_num_ways") or 0) > 8 else []
    if (cfg.meta_learner.get("inner_steps") or 0) > 5:
        small += ["meta_learner.inner_steps=2", "evaluation.inner_steps=null"]
    small += ["meta_learner.depth=2"] if "depth" in cfg.meta_learner else []
    train(tmp_path / "run", whole, *small, *where)
    assert (tmp_path / "run" / "results.json").is_file()


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_begins_with_the_command_that_runs_it(name):
    first, second, *_ = text_of(name).splitlines()
    assert first == "# @package _global_"
    assert re.match(rf"# metarun experiment={name}(\s|$)", second)


CLAIMS = [
    name for name in EXPERIMENTS if name != "smoke" and not name.startswith("matrix/")
]  # budgets, which claim nothing


@pytest.mark.parametrize("name", CLAIMS)
def test_every_experiment_says_how_long_it_takes_what_it_reaches_and_when_verified(name):
    header = [line for line in text_of(name).splitlines() if line.startswith("#")]
    if any(re.match(r"# expect: not measured here yet; paper: .*", line) for line in header):
        return  # the paper's settings, and no claim of ours
    assert re.search(r"\d+ (s|sec|min|h)", header[1])
    assert any(re.match(r"# expect: .*\d", line) for line in header)
    assert any(re.match(r"# last verified: \d{4}-\d\d-\d\d, commit [0-9a-f]{7,40}", line) for line in header)


# ---- the root ----


def test_the_root_file_has_the_keys_of_the_schema():
    groups = {key for entry in root()["defaults"] if isinstance(entry, dict) for key in entry}
    groups = {group for group in groups if not group.startswith("override") and group != "experiment"}
    # choices of other values, without a key of their own
    groups -= {"per_learner", "optional per_learner@_global_", "optional per_task@_global_"}
    keys = set(root()) - {"defaults", "hydra"}
    assert keys | groups == {field.name for field in fields(Config)}
    assert groups == {*GROUPS, "evaluation", "logger"}


@pytest.mark.parametrize(
    ("schema", "path"),
    [(Config, "config.yaml"), (EvaluationConfig, "evaluation/default.yaml")],
    ids=["root", "evaluation"],
)
def test_the_values_of_the_files_have_the_types_of_the_schema(schema, path):
    hints, values = typing.get_type_hints(schema), yaml.safe_load((config_dir() / path).read_text())
    for name in {field.name for field in fields(schema)} & set(values):
        assert conforms(values[name], hints[name]), f"{name}: {values[name]!r} is no {hints[name]}"


def test_the_evaluation_file_has_the_keys_of_the_schema():
    values = yaml.safe_load((config_dir() / "evaluation/default.yaml").read_text())
    assert set(values) == {field.name for field in fields(EvaluationConfig)}


@pytest.mark.parametrize("path", sorted(config_dir().rglob("*.yaml")), ids=lambda path: path.stem)
def test_no_config_names_a_folder_of_one_machine(path: Path):
    assert not re.search(r"(?<![\w.$~])/(home|root|tmp|Users|data|mnt|work)/", path.read_text())
    assert os.path.expanduser("~") not in path.read_text()


# ---- settings by meta-learner ----


def test_an_experiment_brings_the_chosen_learners_settings_and_a_value_beats_them():
    assert compose("experiment=matrix/omniglot_5w1s", "meta_learner=maml").meta_learner.inner_lr == 0.4
    assert (
        compose("experiment=matrix/omniglot_5w1s", "meta_learner=maml", "meta_learner.inner_lr=3").meta_learner.inner_lr
        == 3
    )
    assert (
        compose("task=omniglot", "meta_learner=maml").meta_learner.inner_lr == 0.01
    )  # no such experiment, no such settings


@pytest.mark.parametrize("option", [n for n in options("per_learner") if "/" in n])
def test_settings_by_learner_belong_to_a_learner_and_fit_it(option):
    matrix, _, learner = option.partition("/")
    assert learner in options("meta_learner")
    compose(f"experiment=matrix/{matrix}", f"meta_learner={learner}")


def test_a_task_brings_settings_of_a_learner_and_those_of_an_experiment_beat_them():
    table = ["task=csv_regression", "meta_learner=r2d2", *file_for("csv_regression")]
    assert compose("task=sinusoid", "meta_learner=r2d2").meta_learner.scale == 10
    assert compose(*table).meta_learner.scale == 1
    assert compose(*table, "meta_learner.scale=3").meta_learner.scale == 3
    assert compose("experiment=r2d2_omniglot_5w1s", *table).meta_learner.scale == 10
    assert compose("meta_learner=r2d2", "evaluation.task=[csv_regression]").meta_learner.scale == 10


@pytest.mark.parametrize("option", options("per_task"))
def test_settings_by_task_belong_to_a_task_and_a_learner_and_fit_it(option):
    task, _, learner = option.partition("/")
    assert task in options("task") and learner in options("meta_learner")
    compose(f"task={task}", f"meta_learner={learner}", *file_for(task))


def test_a_gpu_that_is_not_visible_is_refused_before_anything_is_built(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    (problem,) = check(compose("device=cuda:2"))
    assert "device is 'cuda:2', but torch sees 2 of them here" in problem
    assert "use device=cuda." in problem
    assert not check(compose("device=cuda:1"))
