"""Caltech-UCSD Birds-200-2011: 11,788 photos of 200 kinds of birds, cut square and resized to 84 x 84 pixels.

Wah et al. 2011, Caltech CNS-TR-2011-001. 100 / 50 / 50 classes, as in Chen et al., ICLR 2019 ("A closer look at few-shot
classification"), https://arxiv.org/abs/1904.04232: by number, every second for training, every fourth for validation.
"""

import io
import re
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from metarun.errors import DataError, MissingDataError
from metarun.tasks.download import RemoteFile, fetch
from metarun.tasks.image_classes import ImageSource, image_task
from metarun.tasks.image_files import decode
from metarun.tasks.store import ClassImages, ImageSet, prepared

SIDE = 84
MEMBER = re.compile(r"CUB_200_2011/images/(\d{3}\.[^/]+)/[^/]+\.jpg")


@image_task
def cub(data_root: str, download: bool) -> ImageSource:
    """Colour photos 84 x 84: CUB-200-2011, 100 / 50 / 50 kinds of birds."""
    image_set = load_cub(Path(data_root), PUBLISHED, download)
    return ImageSource("cub", image_set, tuple(map(split_of, image_set.names)))


def split_of(name: str) -> str:
    """Of a class, "001.Black_footed_Albatross"."""
    number = int(name[:3])
    return "train" if number % 2 else "val" if number % 4 else "test"


@dataclass(frozen=True)
class Release:
    """The published archive, and how many classes and images it must hold."""

    archive: RemoteFile
    num_classes: int
    num_images: int  # of all classes


PUBLISHED = Release(
    RemoteFile(
        "https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz", "97eceeb196236b17998738112f37df78"
    ),
    num_classes=200,
    num_images=11788,
)


def load_cub(data_root: Path, release: Release, download: bool) -> ImageSet:
    """All of it, prepared as <data_root>/prepared/cub-84 on first use."""
    folder, archive = data_root / "CUB_200_2011", data_root / "CUB_200_2011.tgz"

    def require() -> None:
        if not folder.is_dir() and not archive.is_file() and not download:
            raise MissingDataError(
                f"CUB needs {archive} (1.1 GB), or what is in it unpacked as {folder}. To download it there: metarun ... "
                f"task.download=true. Or put the file of {release.archive.url} there yourself, or name the folder that "
                "holds it with data_root (or METARUN_DATA). The photos are for research and teaching that earns nothing."
            )

    def read() -> ClassImages:
        require()
        if not folder.is_dir():
            fetch(release.archive, archive)
        found = _of_folder(folder) if folder.is_dir() else _of_archive(archive)
        numbers = len(found), sum(map(len, found.values()))
        if numbers != (release.num_classes, release.num_images):
            raise DataError(
                f"{folder if folder.is_dir() else archive} holds {numbers[0]} classes and {numbers[1]} photos, and CUB has "
                f"{release.num_classes} and {release.num_images}. Delete it and download it again (task.download=true)."
            )
        for name, images in sorted(found.items()):
            yield name, np.stack([images[key] for key in sorted(images)])

    return prepared(data_root / "prepared" / f"cub-{SIDE}", (3, SIDE, SIDE), require, read)


def _of_folder(folder: Path) -> dict[str, dict[str, np.ndarray]]:
    """The photos of each class by their names."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for path in folder.glob("images/*/*.jpg"):
        if match := MEMBER.fullmatch(f"CUB_200_2011/{path.relative_to(folder).as_posix()}"):
            found.setdefault(match[1], {})[path.name] = decode(path, path, SIDE, 3)
    return found


def _of_archive(path: Path) -> dict[str, dict[str, np.ndarray]]:
    """The same, read in the order of the archive; 250 MB when decoded."""
    found: dict[str, dict[str, np.ndarray]] = {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                if (match := MEMBER.fullmatch(member.name)) and (file := archive.extractfile(member)):
                    image = decode(io.BytesIO(file.read()), f"{path}, {member.name}", SIDE, 3)
                    found.setdefault(match[1], {})[member.name] = image
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise DataError(
            f"{path} is not a whole archive: {error}. Delete it and download it again (task.download=true)."
        ) from error
    return found
