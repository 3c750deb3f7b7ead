"""Batch normalisation and max-pooling with derivatives of their own: exact, looped and under vmap, and few passes over x.

torch's ``batch_norm`` is silently wrong in a second derivative under vmap (pytorch/functorch#534), and in a third under
``torch.func`` anyhow; primitives are right, and their derivatives long.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function


class Moments(Function):
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


class Normalised(Function):
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


class NormalisedGradient(Function):
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
        # a trailing _ is the mean over the places of a channel; v, u and t are the gradients in of_x, of_weight and of_bias
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


class Largest(Function):
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


class Chosen(Function):
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


class Spread(Function):
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


def along(values: Tensor, x: Tensor, axis: int) -> Tensor:
    """``values`` [C] to go with x, whose channels are ``axis``."""
    return values.view(*[1] * axis, -1, *[1] * (x.dim() - axis - 1))
