"""Statistics that batch norms keep of data, and how they are put into phi."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from torch import Tensor, nn
from torch.func import functional_call

from metarun import modes
from metarun.models.exact.layers import BatchNorm, BatchNormMode
from metarun.modes import set_var


def norms(net: nn.Module, mode: BatchNormMode) -> dict[str, BatchNorm]:
    """Batch norms of ``net`` that are in ``mode``, by name."""
    return {name: m for name, m in net.named_modules() if isinstance(m, BatchNorm) and m.mode == mode}


@contextmanager
def recording(layers: dict[str, BatchNorm]) -> Iterator[dict[str, Tensor]]:
    """Context that collects the statistics [C] of the layers' forward pass inside it, as {name.mean, name.var}.

    Inside, each layer normalises by the statistics of its own batch.
    """
    collected: dict[str, Tensor] = {}
    for layer in layers.values():
        layer.recording = True
    try:
        yield collected
        for name, layer in layers.items():
            if layer.recorded is not None:
                collected[f"{name}.mean"], collected[f"{name}.var"] = layer.recorded
    finally:
        for layer in layers.values():
            layer.recording, layer.recorded = False, None


def adapting() -> AbstractContextManager[None]:
    """Context for an inner step: norms go by the batch's own statistics in evaluation too, as they do in training, so that
    phi is what theta was trained for. The averages of mode ``running`` are of queries, after adaptation."""
    return set_var(modes.adapting, True)


def with_support(net: nn.Module, params: dict[str, Tensor], x: Tensor) -> dict[str, Tensor]:
    """Complete ``params`` at the end of an adaptation: add the statistics of the support inputs x [S, ...].

    Added are mean and variance [C] of each norm in mode ``support``. Without such norms, ``params`` is returned
    as it is, at no cost.
    """
    layers = norms(net, "support")
    if not layers:
        return params
    with recording(layers) as collected:
        functional_call(net, params, (x,))
    return {**params, **collected}


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """Context in which ``net`` is in evaluation mode; afterwards each module is in the mode that it was in before."""
    was = {module: module.training for module in net.modules()}
    net.eval()
    try:
        yield
    finally:
        for module, training in was.items():
            module.training = training
