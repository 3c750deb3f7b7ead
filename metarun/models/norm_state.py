"""What batch norms remember of data, and how it is put into phi."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.func import functional_call

from metarun.models.exact.layers import BatchNorm, BatchNormMode


def norms(net: nn.Module, mode: BatchNormMode) -> dict[str, BatchNorm]:
    """The batch norms of ``net`` that are in ``mode``, by name."""
    return {name: m for name, m in net.named_modules() if isinstance(m, BatchNorm) and m.mode == mode}


@contextmanager
def recording(layers: dict[str, BatchNorm]) -> Iterator[dict[str, Tensor]]:
    """Collect the statistics [C] of the forward pass inside, as {name.mean, name.var}; the layers use their own batch."""
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


def with_support(net: nn.Module, params: dict[str, Tensor], x: Tensor) -> dict[str, Tensor]:
    """``params`` plus, for norms in mode ``support``, their statistics on the support inputs x: ends an adaptation.

    Without such norms it returns ``params`` and costs nothing.
    """
    layers = norms(net, "support")
    if not layers:
        return params
    with recording(layers) as collected:
        functional_call(net, params, (x,))
    return {**params, **collected}


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """``net`` in evaluation mode inside, as it was outside."""
    was = {module: module.training for module in net.modules()}
    net.eval()
    try:
        yield
    finally:
        for module, training in was.items():
            module.training = training
