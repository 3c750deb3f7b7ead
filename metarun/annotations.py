"""Whether values that were read from files are what annotations ask for."""

import inspect
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any


def conforms(value: Any, annotation: Any) -> bool:  # noqa: PLR0911 (one line a kind of annotation)
    """Whether a value from YAML or JSON can stand where ``annotation`` does; to unknown kinds every value conforms."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return any(conforms(value, arg) for arg in args)
    if origin is typing.Literal:
        return any(value == arg and type(value) is type(arg) for arg in args)
    if annotation is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if annotation is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if origin is tuple:
        if not isinstance(value, (list, tuple)) or (args[-1:] != (...,) and len(args) != len(value)):
            return False
        of_each = [args[0]] * len(value) if args[-1:] == (...,) else args
        return all(conforms(v, arg) for v, arg in zip(value, of_each, strict=True))
    if inspect.isclass(origin) and issubclass(origin, Mapping):
        return isinstance(value, dict)
    if inspect.isclass(origin) and issubclass(origin, Iterable):
        return isinstance(value, (list, tuple)) and all(conforms(v, args[0]) for v in value if args)
    if annotation is None or annotation is type(None):
        return value is None
    if inspect.isclass(annotation) and annotation is not inspect.Parameter.empty:
        return isinstance(value, annotation)
    return True
