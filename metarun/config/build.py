"""From a configuration to the objects of a run. The only module that turns config nodes into objects."""

import inspect
import os
import re
import warnings
from collections.abc import Callable, Collection
from copy import deepcopy
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, get_args

import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor, nn

from metarun.config.schema import Config
from metarun.config.targets import Part, base_of, did_you_mean, locate, problems_of_call
from metarun.core import MetaLearner, TaskDistribution, hyperparameters
from metarun.errors import ConfigError
from metarun.evaluation.scoring import modules_of
from metarun.evaluation.suite import Scored, learner_for, scored_elsewhere
from metarun.execution.execution import Execution, generators_kept
from metarun.trees import leaf_names, tree_leaves

GROUPS = ("task", "base_learner", "meta_learner", "optimizer", "scheduler", "execution")
GIVEN = {
    "task": {"seed", "device", "dtype", "data_root"},
    "base_learner": {"input_shape", "num_outputs", "num_tokens"},
    "meta_learner": {
        *("base_learner", "objective", "num_ways", "num_train_classes"),
        *("input_shape", "num_outputs", "num_tokens"),  # those of a second network's, too
    },
    "optimizer": {"params"},
    "scheduler": {"optimizer"},
    "execution": set(),
}
BASES: dict[str, type] = {
    "task": TaskDistribution,
    "base_learner": nn.Module,
    "meta_learner": MetaLearner,
    "optimizer": torch.optim.Optimizer,
    "scheduler": torch.optim.lr_scheduler.LRScheduler,
    "execution": Execution,
}
SMALLEST = {"steps": 1, "meta_batch_size": 1, "log_every": 1, "seed": 0}
LARGEST_SEED = 2**63 - 1
SMALLEST_EVALUATION = {"every": 1, "num_val_tasks": 2, "num_tasks": 2}  # an interval needs two episodes


@dataclass
class Experiment:
    """The objects and numbers of one run, built and checked."""

    task: TaskDistribution
    learner: MetaLearner
    test_learner: MetaLearner  # with the ways and steps of validation and test
    scored: dict[str, Scored]  # what is validated and tested on, by name; the training task alone has the name ""
    optimizer: Callable[[list[Any]], torch.optim.Optimizer]
    scheduler: Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler]
    execution: Execution
    clip: Callable[[list[Tensor]], object] | None
    rates: dict[str, float]
    device: torch.device
    seed: int
    steps: int
    meta_batch_size: int
    log_every: int
    profile: bool
    every: int
    num_val_tasks: int
    num_test_tasks: int
    trained_steps: int
    protocol: dict[str, Any]  # what a reader of the score must know
    headline: dict[str, Any]  # what TensorBoard's HParams page shows


def build(cfg: DictConfig) -> Experiment:
    """Check everything, then build it. Raises ConfigError with every problem found."""
    plain, calls, problems = _checked(cfg)
    if _place_problems(plain):
        raise ConfigError(problems)
    given = _given_task(plain)
    task = _attempt(problems, "task", calls.get("task"), **given)
    elsewhere = {key: _attempt(problems, key, calls.get(key), **given) for key in _evaluation_tasks(plain)}
    execution = _attempt(problems, "execution", calls.get("execution"))
    problems += _trial(calls, given["device"], given["dtype"])
    if problems or task is None or execution is None:
        raise ConfigError(problems)
    return _assemble(plain, calls, task, elsewhere, execution)


def build_task(cfg: DictConfig) -> TaskDistribution:
    """The task distribution alone. Raises ConfigError with every problem of its group."""
    plain: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    call, problems = _checked_call(plain["task"], "task", GIVEN["task"], TaskDistribution)
    problems += _place_problems(plain)
    task = None if problems else _attempt(problems, "task", call, **_given_task(plain))
    if problems or task is None:
        raise ConfigError(problems)
    return task


def check(cfg: DictConfig) -> list[str]:
    """What is wrong with a configuration, as far as that can be said without building anything or reading data."""
    return _checked(cfg)[2]


def _checked(cfg: DictConfig) -> tuple[dict[str, Any], dict[str, Callable[..., Any]], list[str]]:
    """Plain values, what makes each group's object, and the problems of both."""
    try:
        plain: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        raise ConfigError([f"{error.full_key}: an interpolation cannot be resolved: {reason}."]) from error
    problems = _problems_at_the_root(plain)
    calls: dict[str, Callable[..., Any]] = {}
    elsewhere = _evaluation_tasks(plain)
    for key, node in {**{group: plain.get(group) for group in GROUPS}, **elsewhere}.items():
        group = key if key in GROUPS else "task"  # a task elsewhere
        call, found = _checked_call(node, key, GIVEN[group], BASES[group])
        problems += found
        if call is not None:
            calls[key] = call
    return plain, calls, problems


def _evaluation_tasks(plain: dict[str, Any]) -> dict[str, Any]:
    """The nodes of the tasks to validate and test on, by their keys."""
    return {f"evaluation.task.{name}": node for name, node in plain.get("evaluation", {}).get("task", {}).items()}


def _problems_at_the_root(plain: dict[str, Any]) -> list[str]:
    known = [field.name for field in fields(Config)]
    if missing := [f"{key} is missing." for key in known if key not in plain]:
        return missing
    problems = [f"{key} is not a setting{did_you_mean(key, known)}." for key in plain if key not in known]
    numbers = [(key, plain[key], least) for key, least in SMALLEST.items()]
    numbers += [(f"evaluation.{key}", plain["evaluation"][key], least) for key, least in SMALLEST_EVALUATION.items()]
    problems += [f"{key} is {value}, but must be {least} or more." for key, value, least in numbers if value < least]
    if plain["seed"] > LARGEST_SEED:
        problems.append(
            f"seed is {plain['seed']}, but must be {LARGEST_SEED} or less: torch's generators take 64 bits."
        )
    for part, rate in flat(plain["rates"]).items():
        if not isinstance(rate, (int, float)) or rate < 0:
            problems.append(f"rates.{part} is {rate!r}, but must be a number of 0 or more: a multiple of optimizer.lr.")
    for key in ("clip_norm", "clip_value"):
        if plain[key] is not None and plain[key] <= 0:
            problems.append(f"{key} is {plain[key]}, but must be above 0, or null for no clipping.")
    if plain["clip_norm"] is not None and plain["clip_value"] is not None:
        problems.append("clip_norm and clip_value are both set; keep one of them.")
    on_gpu = str(plain["device"]).startswith("cuda") or (plain["device"] == "auto" and torch.cuda.is_available())
    if plain["tf32"] and not on_gpu:
        problems.append("tf32=true has no effect without a CUDA device; set it to false.")
    if plain["evaluation"]["fit_images"] and not plain["evaluation"]["task"]:
        problems.append("evaluation.fit_images=true has no effect without evaluation.task; set it to false.")
    inner_steps = plain["evaluation"]["inner_steps"]
    if inner_steps is not None and inner_steps < 0:
        problems.append(f"evaluation.inner_steps is {inner_steps}, but must be 0 or more, or null: as in training.")
    return problems + _place_problems(plain)


def flat(node: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of nested mappings by their dotted keys: {body: {1: 5}} gives {body.1: 5}."""
    leaves: dict[str, Any] = {}
    for key, value in node.items():
        leaves |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return leaves


def _place_problems(plain: dict[str, Any]) -> list[str]:
    """Of the two settings without which nothing can be built."""
    problems = (
        []
        if plain.get("dtype") in ("float32", "float64")
        else [f"dtype is {plain.get('dtype')!r}, but must be float32 or float64."]
    )
    return problems + _device_problems(plain.get("device"))


def _device_problems(name: Any) -> list[str]:
    if name == "auto":
        return []
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        return [f"device is {name!r}, but must be auto, cpu, cuda, cuda:N or mps."]
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not present.get(device.type):
        return [f"device is {name!r}, but torch finds no such device here; use device=cpu."]
    if device.type == "cuda" and (device.index or 0) >= (visible := torch.cuda.device_count()):
        rule = f"torch sees {visible} of them here, counted from cuda:0"
        return [f"device is {name!r}, but {rule} (a sweep with jobs shows each run one); use device=cuda."]
    return []


def device_of(name: str) -> torch.device:
    """The device of that name; ``auto`` is a CUDA device where torch finds one, else the CPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def _checked_call(
    node: Any, key: str, given: Collection[str], base: type
) -> tuple[Callable[..., Any] | None, list[str]]:
    """A callable that makes a ``base`` and still needs what is ``given`` in code, or None and the problems of the node."""
    if not isinstance(node, dict) or "_target_" not in node:
        return None, [f"{key} is {node!r}, but must be one of the group's options or a mapping with a _target_."]
    try:
        target = locate(node["_target_"], base)
    except ValueError as error:
        return None, [f"{key}._target_: {error}"]
    arguments = {name: value for name, value in node.items() if name not in ("_target_", "_partial_")}
    problems: list[str] = []
    for name, value in arguments.items():
        if isinstance(value, dict) and "_target_" in value:
            call, found = _checked_call(value, f"{key}.{name}", given, base_of(target, name))
            problems += found
            arguments[name] = call if value.get("_partial_") or call is None else Part(call)
    problems += problems_of_call(target, arguments, given, key)
    return (None if problems else partial(target, **arguments)), problems


def _attempt(problems: list[str], key: str, call: Callable[..., Any] | None, **given: Any) -> Any:
    """``call`` with those of the ``given`` values it takes; a refusal joins ``problems``."""
    if call is None:
        return None
    accepted = inspect.signature(call).parameters
    parts = call.keywords.items() if isinstance(call, partial) else ()
    made = {
        name: _attempt(problems, f"{key}.{name}", part.make, **given) for name, part in parts if isinstance(part, Part)
    }
    if any(part is None for part in made.values()):  # its problem has been noted
        return None
    given |= made
    try:
        return call(**{name: value for name, value in given.items() if name in accepted or name in made})
    except (ValueError, OSError, RuntimeError) as error:  # torch refuses sizes with a RuntimeError
        # a task elsewhere speaks of its settings as task.NAME
        said = re.sub(r"\btask\.(?=[a-z])", f"{key}.", str(error)) if key.startswith("evaluation.task.") else str(error)
        problems.append(said if key in said else f"{key}: {said}")
        return None


def _given_task(plain: dict[str, Any]) -> dict[str, Any]:
    dtype, device = getattr(torch, plain["dtype"]), device_of(plain["device"])
    return {
        "seed": plain["seed"],
        "device": device,
        "dtype": dtype,
        "data_root": os.path.expanduser(plain["data_root"]),
    }


def _assemble(
    plain: dict[str, Any],
    calls: dict[str, Callable[..., Any]],
    task: TaskDistribution,
    elsewhere: dict[str, TaskDistribution],
    execution: Execution,
) -> Experiment:
    problems: list[str] = []
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = plain["tf32"]
    device = device_of(plain["device"])
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # streams and CUDA graphs are those of the current one
    torch.manual_seed(plain["seed"])
    problems += _token_problems(task, calls)
    shapes = {"input_shape": task.input_shape, "num_outputs": task.num_outputs, "num_tokens": task.num_tokens}
    base_learner = None if problems else _attempt(problems, "base_learner", calls["base_learner"], **shapes)
    if base_learner is None:
        raise ConfigError(problems)
    base_learner.to(device, getattr(torch, plain["dtype"]))
    shapes |= {"base_learner": base_learner, "objective": task.objective, "num_ways": task.train_num_ways}
    problems += _ways_problems(task, calls["meta_learner"])
    shapes |= {"num_train_classes": task.num_train_classes}
    problems += _class_problems(task, calls["meta_learner"])
    learner = None if problems else _attempt(problems, "meta_learner", calls["meta_learner"], **shapes)
    problems += [] if learner is None else _step_problems(learner, plain["evaluation"]["inner_steps"])
    if problems or learner is None:
        raise ConfigError(problems)
    for module in modules_of(learner):
        module.to(device, getattr(torch, plain["dtype"]))
    scored = scored_elsewhere(elsewhere, task, learner, plain["evaluation"])
    experiment = _experiment(plain, calls, task, learner, scored, execution)
    if experiment.rates:
        _try_rates(experiment)
    return experiment


def _experiment(
    plain: dict[str, Any],
    calls: dict[str, Callable[..., Any]],
    task: TaskDistribution,
    learner: MetaLearner,
    scored: dict[str, Scored],
    execution: Execution,
) -> Experiment:
    evaluation = plain["evaluation"]
    test_learner = learner_for(task, learner, evaluation["inner_steps"])
    test_steps = getattr(test_learner, "inner_steps", None)
    own = task.num_test_tasks or evaluation["num_tasks"]
    protocol = {group: plain[group] for group in ("task", "base_learner", "meta_learner")}
    protocol |= {"inner_steps": test_steps, "seed": plain["seed"], "data": task.fingerprint()}
    return Experiment(
        task=task,
        learner=learner,
        test_learner=test_learner,
        scored=scored or {"": Scored(task, test_learner, plain["task"])},
        optimizer=calls["optimizer"],
        scheduler=calls["scheduler"],
        execution=execution,
        rates=flat(plain["rates"]),
        clip=_clipper(plain["clip_norm"], plain["clip_value"]),
        device=device_of(plain["device"]),
        seed=plain["seed"],
        steps=plain["steps"],
        meta_batch_size=plain["meta_batch_size"],
        log_every=plain["log_every"],
        profile=plain["profile"],
        every=evaluation["every"],
        num_val_tasks=evaluation["num_val_tasks"],
        num_test_tasks=evaluation["num_tasks"] if scored else min(evaluation["num_tasks"], own),
        trained_steps=getattr(learner, "inner_steps", 0),
        protocol=protocol,
        headline=_headline(plain),
    )


def _token_problems(task: TaskDistribution, calls: dict[str, Callable[..., Any]]) -> list[str]:
    """Networks that take no tokens, where the task's inputs are tokens."""
    if task.num_tokens is None:
        return []
    learner = calls["meta_learner"]
    parts = learner.keywords.items() if isinstance(learner, partial) else ()
    networks = {"base_learner": calls["base_learner"]}
    networks |= {f"meta_learner: its {name}": part.make for name, part in parts if isinstance(part, Part)}
    accepted = {name: inspect.signature(network).parameters for name, network in networks.items()}
    return [
        f"{name}: {_name(networks[name])} takes numbers, but the task's inputs are words (task.features). Choose a "
        "network that reads words (embedding_bag, text_cnn, transformer), or other features (task/features=hashed)."
        for name, parameters in accepted.items()
        if "num_tokens" not in parameters and (name == "base_learner" or "input_shape" in parameters)
    ]


def _ways_problems(task: TaskDistribution, learner: Callable[..., Any]) -> list[str]:
    parameters, name = inspect.signature(learner).parameters, _name(learner)
    flexible = "num_ways" in parameters
    regresses = flexible and type(None) in get_args(parameters["num_ways"].annotation)  # num_ways: int | None
    if flexible and task.num_ways is None and not regresses:
        return [f"meta_learner: {name} classifies, but the task {type(task).__name__} has no classes."]
    if not flexible and task.num_ways != task.train_num_ways:
        return [
            f"task.train_num_ways is {task.train_num_ways} and task.num_ways is {task.num_ways}, but the head of "
            f"{name} has a fixed number of classes; leave task.train_num_ways at null."
        ]
    return []


def _class_problems(task: TaskDistribution, learner: Callable[..., Any]) -> list[str]:
    wanted = inspect.signature(learner).parameters.get("num_train_classes")
    does_without = wanted is None or type(None) in get_args(wanted.annotation)  # num_train_classes: int | None
    if task.num_train_classes is None and not does_without:
        kind = type(task).__name__
        return [
            f"meta_learner: {_name(learner)} learns to tell all training classes apart, but {kind} has no fixed set."
        ]
    return []


def _step_problems(learner: MetaLearner, inner_steps: int | None) -> list[str]:
    if inner_steps is not None and "inner_steps" not in hyperparameters(learner):
        return [
            f"evaluation.inner_steps has no effect: {type(learner).__name__} takes no adaptation steps; set it to null."
        ]
    if getattr(learner, "inner_steps", 0) < 0:
        return [f"meta_learner.inner_steps is {learner.inner_steps}, but must be 0 or more."]  # type: ignore[attr-defined]
    return []


def _trial(calls: dict[str, Callable[..., Any]], device: torch.device, dtype: torch.dtype) -> list[str]:
    """Make the optimizer and the scheduler, on a parameter of no importance, and step once, to hear their refusals."""
    problems: list[str] = []
    parameter = nn.Parameter(torch.zeros(1, device=device, dtype=dtype))
    optimizer = _attempt(problems, "optimizer", calls.get("optimizer"), params=[parameter])
    if optimizer is not None:
        scheduler = _attempt(problems, "scheduler", calls.get("scheduler"), optimizer=optimizer)
        problems += [] if scheduler is None else _scheduler_problems(scheduler, calls["scheduler"])
    return problems


def _scheduler_problems(scheduler: torch.optim.lr_scheduler.LRScheduler, call: Callable[..., Any]) -> list[str]:
    """Of a step: StepLR divides by its step_size, say."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that the optimizer has not stepped
        try:
            scheduler.step()
        except (ArithmeticError, TypeError, ValueError) as error:
            given = call.keywords.items() if isinstance(call, partial) else ()
            values = ", ".join(f"scheduler.{name}={value}" for name, value in given)
            reason = f"{type(error).__name__}: {error}"
            return [f"scheduler: with {values} it cannot step ({reason}). Lengths such as T_max must be 1 or more."]
    return []


def _try_rates(x: Experiment) -> None:
    """Raise ConfigError where the ``rates`` or their optimizer do not fit theta: now, before there is a run folder."""
    with generators_kept():
        theta = deepcopy(x.learner).init()  # of a copy: init takes the parameters out of the modules
    try:
        optimizer_of(x, tree_leaves(theta), leaf_names(theta))
    except ValueError as error:
        raise ConfigError([f"optimizer: with rates, {error}"]) from error


def optimizer_of(x: Experiment, leaves: list[Tensor], names: list[str]) -> torch.optim.Optimizer:
    """The optimizer of theta's leaves, in groups of their own where ``rates`` name the beginning of their names."""
    if not x.rates:
        return x.optimizer(leaves)

    def part_of(name: str) -> str:
        return next((part for part in x.rates if f"{name}.".startswith(f"{part}.")), "")

    parts = [part_of(name) for name in names]
    if unknown := sorted(set(x.rates) - set(parts)):
        raise ConfigError(
            [f"rates.{part}: theta has no part of that name; it has {', '.join(names)}." for part in unknown]
        )
    lr = x.optimizer(leaves[:1]).param_groups[0]["lr"]
    rates = {"": 1.0, **x.rates}
    groups = {part: [leaf for leaf, its in zip(leaves, parts, strict=True) if its == part] for part in rates}
    return x.optimizer([{"params": group, "lr": lr * rates[part]} for part, group in groups.items() if group])


def _clipper(norm: float | None, value: float | None) -> Callable[[list[Tensor]], object] | None:
    if norm is not None:
        return partial(nn.utils.clip_grad_norm_, max_norm=norm)
    if value is not None:
        return partial(nn.utils.clip_grad_value_, clip_value=value)
    return None


def _name(call: Callable[..., Any]) -> str:
    return call.func.__name__ if isinstance(call, partial) else call.__name__


def _headline(plain: dict[str, Any]) -> dict[str, Any]:
    """Flat names and values of what tells runs apart."""
    headline: dict[str, Any] = {key: plain[key] for key in ("seed", "steps", "meta_batch_size")}
    headline |= {"evaluation.task": ", ".join(plain["evaluation"]["task"]) or None}
    for group in GROUPS:
        headline[group] = plain[group]["_target_"].rpartition(".")[2]
        headline |= {f"{group}.{name}": value for name, value in plain[group].items() if not name.startswith("_")}
    return {
        name: v if isinstance(v, (int, float, str, bool)) else str(v) for name, v in headline.items() if v is not None
    }
