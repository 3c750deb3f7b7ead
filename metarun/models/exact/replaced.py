"""torch's layers in a network of somebody else, made exact to second order under vmap.

A layer keeps its place, name, parameters and settings: the object stays, and its class becomes one of ours. So it may stand
in several places, in a container of torch's, or in a plain list that a network keeps beside its modules.
"""

import math
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import _WeightNorm

from metarun.models.dropout import Dropout, DropTogether
from metarun.models.exact.layers import BatchNorm, BatchNormMode, LayerNorm, standardised

Replacement = Callable[[Any, str, BatchNormMode | None], bool]  # of a module of that name; False leaves it as it is


class LayerNorm2d(LayerNorm):
    """Each place of images [S, C, H, W] by the mean and variance of its channels: torchvision's, of ConvNeXt."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class InstanceNorm(nn.Module):
    """Each channel of each example by its mean and variance over the last ``places`` axes; weight and bias [C], or None."""

    weight: Tensor | None
    bias: Tensor | None
    eps: float
    places: int

    def forward(self, x: Tensor) -> Tensor:
        def of_channels(values: Tensor) -> Tensor:
            return values.view(-1, *[1] * self.places)

        y = standardised(x, self.places, self.eps)
        y = y if self.weight is None else y * of_channels(self.weight)
        return y if self.bias is None else y + of_channels(self.bias)


class Attention(nn.Module):
    """``nn.MultiheadAttention`` from primitives, under its parameters' names.

    S sequences, L places of queries and M of keys, D width, H heads
    """

    in_proj_weight: Tensor | None
    in_proj_bias: Tensor | None
    q_proj_weight: Tensor
    k_proj_weight: Tensor
    v_proj_weight: Tensor
    out_proj: nn.Linear
    num_heads: int
    batch_first: bool
    drop: nn.Module

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        if is_causal and attn_mask is None:
            raise ValueError("is_causal=True says what attn_mask is, and there is none: pass the mask.")
        batched = query.dim() == 3
        q, k, v = map(self.by_heads, self.projected(query, key, value))  # [S, H, L or M, D / H]
        similarity = q @ k.transpose(2, 3) / math.sqrt(k.shape[-1])  # [S, H, L, M]
        if attn_mask is not None:
            whole = attn_mask if attn_mask.dim() == 2 else attn_mask.unflatten(0, similarity.shape[:2])
            similarity = similarity + additive(whole, similarity)
        if key_padding_mask is not None:
            similarity = similarity + additive(key_padding_mask, similarity).view(-1, 1, 1, similarity.shape[3])
        weights = self.drop(similarity.softmax(-1))
        out = self.out_proj((weights @ v).transpose(1, 2).flatten(2))  # [S, L, D]
        out = out if batched and self.batch_first else out.transpose(0, 1) if batched else out[0]
        if not need_weights:
            return out, None
        weights = weights.mean(1) if average_attn_weights else weights
        return out, weights if batched else weights[0]

    def projected(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        """The three of them, by their parts of the layer's weights."""
        if self.in_proj_weight is not None and query is key is value:
            return F.linear(query, self.in_proj_weight, self.in_proj_bias).chunk(3, -1)
        weights: tuple[Tensor, ...] = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        weights = weights if self.in_proj_weight is None else self.in_proj_weight.chunk(3)
        biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        return tuple(map(F.linear, (query, key, value), weights, biases))

    def by_heads(self, x: Tensor) -> Tensor:
        """x in the layout of the layer's inputs, as [S, H, places, D / H]."""
        x = x[None] if x.dim() == 2 else x if self.batch_first else x.transpose(0, 1)
        return x.unflatten(2, (self.num_heads, -1)).transpose(1, 2)


class WeightNorm(nn.Module):
    """g v / ||v||, the norm of v over every axis but ``dim``: of torch's kernel the second derivative is wrong, vmapped or
    not (2.14)."""

    dim: int  # -1: the norm is over all axes

    def forward(self, g: Tensor, v: Tensor) -> Tensor:
        axes = [axis for axis in range(v.dim()) if axis != self.dim]
        return v * (g / torch.linalg.vector_norm(v, dim=axes, keepdim=True))

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """g and v for a weight that is assigned."""
        axes = [axis for axis in range(weight.dim()) if axis != self.dim]
        return torch.linalg.vector_norm(weight, dim=axes, keepdim=True), weight


def additive(mask: Tensor, like: Tensor) -> Tensor:
    """What to add to similarities: minus infinity where a mask of truth values hides a key, or the mask itself."""
    return like.new_zeros(mask.shape).masked_fill(mask, -torch.inf) if mask.dtype == torch.bool else mask


def make_exact(net: nn.Module, mode: BatchNormMode | None = None) -> Counter[str]:
    """Replace what is inexact to second order under vmap, draws, or writes in place; counts what it replaced, by name.

    Only torch's own classes are: what derives from them may compute something else. ``mode`` is that of all batch norms;
    None follows each one's ``track_running_stats``. Call it before the network gets its dtype and device.
    """
    _one_place_each(net)
    replaced: Counter[str] = Counter()
    for name, module in list(net.named_modules()):
        kind = type(module)
        replace = REPLACEMENTS.get(kind) or REPLACEMENTS.get(f"{kind.__module__}.{kind.__name__}")
        if replace is not None and replace(module, name, mode):
            replaced[kind.__name__] += 1
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False  # a way through torch's own fused layers, in evaluation
    return replaced


def _one_place_each(net: nn.Module) -> None:
    """Make a module with several names into as many, of the same parameters: torch's functional_call knows parameters with
    several names, but leaves those it was given in a module that has them (2.14)."""
    seen: set[nn.Module] = set()
    for name, module in list(net.named_modules(remove_duplicate=False)):
        parameters = {id(p): p for p in module.parameters()}
        if module in seen and parameters:
            net.set_submodule(name, deepcopy(module, parameters))
        seen.add(module)


def become(module: Any, kind: type[nn.Module], **attributes: object) -> bool:
    """Give ``module`` the class ``kind``, and attributes that it had not."""
    module.__class__ = kind
    for name, value in attributes.items():
        setattr(module, name, value)
    return True


def _batch_norm(module: Any, name: str, mode: BatchNormMode | None) -> bool:
    if mode is None and not module.training and module.running_mean is not None:
        return False  # its statistics are constants, with which torch's own is exact
    mode = mode or ("running" if module.track_running_stats else "transductive")
    for constant in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
        if getattr(module, constant) is None or constant not in ("weight", "bias"):
            delattr(module, constant)
    become(module, BatchNorm, mode=mode, recording=False, recorded=None)
    for constant, value in (("weight", torch.ones), ("bias", torch.zeros)):
        if not hasattr(module, constant):
            module.register_buffer(constant, value(module.num_features), persistent=False)
    for statistic in ("mean", "var"):
        module.register_buffer(statistic, torch.empty(0))
    return True


def _instance_norm(module: Any, name: str, mode: BatchNormMode | None) -> bool:
    places = {nn.InstanceNorm1d: 1, nn.InstanceNorm2d: 2, nn.InstanceNorm3d: 3}[type(module)]
    return not module.track_running_stats and become(module, InstanceNorm, places=places)


def _attention(module: Any, name: str, mode: BatchNormMode | None) -> bool:
    if module.bias_k is not None or module.add_zero_attn:
        return False
    drop = Dropout(module.dropout, f"{name}.attention") if module.dropout else nn.Identity()
    # the last, or nn.TransformerEncoderLayer takes a fused way around the layer in evaluation
    return become(module, Attention, drop=drop, _qkv_same_embed_dim=False)


def _dropout(kind: type[nn.Module], **attributes: int) -> Replacement:
    def replace(module: Any, name: str, mode: BatchNormMode | None) -> bool:
        return 0 < module.p < 1 and become(module, kind, rate=module.p, name=name, steps=0, **attributes)

    return replace


def _stochastic_depth(module: Any, name: str, mode: BatchNormMode | None) -> bool:
    return _dropout(DropTogether, axes=1 if module.mode == "row" else 0)(module, name, mode)


REPLACEMENTS: dict[type | str, Replacement] = {
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), _batch_norm),
    **dict.fromkeys((nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d), _instance_norm),
    **dict.fromkeys((nn.Dropout1d, nn.Dropout2d, nn.Dropout3d), _dropout(DropTogether, axes=2)),
    nn.LayerNorm: lambda module, *_: become(module, LayerNorm),
    nn.MultiheadAttention: _attention,
    nn.Dropout: _dropout(Dropout),
    _WeightNorm: lambda module, *_: become(module, WeightNorm),
    # by name, for torchvision is not loaded where no network is of its making
    "torchvision.models.convnext.LayerNorm2d": lambda module, *_: become(module, LayerNorm2d),
    "torchvision.ops.stochastic_depth.StochasticDepth": _stochastic_depth,
}
