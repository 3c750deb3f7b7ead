"""Sentences in files of the user's own: lines or lists of JSON, CSV and TSV; their fields are named, or found by name."""

import csv
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from io import StringIO
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from metarun.errors import DataError, Faults, did_you_mean
from metarun.tasks.decoding import SEPARATORS, csv_problem, separator_said, text_of, unquoted
from metarun.tasks.splits import SPLITS, composed, say_splits, seen, split_named
from metarun.tasks.text_sets import Findings, Row

TEXTS = (
    "text",
    "sentence",
    "utterance",
    "query",
    "question",
    "message",
    "content",
    "body",
    "title",
    "document",
    "review",
)
LINE_END = re.compile(r"\r\n?|\n")
LABELS = ("label", "intent", "category", "class", "topic", "target", "label_name", "class_name", "tag")
Record = tuple[str, dict[str, Any]]  # its place in the file, and its entries by field


class Fields(NamedTuple):
    """The names of fields; None: to be found by name (the group: there is none)."""

    text: str | None
    label: str | None
    group: str | None = None

    def among(self, names: Iterable[str]) -> "Fields":
        """These fields, and those found among ``names`` where one is None; None stays where there is none."""
        by_name = {name.strip().casefold(): name for name in reversed([*names])}
        text, label = (
            asked or next((by_name[name] for name in usual if name in by_name), None)
            for asked, usual in ((self.text, TEXTS), (self.label, LABELS))
        )
        return Fields(text, label, self.group)


BY_NAME = Fields(None, None)


def rows_of(path: Path, asked: Fields, findings: Findings, with_splits: bool = False) -> list[Row]:
    """The sentences in ``path``, and what its field "split" says; what is wrong with single ones joins the ``findings``."""
    faults, of_table = findings.faults, path.suffix.lower() in (".csv", ".tsv", ".tab")
    records = [*(table_records(path, asked, faults) if of_table else json_records(path, faults))]
    names = [*dict.fromkeys(name for _, record in records for name in record)]
    fields = asked.among(names)
    named = {"task.text_field": asked.text, "task.label_field": asked.label, "task.group_field": asked.group}
    for key, name in named.items():
        if records and name is not None and name not in names:
            hint = did_you_mean(name, names)
            raise DataError(f"{key} is {name!r}, but {path} has no such field{hint}; there are {', '.join(names)}.")
    fields = Fields(fields.text or "text", fields.label or "label", fields.group)
    splits = [name for name in names if name.strip().casefold() == "split"]
    split = splits[0] if splits and with_splits else None
    rest = [name for name in names if name not in (*fields, split)]
    of_splits = [] if splits else [name for name in rest if say_splits(record.get(name) for _, record in records)]
    findings.notes.append(
        f"sentences are in the field {fields.text!r}, their classes in {fields.label!r}."
        + not_read(rest)
        + (f" task.split=given uses {splits[0]!r}." if splits and not with_splits else "")
        + (f" {of_splits[0]!r} says splits: name it split, and task.split=given uses it." if of_splits else "")
    )
    return [*_checked(path, records, fields, split, faults)]


def not_read(names: Sequence[str]) -> str:
    """What to say of fields of these names; nothing where there are none."""
    return f" Not read: {', '.join(map(repr, names))}." if names else ""


def _checked(path: Path, records: list[Record], fields: Fields, split: str | None, faults: Faults) -> Iterator[Row]:
    for place, record in records:
        row, what, cure = row_of(record, fields, split, f"{path}, {place}")
        if row is None:
            faults.add(str(path), f"{place}{what}", cure)
        else:
            yield row


def row_of(record: dict[str, Any], fields: Fields, split: str | None, place: str) -> tuple[Row | None, str, str]:
    """The row of a record; or None, what is wrong with it, and what is to be done."""
    for name in filter(None, fields):
        value = record.get(name)
        if value is None:
            nested = any(isinstance(other, (list, dict)) for other in record.values())
            cure = (
                'Write one object {"text": ..., "label": ...} on each line.'
                if nested
                else "Add it, or delete the line."
            )
            return None, f" has no {name!r}{', but others within it' * nested}", cure
        if not isinstance(value, str) and not (name != fields.text and type(value) is int):
            return None, f": {name!r} is {value!r}, but must be a string", "Put it in quotation marks."
        if not seen(str(value)):
            return None, f": {name!r} is empty", "Delete the line."
        if any(0xD800 <= ord(letter) <= 0xDFFF for letter in str(value)):
            return None, f": {name!r} holds half a character (a lone surrogate): {value!r}", "Write it whole."
    of_split = split_named(str(record.get(split) or "") if split else "")
    if of_split not in ("", *SPLITS):
        return None, f": {split!r} is {of_split!r}, but must be one of {', '.join(SPLITS)}", "Name the split so."
    text, label, group = (composed(str(record[name])) if name else "" for name in fields)
    return Row(text, label, of_split, place, group), "", ""


# ---------------------------------------------------------------------------------------------------------------- JSON


def json_records(path: Path, faults: Faults) -> Iterator[Record]:
    """Objects {"text": ..., "label": ..., "split": ...}: one on each line, where blank ones are skipped, or a list."""
    content = text_of(path)
    if content.lstrip().startswith("[") and (whole := _list(path, content)) is not None:
        numbered: Iterable[tuple[str, Any]] = ((f"entry {i}", record) for i, record in enumerate(whole, 1))
    else:
        numbered = _lines(path, content, faults)
    for place, record in numbered:
        if isinstance(record, dict):
            yield place, record
        elif isinstance(record, _Repeated):
            faults.add(str(path), f"{place} has {record.name!r} more than once", "Name each field once.")
        else:
            faults.add(str(path), f'{place} is no object {{"text": ..., "label": ...}}', "Write one.")


class _Repeated(NamedTuple):
    """What stands for an object that names a field twice: JSON leaves it open which of the two counts."""

    name: str


def _parsed(content: str) -> Any:
    def record(pairs: list[tuple[str, Any]]) -> dict[str, Any] | _Repeated:
        found = dict(pairs)
        if len(found) == len(pairs):
            return found
        return _Repeated(next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1))

    return json.loads(content, object_pairs_hook=record)


def _list(path: Path, content: str) -> list[Any] | None:
    """The list that is the whole of ``content``; None where the first line is JSON of its own. Raises DataError."""
    try:
        return _parsed(content)
    except RecursionError as error:
        raise DataError(f"{path} is not read as JSON: it is nested too deep.") from error
    except ValueError as error:
        if not isinstance(error, json.JSONDecodeError):  # a number with thousands of digits
            raise DataError(f"{path} is not read as JSON: {error}.") from error
        try:
            json.loads(content.lstrip().split("\n", 1)[0])
        except json.JSONDecodeError:
            raise DataError(f"{path}, line {error.lineno} is not JSON: {error.msg} at column {error.colno}.") from error
        return None


def _lines(path: Path, content: str, faults: Faults) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(content.split("\n"), 1):
        try:
            if line.strip():
                yield f"line {number}", _parsed(line)
        except json.JSONDecodeError as error:
            faults.add(
                str(path),
                f"line {number} is not JSON: {error.msg} at column {error.colno}",
                "Write one object on each line.",
            )
        except (RecursionError, ValueError) as error:  # nested too deep, or a number with thousands of digits
            faults.add(str(path), f"line {number} is not read as JSON: {error}", "Write one object on each line.")


# -------------------------------------------------------------------------------------------------------- CSV and TSV


def table_records(path: Path, asked: Fields, faults: Faults, labelled: bool = True) -> Iterator[Record]:
    """Rows of CSV, fields by the names in the first line, as many entries in every other.

    Separated by what a first line ``sep=;`` says, or by that which gives the fields, but for the label of those not
    ``labelled``.
    """
    said, content = separator_said(text_of(path, table=True))
    usual = "," if path.suffix.lower() == ".csv" else "\t"
    for separator in (said,) if said else (usual, *SEPARATORS):
        _, header = next(_rows(path, content, separator, Faults()), ("", []))  # of a separator that is none: no fault
        found = asked.among(header)
        if found.text in header and (found.label in header or not labelled):
            break
    else:
        first = content.lstrip("\r\n").partition("\n")[0].rstrip("\r")
        wanted = " and ".join([asked.text or "text", *[asked.label or "label"] * labelled])
        raise DataError(
            f"the first line of {path} must name the columns {wanted}, but it is {first!r}. Columns of other "
            "names are chosen by task.text_field and task.label_field."
        )
    if repeated := sorted({name for name in header if header.count(name) > 1}):
        raise DataError(f"{path}: several columns are named {', '.join(map(repr, repeated))}; give each its own name.")
    quote = {",": "; quote texts that contain commas.", ";": "; quote texts that contain semicolons."}
    for place, entries in islice(_rows(path, content, separator, faults), 1, None):
        if len(entries) == len(header):
            yield place, dict(zip(header, entries, strict=True))
        else:
            what = f"{place}: {len(entries)} entries, where the header has {len(header)}"
            faults.add(str(path), what, quote.get(separator, ""))


def _rows(path: Path, content: str, separator: str, faults: Faults) -> Iterator[tuple[str, list[str]]]:
    """The place and the entries of each line that is not empty. Tabs are often without quotation: there marks are letters
    where all lines have as many tabs."""
    if separator == "\t":
        lines = [line.split("\t") for line in LINE_END.split(content)]
        if len({len(line) for line in lines if line != [""]}) == 1:
            yield from ((f"line {n}", [*map(_unquoted, line)]) for n, line in enumerate(lines, 1) if line != [""])
            return
    reader = csv.reader(StringIO(content, newline=""), delimiter=separator, strict=True)
    try:
        for entries in filter(None, reader):  # an empty line is no row
            yield f"line {reader.line_num}", [*map(unquoted, entries)]
    except csv.Error as error:
        what, cure = csv_problem(error)
        faults.add(str(path), f"line {reader.line_num} is not CSV: {what}", cure)


def _unquoted(entry: str) -> str:
    entry = unquoted(entry)
    quoted = len(entry) > 1 and entry[0] == entry[-1] == '"'
    return entry[1:-1].replace('""', '"') if quoted else entry
