"""What sentences are to a network, whatever the features: inputs, and what was learned of the training classes for them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from metarun.tasks.store import Prepared, Source
from metarun.tasks.text_files import Fields
from metarun.tasks.text_sets import TextSet

Fitted = Mapping[str, Any]
NO_TRAINING = (
    "task.split leaves no training class, and vocabulary and word weights are those of the training classes: evaluate a run "
    "that has been trained (metarun evaluate RUN ...), or give a split with training classes."
)


@dataclass(frozen=True)
class EncodedTexts:
    """Sentences as inputs: ``take`` gives those numbered [R] as [R, *input_shape], integers below ``num_tokens`` or floats.

    ``vocabulary`` names what those integers stand for: equal for equal numbering, None for floats.
    ``frozen`` makes, for N classes, a base learner whose body has nothing to train: the features as they come.
    """

    input_shape: tuple[int, ...]
    num_tokens: int | None
    take: Callable[[Tensor], Tensor]
    frozen: Callable[[int], nn.Module]
    prepared: tuple[Prepared, ...] = ()  # what of it is kept on disk
    vocabulary: str | None = None
    fitted: Fitted = field(
        default_factory=dict
    )  # what was learned from the sentences of the training classes, as JSON can hold it


class TextFeatures(ABC):
    """A choice of what sentences are to a network, with its settings."""

    def beside(self, file: str, fields: Fields) -> "TextFeatures":
        """The features of the sentences in the user's own ``file`` ("": published ones): self, where not overridden."""
        return self

    def source(self, text_set: TextSet, folder: Path, device: torch.device) -> Source | None:
        """Source of what is slow to compute, and so kept below ``folder``; None, where not overridden."""
        return None

    @abstractmethod
    def encode(
        self,
        text_set: TextSet,
        training: np.ndarray,
        folder: Path,
        device: torch.device,
        dtype: torch.dtype,
        fitted: Fitted | None = None,
    ) -> EncodedTexts:
        """The sentences as inputs; ``training`` [n] says which are of training classes, ``folder`` is that of ``source``.

        ``fitted``: what ``EncodedTexts.fitted`` was in training, to be used instead of what these sentences say.
        """

    @abstractmethod
    def inputs(self, texts: Sequence[str], fitted: Fitted, device: torch.device, dtype: torch.dtype) -> Tensor:
        """New sentences as inputs [n, *input_shape], by what ``EncodedTexts.fitted`` was in training."""

    @abstractmethod
    def describe(self) -> str:
        """A name for the fingerprint of the data."""


def inverse_document_frequency(documents: Iterable[np.ndarray], size: int) -> np.ndarray:
    """Weights log((1 + n) / (1 + df)) + 1 of numbers below ``size`` [size]; ``documents``: the distinct numbers in each."""
    rows = list(documents)
    if not rows:
        raise ValueError(NO_TRAINING)
    frequency = np.bincount(np.concatenate(rows), minlength=size)
    return np.log((1 + len(rows)) / (1 + frequency)) + 1
