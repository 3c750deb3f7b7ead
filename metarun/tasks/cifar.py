"""CIFAR-FS and FC100: the 100 classes of CIFAR-100, 600 colour images of 32 x 32 pixels each, split by class.

CIFAR-100 is Krizhevsky 2009. CIFAR-FS: 64 / 16 / 20 classes, Bertinetto et al., ICLR 2019, https://arxiv.org/abs/1805.08136.
FC100: 12 / 4 / 4 superclasses of five classes, so that no superclass is in two splits: Oreshkin et al., NeurIPS 2018,
https://arxiv.org/abs/1805.10123.
"""

import lzma
import tarfile
import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from metarun.errors import DataError
from metarun.tasks.image_classes import ImageData, image_task
from metarun.tasks.pickles import load_arrays, load_pickle
from metarun.tasks.published import Published, PublishedFile
from metarun.tasks.store import ClassRows

SIDE = 32
PARTS = ("meta", "train", "test")
UNREADABLE = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError)

# Every other class is in "train".
CIFAR_FS = {
    "val": "beaver beetle butterfly camel cattle crab crocodile flatfish lamp maple_tree motorcycle otter sea shark "
    "television tractor",
    "test": "baby bed bicycle chimpanzee fox leopard man pickup_truck plain poppy rocket rose snail sweet_pepper table "
    "telephone wardrobe whale woman worm",
}
FC100 = {
    "val": "large_carnivores large_omnivores_and_herbivores non-insect_invertebrates small_mammals",
    "test": "aquatic_mammals insects medium_mammals people",
}


@image_task
def cifar_fs(data_root: str, download: bool) -> ImageData:
    """Colour images 32 x 32: CIFAR-100 by classes (64 / 16 / 20)."""
    return ImageData("cifar_fs", CIFAR100.source(data_root, download), partial(_splits, 1, CIFAR_FS))


@image_task
def fc100(data_root: str, download: bool) -> ImageData:
    """Colour images 32 x 32: CIFAR-100 by superclasses (60 / 20 / 20 classes)."""
    return ImageData("fc100", CIFAR100.source(data_root, download), partial(_splits, 0, FC100))


def _splits(part: int, listed: dict[str, str], names: Sequence[str]) -> list[str]:
    """The split of each class "superclass/class", one of which parts is ``listed``."""
    of = {name: split for split, members in listed.items() for name in members.split()}
    return [of.get(name.split("/")[part], "train") for name in names]


def read(places: dict[Path, PublishedFile]) -> ClassRows:
    """Images of each class, from the archive or a folder of what is in it. Raises DataError unless all is as published."""
    ((place, expected),) = places.items()
    try:
        yield from _classes(_records(place), expected)
    except (*UNREADABLE, OSError, KeyError, ValueError, TypeError) as error:
        raise DataError(
            f"{place} is not CIFAR-100 as published: {error!r}. Delete it and download it again: metarun ... "
            "task.download=true."
        ) from error


def _records(place: Path) -> dict[str, Any]:
    """The three pickles of the unpacked folder, or of the archive, however it is packed and in whatever folder of it."""
    if place.is_dir():
        return {part: load_pickle(place / part) for part in PARTS}
    records = {}
    with tarfile.open(place, "r:*") as archive:
        for member in archive:
            if (part := PurePosixPath(member.name).name) in PARTS and (file := archive.extractfile(member)):
                records[part] = load_arrays(file)
    return records


def _classes(records: dict[str, Any], published: PublishedFile) -> ClassRows:
    """The classes in alphabetical order; their images by file name, so that every copy of the data gives one order."""
    data, fine, coarse, files = (
        np.concatenate([np.asarray(records[part][key]) for part in ("train", "test")])
        for key in (b"data", b"fine_labels", b"coarse_labels", b"filenames")
    )
    fine_names, coarse_names = (
        [name.decode() for name in records["meta"][key]] for key in (b"fine_label_names", b"coarse_label_names")
    )
    counts = np.bincount(fine, minlength=len(fine_names))
    pixels = 3 * SIDE**2  # a row is the planes of red, green and blue
    found = (data.dtype, data.shape[1:], len(fine_names), sorted(set(counts.tolist())))
    expected = (np.dtype(np.uint8), (pixels,), published.num_classes, [published.num_examples // published.num_classes])
    if found != expected:
        raise DataError(f"dtype, pixels, classes and images of each are {found} and must be {expected}")
    names = {f"{coarse_names[coarse[fine == c][0]]}/{name}": c for c, name in enumerate(fine_names)}
    for name, c in sorted(names.items()):
        members = np.flatnonzero(fine == c)
        ordered = sorted(members, key=lambda i: (files[i], data[i].tobytes()))
        yield name, data[ordered].reshape(-1, 3, SIDE, SIDE)


CIFAR100 = Published(
    "CIFAR-100",
    (
        PublishedFile(
            "cifar-100-python.tar.gz",
            "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
            "eb9058c3a382ffc7106e4002c42a8d85",
            num_classes=100,
            num_examples=60000,
        ),
    ),
    name="cifar-100",
    row_shape=(3, SIDE, SIDE),
    read=read,
    unpacked="cifar-100-python",
    size="169 MB",
)
