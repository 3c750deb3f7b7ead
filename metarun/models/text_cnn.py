"""Convolutions over words and their maximum over the sentence.

    for each width w in ``windows``:  h_t = ReLU(W [e_t, ..., e_{t+w-1}] + b),  t over the words;   z_w = max over t of h_t
    z = [z_w for each w]

Words behind the end are zeros. A sentence of padding alone gives zeros. Unlike the paper there is no dropout (adaptation
must not draw) and a word's vector is always trained. Kim, EMNLP 2014, https://arxiv.org/abs/1408.5882.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metarun.models.embedding_bag import Embedding
from metarun.models.parts import check_tokens


class TextCNN(nn.Module):
    """Convolutions over words (``body``) and a linear ``head``.

    ``width`` is the size of a word's vector, ``windows`` are the numbers of words that filters see, and each window has
    ``filters``; all are 1 or more. Raises ValueError where the inputs are not words.
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        num_outputs: int,
        num_tokens: int | None,
        width: int,
        windows: Sequence[int],
        filters: int,
    ) -> None:
        super().__init__()
        if min(width, filters) < 1 or not windows or min(windows) < 1:
            raise ValueError(
                f"base_learner.width {width} and filters {filters} must be 1 or more, and windows {list(windows)} at least "
                "one length of 1 or more."
            )
        self.body = WordConvolutions(check_tokens(num_tokens, "text_cnn"), width, windows, filters)
        self.head = nn.Linear(len(windows) * filters, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class WordConvolutions(nn.Module):
    """Convolutions over runs of words and their maxima over the sentence: x [S, L] -> [S, len(windows) * filters]."""

    def __init__(self, num_tokens: int, width: int, windows: Sequence[int], filters: int) -> None:
        super().__init__()
        self.windows = tuple(windows)
        self.embedding = Embedding(num_tokens, width)
        self.filters = nn.ModuleList(nn.Linear(window * width, filters) for window in windows)

    def forward(self, x: Tensor) -> Tensor:
        vectors, is_word = self.embedding(x)  # [S, L, D]
        length = x.shape[1]
        features = []
        for window, layer in zip(self.windows, self.filters, strict=True):
            late = F.pad(vectors, (0, 0, 0, window - 1))  # zeros behind the end
            runs = torch.cat([late[:, i : i + length] for i in range(window)], 2)  # [S, L, w D]
            found = layer(runs).relu() * is_word[..., None]  # 0 is the least that a ReLU gives
            features.append(found.amax(1))
        return torch.cat(features, 1)
