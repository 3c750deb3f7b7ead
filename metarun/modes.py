"""Context variables: what an execution or a run decides for all the code below it."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

T = TypeVar("T")


@contextmanager
def holding(variable: ContextVar[T], value: T) -> Iterator[None]:
    """Inside, ``variable`` is ``value``; then what it was."""
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)
