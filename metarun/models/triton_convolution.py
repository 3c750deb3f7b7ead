"""The convolution of a batch of tasks as three operators on an NVIDIA GPU, each one's derivative made of the others.

One sum gives all three: <g, conv(x, weight)> is linear in g, x and weight, and each operator is its gradient in one of them:

    forward:          x [B, S, C, H, W], weight [B, O, C, k, k] -> [B, S, O, h, w]
    input_gradient:   g [B, S, O, h, w], weight [B, O, C, k, k] -> [B, S, C, H, W]
    weight_gradient:  g [B, S, O, h, w], x [B, S, C, H, W]      -> [B, O, C, k, k]

B tasks, S images each, C and O channels before and after, k the kernel's size, H and W the images' size, h and w its own.
So derivatives of any order are exact. ``make_fx`` and ``torch.compile`` see three opaque operators; their derivatives and
vmap are autograd functions around them, for those that ``torch.library`` registers fail under functorch's grad. The kernels
are in ``triton_kernels``, which alone needs triton: this module can be imported without it.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd import Function
from torch.library import custom_op

from metarun.errors import KernelFailed


@cache
def installed() -> bool:
    return find_spec("triton") is not None


def refusal(on_gpu: bool) -> str | None:
    """Why ``execution.convolution`` cannot be triton here, and the fix; None where it can."""
    fix = "Set execution.convolution to auto, which chooses among what works here."
    if not installed():
        return f"execution.convolution is triton, but the package triton is not installed; pip install triton. {fix}"
    if not on_gpu and os.environ.get("TRITON_INTERPRET") != "1":  # triton's interpreter, by which the tests run it
        return f"execution.convolution is triton, but its kernels need an NVIDIA GPU and the device is another. {fix}"
    return None


def convolution(x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    """x [S, C, H, W] with weight [O, C, k, k], float32, of one task: [S, O, h, w]."""
    if reason := refusal(x.is_cuda):
        raise ValueError(f"{reason} A run that chose it on a GPU can be resumed on a GPU alone.")
    return Forward.apply(x[None], weight[None], stride, padding)[0]


@contextmanager
def kernels() -> Iterator[Any]:
    """The module of the kernels; whatever goes wrong there is a KernelFailed, unless the device is out of memory."""
    try:
        from metarun.models import triton_kernels

        yield triton_kernels
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a GPU too old, no C compiler, an installation in pieces: triton has no error for all
        reason = next(iter(str(error).strip().splitlines()), "no message")
        raise KernelFailed(
            f"execution.convolution is triton, but its kernels do not run on this GPU ({type(error).__name__}: "
            f"{reason[:200]}). Set execution.convolution to native or slices."
        ) from error


@custom_op("metarun::conv_forward", mutates_args=())
def conv_forward(x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    with kernels() as run:
        return run.forward(x, weight, stride, padding)


@custom_op("metarun::conv_input_gradient", mutates_args=())
def conv_input_gradient(g: Tensor, weight: Tensor, stride: int, padding: int, height: int, width: int) -> Tensor:
    """``height`` and ``width``: H and W, which the stride rounds away in g."""
    with kernels() as run:
        return run.input_gradient(g, weight, stride, padding, height, width)


@custom_op("metarun::conv_weight_gradient", mutates_args=())
def conv_weight_gradient(g: Tensor, x: Tensor, stride: int, padding: int, kernel: int) -> Tensor:
    with kernels() as run:
        return run.weight_gradient(g, x, stride, padding, kernel)


@conv_forward.register_fake
def _(x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    height, width = ((size + 2 * padding - weight.shape[-1]) // stride + 1 for size in x.shape[3:])
    return x.new_empty(*x.shape[:2], weight.shape[1], height, width)


@conv_input_gradient.register_fake
def _(g: Tensor, weight: Tensor, stride: int, padding: int, height: int, width: int) -> Tensor:
    return g.new_empty(*g.shape[:2], weight.shape[2], height, width)


@conv_weight_gradient.register_fake
def _(g: Tensor, x: Tensor, stride: int, padding: int, kernel: int) -> Tensor:
    return g.new_empty(g.shape[0], g.shape[2], x.shape[2], kernel, kernel)


class Bilinear(Function):
    """An operator on two tensors, stride, padding and what else it says; ``free``: of each, the axis the other lacks."""

    free: ClassVar[tuple[int, int]]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])
        ctx.step = inputs[2:4]  # stride and padding

    @classmethod
    def vmap(cls, info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Tensor, int]:
        """Over a further axis: more tasks if both tensors have it; else a longer free axis of the one that has it, and the
        other is read once for all."""
        pair, numbers = list(arguments[:2]), arguments[2:]
        mapped = [which for which in (0, 1) if in_dims[which] is not None]
        axis = 0 if len(mapped) == 2 else 1 + mapped[0]  # of the result
        for which in mapped:
            into = 0 if len(mapped) == 2 else cls.free[which]
            pair[which] = pair[which].movedim(in_dims[which], into).flatten(into, into + 1)
        out = cls.apply(*pair, *numbers)
        return out.unflatten(axis, (info.batch_size, out.shape[axis] // info.batch_size)), axis


class Forward(Bilinear):
    free = 1, 1  # S of x, O of weight

    @staticmethod
    def forward(x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
        return conv_forward(x, weight, stride, padding)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        x, weight = ctx.saved_tensors
        of_x, of_weight = ctx.needs_input_grad[:2]
        return (
            InputGradient.apply(g, weight, *ctx.step, *x.shape[3:]) if of_x else None,
            WeightGradient.apply(g, x, *ctx.step, weight.shape[-1]) if of_weight else None,
            *[None] * 2,
        )


class InputGradient(Bilinear):
    free = 1, 2  # S of g, C of weight

    @staticmethod
    def forward(g: Tensor, weight: Tensor, stride: int, padding: int, height: int, width: int) -> Tensor:
        return conv_input_gradient(g, weight, stride, padding, height, width)

    @staticmethod
    def backward(ctx: Any, x: Tensor) -> tuple[Any, ...]:
        g, weight = ctx.saved_tensors
        of_g, of_weight = ctx.needs_input_grad[:2]
        return (
            Forward.apply(x, weight, *ctx.step) if of_g else None,
            WeightGradient.apply(g, x, *ctx.step, weight.shape[-1]) if of_weight else None,
            *[None] * 4,
        )


class WeightGradient(Bilinear):
    free = 2, 2  # O of g, C of x

    @staticmethod
    def forward(g: Tensor, x: Tensor, stride: int, padding: int, kernel: int) -> Tensor:
        return conv_weight_gradient(g, x, stride, padding, kernel)

    @staticmethod
    def backward(ctx: Any, weight: Tensor) -> tuple[Any, ...]:
        g, x = ctx.saved_tensors
        of_g, of_x = ctx.needs_input_grad[:2]
        return (
            Forward.apply(x, weight, *ctx.step) if of_g else None,
            InputGradient.apply(g, weight, *ctx.step, *x.shape[3:]) if of_x else None,
            *[None] * 3,
        )
