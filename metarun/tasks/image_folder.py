"""Images of the user's own: a folder of class folders, or a CSV file that names the class of each image."""

import hashlib
import json
import os
from pathlib import Path
from typing import Literal

from metarun.errors import DataError, MissingDataError
from metarun.tasks.image_classes import ImageData, image_task
from metarun.tasks.image_files import ENDINGS, Row, by_class, decode_all, rows_of_csv, rows_of_folders
from metarun.tasks.splits import Split, split_classes
from metarun.tasks.store import ClassRows, Source


@image_task
def image_folder(
    data_root: str, path: str, size: int, channels: Literal[1, 3], split: Split, split_seed: int
) -> ImageData:
    """Images of your own: classes are the folders below a folder, or a column of a CSV file.

    Prepared under a digest of the files' names, sizes and times and of these settings: what changes is prepared anew.
    """
    if size < 1:
        raise ValueError(f"task.size is {size}, but an image needs 1 pixel or more.")
    classes = by_class(iter(_rows(Path(path).expanduser(), split == "given")))
    split_of = split_classes(
        tuple(classes), [rows[0].split for rows in classes.values()], split, split_seed, "image_folder/classes"
    )

    def read() -> ClassRows:
        for name, rows in classes.items():
            yield name, decode_all([row.file for row in rows], size, channels)

    folder = Path(data_root) / "prepared" / f"image_folder-{_digest(classes, size, channels)}"
    return ImageData("image_folder", Source(folder, (channels, size, size), read), lambda names: split_of)


def _rows(path: Path, with_splits: bool) -> list[Row]:
    """All images; raises an error when there is none."""
    if not path.exists():
        raise MissingDataError(
            f"task.path {path} does not exist. Name a folder with a folder of images for each class, or a CSV file with the "
            "columns filename and label."
        )
    rows = [*(rows_of_folders if path.is_dir() else rows_of_csv)(path, with_splits)]
    if not rows:
        raise DataError(f"task.path {path} holds no images (files that end in {', '.join(ENDINGS)}).")
    return rows


def _digest(classes: dict[str, list[Row]], size: int, channels: int) -> str:
    """Of the classes and of each file's name, size and time of change: 16 hexadecimal digits."""
    listing = [[label, *map(_facts, rows)] for label, rows in classes.items()]
    return hashlib.sha256(json.dumps([size, channels, listing]).encode()).hexdigest()[:16]


def _facts(row: Row) -> tuple[str, int, int]:
    try:
        facts = os.stat(row.file)
    except OSError as error:
        raise DataError(f"{row.place} names {row.file}, which cannot be read: {error.strerror}.") from error
    return row.file.name, facts.st_size, facts.st_mtime_ns
