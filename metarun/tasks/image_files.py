"""Image files, decoded to bytes: upright, opaque, of 8 bits, and of one size."""

import re
import struct
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from metarun.errors import DataError

ENDINGS = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
LEFT_BY_SYSTEMS = (
    *("__macosx", "thumbs.db", "desktop.ini", "@eadir", "#recycle", "$recycle.bin"),
    *("system volume information", "lost+found", "__pycache__"),
)
MODES = {1: "L", 3: "RGB"}
TOPS = (255, 1023, 4095, 16383, 65535)  # of values of 8, 10, 12, 14 and 16 bits, which all lie in files of 16
DEEP_COLOUR = re.compile(r";16[BLN]")  # a raw mode of Pillow's that keeps the upper 8 of 16 bits a colour
UNREADABLE = (
    *(OSError, EOFError, SyntaxError, struct.error, Image.DecompressionBombError),
    *(ValueError, TypeError, LookupError, ArithmeticError, RuntimeError),  # what Pillow raises on damaged headers
)


class Ranges(NamedTuple):
    """Values that become 0 and 255: of whole numbers beyond 8 bits, and of floats."""

    whole: tuple[float, float] = (0, 65535)
    real: tuple[float, float] = (0, 1)


def hidden(name: str) -> bool:
    """Whether a file or folder of this name is not the user's: hidden ones, and what systems leave behind."""
    return name.startswith(".") or name.lower() in LEFT_BY_SYSTEMS


def is_image(path: Path) -> bool:
    """Whether the name is that of an image file that can be read."""
    return path.suffix.lower() in ENDINGS and not hidden(path.name)


def decode(source: Path | BinaryIO, name: object, size: int, channels: int) -> np.ndarray:
    """The image as uint8 [channels, size, size]: upright, on white where transparent, cut square about its middle, resized.

    Raises DataError with ``name`` when it is no image, or not a whole one.
    """
    return squared(plain(source, name, channels, Ranges()), size)


def plain(source: Path | BinaryIO | Image.Image, name: object, channels: int, ranges: Ranges | None) -> Image.Image:
    """The whole image, upright, on white where transparent, of 8 bits: grey or RGB. Raises DataError as ``decode``, and
    without ``ranges`` for values of more than 8 bits."""
    with _refusing(name), _opened(source) as image:
        deep = _is_deep_colour(image)
        upright = ImageOps.exif_transpose(image)
        return _opaque(_eight_bits(upright, deep, ranges)).convert(MODES[channels])


def _opened(source: Path | BinaryIO | Image.Image) -> AbstractContextManager[Image.Image]:
    return nullcontext(source) if isinstance(source, Image.Image) else Image.open(source)


def squared(image: Image.Image, size: int, by: Image.Resampling = Image.Resampling.LANCZOS) -> np.ndarray:
    """The image cut square about its middle and resized: uint8 [channels, size, size]."""
    square = ImageOps.fit(image, (size, size), by)
    return np.atleast_3d(np.asarray(square)).transpose(2, 0, 1)


def problem_of(file: Path) -> str:
    """What is wrong with an image file; empty where nothing is."""
    try:
        with _refusing(file), Image.open(file) as image:
            image.draft(None, (1, 1))  # a JPEG is decoded at an eighth of its size, in a quarter of the time
            image.load()
    except DataError as error:
        return str(error)
    return ""


@contextmanager
def _refusing(name: object) -> Iterator[None]:
    try:
        yield
    except UNREADABLE as error:
        raise DataError(f"{name} is no image that can be read: {error}. Replace or delete it.") from error


def _eight_bits(image: Image.Image, deep_colour: bool, ranges: Ranges | None) -> Image.Image:
    """The image with its values, where they are of more than 8 bits, mapped from their range; Pillow would cut them off."""
    if ranges is None:
        if deep_colour or image.mode[0] in "IF":
            raise ValueError("it has values of more than 8 bits, and which of them are black and white was not kept")
        return image
    if deep_colour:
        factor = 255 / max((ranges.whole[1] + 1) / 256 - 1, 1)  # 12 bits have 16 levels in their upper byte, 0 to 15
        colours = [min(255, int(level * factor)) for level in range(256)]
        return image.point([v for band in image.getbands() for v in (range(256) if band == "A" else colours)])
    if image.mode[0] not in "IF":
        return image
    values, (low, high) = np.asarray(image), ranges.real if image.mode == "F" else ranges.whole
    if not np.isfinite(values).all():
        raise ValueError("it has values that are not finite")
    scaled = (values.astype(np.float64) - low) * 255 / ((high - low) or 1)
    return Image.fromarray(scaled.clip(0, 255).astype(np.uint8))


def _is_deep_colour(image: Image.Image) -> bool:
    return image.mode[0] not in "IF" and any(DEEP_COLOUR.search(str(tile[3])) for tile in getattr(image, "tile", ()))


def _opaque(image: Image.Image) -> Image.Image:
    if "A" not in image.getbands() and "transparency" not in image.info:
        return image
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA"))


# --------------------------------------------------------------------------------------------------- ranges of a data set


class Survey(NamedTuple):
    """What the images of a data set have in common, and what the user should know of how they are read."""

    ranges: Ranges
    notes: list[str]

    @property
    def deep(self) -> bool:
        """Whether some have values of more than 8 bits."""
        return any(" read as of " in note for note in self.notes)

    def told_by(self, known: Ranges) -> list[str]:
        """The notes, where images are read by ``known`` ranges."""
        if not self.deep or known == self.ranges:
            return self.notes
        (black, white), (low, high) = known
        as_of = f"as of {black:.0f} (black) to {white:.0f} (white), floats as of {low:g} to {high:g}"
        others = [note for note in self.notes if " read as of " not in note]
        return [*others, f"images of more than 8 bits are read as those of the training were: {as_of}."]


def survey(images: Sequence[Path | Image.Image]) -> Survey:
    """The ranges of all values that are not of 8 bits. Files that cannot be read are passed over: decoding names them. Of
    colours of 16 bits Pillow keeps the upper 8, so that decoded images in memory tell nothing of the others."""
    seen: dict[str, list[tuple[float, float]]] = {"whole": [], "real": [], "colour": []}
    many = 0
    for source in images:
        try:
            with _refusing(source), _opened(source) as image:
                many += isinstance(source, Path) and getattr(image, "n_frames", 1) > 1
                kind = "colour" if _is_deep_colour(image) else {"I": "whole", "F": "real"}.get(image.mode[0])
                if kind is not None:
                    seen[kind].append(_extremes(image))
        except DataError:
            continue
    ranges, notes = _ranges(seen)
    notes += [f"{many} images have several frames or pages; the first of each is read."] * (many > 0)
    return Survey(ranges, notes)


def dark(highest: int) -> list[str]:
    """A note where the ``highest`` value of all images is that of fewer bits than the 8 that are read."""
    if highest > 63:
        return []
    fix = f"If {highest} is meant as white, multiply the values by {255 // highest}" if highest else "Look at the files"
    return [f"the images are nearly black: their highest value is {highest} of 255. {fix}."]


def _extremes(image: Image.Image) -> tuple[float, float]:
    values = np.asarray(image)
    if values.ndim == 3 and image.getbands()[-1] == "A":
        values = values[..., :-1]
    return float(values.min()), float(values.max())


def _ranges(seen: dict[str, list[tuple[float, float]]]) -> tuple[Ranges, list[str]]:
    """The ranges, and a note of each that is not of 8 bits."""
    whole, real, notes = Ranges().whole, Ranges().real, []
    if seen["colour"] and not max(high for _, high in seen["colour"]):
        raise DataError(
            f"{len(seen['colour'])} images have 16 bits a colour with values below 256, of which Pillow reads none. Save "
            "them with 8 bits a colour."
        )
    deep = seen["whole"] + [(low, 256 * high) for low, high in seen["colour"]]  # the upper bytes
    if deep:
        low, high = min(low for low, _ in deep), max(high for _, high in deep)
        whole = (0, next(top for top in TOPS if high <= top)) if low >= 0 and high <= TOPS[-1] else (low, high)
        notes.append(
            f"{len(deep)} images have values of more than 8 bits, from {low:.0f} to {high:.0f}: they are read as of "
            f"{whole[0]:.0f} (black) to {whole[1]:.0f} (white)."
        )
    if finite := [pair for pair in seen["real"] if np.isfinite(pair).all()]:
        real = min(low for low, _ in finite), max(high for _, high in finite)
        notes.append(f"{len(finite)} images have float values: they are read as of {real[0]:g} (black) to {real[1]:g}.")
    return Ranges(whole, real), notes
