"""New sentences for a trained model: lines or a list of JSON, CSV, TSV, a text file of unlabelled lines, or strings."""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence, Set, Sized
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metarun.core import TaskSpec
from metarun.errors import DataError
from metarun.tasks.decoding import text_of
from metarun.tasks.reading import Examples, Reader, array_inputs
from metarun.tasks.splits import seen
from metarun.tasks.text_files import Fields, json_records, not_read, row_of, rows_of, table_records
from metarun.tasks.text_sets import Findings, Names, Row, placed, plain

TABLES = (".csv", ".tsv", ".tab")


class TextReader(Reader):
    """Reads sentences, which ``encode`` makes inputs as those of the training; ``fields`` are those of its file."""

    takes = "a .jsonl, .json, .csv or .tsv file with the fields text and label, or a .npz"

    def __init__(
        self,
        spec: TaskSpec,
        device: torch.device,
        dtype: torch.dtype,
        encode: Callable[[Sequence[str]], Tensor],
        fields: Fields,
    ) -> None:
        super().__init__(spec, device, dtype)
        self.encode, self.fields = encode, fields

    def noted(self, examples: Any) -> tuple[Tensor, Sequence[str]]:
        """Of sentences; or of an array in the model's shape."""
        if isinstance(examples, str):
            raise DataError("one sentence was given; give a list of them.")
        if isinstance(examples, (Mapping, Set)) or (getattr(examples, "ndim", 1) == 2 and hasattr(examples, "columns")):
            kind = type(examples).__name__  # its own entries are names of columns, or in no order
            raise DataError(f"the sentences are a {kind}, but must be a list of texts, or one column of texts.")
        texts = list(examples) if _are_texts(examples) else []
        if not texts:
            return array_inputs(examples, self.spec, self.device, self.dtype), ()
        if wrong := [i for i, text in enumerate(texts) if not isinstance(text, str) or not seen(text)]:
            raise DataError(f"sentence {wrong[0]} is {str(texts[wrong[0]])!r}; each must be a text that is not empty.")
        if halves := [text for text in texts if any("\ud800" <= letter <= "\udfff" for letter in text)]:
            raise DataError(f"a sentence holds half a character (a lone surrogate): {halves[0]!r}. Write it whole.")
        return self.encode([plain(text) for text in texts]), ()

    def examples(self, path: Path, labelled: bool) -> Examples:
        if path.is_dir():
            raise DataError(f"{path} is a folder. Name {self.takes}.")
        findings = Findings()
        rows = rows_of(path, self.fields, findings) if labelled else _queries(path, self.fields, findings)
        names = Names(findings.faults)
        for row in filter(lambda row: row.label, rows):
            names.add(row._replace(split=""))
        findings.faults.refuse()
        if not rows:
            raise DataError(f"{path} holds no sentence.")
        labels = np.array([plain(row.label) for row in rows], dtype=object)
        items, notes = [plain(row.text) for row in rows], placed(findings.notes, path)
        return Examples(items, self.encode(items), labels, notes)

    def keys(self, x: Tensor, given: Any) -> Sequence[Hashable]:
        """What is seen of sentences: those of unknown words are equal inputs, and not the same."""
        return [*map(seen, given)] if _are_texts(given) else super().keys(x, given)


def _are_texts(examples: Any) -> bool:
    if isinstance(examples, np.ndarray):
        return examples.dtype.kind in "OU" and examples.ndim > 0
    sized = isinstance(examples, Sized) and isinstance(examples, Iterable) and not isinstance(examples, Tensor)
    return sized and len(examples) > 0 and isinstance(next(iter(examples)), str)


def _queries(path: Path, asked: Fields, findings: Findings) -> list[Row]:
    """Sentences whose class may be missing: it is "" then."""
    faults, ending = findings.faults, path.suffix.lower()
    if ending == ".txt":
        lines = enumerate(StringIO(text_of(path), newline=None), 1)
        return [Row(line, "", "", f"{path}, line {number}") for number, line in lines if seen(line)]
    found = table_records(path, asked, faults, labelled=False) if ending in TABLES else json_records(path, faults)
    records = [*found]
    names = [*dict.fromkeys(name for _, record in records for name in record)]
    fields = asked.among(names)
    if rest := [name for name in names if name not in fields]:
        findings.notes.append(f"sentences are in the field {fields.text or 'text'!r}.{not_read(rest)}")
    rows = []
    for place, record in records:
        given = record.get(fields.label) if fields.label else None
        label = fields.label if given is not None and seen(str(given)) else ""  # 0 is a label
        row, what, cure = row_of(record, Fields(fields.text or "text", label), None, f"{path}, {place}")
        if row is None:
            faults.add(str(path), f"{place}{what}", cure)
        else:
            rows.append(row)
    return rows
