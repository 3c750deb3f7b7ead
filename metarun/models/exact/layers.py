"""Layers that are exact to second order under vmap.

torch's own ``batch_norm``, ``layer_norm`` and ``instance_norm`` with an affine part give silently wrong second-order
gradients under vmap (pytorch/functorch#534), so norms are composed from primitives or have derivatives of their own
(``derivatives``). Outside vmap, and where one derivative is all, a batch norm is torch's own kernel, which is exact to
second order there and takes less time.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Literal

import torch
from torch import Tensor, nn

from metarun import modes
from metarun.models.exact.convolution import convolution
from metarun.models.exact.derivatives import Largest, Moments, Normalised, along
from metarun.modes import Convolution, set_var

try:  # private, so a torch may be without them: then every norm counts as vmapped, which costs time and nothing else
    from torch._C._functorch import TransformType, get_interpreter_stack
except ImportError:
    get_interpreter_stack = None  # type: ignore[assignment]

BatchNormMode = Literal["transductive", "running", "support"]


def differentiated_once() -> AbstractContextManager[None]:
    """Context for a gradient that is a constant to its user: in it batch norms may be torch's own under vmap too."""
    return set_var(modes.once, True)


def composing() -> AbstractContextManager[None]:
    """Context for a graph to compile: in it batch norms are our own outside vmap too, save where one derivative is all.

    The compiler fuses them itself.
    """
    return set_var(modes.composed, True)


def transformed() -> bool:
    """Tell whether any transform of torch.func is at work around this call."""
    return get_interpreter_stack is None or bool(get_interpreter_stack())


def vmapped() -> bool:
    """Tell whether a transform of torch.func other than grad and vjp (which is a grad to it) is around this call."""
    if get_interpreter_stack is None:
        return True
    return any(level.key() != TransformType.Grad for level in get_interpreter_stack() or [])  # None: no transform


def convolving(how: Convolution) -> AbstractContextManager[None]:
    """Context in which ``Conv2d`` computes as ``how`` says; the execution decides, not a model."""
    return set_var(modes.convolution, how)


class Conv2d(nn.Conv2d):
    """A convolution with a square kernel, equal padding and no groups, in one of two formulations of the same sum.

    native: torch's own; with weights of its own for each task, vmap makes it one grouped convolution (quick on a CPU).
    matmul: the patches of the images and one batched matrix product (``convolution``), which a GPU is made for.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int, padding: int, bias: bool = True
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride=stride, padding=padding, bias=bias)
        self.geometry = stride, padding

    def forward(self, x: Tensor) -> Tensor:
        if modes.convolution.get() == "native":
            return self._conv_forward(x, self.weight, self.bias)
        return swapped(lambda x: self.convolve(x, self.weight, self.bias, 0), x)

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None, axis: int) -> Tensor:
        """Convolve x, whose channels are ``axis`` (0 or 1), with another weight [O, C, k, k] and bias [O]."""
        if axis == 1:
            return self._conv_forward(x, weight, bias)
        out = convolution(x, weight, *self.geometry)
        return out if bias is None else out + along(bias, out, 0)


class BatchNorm(nn.Module):
    """Batch normalisation over every axis of x [S, C, ...] but the second, with affine weight and bias [C].

    transductive: every batch, query batches too, is normalised by its own statistics (as MAML's code does);
    support: queries are normalised by the statistics of the adapted network on the support set (``with_support``);
    running: in evaluation by averages over training tasks (``calibrated``), but for inner steps (``adapting``).
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
        """Tell whether x is normalised by its own statistics, not by given ones."""
        trained = self.mode == "running" and self.training
        return self.mean.numel() == 0 or self.recording or trained or modes.adapting.get()

    def torchs_own(self) -> bool:
        """Tell whether torch's kernel gives the same, in a third of the time: under vmap to first order alone."""
        exact = modes.once.get() or not (modes.composed.get() or vmapped())
        return exact and self.uses_own() and not self.recording

    def by_torch(self, x: Tensor, bias: Tensor, axis: int) -> Tensor:
        """Normalise x by its own statistics in torch's kernel, with ``bias`` [C] in place of the norm's."""
        if axis == 0:
            return swapped(lambda x: self.by_torch(x, bias, 1), x)
        return torch.batch_norm(x, self.weight, bias, None, None, True, 0.0, self.eps, False)

    def record(self, mean: Tensor, var: Tensor) -> None:
        """Keep the statistics as vectors [C] inside ``recording``; do nothing elsewhere."""
        if self.recording:
            self.recorded = mean.reshape(-1), var.reshape(-1)

    def normalise(self, x: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor, axis: int) -> Tensor:
        """Normalise x, whose channels are ``axis``, by the given statistics, weight [C] and bias [C]."""
        return torch.addcmul(along(bias, x, axis), x - mean, along(weight, x, axis) * (var + self.eps).rsqrt())


class MaxPool2d(nn.MaxPool2d):
    """Max-pooling with torch's numbers, ten times as fast on a CPU: the channels of a place lie side by side in memory.

    On a GPU, windows of 2 x 2 are compared place by place. A compiler fuses that, where it fails at the indices that
    torch's derivatives look up (torch 2.11: a kernel that does not compile, or a wrong meta-gradient).
    """

    def forward(self, x: Tensor) -> Tensor:
        plain = (self.padding, self.dilation, self.return_indices, self.ceil_mode) == (0, 1, False, False)
        if x.is_cuda and plain and self.kernel_size == self.stride == 2:
            return swapped(lambda x: Largest.apply(x)[0], x)
        return super().forward(channels_last(x))


class Blocks(nn.Sequential):
    """Layers one after the other, with cheaper ways to the same numbers for a convolution and its batch norm:

    - a norm by the batch's own statistics takes the convolution's bias out again, so it is not added at all, and its
      gradient is 0, not rounding noise that Adam would turn into steps;
    - a norm of positive weight and (leaky) ReLU keep the order of numbers, so if max-pooling follows it goes first, and
      they see a quarter of the numbers. Where a norm's weight is negative, the kernels before it change sign.
    """

    def forward(self, x: Tensor) -> Tensor:
        x, layers = channels_last(x), list(self)
        if any(layer._forward_hooks or layer._forward_pre_hooks for layer in layers):  # they must see every layer
            return super().forward(x)
        if modes.convolution.get() == "matmul":
            return swapped(lambda x: through(x, layers, 0), x)
        return through(x, layers, 1)


def through(x: Tensor, layers: list[nn.Module], axis: int) -> Tensor:
    """Apply the layers of ``Blocks`` to x, whose channels are ``axis``. Products of matrices put channels first; where
    they stay there in between, a compiler makes one kernel of what is done to each channel.
    """
    while layers:
        match layers[:4]:
            case [Conv2d() as conv, BatchNorm() as norm, nn.ReLU() | nn.LeakyReLU() as relu, MaxPool2d() as pool]:
                x, layers = relu(convolved(x, conv, norm, pool, axis)), layers[4:]
            case [Conv2d() as conv, BatchNorm() as norm, *_]:
                x, layers = convolved(x, conv, norm, None, axis), layers[2:]
            case [nn.ReLU() | nn.LeakyReLU() as relu, *_]:
                x, layers = relu(x), layers[1:]
            case [layer, *_]:
                x, layers = layer(x) if axis == 1 else swapped(layer, x), layers[1:]
    return x


def convolved(x: Tensor, conv: Conv2d, norm: BatchNorm, pool: MaxPool2d | None, axis: int) -> Tensor:
    """Compute pool(norm(conv(x))), to rounding, by the cheaper ways of ``Blocks``."""
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
    """Lay images [S, C, H, W] on a CPU with the channels of a place side by side in memory; leave others alone."""
    return x if x.is_cuda or x.dim() != 4 else x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


def swapped(fn: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply ``fn`` to x with its first two axes swapped, and swap the result's: [S, C, H, W] and [C, S, H, W]."""
    return fn(x.transpose(0, 1)).transpose(0, 1)


class LayerNorm(nn.Module):
    """Normalisation of each vector of x [..., D] by its own mean and variance, with affine weight and bias [D].

    Of a network of somebody else (``replaced``), ``normalized_shape`` may have several axes, and weight or bias be None.
    """

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(num_features)), nn.Parameter(torch.zeros(num_features))
        self.eps, self.normalized_shape = eps, (num_features,)

    def forward(self, x: Tensor) -> Tensor:
        y = standardised(x, len(self.normalized_shape), self.eps)
        y = y if self.weight is None else y * self.weight
        return y if self.bias is None else y + self.bias


def standardised(x: Tensor, axes: int, eps: float) -> Tensor:
    """x without its mean over its last ``axes`` axes, divided by their standard deviation."""
    last = list(range(-axes, 0))
    centred = x - x.mean(last, keepdim=True)
    var = (centred * centred).mean(last, keepdim=True)
    return centred * (var + eps).rsqrt()
