"""The data sets of sentences: CLINC150, Banking77, and a file of the user's own.

CLINC150: 150 intents of a voice assistant, 150 sentences each; its out-of-scope sentences are left out. Larson et al.,
EMNLP 2019, https://arxiv.org/abs/1909.02027, CC BY 3.0. Banking77: 77 intents of a bank's customers, 75 to 227 sentences
each. Casanueva et al., 2020, https://arxiv.org/abs/2003.04807, CC BY 4.0. Their training, validation and test parts are
joined: in few-shot learning it is classes that are split.
"""

import csv
import hashlib
import json
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from typing import Any

from metarun.errors import DataError, MissingDataError
from metarun.tasks.published import Published, PublishedFile
from metarun.tasks.splits import SPLITS
from metarun.tasks.store import ClassRows, Source
from metarun.tasks.text import TextData, text_task
from metarun.tasks.text_sets import Row, class_rows, plain


@text_task
def clinc150(data_root: str, download: bool) -> TextData:
    """Sentences in 150 intents: CLINC150, said to a voice assistant (CC BY 3.0)."""
    return TextData("clinc150", CLINC150.source(data_root, download))


@text_task
def banking77(data_root: str, download: bool) -> TextData:
    """Sentences in 77 intents: Banking77, written to a bank (CC BY 4.0)."""
    return TextData("banking77", BANKING77.source(data_root, download))


@text_task
def text_jsonl(data_root: str, path: str) -> TextData:
    """Sentences of your own: lines of JSON, or CSV.

    Prepared under the digest of the file, so a changed file is read anew.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        what = "is a folder" if file.is_dir() else "does not exist"
        raise MissingDataError(
            f'task.path {path!r} {what}. Name a file of lines {{"text": ..., "label": ...}}, or a .csv file whose first '
            "line is text,label."
        )
    digest = hashlib.sha256(_bytes(file)).hexdigest()[:16]
    folder = Path(data_root) / "prepared" / f"text_jsonl-{digest}"
    read = csv_rows if file.suffix.lower() == ".csv" else json_rows
    return TextData("text_jsonl", Source(folder, (), lambda: class_rows(read(file), path)))


def published(title: str, files: tuple[PublishedFile, ...], rows: Callable[[Path], Iterator[Row]]) -> Published:
    """The sentences of these files, which ``rows`` reads."""
    again = f"This is not {title} as published: delete the file and download it again (task.download=true)."

    def checked(path: Path, expected: PublishedFile) -> list[Row]:
        try:
            found = [*rows(path)]
        except DataError as error:
            raise DataError(f"{error} {again}") from error
        held = len({row.label for row in found}), len(found)
        if held != (expected.num_classes, expected.num_examples):
            raise DataError(
                f"{path} holds {held[0]} classes and {held[1]} sentences, but {title} has {expected.num_classes} and "
                f"{expected.num_examples}. {again}"
            )
        return found

    def read(places: dict[Path, PublishedFile]) -> ClassRows:
        return class_rows((row for path, expected in places.items() for row in checked(path, expected)), title)

    return Published(title, files, name=title.lower(), row_shape=(), read=read)


# ------------------------------------------------------------------------------------------------------------ reading


def clinc_rows(path: Path) -> Iterator[Row]:
    """Rows in scope of {"train": [[text, intent], ...], "oos_train": ...}."""
    try:
        parts = json.loads(_text(path))
        for part, pairs in parts.items():
            for text, intent in pairs if not part.startswith("oos") else ():
                yield _row({"text": text, "label": intent}, f"{path}, {part}")
    except (json.JSONDecodeError, AttributeError, TypeError, ValueError) as error:
        raise error if isinstance(error, DataError) else DataError(f"{path}: {error}.") from error


def json_rows(path: Path) -> Iterator[Row]:
    """Rows of lines {"text": ..., "label": ..., "split": ...}; blank lines are skipped, further keys are not read."""
    for number, line in enumerate(_text(path).split("\n"), 1):
        place = f"{path}, line {number}"
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{place} is not JSON: {error.msg} at column {error.colno}.") from error
        if not isinstance(record, dict):
            raise DataError(f'{place} is no object {{"text": ..., "label": ...}}.')
        yield _row(record, place)


def csv_rows(path: Path, text: str = "text", label: str = "label") -> Iterator[Row]:
    """Rows of CSV, columns by the names in the first line, as many entries in every other; other columns are not read."""
    reader = csv.reader(StringIO(_text(path), newline=""), strict=True)
    try:
        header = next(reader, [])
        if not {text, label} <= {*header}:
            raise DataError(
                f"the first line of {path} must name the columns {text} and {label}, but it is {','.join(header)!r}."
            )
        if repeated := sorted({name for name in header if header.count(name) > 1}):
            raise DataError(
                f"{path}: several columns are named {', '.join(map(repr, repeated))}; give each its own name."
            )
        for entries in filter(None, reader):  # an empty line is no row
            place = f"{path}, line {reader.line_num}"
            if len(entries) != len(header):
                raise DataError(
                    f"{place}: {len(entries)} entries, where the header has {len(header)}; quote texts that contain commas."
                )
            record = dict(zip(header, entries, strict=True))
            yield _row({"text": record[text], "label": record[label], "split": record.get("split")}, place)
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num} is not CSV: {error}.") from error


def _row(record: dict[str, Any], place: str) -> Row:
    """Raises DataError for missing, empty and wrong fields."""
    for key in ("text", "label"):
        value = record.get(key)
        if value is None:
            raise DataError(f"{place} has no {key!r}.")
        if not isinstance(value, str) and not (key == "label" and type(value) is int):
            raise DataError(f"{place}: {key!r} is {value!r}, but must be a string.")
        if not plain(str(value)):
            raise DataError(f"{place}: {key!r} is empty. Delete the line.")
        if any(0xD800 <= ord(letter) <= 0xDFFF for letter in str(value)):
            raise DataError(f"{place}: {key!r} holds half a character (a lone surrogate): {value!r}.")
    split = record.get("split") or ""
    if split not in ("", *SPLITS):
        raise DataError(f"{place}: 'split' is {split!r}, but must be one of {', '.join(SPLITS)}.")
    return Row(record["text"], str(record["label"]), split, place)


def _text(path: Path) -> str:
    content = _bytes(path)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(
            f"{path}, line {line} is not UTF-8 (byte 0x{content[error.start]:02x}). Save the file as UTF-8."
        ) from error


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error


CLINC150 = published(
    "CLINC150",
    (
        PublishedFile(
            "clinc150/data_full.json",
            "https://raw.githubusercontent.com/clinc/oos-eval/master/data/data_full.json",
            "30c29dc6ab78edf3b5dfa640be204cde",
            num_classes=150,
            num_examples=22500,
        ),
    ),
    clinc_rows,
)
URL = "https://raw.githubusercontent.com/PolyAI-LDN/task-specific-datasets/master/banking_data"
BANKING77 = published(
    "Banking77",
    (
        PublishedFile("banking77/train.csv", f"{URL}/train.csv", "cec64185f4197906aabce0781ef9a19b", 77, 10003),
        PublishedFile("banking77/test.csv", f"{URL}/test.csv", "8dcd9dc31b686c75ec1f24bf23c140cb", 77, 3080),
    ),
    lambda path: csv_rows(path, "text", "category"),
)
