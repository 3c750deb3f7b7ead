"""Inputs made of sentences: vectors of hashed n-grams, the numbers of their words, or frozen embeddings.

``encode`` gives the ``EncodedTexts`` of a text set. What it learns from the sentences (a vocabulary, inverse document
frequencies) it learns from those of the training classes alone. n sentences, V buckets or tokens
"""

import re
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from metarun.models.embedding_bag import BagOfTokens
from metarun.models.linear import Linear
from metarun.models.sentence_encoder import sentence_encoder
from metarun.tasks.encoded_texts import EncodedTexts, Fitted, TextFeatures, inverse_document_frequency
from metarun.tasks.sparse import Sparse
from metarun.tasks.store import ClassRows, Source
from metarun.tasks.text_sets import TextSet, say
from metarun.tasks.text_words import check_rule, of_rule, words

ARE_WORDS_PARTED = (
    "Words are parted by blanks: where a language has none between them, task/features=hashed reads runs of letters."
)

# ------------------------------------------------------------------------------------------------------------- hashed


class Counted(NamedTuple):
    """The buckets that sentences have, sentence after sentence, how often, and how many each sentence has [n]."""

    buckets: np.ndarray
    counts: np.ndarray
    lengths: np.ndarray


@dataclass(frozen=True)
class Hashed(TextFeatures):
    """Words, runs of words and runs of characters, each hashed to one of V buckets: x [V] of length 1.

    x_b ~ (1 + log count_b) * idf_b. A run of characters may begin or end with the blank beside a word.
    """

    num_buckets: int
    word_ngrams: int
    char_ngrams: Sequence[int] | None
    word_rule: int = 1  # runs of an earlier metarun do not say it

    def __post_init__(self) -> None:
        check_rule(self.word_rule)
        chars = [1, 1] if self.char_ngrams is None else [*self.char_ngrams]
        if self.num_buckets < 1 or self.word_ngrams < 1 or len(chars) != 2 or not 1 <= chars[0] <= chars[1]:
            raise ValueError(
                f"num_buckets {self.num_buckets} and word_ngrams {self.word_ngrams} must be 1 or more, and char_ngrams "
                f"{self.char_ngrams} two ascending numbers of 1 or more, or null."
            )

    def describe(self) -> str:
        chars = "-".join(map(str, self.char_ngrams or ()))
        return f"hashed-{self.num_buckets}-{self.word_ngrams}" + f"-{chars}" * bool(chars) + of_rule(self.word_rule)

    def encode(
        self,
        text_set: TextSet,
        training: np.ndarray,
        folder: Path,
        device: torch.device,
        dtype: torch.dtype,
        fitted: Fitted | None = None,
    ) -> EncodedTexts:
        stored = self.source(text_set, folder, device).prepared().verified()
        buckets, counts, lengths = (part.view("<i4") for part in np.split(stored.rows, np.cumsum(stored.counts)[:-1]))
        rows = np.split(buckets, np.cumsum(lengths)[:-1])
        own = (row for row, is_in in zip(rows, training, strict=True) if is_in)
        idf = np.array(fitted["idf"]) if fitted else inverse_document_frequency(own, self.num_buckets)
        sparse = self._sparse(Counted(buckets, counts, lengths), idf, device, dtype)
        shape = (self.num_buckets,)
        return EncodedTexts(
            shape, None, sparse.take, lambda ways: Linear(shape, ways, 0.0), (stored,), None, {"idf": idf.tolist()}
        )

    def source(self, text_set: TextSet, folder: Path, device: torch.device) -> Source:
        def read() -> ClassRows:
            buckets, counts, lengths = self._counted(text_set.texts)
            yield from (("buckets", buckets.view(np.uint8)), ("counts", counts.view(np.uint8)))
            yield "lengths", lengths.view(np.uint8)

        return Source(folder / f"{self.describe()}-{text_set.prepared.sha256[:16]}", (), read)

    def inputs(self, texts: Sequence[str], fitted: Fitted, device: torch.device, dtype: torch.dtype) -> Tensor:
        sparse = self._sparse(self._counted(texts), np.array(fitted["idf"]), device, dtype)
        return sparse.take(torch.arange(len(texts), device=device))

    def _counted(self, texts: Sequence[str]) -> Counted:
        found = [np.unique(self.buckets(text), return_counts=True) for text in texts]
        buckets, counts = (np.concatenate(column).astype("<i4") for column in zip(*found, strict=True))
        return Counted(buckets, counts, np.array([len(row) for row, _ in found], dtype="<i4"))

    def _sparse(self, counted: Counted, idf: np.ndarray, device: torch.device, dtype: torch.dtype) -> Sparse:
        """The rows x of sentences, each of length 1."""
        buckets, counts, lengths = counted
        ends = np.cumsum(lengths)
        weights = (1 + np.log(counts)) * idf[buckets]
        weights /= np.repeat(np.sqrt(np.add.reduceat(weights**2, ends - lengths)), lengths)
        return Sparse(
            torch.from_numpy(buckets.astype(np.int64)).to(device),
            torch.from_numpy(weights).to(device, dtype),
            torch.from_numpy(np.concatenate([[0], ends])).to(device),
            self.num_buckets,
        )

    def buckets(self, text: str) -> list[int]:
        """The bucket of every n-gram of ``text``."""
        parts = words(text, self.word_rule)
        most = min(self.word_ngrams, len(parts))
        runs = (f"w{' '.join(parts[i : i + n])}" for n in range(1, most + 1) for i in range(len(parts) - n + 1))
        line = f" {' '.join(parts)} "
        low, high = self.char_ngrams or (1, 0)
        lengths = range(low, min(high, len(line)) + 1)
        chars = (f"c{line[i : i + n]}" for n in lengths for i in range(len(line) - n + 1))
        return [zlib.crc32(gram.encode()) % self.num_buckets for gram in chain(runs, chars)]


# ------------------------------------------------------------------------------------------------------------- tokens


@dataclass(frozen=True)
class Tokens(TextFeatures):
    """The numbers of the first ``max_tokens`` words: x [max_tokens] int64, 0 behind the last.

    Words that the training classes have ``min_count`` times or more get a number each, the others share the
    ``unknown_buckets`` last numbers by hash, so that equal words always have equal numbers.
    """

    max_tokens: int
    min_count: int
    unknown_buckets: int
    word_rule: int = 1  # runs of an earlier metarun do not say it

    def __post_init__(self) -> None:
        check_rule(self.word_rule)
        for name in ("max_tokens", "min_count", "unknown_buckets"):
            if getattr(self, name) < 1:
                raise ValueError(f"task.features.{name} is {getattr(self, name)}; use 1 or more.")

    def describe(self) -> str:
        return f"tokens-{self.max_tokens}-{self.min_count}-{self.unknown_buckets}{of_rule(self.word_rule)}"

    def encode(
        self,
        text_set: TextSet,
        training: np.ndarray,
        folder: Path,
        device: torch.device,
        dtype: torch.dtype,
        fitted: Fitted | None = None,
    ) -> EncodedTexts:
        sentences = [words(text, self.word_rule)[: self.max_tokens] for text in text_set.texts]
        own = [sentence for sentence, is_in in zip(sentences, training, strict=True) if is_in]
        if 2 * (single := sum(len(sentence) == 1 for sentence in own)) > len(own):
            say([f"{single} of {len(own)} training sentences have one word. {ARE_WORDS_PARTED}"])
        counts = Counter(chain.from_iterable(own))
        common = sorted(word for word, count in counts.items() if count >= self.min_count)
        known: list[str] = fitted["words"] if fitted else common
        num_tokens = 1 + len(known) + self.unknown_buckets
        length = fitted["length"] if fitted else min(self.max_tokens, max(map(len, sentences)))
        table = self._numbered(sentences, known, length)
        idf = (
            np.array(fitted["idf"])
            if fitted
            else inverse_document_frequency(map(np.unique, table[training]), num_tokens)
        )
        idf[0] = 0  # the padding
        weights, x = torch.from_numpy(idf).to(device, dtype), torch.from_numpy(table).to(device)
        vocabulary = sha256("\n".join([*known, str(self.unknown_buckets)]).encode()).hexdigest()
        fit = {"words": known, "length": length, "idf": idf.tolist()}
        return EncodedTexts(
            (length,), num_tokens, x.__getitem__, lambda ways: BagOfTokens(weights, ways), (), vocabulary, fit
        )

    def inputs(self, texts: Sequence[str], fitted: Fitted, device: torch.device, dtype: torch.dtype) -> Tensor:
        table = self._numbered([words(text, self.word_rule) for text in texts], fitted["words"], fitted["length"])
        return torch.from_numpy(table).to(device)

    def _numbered(self, sentences: Sequence[list[str]], known: Sequence[str], length: int) -> np.ndarray:
        """The numbers of the first ``length`` words of each sentence [n, length]."""
        number = {word: i for i, word in enumerate(known, 1)}

        def number_of(word: str) -> int:
            return number.get(word) or 1 + len(known) + zlib.crc32(word.encode()) % self.unknown_buckets

        table = np.zeros((len(sentences), length), dtype=np.int64)
        for row, sentence in zip(table, sentences, strict=True):
            row[: len(sentence)] = [number_of(word) for word in sentence[:length]]
        return table


# ----------------------------------------------------------------------------------------------------------- sentence


@dataclass(frozen=True)
class Sentence(TextFeatures):
    """The embedding that a pretrained model gives the sentence: x [D] of length 1, computed once and kept on disk."""

    model: str

    def describe(self) -> str:
        return f"sentence-{re.sub(r'[^A-Za-z0-9_.-]+', '_', Path(self.model).name)}"

    def encode(
        self,
        text_set: TextSet,
        training: np.ndarray,
        folder: Path,
        device: torch.device,
        dtype: torch.dtype,
        fitted: Fitted | None = None,
    ) -> EncodedTexts:
        stored = self.source(text_set, folder, device).prepared().verified()
        table = torch.from_numpy(stored.rows.view("<f4").reshape(len(text_set.texts), -1).copy()).to(device, dtype)
        shape = (table.shape[1],)
        return EncodedTexts(shape, None, table.__getitem__, lambda ways: Linear(shape, ways, 0.0), (stored,))

    def source(self, text_set: TextSet, folder: Path, device: torch.device) -> Source:
        encoder = sentence_encoder(self.model)

        def read() -> ClassRows:
            yield "embeddings", encoder.embed(text_set.texts, device).astype("<f4").reshape(-1).view(np.uint8)

        return Source(folder / f"{self.describe()}-{encoder.digest}-{text_set.prepared.sha256[:16]}", (), read)

    def inputs(self, texts: Sequence[str], fitted: Fitted, device: torch.device, dtype: torch.dtype) -> Tensor:
        return torch.from_numpy(sentence_encoder(self.model).embed(texts, device).astype("<f4")).to(device, dtype)
