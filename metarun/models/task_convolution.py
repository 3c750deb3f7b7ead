"""The convolution of a batch of tasks as matrix products: three operators, each one's derivative made of the others.

One sum gives all three: <g, conv(x, weight)> is linear in g, x and weight, and each operator is its gradient in one of them:

    Forward:         x [B, S, C, H, W], weight [B, O, C, k, k] -> [B, S, O, h, w]
    InputGradient:   g [B, S, O, h, w], weight [B, O, C, k, k] -> [B, S, C, H, W]
    WeightGradient:  g [B, S, O, h, w], x [B, S, C, H, W]      -> [B, O, C, k, k]

B tasks, S images each, C and O channels before and after, k the kernel's size, H and W the images' size, h and w its own.
So derivatives of any order are exact. With the patches of x, [B, C k k, S h w], each is one batched product.
"""

from collections.abc import Iterable
from functools import cache
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.library import custom_op

LONG = 256  # a sum over more places is taken in parts, as far as there are images: a GPU gives one sum to one processor


def convolution(x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    """x [S, C, H, W] with weight [O, C, k, k] of one task: [S, O, h, w]."""
    return Forward.apply(x[None], weight[None], stride, padding)[0]


def size_after(size: Iterable[int], kernel: int, stride: int, padding: int) -> list[int]:
    """[h, w] of images of ``size`` [H, W]."""
    return [(n + 2 * padding - kernel) // stride + 1 for n in size]


@cache
def kernels() -> Any:
    """The module of our kernels; None where triton is missing, has no C compiler or does not know the GPU."""
    try:
        from metarun.models import triton_patches

        triton_patches.take(torch.zeros(1, 1, 1, 1, 1, device="cuda"), 1, 1, 0)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # triton has no error of its own for these; torch gives the same
        return None
    return triton_patches


@custom_op("metarun::take", mutates_args=())
def take(x: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
    """What the kernel sees at each place: x [B, C, S, H, W] -> [B, C k k, S h w].

    An operator, as its transpose is, because a compiler computes what precedes it k k times over, and makes atomic
    additions, or a long list of shifted sums, of the transpose.
    """
    if x.is_cuda and (ours := kernels()):
        return ours.take(x, kernel, stride, padding)
    windows = F.pad(x, (padding,) * 4).unfold(3, kernel, stride).unfold(4, kernel, stride)  # [B, C, S, h, w, k, k]
    out = windows.permute(0, 1, 5, 6, 2, 3, 4).clone(memory_format=torch.contiguous_format)  # never x itself
    return out.flatten(4).flatten(1, 3)


@take.register_fake
def _(x: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
    h, w = size_after(x.shape[3:], kernel, stride, padding)
    return x.new_empty(len(x), x.shape[1] * kernel**2, x.shape[2] * h * w)


@custom_op("metarun::fold", mutates_args=())
def fold(patches: Tensor, images: int, height: int, width: int, kernel: int, stride: int, padding: int) -> Tensor:
    """The transpose of ``take``, [B, C k k, S h w] -> [B, C, S, H, W]: each pixel sums its places in the patches."""
    if patches.is_cuda and (ours := kernels()):
        return ours.fold(patches, images, height, width, kernel, stride, padding)
    tasks = len(patches)
    by_image = patches.unflatten(2, (images, -1)).transpose(1, 2).flatten(0, 1)  # [B S, C k k, h w]
    out = F.fold(by_image, (height, width), kernel, padding=padding, stride=stride)
    return out.unflatten(0, (tasks, images)).transpose(1, 2).contiguous()


@fold.register_fake
def _(patches: Tensor, images: int, height: int, width: int, kernel: int, stride: int, padding: int) -> Tensor:
    return patches.new_empty(len(patches), patches.shape[1] // kernel**2, images, height, width)


def channels_first(images: Tensor) -> Tensor:
    """[B, S, C, H, W] -> [B, C, S, H, W]."""
    return images.transpose(1, 2).contiguous()


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
        k = weight.shape[-1]
        out = torch.bmm(weight.flatten(2), take(channels_first(x), k, stride, padding))  # [B, O, S h w]
        return out.unflatten(2, (-1, *size_after(x.shape[3:], k, stride, padding))).transpose(1, 2)

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
    """Given H and W too, which the stride rounds away in g."""

    free = 1, 2  # S of g, C of weight

    @staticmethod
    def forward(g: Tensor, weight: Tensor, stride: int, padding: int, height: int, width: int) -> Tensor:
        patches = torch.bmm(weight.flatten(2).mT, channels_first(g).flatten(2))
        return fold(patches, g.shape[1], height, width, weight.shape[-1], stride, padding).transpose(1, 2)

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
    """Given k too."""

    free = 2, 2  # O of g, C of x

    @staticmethod
    def forward(g: Tensor, x: Tensor, stride: int, padding: int, kernel: int) -> Tensor:
        slopes, seen = channels_first(g).flatten(2), take(channels_first(x), kernel, stride, padding)
        images, places = g.shape[1], slopes.shape[2]
        parts = next(n for n in range(1, images + 1) if images % n == 0 and (places // n <= LONG or n == images))
        if parts > 1:
            slopes, seen = (t.unflatten(2, (parts, -1)).transpose(1, 2).flatten(0, 1) for t in (slopes, seen))
        out = torch.bmm(slopes, seen.mT)  # [B parts, O, C k k]
        if parts > 1:
            out = out.unflatten(0, (-1, parts)).sum(1)
        return out.unflatten(2, (-1, kernel, kernel))

    @staticmethod
    def backward(ctx: Any, weight: Tensor) -> tuple[Any, ...]:
        g, x = ctx.saved_tensors
        of_g, of_x = ctx.needs_input_grad[:2]
        return (
            Forward.apply(x, weight, *ctx.step) if of_g else None,
            InputGradient.apply(g, weight, *ctx.step, *x.shape[3:]) if of_x else None,
            *[None] * 3,
        )
