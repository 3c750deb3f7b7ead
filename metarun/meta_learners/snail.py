"""SNAIL: a sequence model reads the labelled support set, then one unlabelled query, and says its label.

    sequence = [z(x_1), y_1], ..., [z(x_S), y_S], [z(x), 0],   z(x) = body(x), y one-hot or the target
    attention block:  a_t = sum over s <= t of softmax_s(<q_t, k_s> / sqrt d) v_s;   x_t <- [x_t, a_t]
    dense block:      (f_t, g_t) = W [x_{t - dilation}, x_t] + b;   x_t <- [x_t, tanh(f_t) * sigmoid(g_t)]
    temporal block:   dense blocks of dilation 1, 2, 4, ..., until t sees the whole sequence
    network:          attention, then (temporal, attention) again and again, then a linear map of the last x_t

Every query is at place S + 1: it sees the support set and itself, and no other query. So one pass over S + Q rows does
what Q passes over S + 1 places would, with the same result. Adaptation embeds the support set. The base learner's head
is not used and not trained.

Unlike the paper, dilations begin at 1, not 2: with kernels of width 2 that is what reaches every place. The features are
the body's own, without a linear map to 64 of them. The support set comes in the episode's order, which is random:
predictions depend on it, as on the assignment of labels.

Mishra et al., ICLR 2018, https://arxiv.org/abs/1707.03141. Cost: one forward and backward pass, no inner loop;
attention adds (S + Q)^2 products.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from metarun.core import Batch, FewShotLearner, Params, parameters_of
from metarun.models.dense import dense
from metarun.models.norm_state import with_support
from metarun.models.parts import body_of, num_features
from metarun.objectives import one_hot

# S support, Q query, T = S + Q rows, C channels (growing from block to block)


@dataclass(frozen=True)
class SNAIL(FewShotLearner):
    """Attention and dilated convolutions over the sequence of the support set and a query.

    ``attention`` has [key size, value size] of each attention block, ``filters`` is the width of a dense block.
    ``sequence_length`` (2 or more) is the most places of a sequence; it sets the number of dense blocks, and more
    support examples than fit raise ValueError.
    """

    input_shape: tuple[int, ...]
    num_outputs: int
    attention: Sequence[Sequence[int]]
    filters: int
    sequence_length: int

    def __post_init__(self) -> None:
        body_of(self.base_learner)
        if not self.attention or any(len(sizes) != 2 or min(sizes) < 1 for sizes in self.attention):
            raise ValueError(
                f"attention is {self.attention}; give each attention block [key size, value size] of 1 or more, and at "
                "least one block."
            )
        if self.filters < 1 or self.sequence_length < 2:
            raise ValueError(
                f"filters is {self.filters} and sequence_length {self.sequence_length}; use 1 or more, and 2 or more "
                "(the support set and one query)."
            )

    def init(self) -> Params:
        like, channels = next(self.base_learner.parameters()), num_features(self.base_learner, self.input_shape)
        channels += self.num_outputs
        blocks = []
        for i, (key_size, value_size) in enumerate(self.attention):
            temporal = []
            for _ in range((self.sequence_length - 1).bit_length() if i else 0):
                temporal += dense([2 * channels, 2 * self.filters], like)
                channels += self.filters
            sizes = {"query": key_size, "key": key_size, "value": value_size}
            attention = {name: dense([channels, size], like)[0] for name, size in sizes.items()}
            blocks.append({"temporal": temporal, "attention": attention})
            channels += value_size
        head = dense([channels, self.num_outputs], like)[0]
        return {"body": parameters_of(body_of(self.base_learner)), "network": {"blocks": blocks, "head": head}}

    def refuse_size(self, num_support: int, num_query: int = 1) -> None:
        if num_support >= self.sequence_length:
            raise ValueError(
                f"meta_learner.sequence_length is {self.sequence_length}, but {num_support} support examples and a "
                f"query are {num_support + 1} places; set it to that or more (it is a size of the network), or lower the "
                "number of shots."
            )

    def adapt(self, theta: Params, support: Batch) -> Params:
        self.refuse_size(len(support.x))
        z = functional_call(body_of(self.base_learner), theta["body"], (support.x,))  # [S, D]
        targets = support.y.is_floating_point()
        y = support.y.flatten(1) if targets else one_hot(support.y, self.num_outputs, z.dtype)
        body = with_support(body_of(self.base_learner), theta["body"], support.x)
        return {"body": body, "network": theta["network"], "sequence": torch.cat([z, y], 1)}

    def predict(self, phi: Params, x: Tensor) -> Tensor:
        z = functional_call(body_of(self.base_learner), phi["body"], (x,))  # [Q, D]
        unlabelled = F.pad(z, (0, self.num_outputs))
        num_support = len(phi["sequence"])
        return network(phi["network"], torch.cat([phi["sequence"], unlabelled]), num_support)[num_support:]


def network(weights: Params, x: Tensor, num_support: int) -> Tensor:
    """Outputs [T, num_outputs] for rows x [T, C]: a sequence of ``num_support``, then rows that each come next after it."""
    for block in weights["blocks"]:
        for k, layer in enumerate(block["temporal"]):
            x = dense_block(layer, x, num_support, dilation=2**k)
        x = attention_block(block["attention"], x, num_support)
    return F.linear(x, **weights["head"])


def dense_block(layer: Params, x: Tensor, num_support: int, dilation: int) -> Tensor:
    """Append features of each row and of one ``dilation`` earlier, zeros before the first: [T, C] -> [T, C + filters]."""
    late = F.pad(x, (0, 0, dilation, 0))  # row t is x_{t - dilation}
    after = late[num_support : num_support + 1].expand(len(x) - num_support, -1)
    earlier = torch.cat([late[:num_support], after])
    f, g = F.linear(torch.cat([earlier, x], 1), **layer).chunk(2, 1)
    return torch.cat([x, f.tanh() * g.sigmoid()], 1)


def attention_block(layers: Params, x: Tensor, num_support: int) -> Tensor:
    """Append to each row what it reads of the earlier ones: [T, C] -> [T, C + value size]."""
    query, key, value = (F.linear(x, **layers[name]) for name in ("query", "key", "value"))
    row = torch.arange(len(x), device=x.device)
    seen = (row[:, None] > row) & (row < num_support) | (row[:, None] == row)
    similarity = torch.where(seen, query @ key.T / math.sqrt(key.shape[1]), -torch.inf)
    return torch.cat([x, similarity.softmax(1) @ value], 1)
