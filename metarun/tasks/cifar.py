"""CIFAR-FS and FC100: the 100 classes of CIFAR-100, 600 colour images of 32 x 32 pixels each, split by class.

CIFAR-100 is Krizhevsky 2009. CIFAR-FS: 64 / 16 / 20 classes, Bertinetto et al., ICLR 2019, https://arxiv.org/abs/1805.08136.
FC100: 12 / 4 / 4 superclasses of five classes, so that no superclass is in two splits: Oreshkin et al., NeurIPS 2018,
https://arxiv.org/abs/1805.10123.
"""

import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from metarun.errors import DataError, MissingDataError
from metarun.tasks.download import RemoteFile, fetch
from metarun.tasks.image_classes import ImageSource, image_task
from metarun.tasks.pickles import load_arrays, load_pickle
from metarun.tasks.store import ClassImages, ImageSet, prepared

PARTS = ("meta", "train", "test")

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
def cifar_fs(data_root: str, download: bool) -> ImageSource:
    """Colour images 32 x 32: CIFAR-100 by classes (64 / 16 / 20)."""
    image_set = load_cifar100(Path(data_root), PUBLISHED, download)
    return ImageSource("cifar_fs", image_set, tuple(_split(name.split("/")[1], CIFAR_FS) for name in image_set.names))


@image_task
def fc100(data_root: str, download: bool) -> ImageSource:
    """Colour images 32 x 32: CIFAR-100 by superclasses (60 / 20 / 20 classes)."""
    image_set = load_cifar100(Path(data_root), PUBLISHED, download)
    return ImageSource("fc100", image_set, tuple(_split(name.split("/")[0], FC100) for name in image_set.names))


def _split(name: str, listed: dict[str, str]) -> str:
    return next((split for split, names in listed.items() if name in names.split()), "train")


@dataclass(frozen=True)
class Release:
    """What CIFAR-100 must hold."""

    archive: RemoteFile
    num_classes: int
    num_images: int  # of each class

    side = 32


PUBLISHED = Release(
    RemoteFile("https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85"), 100, 600
)


def load_cifar100(data_root: Path, release: Release, download: bool) -> ImageSet:
    """All of CIFAR-100, prepared as <data_root>/prepared/cifar-100 on first use; classes are named superclass/class."""
    folder, archive = data_root / "cifar-100-python", data_root / "cifar-100-python.tar.gz"

    def require() -> None:
        if not folder.is_dir() and not archive.is_file() and not download:
            raise MissingDataError(
                f"CIFAR-100 needs {archive} (169 MB), or what is in it unpacked as {folder}. To download it there: "
                f"metarun ... task.download=true. Or put the file of {release.archive.url} there yourself, or name the "
                "folder that holds it with data_root (or METARUN_DATA)."
            )

    def read() -> ClassImages:
        require()  # again: whoever held the lock may have taken its time
        if not folder.is_dir():
            fetch(release.archive, archive)
        place = folder if folder.is_dir() else archive
        try:
            yield from _classes(_records(place), release)
        except (tarfile.TarError, EOFError, OSError, KeyError, ValueError, TypeError) as error:
            raise DataError(
                f"{place} is not CIFAR-100 as published: {error!r}. Delete it and download it again: metarun ... "
                "task.download=true."
            ) from error

    return prepared(data_root / "prepared" / "cifar-100", (3, release.side, release.side), require, read)


def _records(place: Path) -> dict[str, Any]:
    """The three pickles of the unpacked folder, or of the archive."""
    if place.is_dir():
        return {part: load_pickle(place / part) for part in PARTS}
    with tarfile.open(place, "r:gz") as archive:
        files = {part: archive.extractfile(f"cifar-100-python/{part}") for part in PARTS}
        return {part: load_arrays(file) for part, file in files.items() if file is not None}


def _classes(records: dict[str, Any], release: Release) -> ClassImages:
    """The classes in alphabetical order; their images by file name, so that every copy of the data gives one order."""
    data, fine, coarse, files = (
        np.concatenate([np.asarray(records[part][key]) for part in ("train", "test")])
        for key in (b"data", b"fine_labels", b"coarse_labels", b"filenames")
    )
    fine_names, coarse_names = (
        [name.decode() for name in records["meta"][key]] for key in (b"fine_label_names", b"coarse_label_names")
    )
    counts = np.bincount(fine, minlength=len(fine_names))
    pixels = 3 * release.side**2  # a row is the planes of red, green and blue
    found = (data.dtype, data.shape[1:], len(fine_names), sorted(set(counts.tolist())))
    expected = (np.dtype(np.uint8), (pixels,), release.num_classes, [release.num_images])
    if found != expected:
        raise DataError(f"dtype, pixels, classes and images of each are {found} and must be {expected}")
    names = {f"{coarse_names[coarse[fine == c][0]]}/{name}": c for c, name in enumerate(fine_names)}
    for name, c in sorted(names.items()):
        members = np.flatnonzero(fine == c)
        ordered = sorted(members, key=lambda i: (files[i], data[i].tobytes()))
        yield name, data[ordered].reshape(-1, 3, release.side, release.side)
