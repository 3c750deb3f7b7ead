"""Image files and their classes as a CSV file says."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from metarun.errors import DataError, did_you_mean, listed
from metarun.tasks.decoding import csv_problem, separator_of, separator_said, text_of, unquoted
from metarun.tasks.image_rows import Listing, Row
from metarun.tasks.splits import say_splits, split_named


def rows_of_csv(path: Path, with_splits: bool, group_column: str | None, labelled: bool = True) -> Listing:
    """The lines filename,label[,split] below a header; file names are relative to the folder of ``path``. Labels may be
    left out where they need not be ``labelled``."""
    needed = ["filename", "label"] if labelled else ["filename"]
    said, content = separator_said(text_of(path, table=True))
    first, *_ = content.casefold().lstrip("\r\n").splitlines() or [""]
    separator = said or separator_of(first, ",", needed)
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=separator, strict=True)
    try:
        found = [(reader.line_num, [*map(unquoted, entries)]) for entries in reader if entries]
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {'. '.join(csv_problem(error))}") from error
    (_, names), *lines = found or [(1, [])]
    header = _names(names, group_column)
    _check_header(path, header, needed, group_column)
    wanted = ["filename", "label", *["split"] * with_splits, *[group_column] * (group_column is not None)]
    places = {name: header.index(name) for name in wanted if name in header}
    rows, problems = [], []
    for number, entries in lines:
        place = f"{path}, line {number}"
        of = {name: entries[at] for name, at in places.items() if at < len(entries)}
        if problem := _line_problem(place, header, entries, of, needed, group_column):
            problems.append(problem)
            continue
        group = of[group_column].strip() if group_column else ""
        file = _file(path.parent, of["filename"].strip())
        rows.append(Row(file, of.get("label", "").strip(), split_named(of.get("split", "")), place, group))
    if problems:
        raise DataError(listed(problems, separator=" "))
    unread = {name: [entries[at] for _, entries in lines] for at, name in enumerate(header) if name not in places}
    return Listing(rows, [*_unread(path, {name: entries for name, entries in unread.items() if name})])


def _file(folder: Path, name: str) -> Path:
    """The file of that ``name`` in ``folder``; parts of a list written on Windows may be divided by backslashes."""
    file, divided = folder / name, folder / name.replace("\\", "/")
    return divided if "\\" in name and divided.exists() and not file.exists() else file


def _names(header: list[str], group_column: str | None) -> list[str]:
    """The names of the columns, those that are read by it in small letters, as they are known."""
    plain = [name.strip() for name in header]
    known = {"filename", "label", "split"} - {group_column}
    return [name.casefold() if name.casefold() in known else name for name in plain]


def _unread(path: Path, columns: Mapping[str, Sequence[str]]) -> Iterator[str]:
    if columns:
        splits = [name for name, entries in columns.items() if say_splits(entries)]
        fix = f"; {splits[0]} says splits: name it split, and task.split=given uses it" if splits else ""
        fix = "; task.split=given uses split" if "split" in columns else fix
        yield f"{path}: not read are the columns {', '.join(columns)}{fix}."


def _check_header(path: Path, header: list[str], needed: list[str], group_column: str | None) -> None:
    if not {*needed} <= {*header}:
        columns = " and ".join(needed)
        raise DataError(f"the first line of {path} must name the columns {columns}, but it is {','.join(header)!r}.")
    if twice := sorted({name for name in header if name and header.count(name) > 1}):
        raise DataError(f"{path}, line 1: several columns are named {', '.join(twice)}; give each its own name.")
    if group_column is not None and group_column not in header:
        hint = did_you_mean(group_column, header) or f"; there are {', '.join(header)}."
        raise DataError(f"task.group_column is {group_column!r}, but {path} has no such column{hint}")


def _line_problem(
    place: str,
    header: list[str],
    entries: list[str],
    of: dict[str, str],
    needed: list[str],
    group_column: str | None,
) -> str:
    if len(entries) > len(header):
        return (
            f"{place} has {len(entries)} entries, where the header has {len(header)}. Put an entry that holds a comma in "
            'quotation marks, "oak, red".'
        )
    if not all(of.get(name, "").strip() for name in needed):
        return f"{place} has no {' or no '.join(needed)}. Delete it."
    if len(entries) < len(header):
        return f"{place} has {len(entries)} entries, where the header has {len(header)}."
    if group_column and not of[group_column].strip():
        return f"{place} has no {group_column}. Say which group the image is of; one alone is a group of its own."
    return ""
