"""Images of the user's own: a folder of class folders, or a CSV file that names the class of each image."""

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from metarun.errors import DataError, DataProblems, MissingDataError, listed
from metarun.paths import usable
from metarun.tasks.doubtful import nearly_equal, notes_on_classes
from metarun.tasks.image_classes import ImageData, image_task
from metarun.tasks.image_csv import rows_of_csv
from metarun.tasks.image_files import ENDINGS, Ranges, dark, is_image, plain, problem_of, squared, survey
from metarun.tasks.image_layout import laid_out, without_last
from metarun.tasks.image_rows import Listing, Row, by_class, grouped
from metarun.tasks.near_copies import NearCopies
from metarun.tasks.splits import SPLITS, Split, by_shares, lists_classes, split_classes
from metarun.tasks.store import ClassRows, Prepared, Source

RULES = 3  # of reading; raise it when the same files give other rows, and they are prepared again
ARRAYS = (
    ".npz",
    ".npy",
    ".pt",
    ".pth",
    ".mat",
    ".h5",
    ".hdf5",
    ".pkl",
    ".pickle",
    ".parquet",
    "-ubyte",
    ".idx",
    ".tfrecord",
)
ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar")
LOOKED_AT = 10_000  # images that are decoded to name broken ones beside other faults, before anything is prepared
logger = logging.getLogger(__name__)


@image_task
def image_folder(  # noqa: PLR0913, PLR0917
    data_root: str,
    path: str,
    size: int,
    channels: Literal[1, 3],
    split: Split,
    split_seed: int,
    group_column: str | None = None,  # runs of an earlier metarun do not say it
    group_pattern: str | None = None,
    fitted: Mapping[str, Any] | None = None,
) -> ImageData:
    """Images of your own: classes are the folders below a folder, or a column of a CSV file.

    Prepared under a digest of the files' paths, sizes and times and of these settings: what changes is prepared anew.
    ``fitted``: the ranges by which a run has read its images of more than 8 bits.
    """
    if size < 1:
        raise ValueError(f"task.size is {size}, but an image needs 1 pixel or more.")
    found = _listing(usable(path, "task.path"), split, group_column, group_pattern)
    classes = by_class(found.rows)
    split_of = split_classes(
        tuple(classes), [rows[0].split for rows in classes.values()], split, split_seed, "image_folder/classes"
    )
    reading = Reading(classes, size, channels)
    source = _source(Path(data_root), reading)
    if (known := _ranges(fitted or {})) and not (source.state() == "ready" and _reads_by(known, source.prepared())):
        reading.known = known
        source = _source(Path(data_root), reading)
    with_groups = group_column is not None or group_pattern is not None
    return ImageData(
        "image_folder",
        source,
        lambda names: split_of,
        required=SPLITS if by_shares(split) else (),
        counts={name: len({row.group for row in rows}) if with_groups else len(rows) for name, rows in classes.items()},
        faults=lambda: [] if source.state() == "ready" else reading.broken(),
        notes=[*found.notes, *notes_on_classes(without_last(classes))],
        groups=reading.groups if with_groups else None,
        ranges=lambda prepared: _ranges(prepared.facts),
    )


def _ranges(kept: Mapping[str, Any]) -> Ranges | None:
    """The ranges by which images were read, as JSON kept them; None where it did not."""
    return Ranges(*map(tuple, kept["ranges"])) if "ranges" in kept else None


def _reads_by(ranges: Ranges, prepared: Prepared) -> bool:
    """Whether what is prepared would be the same by these ``ranges``."""
    return _ranges(prepared.facts) == ranges or prepared.facts.get("deep") is False


def _source(data_root: Path, reading: "Reading") -> Source:
    digest = _digest(reading.classes, reading.size, reading.channels, reading.known)
    shape = (reading.channels, reading.size, reading.size)
    return Source(data_root / "prepared" / f"image_folder-{digest}", shape, reading.rows, facts=reading.facts)


def _listing(path: Path, split: Split, group_column: str | None, group_pattern: str | None) -> Listing:
    """All images, with their groups; raises an error when there is none."""
    if not path.exists():
        raise MissingDataError(
            f"task.path {path} does not exist. Name a folder with a folder of images for each class, or a CSV file with the "
            "columns filename and label."
        )
    if group_column is not None and (path.is_dir() or group_pattern is not None):
        raise ValueError(
            "task.group_column names a column of a CSV file. For a folder set task.group_pattern instead, a regular "
            "expression that finds the group in the path of an image; never both."
        )
    _refuse_no_list(path)
    if path.is_dir():
        rows, notes = laid_out(path, split == "given", lists_classes(split))
    else:
        rows, notes = rows_of_csv(path, split == "given", group_column)
    if not rows:
        raise DataError(
            " ".join([f"task.path {path} holds no images (files that end in {', '.join(ENDINGS)}).", *notes])
        )
    if group_pattern is not None:
        rows = grouped(rows, path if path.is_dir() else path.parent, group_pattern)
    return Listing(rows, [*notes, *nearly_equal((row.group for row in rows), "groups")])


def _refuse_no_list(path: Path) -> None:
    """Raise DataError for a file that by its name is no CSV file: an image, or images packed into one file."""
    name, file = path.name.lower(), path.is_file()
    if file and is_image(path):
        raise DataError(f"task.path {path} is one image. Name the folder that holds a folder of images for each class.")
    if file and name.endswith(ARRAYS):
        raise DataError(
            f"task.path {path} holds arrays, which are not read: images are files. Write each into a folder of its class, "
            'as by PIL.Image.fromarray(x[i]).save(f"photos/{y[i]}/{i}.png"), and name that folder.'
        )
    if file and name.endswith(ARCHIVES):
        raise DataError(f"task.path {path} is an archive: unpack it, and name the folder of class folders in it.")


class Reading:
    """Decodes the images of classes: a copy of another image is left out, and all that is wrong is named at once.

    ``known``: the ranges of those of more than 8 bits, where not those that they have themselves.
    """

    known: Ranges | None = None

    def __init__(self, classes: dict[str, list[Row]], size: int, channels: int) -> None:
        self.classes, self.size, self.channels = classes, size, channels
        self.left_out: list[int] = []  # by number among all rows, class after class
        self.notes: list[str] = []
        self.ranges, self.deep = Ranges(), False

    def broken(self) -> list[str]:
        """What is wrong with the images, one message of all."""
        files = [row.file for rows in self.classes.values() for row in rows]
        found = list(filter(None, map(problem_of, files[:LOOKED_AT])))
        return [listed(found, separator=" ")] if found else []

    def rows(self) -> ClassRows:
        """The images of each class. Raises DataProblems where some cannot be read, or lie in two classes."""
        found = survey([row.file for rows in self.classes.values() for row in rows])
        self.ranges, self.deep = self.known or found.ranges, found.deep
        self.notes = found.told_by(self.ranges)
        seen: dict[bytes, Row] = {}
        broken: list[str] = []
        twins: list[str] = []
        copies: list[str] = []
        self.left_out, number, highest, near = [], -1, 0, NearCopies()
        for name, rows in self.classes.items():
            kept = []
            for row in rows:
                number += 1
                try:
                    pixels, digest = self._decoded(row)
                except DataError as error:
                    broken.append(str(error))
                    continue
                highest = max(highest, int(pixels.max()))
                first = seen.setdefault(digest, row)
                if first is row:
                    kept.append(pixels)
                    near.add(row, pixels)
                    continue
                self.left_out.append(number)
                pair = f"{row.shown} = {first.shown}"
                (copies if first.label == row.label else twins).append(pair)
            if not broken and not twins:
                yield name, np.stack(kept)
        if broken or twins:
            raise DataProblems([listed(broken, separator=" ")] * bool(broken) + [_in_two_classes(twins)] * bool(twins))
        self.notes += dark(highest)
        if copies:
            what = "copy of another image is" if len(copies) == 1 else "copies of other images are"
            self.notes.append(f"{len(copies)} {what} left out: {listed(copies)}.")
        self.notes += near.notes()

    def _decoded(self, row: Row) -> tuple[np.ndarray, bytes]:
        """The image, and a digest of its pixels before it is cut and resized, which is equal for equal images."""
        image = plain(row.file, row.file, self.channels, self.ranges)
        digest = hashlib.blake2b(f"{image.size}".encode() + image.tobytes(), digest_size=16).digest()
        return squared(image, self.size), digest

    def facts(self) -> dict[str, Any]:
        """What was found out beside the images."""
        return {"left_out": self.left_out, "notes": self.notes, "ranges": self.ranges, "deep": self.deep}

    def groups(self, prepared: Prepared) -> np.ndarray:
        """The number of each prepared image's group [num_images]; a name that several classes have is one group."""
        names = [row.group for rows in self.classes.values() for row in rows]
        return np.unique(np.delete(names, prepared.facts["left_out"]), return_inverse=True)[1]


def _in_two_classes(twins: list[str]) -> str:
    what = "image lies in two classes" if len(twins) == 1 else "images lie in two classes each"
    return f"{len(twins)} {what}: {listed(twins)}. Delete each from the class that it is not of."


def _digest(classes: dict[str, list[Row]], size: int, channels: int, known: Ranges | None) -> str:
    """Of the classes and of each file's path, size and times of change, and of known ranges: 16 hexadecimal digits."""
    gone: list[str] = []
    parents = {row.file.parent for rows in classes.values() for row in rows}
    folders = {folder: str(folder.resolve()) for folder in parents}  # once each: it asks the system for every part
    listing = [
        [label, *((folders[row.file.parent], row.file.name, *_facts(row, gone)) for row in rows)]
        for label, rows in classes.items()
    ]
    if gone:
        raise DataError(listed(gone, separator=" "))
    return hashlib.sha256(json.dumps([RULES, size, channels, listing, known]).encode()).hexdigest()[:16]


def _facts(row: Row, gone: list[str]) -> tuple[int, int, int]:
    """The size and times of change of a file; one that cannot be read joins ``gone``. The second time is the system's own,
    which moving a file changes, too, and nobody sets."""
    try:
        facts = os.stat(row.file)
    except OSError as error:
        gone.append(f"{row.place} names {row.file}, which cannot be read: {error.strerror}.")
        return 0, 0, 0
    return facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns
