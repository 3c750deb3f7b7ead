"""From a configuration to the objects of a run. The only module that turns config nodes into objects."""

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor, nn

from metarun.config.calls import BASES, GIVEN, GROUPS, attempt, checked_call, named_nodes
from metarun.config.checks import (
    flat,
    learner_problems,
    missing_packages,
    place_problems,
    problems_at_the_root,
    step_problems,
    stepping_problems,
    token_problems,
)
from metarun.config.experiment import Experiment, check_rates, take_theta
from metarun.config.explain import unresolved
from metarun.config.networks import exact, suited
from metarun.core import MetaLearner, TaskDistribution
from metarun.errors import ConfigError
from metarun.evaluation.eval_mode import modules_of
from metarun.evaluation.references import BASELINES
from metarun.evaluation.shots import OverShots, check_shots
from metarun.evaluation.suite import Scored, Suite, learner_for, scored_elsewhere
from metarun.execution.execution import Eager
from metarun.execution.sharded import divided
from metarun.paths import usable
from metarun.tasks.store import Source

AS_THEY_ARE = ("seed", "steps", "meta_batch_size", "log_every", "checkpoint_minutes", "profile", "devices", "exact")
OF_THE_FOLDER = ("run_dir", "resume", "data_root", "logger", "log_every", "checkpoint_minutes", "profile")


def build(cfg: DictConfig, fitted: dict[str, Any] | None = None) -> Experiment:
    """Check everything, then build it; ``fitted``: by the run's task. Raises ConfigError with every problem found."""
    plain, calls, problems = _checked(cfg)
    if place_problems(plain):
        raise ConfigError(problems)
    given = _given_task(plain)
    task = attempt(problems, "task", calls.get("task"), **given, fitted=fitted)
    given["fitted"] = fitted or (task and task.fitted())  # theta knows the training task's units alone
    elsewhere = {key: attempt(problems, key, calls.get(key), **given) for key in named_nodes(plain, "task")}
    execution = attempt(problems, "execution", calls.get("execution"))
    for key in named_nodes(plain, "evaluator"):
        attempt(problems, key, calls.get(key))
    problems += _trial(calls, given["device"], given["dtype"])
    if problems or task is None or execution is None:
        raise ConfigError(problems)
    return _assemble(plain, calls, task, elsewhere, execution)


def build_task(cfg: DictConfig) -> TaskDistribution:
    """The task distribution alone. Raises ConfigError with every problem of its group."""
    return _made("task", *_task_call(cfg))


def sources_of(cfg: DictConfig) -> Sequence[Source]:
    """Sources of the prepared arrays that the task reads, which is not built; none of a task without any."""
    call, given = _task_call(cfg)
    sources = getattr(call.func, "sources", lambda: ())  # of a ``PreparedTask``, or of a function that makes one
    taken = inspect.signature(sources).parameters
    return _made(
        "task.sources",
        partial(sources, **{name: call.keywords[name] for name in taken if name in call.keywords}),
        given,
    )


def _task_call(cfg: DictConfig) -> tuple[Any, dict[str, Any]]:
    """The call that makes the task, and what it is given in code. Raises ConfigError."""
    plain = _resolved(cfg)
    call, problems = checked_call(plain["task"], "task", GIVEN["task"], TaskDistribution)
    problems += place_problems(plain)
    if problems or call is None:
        raise ConfigError(problems)
    return call, _given_task(plain)


def _made(key: str, call: Callable[..., Any], given: dict[str, Any]) -> Any:
    problems: list[str] = []
    made = attempt(problems, key, call, **given)
    if problems:
        raise ConfigError(problems)
    return made


def check(cfg: DictConfig) -> list[str]:
    """Problems of a configuration that show without building anything or reading data."""
    _, calls, problems = _checked(cfg)
    return problems + missing_packages(calls)


def _resolved(cfg: DictConfig) -> dict[str, Any]:
    """Plain values; raises ConfigError where an interpolation cannot be resolved."""
    try:
        return OmegaConf.to_container(cfg, resolve=True)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        raise ConfigError([unresolved(error)]) from error


def _checked(cfg: DictConfig) -> tuple[dict[str, Any], dict[str, Callable[..., Any]], list[str]]:
    """Plain values, what makes each group's object, and the problems of both."""
    plain = _resolved(cfg)
    problems = problems_at_the_root(plain)
    calls: dict[str, Callable[..., Any]] = {}
    if "_target_" in plain.get("logger", {}):
        raise ConfigError(
            ["logger: the file of an option begins with the line '# @package logger.mine', say: its own place."]
        )
    nodes = {group: (group, plain.get(group)) for group in GROUPS}
    for kind in ("task", "evaluator", "logger"):
        nodes |= {key: (kind, node) for key, node in named_nodes(plain, kind).items()}
    for key, (group, node) in nodes.items():
        call, found = checked_call(node, key, GIVEN[group], BASES[group])
        problems += found
        if call is not None:
            calls[key] = call
    return plain, calls, problems


def device_of(name: str) -> torch.device:
    """The device of that name; ``auto`` is a CUDA device where torch finds one, else the CPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def _given_task(plain: dict[str, Any]) -> dict[str, Any]:
    dtype, device = getattr(torch, plain["dtype"]), device_of(plain["device"])
    data_root = str(usable(plain["data_root"], "data_root"))
    return {"seed": plain["seed"], "device": device, "dtype": dtype, "data_root": data_root}


def _assemble(
    plain: dict[str, Any],
    calls: dict[str, Callable[..., Any]],
    task: TaskDistribution,
    elsewhere: dict[str, TaskDistribution],
    execution: Eager,
) -> Experiment:
    problems: list[str] = []
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = plain["tf32"]
    device = device_of(plain["device"])
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # streams and CUDA graphs are those of the current one
    torch.manual_seed(plain["seed"])
    problems += token_problems(task, calls)
    known = {**vars(task.spec), "num_ways": task.spec.train_num_ways}
    given = {name: known[name] for name in GIVEN["base_learner"]}
    base_learner = None if problems else attempt(problems, "base_learner", calls["base_learner"], **given)
    if base_learner is None:
        raise ConfigError(problems)
    notes = exact(base_learner)
    base_learner.to(device, getattr(torch, plain["dtype"]))
    problems += learner_problems(task, calls["meta_learner"])
    known["base_learner"] = base_learner
    given = {name: known[name] for name in GIVEN["meta_learner"]}
    learner = None if problems else attempt(problems, "meta_learner", calls["meta_learner"], **given)
    problems += [] if learner is None else step_problems(learner, plain["evaluation"]["inner_steps"])
    if problems or learner is None:
        raise ConfigError(problems)
    for module in modules_of(learner):
        notes += exact(module)  # of a second network; the base learner's layers are exact by now
        module.to(device, getattr(torch, plain["dtype"]))
    execution, why = suited(execution, learner, task, plain["steps"])
    execution = divided(execution, plain["meta_batch_size"], plain["devices"])
    notes += why
    check_shots([*elsewhere.values()] or [task], plain["evaluation"]["shots"])
    scored = scored_elsewhere(elsewhere, task, learner, plain["evaluation"])
    experiment = _experiment(plain, calls, task, learner, scored, execution)
    experiment.notes = notes
    check_rates(experiment)
    return experiment


def _experiment(
    plain: dict[str, Any],
    calls: dict[str, Callable[..., Any]],
    task: TaskDistribution,
    learner: MetaLearner,
    scored: dict[str, Scored],
    execution: Eager,
) -> Experiment:
    evaluation = plain["evaluation"]
    over_shots = [OverShots(evaluation["shots"], BASELINES)] if evaluation["shots"] else []
    test_learner = learner_for(task, learner, evaluation["inner_steps"])
    test_steps = getattr(test_learner, "inner_steps", None)
    own = task.spec.num_test_tasks or evaluation["num_tasks"]
    protocol = {group: plain[group] for group in ("task", "base_learner", "meta_learner")}
    protocol |= {"inner_steps": test_steps, "seed": plain["seed"], "data": task.fingerprint()}
    return Experiment(
        task=task,
        learner=learner,
        theta_0=take_theta(learner),
        test_learner=test_learner,
        suite=Suite(Scored(task, test_learner, plain["task"]), scored),
        evaluators=[*BASELINES, *over_shots, *(calls[key]() for key in named_nodes(plain, "evaluator"))],
        optimizer=calls["optimizer"],
        scheduler=calls["scheduler"],
        execution=execution,
        loggers={key: calls[key] for key in named_nodes(plain, "logger")},
        rates=flat(plain["rates"]),
        clip=_clipper(plain["clip_norm"], plain["clip_value"]),
        device=device_of(plain["device"]),
        **{key: plain[key] for key in AS_THEY_ARE},
        every=evaluation["every"],
        num_val_tasks=evaluation["num_val_tasks"],
        num_test_tasks=evaluation["num_tasks"] if scored else min(evaluation["num_tasks"], own),
        trained_steps=getattr(learner, "inner_steps", 0),
        protocol=protocol,
        headline=_headline(plain),
    )


def _trial(calls: dict[str, Callable[..., Any]], device: torch.device, dtype: torch.dtype) -> list[str]:
    """Make the optimizer and the scheduler, on a parameter of no importance, and step once, to hear their refusals."""
    problems: list[str] = []
    parameter = nn.Parameter(torch.zeros(1, device=device, dtype=dtype))
    optimizer = attempt(problems, "optimizer", calls.get("optimizer"), params=[parameter])
    if optimizer is not None:
        scheduler = attempt(problems, "scheduler", calls.get("scheduler"), optimizer=optimizer)
        problems += stepping_problems(scheduler, calls)
    return problems


def _clipper(norm: float | None, value: float | None) -> Callable[[list[Tensor]], object] | None:
    if norm is not None:
        return partial(nn.utils.clip_grad_norm_, max_norm=norm)
    if value is not None:
        return partial(nn.utils.clip_grad_value_, clip_value=value)
    return None


def _headline(plain: dict[str, Any]) -> dict[str, Any]:
    """Flat names and values of all that may tell runs apart. A class has the name of its node; null has none."""
    headline: dict[str, Any] = {"evaluation.task": names} if (names := ", ".join(plain["evaluation"]["task"])) else {}
    for key, value in flat({key: value for key, value in plain.items() if key not in OF_THE_FOLDER}).items():
        if key.endswith("._target_"):
            headline[key.removesuffix("._target_")] = value.rpartition(".")[2]
        elif value is not None and not key.endswith("._partial_"):
            headline[key] = value if isinstance(value, (int, float, str, bool)) else str(value)
    return headline
