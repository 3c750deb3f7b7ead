"""New images for a trained model: class folders, a flat folder, a CSV file, single files, or images in memory."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from metarun.core import TaskSpec
from metarun.errors import DataError, listed
from metarun.tasks.image_csv import rows_of_csv
from metarun.tasks.image_files import ENDINGS, TOPS, Ranges, dark, is_image, plain, squared, survey
from metarun.tasks.image_rows import Listing, Row, by_class, rows_of_folders
from metarun.tasks.reading import Examples, Reader, array_inputs
from metarun.tasks.splits import composed

Decode = Callable[[Path | BinaryIO | Image.Image, object], np.ndarray]  # image, name -> uint8 [channels, height, width]


class ImageReader(Reader):
    """Reads images by ``decode``, as those of the training were read, and inverts them where ``spec`` says so; arrays are
    the inputs of the networks themselves."""

    takes = "a folder with a folder of images for each class, a CSV file with the columns filename and label, or a .npz"

    def __init__(
        self,
        spec: TaskSpec,
        device: torch.device,
        dtype: torch.dtype,
        decode: Decode,
        ranges: Ranges | None = None,  # by which ``decode`` reads values of more than 8 bits
    ) -> None:
        super().__init__(spec, device, dtype)
        self.decode, self.ranges = decode, ranges

    def noted(self, examples: Any) -> tuple[Tensor, Sequence[str]]:
        """Of paths, or images of PIL; or of an array in the model's shape."""
        as_list = list(examples) if isinstance(examples, (list, tuple)) or _holds_objects(examples) else None
        if not as_list or not isinstance(as_list[0], (str, Path, Image.Image)):
            return self._of_array(examples), ()
        if wrong := [i for i, one in enumerate(as_list) if not isinstance(one, (str, Path, Image.Image))]:
            kind = type(as_list[wrong[0]]).__name__
            raise DataError(
                f"example {wrong[0]} is {kind}, but each must be a file or an image of PIL, as the first is."
            )
        images = [one if isinstance(one, Image.Image) else Path(one).expanduser() for one in as_list]
        x = self._decoded([(one, f"image {i}") for i, one in enumerate(images)])
        return x, self._told("these images", images)

    def _of_array(self, examples: Any) -> Tensor:
        """An array as inputs. Raises DataError for numbers that are no pixels."""
        x = array_inputs(examples, self.spec, self.device, self.dtype)
        low, high = x.min().item(), x.max().item()
        if low < 0 or high > 1:
            raise DataError(
                f"the array has numbers from {low:g} to {high:g}, but images are numbers from 0 to 1, or bytes: "
                f"{_into_range(x, low, high)}."
            )
        if 0 < high < 1.001 / 255:
            raise DataError(
                "the array is black: its highest number is 1 of 255. Where the bytes are 0 and 1, give floats; where the "
                "numbers were divided by 255, give them as they are."
            )
        return x

    def examples(self, path: Path, labelled: bool) -> Examples:
        rows, notes = _listing(path, labelled)
        if not rows:
            raise DataError(" ".join([f"{path} holds no images (files that end in {', '.join(ENDINGS)}).", *notes]))
        if labelled:
            rows = [row for of_class in by_class(rows).values() for row in of_class]
        root = path if path.is_dir() else path.parent
        items = [row.file.as_posix().removeprefix(f"{root.as_posix()}/") for row in rows]
        x = self._decoded([(row.file, row.file) for row in rows])
        notes = [*notes, *self._told(path, [row.file for row in rows])]
        notes += dark(round(255 * (1 - x.min() if self.spec.inverted else x.max()).item()))
        return Examples(items, x, np.array([composed(row.label) for row in rows], dtype=object), notes)

    def _told(self, where: object, images: Sequence[Path | Image.Image]) -> list[str]:
        """What the user should know of images of more than 8 bits. Raises DataError where the training had none, and values
        lie outside what is read: all of them would be white."""
        if self.ranges is None:
            return []
        found = survey(images)
        sides = zip(found.ranges, self.ranges, strict=True)
        if self.ranges == Ranges() and any(low < black or high > white for (low, high), (black, white) in sides):
            raise DataError(
                f"{where}: {' '.join(found.notes)} But the training had images of 8 bits alone, and others are read as "
                "whole numbers from 0 to 65535 or floats from 0 to 1: save these so, or with 8 bits."
            )
        return [f"{where}: {note}" for note in found.told_by(self.ranges)]

    def _decoded(self, images: Sequence[tuple[Path | Image.Image, object]]) -> Tensor:
        """The images as inputs; those in memory have names. Raises DataError with all that cannot be read."""
        rows, broken = [], []
        for image, name in images:
            try:
                rows.append(self.decode(image, image if isinstance(image, Path) else name))
            except DataError as error:
                broken.append(str(error))
        if broken:
            raise DataError(listed(broken, separator=" "))
        pixels = np.stack(rows)
        return array_inputs(255 - pixels if self.spec.inverted else pixels, self.spec, self.device, self.dtype)


def _into_range(x: Tensor, low: float, high: float) -> str:
    """How numbers from ``low`` to ``high`` become those from 0 (black) to 1 (white)."""
    if low >= -0.1 and high <= 1.1:  # as resizing leaves them
        return "limit them by .clip(0, 1)"
    if low < 0:
        undo = "undo their normalisation, so that black is 0 and white is 1"
        return "add 1 and divide by 2" if low >= -1.1 and high <= 1.1 else undo
    as_bytes = ", or give .astype('uint8')" if high <= TOPS[0] and bool((x == x.round()).all()) else ""
    return f"divide by {next((top for top in TOPS if high <= top), high):g}, which is white{as_bytes}"


def square_reader(spec: TaskSpec, device: torch.device, dtype: torch.dtype, ranges: Ranges | None) -> ImageReader:
    """A reader that cuts images square and resizes them to the size of ``spec``; without ``ranges`` those of 8 bits
    alone."""
    channels, size, _ = spec.input_shape

    def decode(source: Path | BinaryIO | Image.Image, name: object) -> np.ndarray:
        return squared(plain(source, name, channels, ranges), size)

    return ImageReader(spec, device, dtype, decode, ranges)


def _holds_objects(examples: Any) -> bool:
    return isinstance(examples, np.ndarray) and examples.dtype.kind in "OU" and examples.ndim > 0


def _listing(path: Path, labelled: bool) -> Listing:
    """The images in ``path`` with their classes; "" for those of a query that lie in no class folder."""
    if path.is_dir():
        if {"support", "query"} <= {entry.name for entry in path.iterdir()}:
            raise DataError(
                f"{path} has folders named support and query: name these (--support, --query), or use --tasks."
            )
        return rows_of_folders(path, with_splits=False, by_name=True, labelled=labelled)
    if path.suffix.lower() == ".csv":
        return rows_of_csv(path, with_splits=False, group_column=None, labelled=labelled)
    if is_image(path) and not labelled:
        return Listing([Row(path, "", "", str(path.parent))], [])
    raise DataError(f"{path} is not what this run can read: name {ImageReader.takes}.")
