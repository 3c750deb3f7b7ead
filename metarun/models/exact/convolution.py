"""The convolution of a batch of tasks as matrix products: three operators, each one's derivative made of the others.

One sum gives all three: <g, conv(x, weight)> is linear in g, x and weight, and each operator is its gradient in one of them:

    Forward:         x [B, C, S, H, W], weight [B, O, C, k, k] -> [B, O, S, h, w]
    InputGradient:   g [B, O, S, h, w], weight [B, O, C, k, k] -> [B, C, S, H, W]
    WeightGradient:  g [B, O, S, h, w], x [B, C, S, H, W]      -> [B, O, C, k, k]

B tasks, S images each, C and O channels before and after, k the kernel's size, H and W the images' size, h and w its own.
So derivatives of any order are exact. With the patches of x, [B, C k k, S h w], each is one batched product.
"""

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.library import custom_op

from metarun.models.exact.geometry import size_after

LONG = 1024  # places in one product: a GPU gives each sum over places, a weight's gradient, to one processor


def convolution(x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    """Convolve images of one task: x [C, S, H, W] with weight [O, C, k, k] -> [O, S, h, w]."""
    return Forward.apply(x.unsqueeze(0), weight.unsqueeze(0), stride, padding).squeeze(0)


@cache
def kernels() -> Any:
    """Module of our own GPU kernels, or None where triton is missing, has no C compiler or does not know the GPU."""
    try:
        from metarun.models.exact import triton_patches

        triton_patches.take(torch.zeros(1, 1, 1, 1, 1, device="cuda"), 1, 1, 0)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # triton has no error of its own for these; torch gives the same
        return None
    return triton_patches


@custom_op("metarun::take", mutates_args=())
def take(x: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
    """Take the patches that a kernel sees, one for each place: x [B, C, S, H, W] -> [B, C k k, S h w].

    It is an operator of its own, as its transpose ``fold`` is: otherwise a compiler computes what precedes the patches
    k k times over, and makes of the transpose atomic additions, or a long list of shifted sums.
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
    """Fold patches back, the transpose of ``take``: [B, C k k, S h w] -> [B, C, S, H, W]; a pixel sums its places."""
    if patches.is_cuda and (ours := kernels()):
        return ours.fold(patches, images, height, width, kernel, stride, padding)
    tasks = len(patches)
    by_image = patches.unflatten(2, (images, -1)).transpose(1, 2).flatten(0, 1)  # [B S, C k k, h w]
    out = F.fold(by_image, (height, width), kernel, padding=padding, stride=stride)
    return out.unflatten(0, (tasks, images)).transpose(1, 2).contiguous()


@fold.register_fake
def _(patches: Tensor, images: int, height: int, width: int, kernel: int, stride: int, padding: int) -> Tensor:
    return patches.new_empty(len(patches), patches.shape[1] // kernel**2, images, height, width)


class Bilinear(Function):
    """Base of the three operators: linear in each of two tensors; further arguments are stride, padding and sizes."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])
        ctx.step = inputs[2:4]  # stride and padding

    @classmethod
    def vmap(cls, info: Any, in_dims: tuple[Any, ...], *arguments: Any) -> tuple[Tensor, int]:
        """Map over a further axis by making it more tasks; a tensor that all share is expanded and not copied."""
        size = info.batch_size
        pair = [
            (t.expand(size, *t.shape) if axis is None else t.movedim(axis, 0)).flatten(0, 1)
            for t, axis in zip(arguments[:2], in_dims[:2], strict=True)
        ]
        return cls.apply(*pair, *arguments[2:]).unflatten(0, (size, -1)), 0


class Forward(Bilinear):
    """The convolution of B tasks: x [B, C, S, H, W], weight [B, O, C, k, k] -> [B, O, S, h, w]."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
        k, size = weight.shape[-1], size_after(x.shape[3:], weight.shape[-1], stride, padding)
        n = parts(x.shape[2], *size)
        out = torch.bmm(again(weight.flatten(2), n), take(split(x, n), k, stride, padding))  # [B n, O, S / n h w]
        return joined(out.unflatten(2, (-1, *size)), n)

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
    """The convolution's gradient in x: g [B, O, S, h, w], weight [B, O, C, k, k] -> [B, C, S, H, W].

    H and W are arguments, since the stride rounds them away in g.
    """

    @staticmethod
    def forward(g: Tensor, weight: Tensor, stride: int, padding: int, height: int, width: int) -> Tensor:
        n = parts(*g.shape[2:])
        patches = torch.bmm(again(weight.flatten(2), n).mT, split(g, n).flatten(2))
        return joined(fold(patches, g.shape[2] // n, height, width, weight.shape[-1], stride, padding), n)

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
    """The convolution's gradient in the weight: g [B, O, S, h, w], x [B, C, S, H, W] -> [B, O, C, k, k], given k."""

    @staticmethod
    def forward(g: Tensor, x: Tensor, stride: int, padding: int, kernel: int) -> Tensor:
        n = parts(*g.shape[2:])
        out = torch.bmm(split(g, n).flatten(2), take(split(x, n), kernel, stride, padding).mT)  # [B n, O, C k k]
        return out.unflatten(0, (-1, n)).sum(1).unflatten(2, (-1, kernel, kernel))

    @staticmethod
    def backward(ctx: Any, weight: Tensor) -> tuple[Any, ...]:
        g, x = ctx.saved_tensors
        of_g, of_x = ctx.needs_input_grad[:2]
        return (
            Forward.apply(x, weight, *ctx.step) if of_g else None,
            InputGradient.apply(g, weight, *ctx.step, *x.shape[3:]) if of_x else None,
            *[None] * 3,
        )


def parts(images: int, height: int, width: int) -> int:
    """Least number of equal parts into which a task's images divide so that a part has at most LONG places.

    Where no such number divides them, it is the number of images: a part is one image.
    """
    fewest = images * height * width / LONG
    return next(n for n in range(1, images + 1) if images % n == 0 and n >= min(fewest, images))


def split(images: Tensor, n: int) -> Tensor:
    """Split each task's images into n parts, as if these were tasks: [B, C, S, H, W] -> [B n, C, S / n, H, W]."""
    return images.unflatten(2, (n, -1)).transpose(1, 2).flatten(0, 1).contiguous()


def joined(images: Tensor, n: int) -> Tensor:
    """Join what ``split`` took apart: [B n, C, S / n, H, W] -> [B, C, S, H, W]."""
    return images.unflatten(0, (-1, n)).transpose(1, 2).flatten(2, 3)


def again(weight: Tensor, n: int) -> Tensor:
    """Repeat each task's weights for each of its n parts: weight [B, O, C k k] -> [B n, O, C k k]."""
    return weight.unsqueeze(1).expand(-1, n, -1, -1).flatten(0, 1)
