"""Shared pieces of inner loops: functions, not parents."""

from collections import deque
from collections.abc import Callable, Iterator

from torch import Tensor
from torch.func import grad

from metarun.core import Params
from metarun.trees import detach, zip_map


def descent(loss: Callable[[Params], Tensor], params: Params, lr: float, steps: int) -> Iterator[Params]:
    """Yield params after 0, 1, ..., ``steps`` steps params <- params - lr * grad(loss); differentiable throughout."""
    yield params
    for _ in range(steps):
        params = zip_map(lambda p, g: p - lr * g, params, grad(loss)(params))
        yield params


def first_order_descent(loss: Callable[[Params], Tensor], params: Params, lr: float, steps: int) -> Iterator[Params]:
    """As ``descent``, with the inner gradients taken as constants: d params_k / d params_0 is the identity.

    ``loss`` must not reach ``params`` or other differentiated tensors on its own, or it would keep a graph.
    """
    yield params
    for _ in range(steps):
        params = zip_map(lambda p, g: p - lr * g, params, detach(grad(loss)(detach(params))))
        yield params


def last(path: Iterator[Params]) -> Params:
    """The end of a descent; earlier params are let go, so the memory of a first-order one does not grow with steps."""
    return deque(path, maxlen=1).pop()
