"""Vectors of the user's own as what sentences are to a network: a row of an array for each line of their file.

n sentences in the file, repeated ones too; D numbers each
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from metarun.core import TaskSpec
from metarun.errors import DataError, MissingDataError, listed
from metarun.models.linear import Linear
from metarun.objectives import CROSS_ENTROPY
from metarun.paths import usable
from metarun.tasks.encoded_texts import EncodedTexts, Fitted, TextFeatures
from metarun.tasks.reading import UNREADABLE, array_inputs
from metarun.tasks.text_files import Fields, rows_of
from metarun.tasks.text_sets import Findings, TextSet, plain, say


@dataclass(frozen=True)
class Vectors(TextFeatures):
    """The vector x [D] that stands for the sentence in the .npy file ``path``: [n, D], in the order of the sentences' file.

    ``lines``: the sentences of that file, which ``beside`` reads.
    """

    path: str
    lines: tuple[str, ...] = ()

    def beside(self, file: str, fields: Fields) -> "Vectors":
        if not file:
            raise ValueError(
                "task.features.path gives a vector for each line of a file of your own, and these sentences are published "
                "ones. Choose task=text_jsonl task.path=FILE, or other features."
            )
        rows = rows_of(usable(file, "task.path"), fields, Findings())
        lines = tuple(plain(row.text) for row in rows)
        if len(self._array) != len(lines):
            raise DataError(
                f"{self.path} has {len(self._array)} rows, but {file} has {len(lines)} sentences. Give a row for each, in "
                "the order of the file, repeated sentences too; a header and blank lines have none."
            )
        say([f"{self.path}: {note}" for note in self._notes(lines)])
        return replace(self, lines=lines)

    def _notes(self, lines: Sequence[str]) -> list[str]:
        """What to say of vectors that several sentences share, and of those of one sentence that differ."""
        of_vector: dict[bytes, int] = {}
        of_text: dict[str, int] = {}
        shared, other = [], []
        for row, (text, vector) in enumerate(zip(lines, self._array, strict=True)):
            if (first := of_text.setdefault(text, row)) != row:
                if not np.allclose(vector, self._array[first], rtol=0.01, atol=0.01 * np.abs(vector).max()):
                    other.append(f"{row} and {first}")
            elif (first := of_vector.setdefault(vector.tobytes(), row)) != row:
                shared.append(f"{row} = {first}")
        notes = []
        if shared:
            notes.append(
                f"{len(shared)} sentences have the vector of another sentence, and may be in the support while that is in "
                f"the query (rows, counted from 0): {listed(shared)}."
            )
        if other:
            notes.append(
                f"{len(other)} repeated sentences have other vectors than before (rows, counted from 0): {listed(other)}. "
                "Are the rows in the order of the file? The first of each is taken."
            )
        return notes

    def describe(self) -> str:
        content = f"{self._array.dtype.str} {self._array.shape}".encode() + np.ascontiguousarray(self._array).tobytes()
        return f"vectors-{self._array.shape[1]}-{hashlib.sha256(content).hexdigest()[:16]}"

    def encode(
        self,
        text_set: TextSet,
        training: np.ndarray,
        folder: Path,
        device: torch.device,
        dtype: torch.dtype,
        fitted: Fitted | None = None,
    ) -> EncodedTexts:
        table, shape = self.inputs(text_set.texts, {}, device, dtype), self._array.shape[1:]
        return EncodedTexts(shape, None, table.__getitem__, lambda ways: Linear(shape, ways, 0.0))

    def inputs(self, texts: Sequence[str], fitted: Fitted, device: torch.device, dtype: torch.dtype) -> Tensor:
        row_of = {text: row for row, text in reversed([*enumerate(self.lines)])}  # of repeated sentences the first
        if unknown := [text for text in texts if text not in row_of]:
            raise DataError(
                f"{self.path} has no vector of {len(unknown)} of the sentences ({listed([*map(repr, unknown)], 3)}). Give "
                f"their vectors, by the same encoder, in place of them: an array [n, {self._array.shape[1]}], or a .npz "
                "file of arrays x and, for labelled ones, y."
            )
        spec = TaskSpec(self._array.shape[1:], 0, CROSS_ENTROPY)
        try:
            every = array_inputs(self._array, spec, torch.device("cpu"), dtype)
        except DataError as error:
            raise DataError(f"{self.path}: {error}") from error
        return every[[row_of[text] for text in texts]].to(device)

    @cached_property
    def _array(self) -> np.ndarray:
        """What is in the file [n, D]."""
        path, rule = usable(self.path, "task.features.path"), "Write it by numpy.save(path, vectors)."
        if not path.is_file():
            raise MissingDataError(f"task.features.path {self.path!r} is no file. Name a .npy file. {rule}")
        try:
            with open(path, "rb") as file:
                if file.read(2) not in (b"\x93N", b"PK"):  # numpy takes anything else for a pickle
                    raise DataError("it is no .npy file")
            found = np.load(path, allow_pickle=False)
        except UNREADABLE as error:
            raise DataError(f"{self.path} cannot be read as an array: {error}. {rule}") from error
        if not isinstance(found, np.ndarray) or found.ndim != 2 or not found.shape[1]:
            held = f"has shape {list(found.shape)}" if isinstance(found, np.ndarray) else "is a .npz file"
            raise DataError(f"{self.path} {held}, but must be one array of a row for each sentence: [n, D]. {rule}")
        return found
