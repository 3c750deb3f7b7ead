"""Caltech-UCSD Birds-200-2011: 11,788 photos of 200 kinds of birds, cut square and resized to 84 x 84 pixels.

Wah et al. 2011, Caltech CNS-TR-2011-001. 100 / 50 / 50 classes, as in Chen et al., ICLR 2019 ("A closer look at few-shot
classification"), https://arxiv.org/abs/1904.04232: by number, every second for training, every fourth for validation.
"""

import io
import lzma
import re
import tarfile
import zlib
from pathlib import Path

import numpy as np

from metarun.errors import DataError
from metarun.tasks.image_classes import ImageData, image_task
from metarun.tasks.image_files import decode
from metarun.tasks.published import Published, PublishedFile
from metarun.tasks.store import ClassRows

SIDE = 84
MEMBER = re.compile(r"(?:.*/)?images/(\d{3}\.[^/]+)/([^/.][^/]*\.jpg)")  # in whatever folder of an archive


@image_task
def cub(data_root: str, download: bool) -> ImageData:
    """Colour photos 84 x 84: CUB-200-2011, 100 / 50 / 50 kinds of birds."""
    return ImageData("cub", CUB.source(data_root, download), lambda names: [*map(split_of, names)])


def split_of(name: str) -> str:
    """Split of a class by its name, "001.Black_footed_Albatross"."""
    number = int(name[:3])
    return "train" if number % 2 else "val" if number % 4 else "test"


def read(places: dict[Path, PublishedFile]) -> ClassRows:
    """Photos of each class in alphabetical order, from the archive or a folder of what is in it."""
    ((path, expected),) = places.items()
    found = _of_folder(path) if path.is_dir() else _of_archive(path)
    numbers = len(found), sum(map(len, found.values()))
    if numbers != (expected.num_classes, expected.num_examples):
        raise DataError(
            f"{path} holds {numbers[0]} classes and {numbers[1]} photos, and CUB has {expected.num_classes} and "
            f"{expected.num_examples}. Delete it and download it again (task.download=true)."
        )
    for name, images in sorted(found.items()):
        yield name, np.stack([images[key] for key in sorted(images)])


def _of_folder(folder: Path) -> dict[str, dict[str, np.ndarray]]:
    """The photos of each class by their names."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for path in folder.glob("images/*/*.jpg"):
        if match := MEMBER.fullmatch(path.relative_to(folder).as_posix()):
            found.setdefault(match[1], {})[match[2]] = decode(path, path, SIDE, 3)
    return found


def _of_archive(path: Path) -> dict[str, dict[str, np.ndarray]]:
    """The photos of each class by their names, read in the order of the archive; 250 MB when decoded."""
    found: dict[str, dict[str, np.ndarray]] = {}
    try:
        with tarfile.open(path, "r:*") as archive:
            for member in archive:
                if (match := MEMBER.fullmatch(member.name)) and (file := archive.extractfile(member)):
                    image = decode(io.BytesIO(file.read()), f"{path}, {member.name}", SIDE, 3)
                    found.setdefault(match[1], {})[match[2]] = image
    except (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        raise DataError(
            f"{path} is not a whole archive: {' '.join(str(error).split())}. Delete it and download it "
            "again (task.download=true)."
        ) from error
    return found


CUB = Published(
    "CUB",
    (
        PublishedFile(
            "CUB_200_2011.tgz",
            "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz",
            "97eceeb196236b17998738112f37df78",
            num_classes=200,
            num_examples=11788,
        ),
    ),
    name=f"cub-{SIDE}",
    row_shape=(3, SIDE, SIDE),
    read=read,
    unpacked="CUB_200_2011",
    size="1.1 GB",
    terms="The photos are for research and teaching that earns nothing.",
)
