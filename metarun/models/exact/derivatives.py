"""Batch normalisation and max-pooling with derivatives of their own: exact, looped and under vmap, in few passes.

torch's ``batch_norm`` is silently wrong in a second derivative under vmap (pytorch/functorch#534), and in a third under
``torch.func`` anyhow; primitives are right, and their derivatives long. The formulas below, line by line:

A channel has N places, and a trailing _ is the mean over them: x_ = sum(x) / N, (g n)_ = sum(g n) / N, written gn_.

    c = x - x_,  var = (c c)_,  scale = (var + eps) ** -0.5,  n = scale c,  y = weight n + bias,  slope = weight scale

As c_ = 0, (c dc)_ = (c dx)_. So a change dx of x changes

    var by    2 (c dx)_
    scale by  -scale**3 / 2 * 2 (c dx)_ = -scale**2 (n dx)_
    n by      scale dc + c dscale = scale P(dx),  with P(z) = z - z_ - n (n z)_;  P is symmetric: (u P(z))_ = (z P(u))_

*Moments.* With the gradients gm in x_ and gv in var, the loss changes by gm dx_ + 2 gv (c dx)_: its gradient in x is
gm / N + 2 gv / N c.

*First derivative.* With the gradient g in y, the loss changes by sum(g (slope P(dx) + n dweight + dbias)), so

    of_x = slope P(g) = slope (g - g_ - n gn_),  of_weight = N gn_,  of_bias = N g_

*Second derivative.* With the gradients v in of_x, u in of_weight and t in of_bias, what is differentiated is

    M = sum(v of_x) + u of_weight + t of_bias = N (slope of_slope + u gn_ + t g_)
    of_slope = (v P(g))_ = vg_ - v_ g_ - vn_ gn_

    in g:       slope P(v) + u n + t = slope v + (t - slope v_) + k n,  with k = u - slope vn_
    in weight:  N scale of_slope
    in x:       x changes M / N through scale and n. As dof_slope = -(v dn)_ gn_ - vn_ (g dn)_,

        dM / N = weight of_slope dscale + slope dof_slope + u (g dn)_
               = weight of_slope dscale + (h dn)_,  with h = k g - slope gn_ v
               = -slope of_slope scale (n dx)_ + (h scale P(dx))_

        and M has the gradient scale (P(h) - slope of_slope n). As h_ = k g_ - slope gn_ v_, hn_ = k gn_ - slope gn_ vn_:

        scale (slope v_ gn_ - k g_) + scale k g - scale slope gn_ v - scale n (k gn_ + slope (of_slope - vn_ gn_))

*Third derivatives* are autograd's of these formulas, in which mean and scale are then functions of x.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function


class Moments(Function):
    """Mean and biased variance of x over every axis but ``axis``; the axes averaged over stay, of size one.

    The derivative takes one pass over x, where that of primitives takes five. n is the module's N.
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
    """Batch normalisation of x by its own mean and biased variance over every axis but ``axis``; weight and bias [C].

    Returns y of x's shape, and mean and scale, which are there for the derivatives alone: no gradient flows into them.
    Each derivative takes two passes over x, as the function does: one for the sums of each channel, one for the result.
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
    """The gradients of ``Normalised`` in x, weight [C] and bias [C], given g in its output: the first derivative above.

    Its own derivative is the second one above; mean and scale count there as functions of x and have no gradient.
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
        # the names are those of the derivation at the top of the file; centred * scale is its n
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
    """Return mean, x - mean and biased variance of x over every axis but ``axis``; see ``mean_of`` for the axes."""
    mean = mean_of(x, axis)
    centred = x - mean
    return mean, centred, mean_of(centred * centred, axis)


def mean_of(x: Tensor, axis: int) -> Tensor:
    """Return the mean of x over every axis but ``axis``; the axes averaged over stay, of size one."""
    return x.mean([i for i in range(x.dim()) if i != axis], keepdim=True)


class Largest(Function):
    """Max-pooling over windows of 2 x 2: x [S, C, H, W] -> the largest values, and which of the four places they have.

    Both are [S, C, H // 2, W // 2], places 0 to 3 row by row. As torch's, it takes the first of equals, and NaN before
    any number. The choice does not change with x but at ties, so to every derivative pooling is linear: ``Chosen``, whose
    transpose is ``Spread``.
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
    """Pick the place ``which`` [S, C, h, w], 0 to 3, of each window of x [S, C, H, W] -> [S, C, h, w]; linear in x.

    Its transpose is ``Spread``: sum(g Chosen(x, which)) = sum(Spread(g, which) x).
    """

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
    """Put g [S, C, h, w] at the chosen places, 0 elsewhere: [S, C, H, W]. The transpose of ``Chosen``."""

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
    """Return the four places of every whole window of 2 x 2 of x [S, C, H, W], each [S, C, H // 2, W // 2]."""
    height, width = (size // 2 * 2 for size in x.shape[2:])
    return [x[:, :, i:height:2, j:width:2] for i in (0, 1) for j in (0, 1)]


def along(values: Tensor, x: Tensor, axis: int) -> Tensor:
    """Return ``values`` [C] with axes of one around, so that they broadcast with x, whose channels are ``axis``."""
    return values.view(*[1] * axis, -1, *[1] * (x.dim() - axis - 1))
