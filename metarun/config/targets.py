"""From ``_target_`` to a callable, and from its signature to a list of what is wrong with its arguments."""

import enum
import importlib
import inspect
import os
import sys
import types
import typing
from collections import abc
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from metarun.annotations import conforms
from metarun.config.help import options
from metarun.config.ranges import range_problems
from metarun.errors import did_you_mean, place_of, shortened

# Not the whole of metarun: a config that could name metarun.config.trust.trust could allow itself anything.
OURS = (
    "metarun.tasks",
    "metarun.control",
    "metarun.models",
    "metarun.meta_learners",
    "metarun.evaluation.autoregressive",
    "metarun.execution",
    "metarun.output.loggers",
    "metarun.sweep.launchers",
)
COUNTED = " Use a whole number, or two as [lowest, highest]: each meta-batch draws its own between them."
ALLOWED = (*OURS, "torch.nn", "torch.optim", "torchvision.models", "torchvision.transforms")
PLAIN = (bool, int, float, str, bytes, os.PathLike, type(None), abc.Sequence, abc.Mapping, abc.Set, enum.Enum, type)
IN_YAML = {type(None): "null", bool: "true or false"}  # how YAML writes what Python calls otherwise


@dataclass(frozen=True)
class Part:
    """A node inside a group's node, for example a second network of a meta-learner: made with its parent, and given the
    shapes that the parent is given."""

    make: Callable[..., Any]


def allowed_modules() -> list[str]:
    """Where a ``_target_`` may come from: metarun's own list, ``--allow`` and ``--config-dir`` on the command line (kept
    in METARUN_ALLOW for worker processes), and packages with an entry point in the group ``metarun.plugins``.

    Never from the configuration itself: reading somebody's YAML must not run code of their choice.
    """
    named = [name for name in os.environ.get("METARUN_ALLOW", "").split(":") if name]
    return [*ALLOWED, *named, *plugins()]


@cache
def plugins() -> list[str]:
    """The modules of installed entry points; finding them reads the metadata of every package."""
    return [entry.value.split(":")[0] for entry in entry_points(group="metarun.plugins")]


def locate(path: str, base: type | tuple[type, ...] = object) -> Callable[..., Any]:
    """The callable ``package.module.Name``, which makes a ``base``; raises ValueError with the reason.

    Of metarun, torch and torchvision it is a public class derived from ``base``, a function of metarun that says it returns
    a task, or a model of torchvision's list. What the user trusts may be any callable, and a class of the right kind.
    """
    module_name, _, name = path.rpartition(".")
    allowed = allowed_modules()
    if not _below(module_name, allowed):
        package = path.split(".", maxsplit=1)[0]
        known = package in ("metarun", "torch", "torchvision") or package in sys.stdlib_module_names
        own = " If it is yours, name its folder by --config-dir DIR (in Python: metarun.config.trust.trust([DIR], []));"
        hint = f"{own} if you trust that package: --allow {package}." if module_name and not known else ""
        raise ValueError(f"{path!r} is outside the modules that a config may name ({', '.join(allowed)}).{hint}")
    known = _below(module_name, ALLOWED)
    refusal = f"{path!r} is not something that a config may call."
    if known and any(part.startswith("_") for part in path.split(".")):
        raise ValueError(f"{refusal} It is private.")  # and not imported, for importing runs code
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        where = place_of(error)  # of an import in that module
        raise ValueError(f"cannot import {module_name!r}: {error}{f' ({where})' * bool(where)}") from error
    except (Exception, SystemExit) as error:  # of the module's own code
        raise ValueError(f"cannot import {module_name!r}: {raised(error)}") from error
    if (target := getattr(module, name, None)) is None:
        public = [other for other in dir(module) if not other.startswith("_")]
        raise ValueError(f"module {module_name!r} has no {name!r}{did_you_mean(name, public)}")
    if not callable(target) or not _below(getattr(target, "__module__", None) or "", allowed):
        raise ValueError(refusal)
    bases = base if isinstance(base, tuple) else (base,)
    wanted = f" Here it must be a class derived from {' or '.join(kind.__name__ for kind in bases)}."
    wanted = "" if object in bases else wanted
    if inspect.isclass(target) and not issubclass(target, bases):
        raise ValueError(f"{refusal}{wanted}")
    if lacks := ", ".join(sorted(getattr(target, "__abstractmethods__", ()))):
        raise ValueError(f"{refusal} It is abstract: define {lacks} in it, or name a class that does.")
    if known and not (_is_ours(target, bases) if _below(module_name, OURS) else _is_torchs(target, bases)):
        raise ValueError(f"{refusal}{wanted}")
    return target


def raised(error: BaseException) -> str:
    """What an error says, and where it was raised; a SyntaxError says that itself."""
    place = "" if isinstance(error, SyntaxError) else place_of(error, anywhere=True)
    return f"{type(error).__name__}: {shortened(' '.join(str(error).split()), 300)}{f' ({place})' * bool(place)}"


def _below(module: str, prefixes: Iterable[str]) -> bool:
    return any(module == prefix or module.startswith(prefix + ".") for prefix in prefixes)


def _is_ours(target: Any, bases: tuple[type, ...]) -> bool:
    """Whether ``target`` is a class that makes something, or a function that says it returns a task of these ``bases``."""
    if inspect.isclass(target):
        return not issubclass(target, BaseException)
    from metarun.core import TaskDistribution  # torch, which this module does without until a config is checked

    made = types_of(target).get("return")
    return inspect.isclass(made) and issubclass(made, TaskDistribution) and issubclass(made, bases)


def _is_torchs(target: Any, bases: tuple[type, ...]) -> bool:
    """Whether ``target`` is a module, an optimizer, a scheduler or a transform of torch or torchvision, or, where modules
    belong, one of the models that torchvision lists."""
    import torch

    if inspect.isclass(target):
        kinds = (torch.nn.Module, torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler)
        return (issubclass(target, kinds) and target not in kinds) or _is_transform(target)
    return (
        issubclass(torch.nn.Module, bases)
        and target.__module__.startswith("torchvision.models.")
        and target in _models()
    )


@cache
def _models() -> set[Callable[..., Any]]:
    from torchvision.models import get_model_builder, list_models

    return {get_model_builder(name) for name in list_models()}


def _is_transform(target: type) -> bool:
    """Whether it is one of torchvision's older transforms, which are of no common class; the others are modules."""
    if target.__module__ != "torchvision.transforms.transforms":
        return False
    from torchvision.transforms import transforms

    return target.__name__ in transforms.__all__ and not issubclass(target, enum.Enum)


def bases_of(annotation: Any) -> tuple[type, ...]:
    """The classes whose objects a setting of this annotation may hold: none where it holds plain values alone, and object
    where the annotation does not say."""
    origin = typing.get_origin(annotation)
    if (origin or annotation) is type:  # a class, by _partial_
        return (object,)
    if origin in (typing.Union, types.UnionType):
        return tuple(base for option in typing.get_args(annotation) for base in bases_of(option))
    if origin is typing.Literal or annotation is None or issubclass(_class(origin or annotation), PLAIN):
        return ()
    return (_class(origin or annotation),)


def _class(kind: Any) -> type:
    """``kind`` where it is a class that others derive from; else object, for it says nothing: a callable, a protocol."""
    says = inspect.isclass(kind) and kind not in (inspect.Parameter.empty, abc.Callable, Any)
    if says and kind.__name__ == "Tensor":
        return type(None)  # no config makes one
    return kind if says and not getattr(kind, "_is_protocol", False) else object


def problems_of_call(
    target: Callable[..., Any], arguments: dict[str, Any], given: Collection[str], key: str
) -> list[str]:
    """What is wrong with calling ``target`` with ``arguments``, beside those ``given`` in code; ``key`` names the node."""
    parameters = inspect.signature(target).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    hints = types_of(target)
    own = [name for name in parameters if name not in given]
    owner = target.__module__.split(".", maxsplit=1)[0]
    problems = []
    for name, value in arguments.items():
        if name in given:
            problems.append(f"{key}.{name} is set by metarun itself; remove it.")
        elif name not in parameters and not open_ended:
            close = did_you_mean(name, own)
            fix = f" Where an experiment sets it, ~{key}.{name} leaves it out."
            hint = f"{close}; it has {', '.join(own) or 'none'}.{fix}"
            problems.append(f"{key}.{name} is not a setting of {target.__name__}{hint}")
        elif value == "???":
            problems.append(f"{key}.{name} has no value; add {key}.{name}=...")
        elif name in hints and not isinstance(value, Part) and not conforms(value, hints[name]):  # a part is made later
            choice = f" To choose the {key} write {key}={value}." if value in options(key) else ""
            choice += f" Write {key}/{name}={value}." if value in options(f"{key}/{name}") else ""
            choice += COUNTED if tuple[int, int] in typing.get_args(hints[name]) else ""
            held = f"{shortened(repr(value))} ({type(value).__name__})"
            problems.append(f"{key}.{name} is {held}, but must be {readable_type(hints[name])}.{choice}")
        else:
            problems += range_problems(f"{key}.{name}", value, owner)
    for name, p in parameters.items():
        required = p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        if required and name not in arguments and name not in given:
            problems.append(f"{key}.{name} is missing; add {key}.{name}=...")
    return problems


def types_of(target: Callable[..., Any]) -> dict[str, Any]:
    """The types of a callable's arguments: by its annotations, or, where they do not resolve, one by one."""
    try:
        return typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except Exception:  # some annotations of other people's, torch's too, name what only a type checker imports
        found = {name: _hint(p, target) for name, p in inspect.signature(target).parameters.items()}
        return {name: hint for name, hint in found.items() if hint is not None}


def _hint(parameter: inspect.Parameter, target: Callable[..., Any]) -> Any:
    """The type of one argument: its annotation, or else the type of its default; None where neither says."""
    names = {**vars(typing), **vars(abc), **vars(sys.modules[target.__module__])}
    try:
        return typing.get_type_hints(types.SimpleNamespace(__annotations__={"it": parameter.annotation}), names)["it"]
    except Exception:
        by_default = {bool: bool, int: float, float: float, str: str}  # a 0 may stand for a fraction
        return by_default.get(type(parameter.default))


def readable_type(annotation: Any) -> str:
    """The type in words, as messages and the page of settings have it."""
    if typing.get_origin(annotation) is typing.Literal:
        return " or ".join(repr(arg) for arg in typing.get_args(annotation))
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        written = [arg for arg in typing.get_args(annotation) if getattr(arg, "__name__", "") != "Tensor"]
        return " or ".join(readable_type(arg) for arg in written)  # and no YAML holds a tensor
    if annotation in IN_YAML:
        return IN_YAML[annotation]
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if inspect.isclass(origin) and issubclass(origin, Mapping):
        return "a mapping"
    if inspect.isclass(origin) and issubclass(origin, Iterable):
        return f"a list of {' and '.join(readable_type(arg) for arg in args if arg is not ...)}"
    return annotation.__name__ if inspect.isclass(annotation) and not args else str(annotation)
