"""A table's file: its content, or what is there instead."""

import os
from pathlib import Path

from metarun.errors import DataError, MissingDataError, did_you_mean, listed
from metarun.tasks.file_kinds import TABLES


def table_content(path: Path) -> bytes:
    """A table's file. Raises MissingDataError where there is none, and DataError where it cannot be read."""
    if os.path.isdir(path):
        held = listed([str(path / name) for name in _tables_in(path)])
        cure = f"Name one of its files: {held}." if held else f"It holds none that ends with {', '.join(TABLES)}."
        joined = "Where each task has a file, join them into one, with a column that names the task."
        raise DataError(f"{path} is a folder, but a table is one file. {cure} {joined}")
    try:
        return path.read_bytes()
    except FileNotFoundError:
        hint = did_you_mean(path.name, _tables_in(path.parent)) or "."
        raise MissingDataError(f"task.path is {str(path)!r}, but there is no such file{hint}") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error


def _tables_in(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in folder.iterdir() if entry.suffix.lower() in TABLES)
    except OSError:
        return []
