"""Context variables: what an execution or a run decides for all the code below it."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal, TypeVar

T = TypeVar("T")


@contextmanager
def set_var(variable: ContextVar[T], value: T) -> Iterator[None]:
    """Inside, ``variable`` is ``value``; then what it was."""
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


Convolution = Literal["native", "matmul"]

# of ``execution``: inner steps are computed again in the backward pass; their gradient is a constant to whoever uses it
recompute: ContextVar[bool] = ContextVar("recompute", default=False)
outermost: ContextVar[bool] = ContextVar("outermost", default=False)
# of layers: how convolutions are computed, and whether batch norms are differentiated once, or for a compiler
convolution: ContextVar[Convolution] = ContextVar("convolution", default="native")
once: ContextVar[bool] = ContextVar("once", default=False)
composed: ContextVar[bool] = ContextVar("composed", default=False)
# of batch norms: the pass is for an inner step, which goes by the batch's own statistics
adapting: ContextVar[bool] = ContextVar("adapting", default=False)
# the seed and step whose dropout masks are in use
dropped_step: ContextVar[tuple[int, int] | None] = ContextVar("dropped_step", default=None)
