"""The data sets of sentences: CLINC150, Banking77, and a file of the user's own.

CLINC150: 150 intents of a voice assistant, 150 sentences each; its out-of-scope sentences are left out. Larson et al.,
EMNLP 2019, https://arxiv.org/abs/1909.02027, CC BY 3.0. Banking77: 77 intents of a bank's customers, 75 to 227 sentences
each. Casanueva et al., 2020, https://arxiv.org/abs/2003.04807, CC BY 4.0. Their training, validation and test parts are
joined: in few-shot learning it is classes that are split. Splits protaugment_1 to 5: Dopierre et al., ACL 2021,
https://arxiv.org/abs/2105.12995, data/*/few_shot of its code.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

from metarun.errors import DataError, MissingDataError
from metarun.paths import usable
from metarun.tasks.decoding import bytes_of, text_of
from metarun.tasks.doubtful import notes_on_classes
from metarun.tasks.published import Published, PublishedFile
from metarun.tasks.splits import Split, published_splits
from metarun.tasks.store import ClassRows, Source
from metarun.tasks.text import TextData, text_task
from metarun.tasks.text_files import Fields, row_of, rows_of
from metarun.tasks.text_sets import Findings, Row, class_rows, plain

RULES = 5  # of reading the user's own files; raise it when the same file gives other sentences: it is prepared again


@text_task
def clinc150(data_root: str, download: bool) -> TextData:
    """Sentences in 150 intents: CLINC150, said to a voice assistant (CC BY 3.0)."""
    return TextData("clinc150", CLINC150.source(data_root, download), splits=published_splits("clinc150"))


@text_task
def banking77(data_root: str, download: bool) -> TextData:
    """Sentences in 77 intents: Banking77, written to a bank (CC BY 4.0)."""
    return TextData("banking77", BANKING77.source(data_root, download), splits=published_splits("banking77"))


@text_task
def text_jsonl(
    data_root: str,
    path: str,
    split: Split,
    text_field: str | None = None,  # runs of an earlier metarun do not say these
    label_field: str | None = None,
    group_field: str | None = None,
) -> TextData:
    """Sentences of your own: lines or a list of JSON, CSV or TSV.

    Prepared under the digest of the file and of these settings, so a changed file is read anew.
    """
    file = usable(path, "task.path")
    if not file.is_file():
        what = "is a folder" if file.is_dir() else "does not exist"
        raise MissingDataError(
            f'task.path {path!r} {what}. Name a file of lines {{"text": ..., "label": ...}}, or a .csv file whose first '
            "line is text,label."
        )
    fields, findings = Fields(text_field, label_field, group_field), Findings()
    key = bytes_of(file) + json.dumps([RULES, fields, split == "given"]).encode()
    folder = Path(data_root) / "prepared" / f"text_jsonl-{hashlib.sha256(key).hexdigest()[:16]}"

    def read() -> ClassRows:
        findings.begin()
        rows = rows_of(file, fields, findings, split == "given")
        findings.notes += notes_on_classes({plain(row.label) for row in rows})
        return class_rows(rows, path, findings)

    return TextData("text_jsonl", Source(folder, (), read, facts=findings.facts), fields, path)


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
        parts = json.loads(text_of(path))
        for part, pairs in parts.items():
            for text, intent in pairs if not part.startswith("oos") else ():
                row, what, _ = row_of({"text": text, "label": intent}, Fields("text", "label"), None, f"{path}, {part}")
                if row is None:
                    raise DataError(f"{path}, {part}{what}.")
                yield row
    except (json.JSONDecodeError, AttributeError, TypeError, ValueError) as error:
        raise error if isinstance(error, DataError) else DataError(f"{path}: {error}.") from error


def csv_rows(path: Path, text: str, label: str) -> Iterator[Row]:
    """Rows of a published CSV file."""
    findings = Findings()
    yield from rows_of(path, Fields(text, label), findings)
    findings.faults.refuse()


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
