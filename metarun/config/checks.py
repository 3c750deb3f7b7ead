"""Problems of a configuration: every rule that needs no data, in messages that name value, rule and fix."""

import inspect
import warnings
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch

from metarun.config.calls import name_of, settings_of
from metarun.config.ranges import range_problems
from metarun.config.schema import Config
from metarun.config.targets import Part
from metarun.core import MetaLearner, TaskDistribution, hyperparameters
from metarun.errors import ConfigError, did_you_mean
from metarun.evaluation.suite import ONE_NUMBER, varying_ways
from metarun.paths import DATA_ROOT, usable

NUMBERS = ("seed", "steps", "devices", "meta_batch_size", "log_every", "checkpoint_minutes", "clip_norm", "clip_value")
OF_EVALUATION = ("every", "num_val_tasks", "num_tasks", "inner_steps")


def problems_at_the_root(plain: dict[str, Any]) -> list[str]:
    """The problems of a run's plain configuration outside its groups: unknown and missing keys, ranges, clashes."""
    known = [field.name for field in fields(Config)]
    if missing := [f"{key} is missing." for key in known if key not in plain]:
        return missing
    problems = [f"{key} is not a setting{did_you_mean(key, known) or '.'}" for key in plain if key not in known]
    numbers = {key: plain[key] for key in NUMBERS}
    numbers |= {f"evaluation.{key}": plain["evaluation"][key] for key in OF_EVALUATION}
    problems += [problem for key, value in numbers.items() for problem in range_problems(key, value)]
    problems += _problems_of_rates(plain["rates"])
    if plain["clip_norm"] is not None and plain["clip_value"] is not None:
        problems.append("clip_norm and clip_value are both set; keep one of them.")
    on_gpu = str(plain["device"]).startswith("cuda") or (plain["device"] == "auto" and torch.cuda.is_available())
    if plain["tf32"] and not on_gpu:
        problems.append("tf32=true has no effect without a CUDA device; set it to false.")
    if plain["evaluation"]["fit_images"] and not plain["evaluation"]["task"]:
        problems.append("evaluation.fit_images=true has no effect without evaluation.task; set it to false.")
    problems += shots_problems(plain["evaluation"]["shots"])
    if plain["evaluation"]["train_fractions"] is not None:
        problems.append(
            "evaluation.train_fractions has no effect on a single run: add -m, or set task.train_fraction to one share."
        )
    return problems + place_problems(plain)


def shots_problems(shots: list[int] | None) -> list[str]:
    """What is wrong with ``evaluation.shots``."""
    if shots is None or (shots and shots == sorted({*shots}) and shots[0] >= 1):
        return []
    fix = sorted({number for number in shots if number >= 1}) or [1, 5, 20]
    return [f"evaluation.shots is {shots}, but must be numbers of 1 or more in ascending order: {fix}, say, or null."]


def _problems_of_rates(rates: Any) -> list[str]:
    if not isinstance(rates, dict):
        return [f"rates is {rates!r}, but must be a mapping: parts of theta and multiples of optimizer.lr."]
    problems = []
    for part, rate in flat(rates).items():
        if isinstance(rate, bool) or not isinstance(rate, (int, float)) or rate < 0:
            problems.append(f"rates.{part} is {rate!r}, but must be a number of 0 or more: a multiple of optimizer.lr.")
        else:
            problems += range_problems(f"rates.{part}", rate)
    return problems


def flat(node: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of nested mappings by their dotted keys: {body: {1: 5}} gives {body.1: 5}."""
    leaves: dict[str, Any] = {}
    for key, value in node.items():
        leaves |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return leaves


def changed_settings(old: dict[str, Any], new: dict[str, Any], said: set[str]) -> list[str]:
    """The keys by which two flat configurations differ, but for settings that metarun did not have when the old one was
    kept: those that no override ``said`` are at their defaults in the new one, under which everything is as it was."""
    shared = [key for key in sorted({*old, *new}) if key in old or key in said]
    return [key for key in shared if _where_it_is(old.get(key)) != _where_it_is(new.get(key))]


def _where_it_is(value: Any) -> Any:
    """A setting; of a class of metarun its room and name, for modules move within a room."""
    if isinstance(value, str) and value.startswith("metarun.") and value.count(".") >= 2:
        return value.split(".")[1], value.rpartition(".")[2]
    return value


def place_problems(plain: dict[str, Any]) -> list[str]:
    """Problems of ``dtype``, ``data_root`` and ``device``, without which nothing can be built."""
    problems = (
        []
        if plain.get("dtype") in ("float32", "float64")
        else [f"dtype is {plain.get('dtype')!r}, but must be float32 or float64."]
    )
    if str(plain.get("device")).startswith("mps") and plain.get("dtype") == "float64":
        problems.append("dtype is float64, but device=mps has no such numbers; use dtype=float32, or device=cpu.")
    try:
        usable(plain["data_root"], DATA_ROOT)
    except ConfigError as error:
        problems += error.problems
    return problems + device_problems(plain.get("device"))


def device_problems(name: Any) -> list[str]:
    """Problems of ``device``: its spelling, or that this machine has none like it."""
    if name == "auto":
        return []
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        return [f"device is {name!r}, but must be auto, cpu, cuda, cuda:N or mps."]
    if device.type == "cpu" and device.index:
        return [f"device is {name!r}, but torch has one cpu; use device=cpu."]
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not present.get(device.type):
        return [f"device is {name!r}, but torch finds no such device here; use device=cpu."]
    if device.type == "cuda" and (device.index or 0) >= (visible := torch.cuda.device_count()):
        rule = f"torch sees {visible} of them here, counted from cuda:0"
        return [f"device is {name!r}, but {rule} (a sweep with jobs shows each run one); use device=cuda."]
    return []


def token_problems(task: TaskDistribution, calls: dict[str, Callable[..., Any]]) -> list[str]:
    """Problems of networks that do not ask for ``num_tokens``, where the task's inputs are tokens."""
    if task.spec.num_tokens is None:
        return []
    learner = calls["meta_learner"]
    parts = learner.keywords.items() if isinstance(learner, partial) else ()
    networks = {"base_learner": calls["base_learner"]}
    networks |= {f"meta_learner: its {name}": part.make for name, part in parts if isinstance(part, Part)}
    accepted = {name: inspect.signature(network).parameters for name, network in networks.items()}
    return [
        f"{name}: {name_of(networks[name])} takes numbers, but the task's inputs are words (task.features). Choose a "
        "network that reads words (embedding_bag, text_cnn, transformer), or other features (task/features=hashed)."
        for name, parameters in accepted.items()
        if "num_tokens" not in parameters and (name == "base_learner" or "input_shape" in parameters)
    ]


def learner_problems(task: TaskDistribution, learner: Callable[..., Any]) -> list[str]:
    """Problems of a task for a learner that can do what its class declares; a function that makes one declares nothing."""
    target = learner.func if isinstance(learner, partial) else learner
    declared = target if inspect.isclass(target) and issubclass(target, MetaLearner) else MetaLearner
    name, kind, problems = name_of(learner), type(task).__name__, []
    if task.spec.num_ways is None and not declared.regresses:
        problems.append(f"meta_learner: {name} classifies, but the task {kind} has no classes.")
    if task.spec.fewest_ways is not None and not declared.any_ways:
        fixed = f"but the head of {name} has a fixed number. {ONE_NUMBER}"
        problems.append(f"task: {varying_ways(task.spec)} (task.num_ways, task.train_num_ways), {fixed}")
    elif task.spec.num_ways != task.spec.train_num_ways and not declared.any_ways:
        problems.append(
            f"task.train_num_ways is {task.spec.train_num_ways} and task.num_ways is {task.spec.num_ways}, but the head of "
            f"{name} has a fixed number of classes; leave task.train_num_ways at null."
        )
    if task.spec.num_train_classes is None and declared.needs_train_classes:
        problems.append(f"meta_learner: {name} learns to tell all training classes apart, but {kind} has no fixed set.")
    return problems


def step_problems(learner: MetaLearner, inner_steps: int | None) -> list[str]:
    """Problems of the adaptation steps of learner and evaluation: no effect, or a negative number."""
    if inner_steps is not None and "inner_steps" not in hyperparameters(learner):
        return [
            f"evaluation.inner_steps has no effect: {type(learner).__name__} takes no adaptation steps; set it to null."
        ]
    if getattr(learner, "inner_steps", 0) < 0:
        return [f"meta_learner.inner_steps is {learner.inner_steps}, but must be 0 or more."]  # type: ignore[attr-defined]
    return []


def missing_packages(calls: Mapping[str, Callable[..., Any]]) -> list[str]:
    """Problems of loggers, among the calls by key, whose packages are not installed."""
    needed = {key: getattr(call.func, "package", "") for key, call in calls.items() if isinstance(call, partial)}
    return [
        f"{key} needs the package {package}, which is not installed: pip install {package}"
        for key, package in needed.items()
        if key.startswith("logger.") and package and find_spec(package) is None
    ]


def stepping_problems(
    scheduler: torch.optim.lr_scheduler.LRScheduler | None, calls: Mapping[str, Callable[..., Any]]
) -> list[str]:
    """Problems of the optimizer and the scheduler that show in their first step."""
    problems = _optimizer_problems(calls["optimizer"])
    return problems if scheduler is None else problems + _scheduler_problems(scheduler, calls["scheduler"])


def _optimizer_problems(call: Callable[..., Any]) -> list[str]:
    """Of an optimizer, tried on a matrix: LBFGS asks for a closure, say."""
    weights = torch.nn.Parameter(torch.ones(2, 2))
    weights.grad = torch.zeros(2, 2)
    try:
        call([weights]).step()
    except Exception as error:  # of torch's or somebody's class, which may raise anything
        reason = f"{settings_of('optimizer', call)}; {type(error).__name__}: {error}"
        fix = "Change its settings, or choose another, such as Adam."
        return [f"optimizer: {name_of(call)} cannot step by a gradient alone ({reason}). {fix}"]
    return []


def _scheduler_problems(scheduler: torch.optim.lr_scheduler.LRScheduler, call: Callable[..., Any]) -> list[str]:
    """Of a scheduler: StepLR divides by its step_size, say, and ReduceLROnPlateau asks for a score."""
    if reason := _not_stepping(scheduler):
        fix = "Choose another, such as cosine."
        if reason.startswith("ZeroDivisionError"):
            fix = "Lengths such as T_max must be 1 or more."
        return [f"scheduler: with {settings_of('scheduler', call)} it cannot step ({reason}). {fix}"]
    return []


def length_problems(
    scheduler: Callable[..., torch.optim.lr_scheduler.LRScheduler], optimizer: Callable[..., Any], steps: int
) -> list[str]:
    """Problems of a schedule that ends before ``steps`` steps, as OneCycleLR does; many go on at their last rate."""
    at_the_end = scheduler(optimizer([torch.nn.Parameter(torch.ones(2, 2))]))
    at_the_end.last_epoch = steps - 1
    if not (reason := _not_stepping(at_the_end)):
        return []
    fix = f"Lower steps, or make the schedule longer: scheduler.total_steps={steps}, say."
    settings = settings_of("scheduler", scheduler)
    return [f"scheduler: with {settings} it does not last for steps={steps} ({reason}). {fix}"]


def _not_stepping(scheduler: torch.optim.lr_scheduler.LRScheduler) -> str:
    """Why the next step of ``scheduler`` fails; empty where it does not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that the optimizer has not stepped
        try:
            scheduler.step()
        except Exception as error:  # of torch's or somebody's class, which may raise anything
            return f"{type(error).__name__}: {error}"
    return ""
