"""Image files: decoded to bytes of one size, and listed by class from folders or a CSV file."""

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from metarun.errors import DataError

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
MODES = {1: "L", 3: "RGB"}


def decode(source: Path | BinaryIO, name: object, size: int, channels: int) -> np.ndarray:
    """The image as uint8 [channels, size, size]: upright, on white where transparent, cut square about its middle, resized.

    Raises DataError with ``name`` when it is no image, or not a whole one.
    """
    try:
        with Image.open(source) as image:
            upright = ImageOps.exif_transpose(image)
            plain = _opaque(_eight_bits(upright)).convert(MODES[channels])
            square = ImageOps.fit(plain, (size, size), Image.Resampling.LANCZOS)
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise DataError(f"{name} is no image that can be read: {error}. Replace or delete it.") from error
    return np.atleast_3d(np.asarray(square)).transpose(2, 0, 1)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey values of 16 bits, which Pillow would cut off at 255, divided by 257."""
    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8))


def _opaque(image: Image.Image) -> Image.Image:
    if "A" not in image.getbands() and "transparency" not in image.info:
        return image
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA"))


def decode_all(files: Sequence[Path], size: int, channels: int) -> np.ndarray:
    """The images as uint8 [n, channels, size, size]; see ``decode``."""
    return np.stack([decode(file, file, size, channels) for file in files])


class Row(NamedTuple):
    """An image file and its class; ``split`` is "" where its source names none, ``place`` says where that stands."""

    file: Path
    label: str
    split: str
    place: str


def rows_of_folders(root: Path, with_splits: bool) -> Iterator[Row]:
    """Every image below ``root``; its class is the path of its folder: from ``root``, or from root/<split>."""
    for file in sorted(root.rglob("*")):
        if file.suffix.lower() not in ENDINGS or file.name.startswith(".") or not file.is_file():
            continue
        folders = file.relative_to(root).parts[:-1]
        split, inner = (folders[:1], folders[1:]) if with_splits else ((), folders)
        if not inner:
            where = f"{root}/<train, val or test>/<class>" if with_splits else f"{root}/<class>"
            raise DataError(f"{file} lies in no class: put the images of each class into a folder {where}.")
        yield Row(file, "/".join(inner), "".join(split), str(file.parent))


def rows_of_csv(path: Path, with_splits: bool) -> Iterator[Row]:
    """The lines filename,label[,split] below a header; file names are relative to the folder of ``path``."""
    try:
        reader = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig"), newline=""), strict=True)
        header = reader.fieldnames or []
        if not {"filename", "label"} <= {*header}:
            raise DataError(
                f"the first line of {path} must name the columns filename and label, but it is {','.join(header)!r}."
            )
        for record in reader:
            place = f"{path}, line {reader.line_num}"
            if not record["filename"] or not record["label"]:
                raise DataError(f"{place} has no filename or no label. Delete it.")
            split = (record.get("split") or "") if with_splits else ""
            yield Row(path.parent / record["filename"], record["label"].strip(), split, place)
    except (csv.Error, UnicodeDecodeError, OSError) as error:
        raise DataError(f"{path} cannot be read as CSV in UTF-8: {error}.") from error


def by_class(rows: Iterator[Row]) -> dict[str, list[Row]]:
    """The rows of each class, in the order of their names.

    Refuses a file that is named twice (it could be support and query at once), a class in two splits, and classes whose
    names differ by case alone.
    """
    classes: dict[str, list[Row]] = {}
    spelt: dict[str, Row] = {}
    files: dict[Path, Row] = {}
    for row in rows:
        if files.setdefault(row.file, row) is not row:
            raise DataError(f"{row.file} is named twice ({files[row.file].place} and {row.place}). Delete one of them.")
        first = spelt.setdefault(row.label.casefold(), row)
        if first.split != row.split:
            raise DataError(
                f"the class {row.label!r} is in the split {first.split!r} ({first.place}) and in {row.split!r} "
                f"({row.place}), but splits must not share a class."
            )
        if first.label != row.label:
            raise DataError(
                f"the classes {first.label!r} ({first.place}) and {row.label!r} ({row.place}) differ by case alone. Write "
                "them alike if they are one class, and rename one if they are two."
            )
        classes.setdefault(row.label, []).append(row)
    return dict(sorted(classes.items()))
