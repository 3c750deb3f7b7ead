"""Images that are nearly equal: copies of another size, format or brightness, mirrored ones, and frames of one scene."""

import numpy as np
from PIL import Image

from metarun.errors import listed
from metarun.tasks.image_rows import Row

SIDE = 12  # pixels of a signature
LIKE = 0.995  # correlation; among 50 million pairs of CIFAR-100's images about 50 are above it
LEAST = 4.0  # deviation of the values 0 to 255 of a signature; images of one colour are not compared
MOST = 10_000  # images that are compared, each with each


class NearCopies:
    """Collects images, and says which of them are nearly equal to one before."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.signatures: list[np.ndarray] = []

    def add(self, row: Row, pixels: np.ndarray) -> None:
        """Take an image, uint8 [channels, size, size], to the others, unless there are ``MOST``."""
        if len(self.rows) < MOST:
            small = [np.asarray(Image.fromarray(c).resize((SIDE, SIDE), Image.Resampling.BILINEAR)) for c in pixels]
            self.rows.append(row)
            self.signatures.append(np.stack(small).astype(np.float32))

    def notes(self) -> list[str]:
        """What to say of near copies within classes, which may be in support and query, and of those in two classes."""
        within, between = [], []
        for one, first in self._pairs():
            row, other = self.rows[one], self.rows[first]
            if row.label != other.label:
                between.append(f"{row.shown} ~ {other.shown}")
            elif not row.group or row.group != other.group:
                within.append(f"{row.shown} ~ {other.shown}")
        said = "nearly equal but for size, format, brightness or being mirrored"
        notes = [
            f"{len(within)} of the images and another of their class are {said}, and may be in support and query: "
            f"{listed(within)}. Delete copies; say which images belong together by task.group_pattern or task.group_column."
        ]
        across = (
            f"{len(between)} of the images and one of another class are {said}: {listed(between)}. "
            "Where they are one image, delete it from the class that it is not of."
        )
        return notes * bool(within) + [across] * bool(between)

    def _pairs(self) -> list[tuple[int, int]]:
        """The number of each image that is nearly equal to an earlier one, and of the first such."""
        if not self.signatures:
            return []
        x = np.stack(self.signatures)
        x -= x.mean((2, 3), keepdims=True)
        norm = np.sqrt((x**2).sum((1, 2, 3), keepdims=True))
        x = np.where(norm > LEAST * x[0].size ** 0.5, x / np.maximum(norm, 1e-9), 0)
        plain, mirrored = x.reshape(len(x), -1), x[..., ::-1].reshape(len(x), -1)
        pairs = []
        for begin in range(0, len(x), 512):
            block = plain[begin : begin + 512]
            end = begin + len(block)
            like = np.maximum(block @ plain[:end].T, block @ mirrored[:end].T) > LIKE
            like &= np.arange(end) < np.arange(begin, end)[:, None]
            pairs += [(begin + int(i), int(like[i].argmax())) for i in np.flatnonzero(like.any(1))]
        return pairs
