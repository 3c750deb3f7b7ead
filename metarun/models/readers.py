"""A transformer whose rows read a context: its rows read each other, and any others read them and not each other.

    h = h + W_o attention(norm(h), context);   h = h + W_2 GELU(W_1 norm(h))

The context's keys and values of each layer are computed once (``read_context``) and serve any number of other rows
(``read``). Norms come first (Xiong et al. 2020), and W_o and W_2 start small: an untrained layer is nearly the identity.
Vaswani et al., NeurIPS 2017, https://arxiv.org/abs/1706.03762. S context rows, R rows, C width, H heads
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from metarun.core import Params
from metarun.models.dense import dense
from metarun.models.exact.layers import standardised

Memory = list[tuple[Tensor, Tensor]]  # keys and values [H, S, C / H] of each layer

SMALL = 0.1  # times the usual start, of what a layer adds


def reader(width: int, depth: int, feedforward: int, like: Tensor) -> list[Params]:
    """theta_0: ``depth`` layers of attention and a perceptron of ``feedforward`` hidden units."""
    return [layer(width, feedforward, like) for _ in range(depth)]


def layer(width: int, feedforward: int, like: Tensor) -> Params:
    """theta_0 of one layer."""
    sizes = {"query": (width, width), "key": (width, width), "value": (width, width), "out": (width, width)}
    sizes |= {"expand": (width, feedforward), "contract": (feedforward, width)}
    weights = {name: dense(pair, like)[0] for name, pair in sizes.items()}
    for name in ("out", "contract"):
        weights[name] = {key: SMALL * value for key, value in weights[name].items()}
    return {**weights, "attention_norm": norm(width, like), "perceptron_norm": norm(width, like)}


def norm(width: int, like: Tensor) -> Params:
    """theta_0 of a layer norm."""
    return {"weight": like.new_ones(width).detach(), "bias": like.new_zeros(width).detach()}


def normed(weights: Params, x: Tensor) -> Tensor:
    """Rows x [R, C] with mean and variance of their own, times a weight and with a bias."""
    return standardised(x, 1, 1e-5) * weights["weight"] + weights["bias"]


def read_context(layers: list[Params], x: Tensor, seen: Tensor | None, heads: int) -> Memory:
    """What other rows read of the context x [S, C]; ``seen`` [S] says which rows count, None that all do."""
    memory: Memory = []
    for weights in layers:
        h = normed(weights["attention_norm"], x)
        key, value = (by_head(F.linear(h, **weights[name]), heads) for name in ("key", "value"))
        memory.append((key, value))
        x = through(weights, x, h, memory[-1], seen)
    return memory


def read(layers: list[Params], x: Tensor, memory: Memory, seen: Tensor | None) -> Tensor:
    """Rows x [R, C] after all layers, each of which reads the context alone."""
    for weights, both in zip(layers, memory, strict=True):
        x = through(weights, x, normed(weights["attention_norm"], x), both, seen)
    return x


def through(weights: Params, x: Tensor, h: Tensor, memory: tuple[Tensor, Tensor], seen: Tensor | None) -> Tensor:
    """Rows x [R, C], with h their norm, after one layer."""
    key, value = memory
    query = by_head(F.linear(h, **weights["query"]), len(key))
    x = x + F.linear(attention(query, key, value, seen), **weights["out"])
    hidden = F.gelu(F.linear(normed(weights["perceptron_norm"], x), **weights["expand"]))
    return x + F.linear(hidden, **weights["contract"])


def attention(query: Tensor, key: Tensor, value: Tensor, seen: Tensor | None) -> Tensor:
    """What each of the rows query [H, R, d] reads of the context [H, S, d]: [R, C]."""
    similarity = query @ key.transpose(1, 2) * key.shape[-1] ** -0.5  # [H, R, S]
    if seen is not None:
        similarity = torch.where(seen, similarity, -torch.inf)
    return (similarity.softmax(-1) @ value).transpose(0, 1).flatten(1)


def by_head(x: Tensor, heads: int) -> Tensor:
    """Rows [R, C] split among the heads: [H, R, C / H]."""
    return x.unflatten(1, (heads, -1)).transpose(0, 1)
