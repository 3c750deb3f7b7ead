"""Layers that are exact to second order under vmap.

torch's own ``batch_norm``, ``layer_norm`` and ``instance_norm`` with an affine part give silently wrong second-order
gradients under vmap (pytorch/functorch#534), so norms are composed from primitives here. Outside vmap, and where one
derivative is all, a batch norm is torch's own kernel, which is exact there and takes less time.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from metarun.context import holding
from metarun.models.task_convolution import convolution

try:  # private, so a torch may be without them: then every norm counts as vmapped, which costs time and nothing else
    from torch._C._functorch import TransformType, get_interpreter_stack
except ImportError:
    get_interpreter_stack = None  # type: ignore[assignment]

BatchNormMode = Literal["transductive", "running", "support"]
Convolution = Literal["native", "matmul"]

_convolution: ContextVar[Convolution] = ContextVar("convolution", default="native")
_once: ContextVar[bool] = ContextVar("once", default=False)
_composed: ContextVar[bool] = ContextVar("composed", default=False)


def differentiated_once() -> AbstractContextManager[None]:
    """Inside, batch norms may be torch's own under vmap too: the gradient taken here is a constant to whoever uses it."""
    return holding(_once, True)


def composing() -> AbstractContextManager[None]:
    """Inside, batch norms are composed from primitives outside vmap too, save where one derivative is all: for a compiler,
    which fuses them itself."""
    return holding(_composed, True)


def transformed() -> bool:
    """Whether any transform of torch.func is at work around this call."""
    return get_interpreter_stack is None or bool(get_interpreter_stack())


def vmapped() -> bool:
    """Whether any transform of torch.func but grad (and vjp, which is the same to it) is at work around this call."""
    if get_interpreter_stack is None:
        return True
    return any(level.key() != TransformType.Grad for level in get_interpreter_stack() or [])  # None: no transform


def convolving(how: Convolution) -> AbstractContextManager[None]:
    """Inside, ``Conv2d`` is computed as ``how`` says; the execution decides, not a model."""
    return holding(_convolution, how)


class Conv2d(nn.Conv2d):
    """A convolution with a square kernel, equal padding and no groups, in one of two formulations of the same sum.

    native: torch's own; with weights of its own for each task, vmap makes it one grouped convolution (quick on a CPU).
    matmul: the patches of the images and one batched matrix product (``task_convolution``), which a GPU is made for.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int, padding: int, bias: bool = True
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride=stride, padding=padding, bias=bias)
        self.geometry = stride, padding

    def forward(self, x: Tensor) -> Tensor:
        if _convolution.get() == "native":
            return self._conv_forward(x, self.weight, self.bias)
        return swapped(lambda x: self.convolve(x, self.weight, self.bias, 0), x)

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None, axis: int) -> Tensor:
        """``forward`` with other weights [O, C, k, k] and bias [O], of images whose channels are ``axis``: 0 or 1."""
        if axis == 1:
            return self._conv_forward(x, weight, bias)
        out = convolution(x, weight, *self.geometry)
        return out if bias is None else out + along(bias, out, 0)


class BatchNorm(nn.Module):
    """Batch normalisation over every axis of x [S, C, ...] but the second, with affine weight and bias [C].

    transductive: every batch, query batches too, is normalised by its own statistics (as MAML's code does);
    support: queries are normalised by the statistics of the adapted network on the support set (``with_support``);
    running: as in ordinary training; for evaluation the statistics are averages over training tasks (``calibrated``).
    """

    def __init__(self, num_features: int, mode: BatchNormMode, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))
        self.register_buffer("mean", torch.empty(0))  # empty: none given, use the batch's own
        self.register_buffer("var", torch.empty(0))
        self.mode, self.eps = mode, eps
        self.recording = False
        self.recorded: tuple[Tensor, Tensor] | None = None
        self.mean: Tensor
        self.var: Tensor

    def forward(self, x: Tensor) -> Tensor:
        if self.torchs_own():
            return self.by_torch(x, self.bias, 1)
        if self.uses_own() and not self.recording:
            return Normalised.apply(x, self.weight, self.bias, self.eps, 1)[0]
        mean, var = self.statistics(x, 1)
        self.record(mean, var)
        return self.normalise(x, mean, var, self.weight, self.bias, 1)

    def statistics(self, x: Tensor, axis: int) -> tuple[Tensor, Tensor]:
        """Mean and biased variance of x, whose channels are ``axis``: the batch's own, or the given ones."""
        if self.uses_own():
            return Moments.apply(x, axis)
        return along(self.mean, x, axis), along(self.var, x, axis)

    def uses_own(self) -> bool:
        return self.mean.numel() == 0 or self.recording or (self.mode == "running" and self.training)

    def torchs_own(self) -> bool:
        """Whether torch's kernel gives the same, in a third of the time: under vmap it does so to first order alone."""
        exact = _once.get() or not (_composed.get() or vmapped())
        return exact and self.uses_own() and not self.recording

    def by_torch(self, x: Tensor, bias: Tensor, axis: int) -> Tensor:
        """x by its own statistics, with ``bias`` [C] in place of the norm's, in torch's kernel."""
        if axis == 0:
            return swapped(lambda x: self.by_torch(x, bias, 1), x)
        return torch.batch_norm(x, self.weight, bias, None, None, True, 0.0, self.eps, False)

    def record(self, mean: Tensor, var: Tensor) -> None:
        if self.recording:
            self.recorded = mean.reshape(-1), var.reshape(-1)

    def normalise(self, x: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor, axis: int) -> Tensor:
        return torch.addcmul(along(bias, x, axis), x - mean, along(weight, x, axis) * (var + self.eps).rsqrt())


class Moments(torch.autograd.Function):
    """Mean and biased variance of x over every axis but ``axis``, each with axes of one in place of those.

    Their derivative, gm / n + 2 gv / n * (x - mean), takes one pass over x, where that of primitives takes five.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, axis: int) -> tuple[Tensor, Tensor]:
        mean, _, var = moments(x, axis)
        return mean, var

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(inputs[0], output[0])
        ctx.axis = inputs[1]

    @staticmethod
    def backward(ctx: Any, of_mean: Tensor, of_var: Tensor) -> tuple[Tensor, None]:
        x, mean = ctx.saved_tensors
        n = x.numel() // x.shape[ctx.axis]
        slope = of_var * (2 / n)
        return torch.addcmul(of_mean / n - slope * mean, x, slope), None


class Normalised(torch.autograd.Function):
    """n * weight + bias with n = (x - mean) * scale, scale = (var + eps) ** -0.5, by x's own mean and biased variance over
    every axis but ``axis``, to which weight and bias [C] belong.

    It and its derivatives take two passes over x: one for the sums of each channel, one for the result. Mean and scale are
    returned for them alone.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor, eps: float, axis: int) -> tuple[Tensor, Tensor, Tensor]:
        mean, centred, var = moments(x, axis)
        scale = (var + eps).rsqrt()
        return torch.addcmul(along(bias, x, axis), centred, along(weight, x, axis) * scale), mean, scale

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs[:2], *output[1:])
        ctx.numbers = inputs[3:]

    @staticmethod
    def backward(ctx: Any, g: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        return *NormalisedGradient.apply(g, *ctx.saved_tensors, *ctx.numbers), None, None


class NormalisedGradient(torch.autograd.Function):
    """The gradients of ``Normalised`` in x, weight and bias, of sums over the N places of a channel:

    weight * scale * (g - sum(g) / N - n * sum(g n) / N), sum(g n), sum(g).
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        g: Tensor, x: Tensor, weight: Tensor, mean: Tensor, scale: Tensor, eps: float, axis: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        centred, slope, places = x - mean, along(weight, x, axis) * scale, x.numel() // x.shape[axis]
        g_, gn_ = mean_of(g, axis), mean_of(g * centred, axis) * scale
        of_x = torch.addcmul(torch.addcmul(-slope * g_, g, slope), centred, -slope * scale * gn_)
        return of_x, gn_.flatten() * places, g_.flatten() * places

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs[:5], *output[1:])
        ctx.numbers = inputs[5:]

    @staticmethod
    def backward(ctx: Any, v: Tensor, of_weight: Tensor, of_bias: Tensor) -> tuple[Tensor | None, ...]:
        g, x, weight, mean, scale, *sums = ctx.saved_tensors
        eps, axis = ctx.numbers
        if torch.is_grad_enabled():  # for a third derivative, to which x matters through these too
            mean, _, var = moments(x, axis)
            scale = (var + eps).rsqrt()
        centred, slope, places = x - mean, along(weight, x, axis) * scale, x.numel() // x.shape[axis]
        gn_, g_ = (along(total, x, axis) / places for total in sums)
        u, t = along(of_weight, x, axis), along(of_bias, x, axis)
        v_, vn_, vg_ = mean_of(v, axis), mean_of(v * centred, axis) * scale, mean_of(v * g, axis)
        k, of_slope = u - slope * vn_, vg_ - v_ * g_ - vn_ * gn_
        of_g = torch.addcmul(torch.addcmul(t - slope * v_, v, slope), centred, scale * k)
        of_x = torch.addcmul(scale * (slope * v_ * gn_ - k * g_), g, scale * k)
        of_x = torch.addcmul(of_x, v, -scale * slope * gn_)
        of_x = torch.addcmul(of_x, centred, -scale * scale * (k * gn_ + slope * (of_slope - vn_ * gn_)))
        return of_g, of_x, (places * scale * of_slope).flatten(), None, None, None, None


def moments(x: Tensor, axis: int) -> tuple[Tensor, Tensor, Tensor]:
    """``mean_of`` x, x without it, and the biased variance."""
    mean = mean_of(x, axis)
    centred = x - mean
    return mean, centred, mean_of(centred * centred, axis)


def mean_of(x: Tensor, axis: int) -> Tensor:
    """x over every axis but ``axis``, which become axes of one."""
    return x.mean([i for i in range(x.dim()) if i != axis], keepdim=True)


class MaxPool2d(nn.MaxPool2d):
    """torch's own, ten times as fast on a CPU with the channels of a place side by side in memory.

    On a GPU, windows of 2 x 2 are compared place by place: a compiler fuses that, where it fails at the indices that torch's
    derivatives look up (torch 2.11: a kernel that does not compile, or a wrong meta-gradient).
    """

    def forward(self, x: Tensor) -> Tensor:
        plain = (self.padding, self.dilation, self.return_indices, self.ceil_mode) == (0, 1, False, False)
        if x.is_cuda and plain and self.kernel_size == self.stride == 2:
            return swapped(lambda x: Largest.apply(x)[0], x)
        return super().forward(channels_last(x))


class Largest(torch.autograd.Function):
    """The largest of each window of 2 x 2 of x [S, C, H, W], the first of equals, as torch's max-pooling takes it; and which
    of the four it is. Derivatives of any order are ``Chosen`` and ``Spread``, each other's transposes.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        first, *rest = places(x)
        out, which = first, torch.zeros_like(first, dtype=torch.uint8)
        for i, place in enumerate(rest, start=1):
            larger = (place > out) | place.isnan()
            out, which = torch.where(larger, place, out), torch.where(larger, i, which)
        return out, which

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        ctx.save_for_backward(output[1])
        ctx.size = inputs[0].shape[2:]

    @staticmethod
    def backward(ctx: Any, g: Tensor, _: Tensor) -> Tensor:
        return Spread.apply(g, *ctx.saved_tensors, *ctx.size)


class Chosen(torch.autograd.Function):
    """One place of each window: x [S, C, H, W], which [S, C, h, w] of 0 to 3 -> [S, C, h, w]."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, which: Tensor) -> Tensor:
        out, *rest = places(x)
        for i, place in enumerate(rest, start=1):
            out = torch.where(which == i, place, out)
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])
        ctx.size = inputs[0].shape[2:]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return Spread.apply(g, *ctx.saved_tensors, *ctx.size), None


class Spread(torch.autograd.Function):
    """g [S, C, h, w] at the chosen places of windows, 0 elsewhere: [S, C, H, W]."""

    generate_vmap_rule = True

    @staticmethod
    def forward(g: Tensor, which: Tensor, height: int, width: int) -> Tensor:
        here = torch.arange(4, device=g.device).view(2, 1, 2)
        out = torch.where(which[:, :, :, None, :, None] == here, g[:, :, :, None, :, None], 0)
        out, rest = out.flatten(4).flatten(2, 3), (0, width % 2, 0, height % 2)
        return F.pad(out, rest) if any(rest) else out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, x: Tensor) -> tuple[Tensor | None, ...]:
        return Chosen.apply(x, *ctx.saved_tensors), None, None, None


def places(x: Tensor) -> list[Tensor]:
    """The four places of every whole window of 2 x 2 of x [S, C, H, W], each [S, C, h, w]."""
    height, width = (size // 2 * 2 for size in x.shape[2:])
    return [x[:, :, i:height:2, j:width:2] for i in (0, 1) for j in (0, 1)]


class Blocks(nn.Sequential):
    """Layers one after the other, with cheaper ways to the same numbers for a convolution and its batch norm:

    - a norm by the batch's own statistics takes the convolution's bias out again, so it is not added at all, and its
      gradient is 0, not rounding noise that Adam would turn into steps;
    - a norm of positive weight and ReLU keep the order of numbers, so if max-pooling follows it goes first, and they see a
      quarter of the numbers. Where a norm's weight is negative, the kernels before it change sign.
    """

    def forward(self, x: Tensor) -> Tensor:
        x, layers = channels_last(x), list(self)
        if any(layer._forward_hooks or layer._forward_pre_hooks for layer in layers):  # they must see every layer
            return super().forward(x)
        if _convolution.get() == "matmul":
            return swapped(lambda x: through(x, layers, 0), x)
        return through(x, layers, 1)


def through(x: Tensor, layers: list[nn.Module], axis: int) -> Tensor:
    """x, whose channels are ``axis``, through the layers of ``Blocks``. Products of matrices put channels first, and if
    they stay there in between, a compiler makes one kernel of what is done to each channel."""
    while layers:
        match layers[:4]:
            case [Conv2d() as conv, BatchNorm() as norm, nn.ReLU() as relu, MaxPool2d() as pool]:
                x, layers = relu(convolved(x, conv, norm, pool, axis)), layers[4:]
            case [Conv2d() as conv, BatchNorm() as norm, *_]:
                x, layers = convolved(x, conv, norm, None, axis), layers[2:]
            case [nn.ReLU() as relu, *_]:
                x, layers = relu(x), layers[1:]
            case [layer, *_]:
                x, layers = layer(x) if axis == 1 else swapped(layer, x), layers[1:]
    return x


def convolved(x: Tensor, conv: Conv2d, norm: BatchNorm, pool: MaxPool2d | None, axis: int) -> Tensor:
    """pool(norm(conv(x))), to rounding."""
    weight, scale = conv.weight, norm.weight
    shift: Tensor = norm.bias
    if conv.bias is not None and norm.uses_own():
        shift = torch.add(shift, conv.bias, alpha=0)  # its true gradient, for whoever asks
    if pool is None and norm.torchs_own():
        return norm.by_torch(conv.convolve(x, weight, None, axis), shift, axis)
    if pool is None and norm.uses_own() and not norm.recording:
        return Normalised.apply(conv.convolve(x, weight, None, axis), scale, shift, norm.eps, axis)[0]
    sign = 1 - 2 * (scale < 0).to(scale.dtype) if pool else torch.ones_like(scale)
    y = conv.convolve(x, weight * sign.view(-1, 1, 1, 1) if pool else weight, None, axis)
    mean, var = norm.statistics(y, axis)
    bias = torch.zeros_like(scale) if conv.bias is None else conv.bias
    if norm.uses_own():
        norm.record(along(sign, y, axis) * mean + along(bias, y, axis), var)
    else:
        mean = along(sign, y, axis) * (mean - along(bias, y, axis))
    if pool:
        y = pool(y) if axis == 1 else swapped(pool, y)
    return norm.normalise(y, mean, var, scale * sign, shift, axis)


def channels_last(x: Tensor) -> Tensor:
    """Images [S, C, H, W] on a CPU with the channels of a place side by side in memory."""
    return x if x.is_cuda or x.dim() != 4 else x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def along(values: Tensor, x: Tensor, axis: int) -> Tensor:
    """``values`` [C] to go with x, whose channels are ``axis``."""
    return values.view(*[1] * axis, -1, *[1] * (x.dim() - axis - 1))


def swapped(fn: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """fn of x with its first two axes swapped, and those of the result too: images [S, C, H, W] and [C, S, H, W]."""
    return fn(x.transpose(0, 1)).transpose(0, 1)


class LayerNorm(nn.Module):
    """Each vector of x [..., D] by its own mean and variance, with affine weight and bias [D]."""

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(num_features)), nn.Parameter(torch.zeros(num_features))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        var = (centred * centred).mean(-1, keepdim=True)
        return centred * (var + self.eps).rsqrt() * self.weight + self.bias


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
