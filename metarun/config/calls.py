"""From a node of the configuration to a call that still needs what is given in code, and the call itself."""

import inspect
import re
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import torch
from torch import nn

from metarun.config.targets import Part, bases_of, locate, problems_of_call, raised, readable_type, types_of
from metarun.core import MetaLearner, TaskDistribution
from metarun.errors import DataProblems, memory_refusal, shortened
from metarun.evaluation.scoring import Evaluator
from metarun.execution.execution import Eager
from metarun.output.sink import Sink

GROUPS = ("task", "base_learner", "meta_learner", "optimizer", "scheduler", "execution")
GIVEN = {
    "task": {"seed", "device", "dtype", "data_root", "fitted"},
    "base_learner": {"input_shape", "num_outputs", "num_tokens"},
    "meta_learner": {
        *("base_learner", "objective", "num_ways", "num_train_classes"),
        *("input_shape", "num_outputs", "num_tokens"),  # those of a second network's, too
    },
    "optimizer": {"params"},
    "scheduler": {"optimizer", "last_epoch"},
    "execution": set(),
    "evaluator": set(),
    "logger": {"folder", "resume_step", "score"},
}
BASES: dict[str, type] = {
    "task": TaskDistribution,
    "base_learner": nn.Module,
    "meta_learner": MetaLearner,
    "optimizer": torch.optim.Optimizer,
    "scheduler": torch.optim.lr_scheduler.LRScheduler,
    "execution": Eager,
    "evaluator": Evaluator,
    "logger": Sink,
}


def checked_call(
    node: Any, key: str, given: Collection[str], base: type | tuple[type, ...]
) -> tuple[Callable[..., Any] | None, list[str]]:
    """A callable that makes a ``base`` and still needs what is ``given`` in code, or None and the problems of the node."""
    if not isinstance(node, dict) or "_target_" not in node:
        rule = "must be one of the group's options or a mapping with a _target_."
        fix = f" A YAML file chooses one in its defaults: '- override /{key}: {node}'." if isinstance(node, str) else ""
        return None, [f"{key} is {node!r}, but {rule}{fix}"]
    if not isinstance(node["_target_"], str):
        return None, [f"{key}._target_ is {node['_target_']!r}, but must name a class: package.module.Name."]
    try:
        target = locate(node["_target_"], base)
    except ValueError as error:
        return None, [f"{key}._target_: {error}"]
    arguments = {name: value for name, value in node.items() if name not in ("_target_", "_partial_")}
    problems = _partial_problems(node.get("_partial_"), key)
    for name, value in arguments.items():
        if isinstance(value, dict) and "_target_" in value:
            hint = types_of(target).get(name, Any)
            call, found = None, [f"{key}.{name} is {shortened(str(value))}, but must be {readable_type(hint)}."]
            if bases := bases_of(hint):  # else it holds plain values alone, and a part makes an object
                call, found = checked_call(value, f"{key}.{name}", given, bases)
            problems += found
            # a part that is refused stands there still, so that its problems are not told twice
            arguments[name] = call if call and value.get("_partial_") else Part(call or object)
    problems += problems_of_call(target, arguments, given, key)
    if key == "optimizer" and _of_torch(target):  # whose pairs of numbers may hold no 0 for 0.0
        lists = {name: value for name, value in arguments.items() if isinstance(value, list)}
        arguments |= {name: [float(v) if type(v) is int else v for v in value] for name, value in lists.items()}
    return (None if problems else partial(target, **arguments)), problems


def _partial_problems(value: Any, key: str) -> list[str]:
    """What is wrong with a node's ``_partial_``: of a part it says that it is made later; elsewhere it has no effect."""
    if (
        value is None
        or (value is True and key in ("optimizer", "scheduler"))
        or (isinstance(value, bool) and "." in key)
    ):
        return []
    rule = "true or false" if "." in key else "true" if key in ("optimizer", "scheduler") else "left out"
    return [f"{key}._partial_ is {value!r}, but must be {rule}."]


def named_nodes(plain: dict[str, Any], kind: str) -> dict[str, Any]:
    """The nodes evaluation.<kind>.NAME, or logger.NAME, by their keys."""
    at_the_root = kind == "logger"
    parent = plain if at_the_root else plain.get("evaluation", {})
    prefix = kind if at_the_root else f"evaluation.{kind}"
    return {f"{prefix}.{name}": node for name, node in (parent.get(kind) or {}).items()}


def attempt(problems: list[str], key: str, call: Callable[..., Any] | None, **given: Any) -> Any:
    """``call`` with those of the ``given`` values it takes; a refusal joins ``problems``."""
    if call is None:
        return None
    accepted = inspect.signature(call).parameters
    parts = call.keywords.items() if isinstance(call, partial) else ()
    made = {
        name: attempt(problems, f"{key}.{name}", part.make, **given) for name, part in parts if isinstance(part, Part)
    }
    if any(part is None for part in made.values()):  # its problem has been noted
        return None
    given |= made
    try:
        it = call(**{name: value for name, value in given.items() if name in accepted or name in made})
        base = BASES.get("task" if re.fullmatch(r"evaluation\.task\.[^.]+", key) else key, object)
        if isinstance(it, base):
            return it
        problems.append(f"{key}: it makes a {type(it).__name__}, but must make a {base.__name__}.")
        return None
    except (ValueError, OSError, RuntimeError) as error:  # torch refuses sizes with a RuntimeError
        no_memory = f"out of memory: {said}. Take smaller sizes." if (said := memory_refusal(error)) else ""
        for said in error.problems if isinstance(error, DataProblems) else [no_memory or str(error)]:
            # a task elsewhere speaks of its settings as task.NAME
            text = re.sub(r"\btask\.(?=[a-z])", f"{key}.", said) if key.startswith("evaluation.task.") else said
            if _of_torch(call) and not no_memory:
                problems.append(refusal(key, call, text))
            else:
                problems.append(text if key in text else f"{key}: {text}")
        return None
    except Exception as error:  # somebody's class may raise anything: where it did so is what he must know
        if type(error).__module__.startswith("metarun."):
            raise
        said = raised(error)
        problems.append(refusal(key, call, said) if _of_torch(call) else f"{key}: {said}.")
        return None


def refusal(key: str, call: Callable[..., Any], said: str) -> str:
    """What a class of torch's ``said`` against its settings, with those that it names, or else with all of them."""
    named = [n for n in _given(call) if re.search(rf"\b{n.rstrip('s')}s?\b", said, re.IGNORECASE)]
    settings = settings_of(key, call, named)
    rule = f"{name_of(call)} of torch refuses {settings} ({said.rstrip('.')})"
    return f"{key}: {rule}. Change what it names, or choose another {key}."


def settings_of(key: str, call: Callable[..., Any], named: Collection[str] = ()) -> str:
    """The settings of a call as a user gives them: those ``named``, or else all."""
    told = {name: value for name, value in _given(call).items() if name in (named or _given(call))}
    return ", ".join(f"{key}.{name}={shortened(str(value))}" for name, value in told.items()) or "its defaults"


def _given(call: Callable[..., Any]) -> dict[str, Any]:
    """The plain values among the arguments of a call."""
    given = call.keywords if isinstance(call, partial) else {}
    return {name: value for name, value in given.items() if not isinstance(value, (Part, partial))}


def name_of(call: Callable[..., Any]) -> str:
    """The name of the class or function behind a call."""
    return call.func.__name__ if isinstance(call, partial) else call.__name__


def _of_torch(call: Callable[..., Any]) -> bool:
    """Whether it is torch's or torchvision's: their messages do not speak of a user's settings."""
    made_by = call.func if isinstance(call, partial) else call
    return made_by.__module__.partition(".")[0] in ("torch", "torchvision")
