"""Transformer layers whose weights are a list in theta: for learners that read a set or a sequence of examples.

    attention:  a_t = W_o [per head: sum over s that t sees of softmax_s(<q_t, k_s> / sqrt d) v_s]
    norm first: h = x + attention(norm(x));   x <- h + W_2 act(W_1 norm(h))      (Xiong et al. 2020)
    norm last:  h = norm(x + attention(x));   x <- norm(h + W_2 act(W_1 h))      (Vaswani et al. 2017)

``encode`` is the whole of it. ``remember`` gives the keys and values of every layer alone, and ``read`` lets other rows
look at them: so a support set is computed once, and each query sees the support and no other query. A row that may not
be seen changes nothing; it is padding. Behind layers with the norm first a ``norm`` of the outcome is usual.

Matrix products and a softmax, and not torch's ``scaled_dot_product_attention``: on a CPU that has no rule for vmap
(torch 2.14: one call a task) and no second derivative. Norms are torch's without their affine part, which under vmap
has wrong second derivatives (pytorch/functorch#534).

Vaswani et al., NeurIPS 2017, https://arxiv.org/abs/1706.03762; norms first: https://arxiv.org/abs/2002.04745.
T rows (S of the memory), C width, H heads, d = C / H
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metarun.core import Params
from metarun.models.dense import dense

Memory = list[tuple[Tensor, Tensor]]  # keys and values [H, S, d] of each layer
Activation = Callable[[Tensor], Tensor]


def transformer(width: int, depth: int, heads: int, feedforward: int, like: Tensor) -> Params:
    """Make ``depth`` layers, drawn as torch draws its ``TransformerEncoderLayer``, in dtype and device of ``like``.

    Raises ValueError unless all numbers are 1 or more and ``width`` is a multiple of ``heads``.
    """
    if min(width, depth, heads, feedforward) < 1 or width % heads:
        raise ValueError(
            f"meta_learner.width {width}, depth {depth}, heads {heads} and feedforward {feedforward} must be 1 or more, and "
            "width a multiple of heads."
        )
    return [_layer(width, feedforward, like) for _ in range(depth)]


def _layer(width: int, feedforward: int, like: Tensor) -> Params:
    layer = {
        "norm_1": norm_weights(width, like),
        "qkv": dense([width, 3 * width], like)[0],
        "out": dense([width, width], like)[0],
        "norm_2": norm_weights(width, like),
        "expand": dense([width, feedforward], like)[0],
        "contract": dense([feedforward, width], like)[0],
    }
    nn.init.xavier_uniform_(layer["qkv"]["weight"])
    for name in ("qkv", "out"):
        nn.init.zeros_(layer[name]["bias"])
    return layer


def norm_weights(width: int, like: Tensor) -> dict[str, Tensor]:
    """Make the weights of a ``norm`` that scales nothing yet."""
    return {"weight": like.new_ones(width).detach(), "bias": like.new_zeros(width).detach()}


def norm(weights: Params, x: Tensor) -> Tensor:
    """Normalise each row of x [..., C] by its own mean and variance, then scale and shift it."""
    return F.layer_norm(x, x.shape[-1:]) * weights["weight"] + weights["bias"]


def encode(
    layers: Params,
    x: Tensor,
    seen: Tensor | None,
    heads: int,
    norm_first: bool = True,
    activation: Activation = F.gelu,
) -> Tensor:
    """Apply the layers to rows x [T, C] that look at one another: [T, C].

    ``seen`` says what row t sees, bool [T, T]; [T]: the same for all rows; None: everything. ``causal`` makes one.
    """
    for layer in layers:
        x = _apply(layer, x, seen, heads, norm_first, activation)[0]
    return x


def remember(
    layers: Params,
    x: Tensor,
    seen: Tensor | None,
    heads: int,
    norm_first: bool = True,
    activation: Activation = F.gelu,
) -> Memory:
    """What ``read`` wants to know of rows x [T, C] that ``encode`` would encode; of the last layer not more than that."""
    memory = []
    for layer in layers[:-1]:
        x, seen_by_others = _apply(layer, x, seen, heads, norm_first, activation)
        memory.append(seen_by_others)
    h = norm(layers[-1]["norm_1"], x) if norm_first else x
    weight, bias = (layers[-1]["qkv"][name][h.shape[1] :] for name in ("weight", "bias"))
    key, value = split(F.linear(h, weight, bias), h.shape[1] // heads).chunk(2)
    return [*memory, (key, value)]


def read(
    layers: Params,
    memory: Memory,
    x: Tensor,
    seen: Tensor | None,
    itself: bool = True,
    norm_first: bool = True,
    activation: Activation = F.gelu,
) -> Tensor:
    """Apply the layers to rows x [T, C] that see the rows of ``memory``, and no other of x: [T, C].

    ``seen`` is bool [T, S], or [S] for all rows. With ``itself`` a row also sees itself, as the last row of a sequence
    does; without it, it does not, and needs one row or more to see.
    """
    for layer, (key, value) in zip(layers, memory, strict=True):
        h = norm(layer["norm_1"], x) if norm_first else x
        if itself:
            query, own_key, own_value = split(F.linear(h, **layer["qkv"]), key.shape[2]).chunk(3)
            own = (query * own_key).sum(-1, keepdim=True) / math.sqrt(key.shape[2])  # [H, T, 1]
            weights = torch.cat([hidden(similarity(query, key), seen), own], -1).softmax(-1)
            values = weights[..., :-1] @ value + weights[..., -1:] * own_value
        else:
            weight, bias = (layer["qkv"][name][: h.shape[1]] for name in ("weight", "bias"))
            query = split(F.linear(h, weight, bias), key.shape[2])
            values = weights_of(similarity(query, key), seen) @ value
        x = residual(layer, x, join(values), norm_first, activation)
    return x


def _apply(
    layer: Params, x: Tensor, seen: Tensor | None, heads: int, norm_first: bool, activation: Activation
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Rows after one layer, and its keys and values."""
    h = norm(layer["norm_1"], x) if norm_first else x
    query, key, value = split(F.linear(h, **layer["qkv"]), h.shape[1] // heads).chunk(3)
    attended = join(weights_of(similarity(query, key), seen) @ value)
    return residual(layer, x, attended, norm_first, activation), (key, value)


def residual(layer: Params, x: Tensor, attended: Tensor, norm_first: bool, activation: Activation) -> Tensor:
    """The rest of a layer, once the heads have been ``attended``: x [T, C] -> [T, C]."""
    x = x + F.linear(attended, **layer["out"])
    x = x if norm_first else norm(layer["norm_1"], x)
    h = norm(layer["norm_2"], x) if norm_first else x
    x = x + F.linear(activation(F.linear(h, **layer["expand"])), **layer["contract"])
    return x if norm_first else norm(layer["norm_2"], x)


def causal(length: int, like: Tensor) -> Tensor:
    """Make the ``seen`` of a sequence, whose rows see themselves and earlier ones: bool [T, T]."""
    return torch.ones(length, length, dtype=torch.bool, device=like.device).tril()


def similarity(query: Tensor, key: Tensor) -> Tensor:
    """Products of query [H, T, d] and key [H, S, d], over sqrt d: [H, T, S]."""
    return (query / math.sqrt(key.shape[-1])) @ key.transpose(-1, -2)


def hidden(scores: Tensor, seen: Tensor | None) -> Tensor:
    """``scores`` [H, T, S], as low as can be where nothing is seen; finite, so that a row of padding is no NaN."""
    return scores if seen is None else torch.where(seen, scores, torch.finfo(scores.dtype).min)


def weights_of(scores: Tensor, seen: Tensor | None) -> Tensor:
    """Softmax over what is seen: [H, T, S] -> [H, T, S]."""
    return hidden(scores, seen).softmax(-1)


def split(x: Tensor, size: int) -> Tensor:
    """Split rows into heads of ``size`` d: x [T, n d] -> [n, T, d]."""
    return x.unflatten(1, (-1, size)).transpose(0, 1)


def join(x: Tensor) -> Tensor:
    """Join the heads of x [H, T, d] again: [T, C]."""
    return x.transpose(0, 1).flatten(1)
