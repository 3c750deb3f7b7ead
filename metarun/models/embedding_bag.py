"""A sentence as the mean of what its words or n-grams are embedded to, and a linear head: fastText's classifier.

    tokens x [S, L]:   z = mean over the words of embedding[x]          (0 is padding)
    vectors x [S, V]:  z = x @ embedding                                (a weight for each of V buckets)

Joulin et al., EACL 2017, https://arxiv.org/abs/1607.01759. The embedding starts as N(0, 1 / width): a random projection
that keeps lengths on average, and blurs angles by 1 / sqrt(width).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Embedding(nn.Module):
    """Table of vectors [num_tokens, width], read by number; 0 (padding) gives zeros, whatever the table holds.

    Numbers may come as floats, for shapes are found out by trying a network on zeros of the parameters' dtype.
    """

    def __init__(self, num_tokens: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_tokens, width) / math.sqrt(width))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Read the vectors [S, L, width] of x [S, L]; return them, and which of the places are words: bool [S, L]."""
        numbers = x.long()
        is_word = numbers > 0
        return F.embedding(numbers, self.weight) * is_word[..., None], is_word


def mean_of_words(vectors: Tensor, is_word: Tensor) -> Tensor:
    """Mean of ``vectors`` [S, L, D] over the places that are words, ``is_word`` [S, L]: [S, D]; zeros where none is."""
    present = is_word[..., None].to(vectors.dtype)  # [S, L, 1]
    return (vectors * present).sum(1) / present.sum(1).clamp(min=1)


class TokenBag(nn.Module):
    """Mean of the learned vectors of the words in x [S, L]: [S, width]; padding takes no part."""

    def __init__(self, num_tokens: int, width: int) -> None:
        super().__init__()
        self.embedding = Embedding(num_tokens, width)

    def forward(self, x: Tensor) -> Tensor:
        return mean_of_words(*self.embedding(x))


class VectorBag(nn.Module):
    """Sum of a learned vector for each bucket, weighted by x [S, num_buckets]: [S, width]."""

    def __init__(self, num_buckets: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.randn(num_buckets, width) / math.sqrt(width))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.embedding


class EmbeddingBag(nn.Module):
    """A bag (``body``) and a linear ``head``: ``TokenBag``, or ``VectorBag`` where ``num_tokens`` is None.

    ``width`` (1 or more) is the size of a word's or bucket's vector. Inputs of more than one axis raise ValueError.
    """

    def __init__(self, input_shape: tuple[int, ...], num_outputs: int, num_tokens: int | None, width: int) -> None:
        super().__init__()
        if len(input_shape) != 1:
            raise ValueError(
                f"base_learner embedding_bag needs a vector or tokens, but the task's inputs have shape "
                f"{list(input_shape)}. Choose base_learner=mlp."
            )
        if width < 1:
            raise ValueError(f"base_learner.width is {width}; use 1 or more.")
        self.body = VectorBag(input_shape[0], width) if num_tokens is None else TokenBag(num_tokens, width)
        self.head = nn.Linear(width, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class BagOfTokens(nn.Module):
    """Counts of the tokens in x [S, L] times their weights (``body``, nothing to train) and a linear ``head``.

    Features are [S, num_tokens].
    """

    def __init__(self, weights: Tensor, num_outputs: int) -> None:
        super().__init__()
        self.body = _Counts(weights)
        self.head = nn.Linear(len(weights), num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class _Counts(nn.Module):
    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.register_buffer("weights", weights)
        self.weights: Tensor

    def forward(self, x: Tensor) -> Tensor:
        counts = torch.zeros(len(x), len(self.weights), dtype=self.weights.dtype, device=x.device)
        return counts.scatter_add(1, x, self.weights[x])
