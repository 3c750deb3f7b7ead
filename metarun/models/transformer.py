"""A small transformer over words; its features are the mean of its last vectors.

    e_t = embedding[x_t] + position_t
    h = h + W_o attention(norm(h));   h = h + W_2 GELU(W_1 norm(h))       ``layers`` times;   z = mean over words of norm(h)

Padding is not attended to and is left out of the mean, so it changes nothing. Norms come first (Xiong et al. 2020), and
W_o and W_2 start at zero: the untrained network is a mean of word vectors. No dropout, as adaptation must not draw.
Vaswani et al., NeurIPS 2017, https://arxiv.org/abs/1706.03762. S sentences, L words, D width, H heads
"""

import math

import torch
from torch import Tensor, nn

from metarun.models.embedding_bag import Embedding, mean_of_words
from metarun.models.exact.layers import LayerNorm
from metarun.models.parts import check_tokens


class Transformer(nn.Module):
    """An encoder of words (``body``) and a linear ``head``.

    ``width`` is the size of a word's vector, a multiple of ``heads``; ``layers`` is the number of layers. All are 1 or
    more. Raises ValueError where the inputs are not words.
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        num_outputs: int,
        num_tokens: int | None,
        width: int,
        layers: int,
        heads: int,
    ) -> None:
        super().__init__()
        if min(width, layers, heads) < 1 or width % heads:
            raise ValueError(
                f"base_learner.width {width}, layers {layers} and heads {heads} must be 1 or more, and width a multiple of "
                "heads."
            )
        self.body = Encoder(check_tokens(num_tokens, "transformer"), input_shape[0], width, layers, heads)
        self.head = nn.Linear(width, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class Encoder(nn.Module):
    """Layers of attention and the mean over the words: x [S, L] -> [S, D]."""

    def __init__(self, num_tokens: int, max_length: int, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.embedding = Embedding(num_tokens, width)
        self.position = nn.Parameter(0.1 * torch.randn(max_length, width) / math.sqrt(width))
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(layers))
        self.norm = LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        vectors, is_word = self.embedding(x)
        h = vectors + self.position[: x.shape[1]]
        for layer in self.layers:
            h = layer(h, is_word)
        return mean_of_words(self.norm(h), is_word)


class Layer(nn.Module):
    """Attention and a perceptron of 4 D hidden units, each added to its input: h [S, L, D] -> [S, L, D].

    Only words are attended to, where ``is_word`` [S, L] is true. At the start the layer changes nothing.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_mlp = LayerNorm(width), LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.expand, self.contract = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        for layer in (self.out, self.contract):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, h: Tensor, is_word: Tensor) -> Tensor:
        h = h + self.attention(self.before_attention(h), is_word)
        return h + self.contract(nn.functional.gelu(self.expand(self.before_mlp(h))))

    def attention(self, h: Tensor, is_word: Tensor) -> Tensor:
        """Let each place of h [S, L, D] read from the words, where ``is_word`` [S, L] is true: [S, L, D]."""
        query, key, value = (self.split(layer(h)) for layer in (self.query, self.key, self.value))
        similarity = query @ key.transpose(2, 3) / math.sqrt(key.shape[-1])  # [S, H, L, L]
        # far below any similarity, and finite: a row of padding alone must not become NaN
        similarity = torch.where(is_word[:, None, None], similarity, -1e9)
        return self.out((similarity.softmax(-1) @ value).transpose(1, 2).flatten(2))

    def split(self, x: Tensor) -> Tensor:
        """Split vectors into heads: x [S, L, D] -> [S, H, L, D / H]."""
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)
