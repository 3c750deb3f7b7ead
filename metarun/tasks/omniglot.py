"""Omniglot: 1623 handwritten characters of 50 alphabets, 20 drawings each, as N-way K-shot episodes of 28 x 28 images.

Lake et al., Science 2015. Prepared as in MAML and ProtoNet: LANCZOS to 28 x 28, inverted (ink = 1, paper = 0).
"""

import re
import shutil
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from http.client import HTTPException
from io import BytesIO
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image

from metarun.core import Draw, Episode, TaskDistribution
from metarun.objectives import CROSS_ENTROPY
from metarun.tasks.counter import uniform
from metarun.tasks.images import (
    ClassImages,
    ClassPool,
    DataError,
    EpisodeSize,
    ImageSet,
    MissingDataError,
    check_episode_sizes,
    class_major_batch,
    draw_images,
    episode_sizes,
    pixels_on,
    prepared,
)

SIDE = 28

# The split of Vinyals et al. 2016, as released with Snell et al. 2017 (github.com/jakesnell/prototypical-networks):
# 1028 / 172 / 423 characters. Whole alphabets, but for the last four characters of Gurmukhi.
VINYALS_VAL = {"Hebrew", "Mkhedruli_(Georgian)", "Armenian", "Early_Aramaic", "Bengali"}
VINYALS_TEST = {
    "Kannada",
    "Keble",
    "Malayalam",
    "Manipuri",
    "Mongolian",
    "Old_Church_Slavonic_(Cyrillic)",
    "Oriya",
    "Syriac_(Serto)",
    "Sylheti",
    "Tengwar",
    "Tibetan",
    "ULOG",
    *(f"Gurmukhi/character{number}" for number in range(42, 46)),
}


def vinyals(name: str) -> str:
    """The split that the class ``name`` ("alphabet/characterNN") belongs to."""
    alphabet = name.partition("/")[0]
    if alphabet in VINYALS_VAL:
        return "val"
    return "test" if alphabet in VINYALS_TEST or name in VINYALS_TEST else "train"


class Omniglot(TaskDistribution):
    """N-way K-shot episodes; x [B, N * K, 1, 28, 28] in [0, 1], y [B, N * K] class-major (N * Q in the query set).

    ``train_*`` replace the sizes of the split "train" where they are not None. ``trainval``: "train" reads the classes
    of "val" too; "val" stays as it is. ``rotations`` by multiples of 90 degrees, alike in every split: "per_task" turns
    each class of an episode at random (MAML), "as_classes" makes four classes of each character (ProtoNet).
    """

    input_shape = (1, SIDE, SIDE)
    objective = CROSS_ENTROPY

    def __init__(  # noqa: PLR0913
        self,
        *,
        num_ways: int,
        num_shots: int,
        num_queries: int,
        train_num_ways: int | None,
        train_num_shots: int | None,
        train_num_queries: int | None,
        split: Literal["vinyals"],
        trainval: bool,
        rotations: Literal["none", "per_task", "as_classes"],
        download: bool,
        seed: int,
        device: torch.device,
        dtype: torch.dtype,
        data_root: str,
    ) -> None:
        _check_choice("task.split", split, ("vinyals",))
        _check_choice("task.rotations", rotations, ("none", "per_task", "as_classes"))
        test_size = EpisodeSize(num_ways, num_shots, num_queries)
        self.sizes = episode_sizes(test_size, train_num_ways, train_num_shots, train_num_queries)
        self.num_outputs, self.num_ways, self.train_num_ways = num_ways, num_ways, self.sizes["train"].num_ways
        self.split, self.trainval, self.rotations = split, trainval, rotations
        self.seed, self.device, self.dtype = seed, device, dtype

        image_set = load_omniglot(Path(data_root), PUBLISHED, download)
        self.sha256 = image_set.sha256
        members = {"test": {"test"}, "val": {"val"}, "train": {"train", "val"} if trainval else {"train"}}
        self.pools = {
            s: ClassPool.of(image_set, [vinyals(c) in m for c in image_set.names]) for s, m in members.items()
        }
        if rotations == "as_classes":
            self.pools = {s: pool.repeated(4) for s, pool in self.pools.items()}
        check_episode_sizes(self.sizes, self.pools)
        self.turns = 4 if rotations == "per_task" else 1  # each turn of a character is a class of its own
        self.num_train_classes = self.turns * len(self.pools["train"].names)
        self.pixels = pixels_on(device, image_set.images[:, None])  # [num_images, 1, 28, 28]

    def draw(self, split: str, indices: Sequence[int] | np.ndarray) -> Draw:
        """classes [B, N], rotations [B, N] in quarter turns, support [B, N, K] and query [B, N, Q] in image numbers."""
        ways, shots, queries = size = self.sizes[split]
        u = uniform(self.seed, f"omniglot/{split}", np.asarray(indices), ways + ways + ways * (shots + queries))
        draw = draw_images(u[:, ways:], self.pools[split], size)
        if self.rotations == "per_task":
            rotations = np.floor(4 * u[:, :ways]).astype(np.int64)
        elif self.rotations == "as_classes":
            rotations = draw["classes"] % 4
        else:
            rotations = np.zeros_like(draw["classes"])
        return {**draw, "rotations": rotations}

    def episodes(self, draw: Draw) -> Episode:
        support = class_major_batch(self.pixels, draw["support"], draw["rotations"], self.dtype)
        query = class_major_batch(self.pixels, draw["query"], draw["rotations"], self.dtype)
        numbers = draw["classes"] if self.turns == 1 else self.turns * draw["classes"] + draw["rotations"]
        return Episode(support, query, torch.from_numpy(numbers).to(self.device))

    def fingerprint(self) -> str:
        trainval = "+trainval" if self.trainval else ""
        return f"omniglot-{SIDE}: sha256 {self.sha256}, split {self.split}{trainval}, rotations {self.rotations}"


def _check_choice(key: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{key} is {value!r}, but it must be one of {', '.join(choices)}.")


# ------------------------------------------------------------------------------------------------------- the archives


@dataclass(frozen=True)
class Archive:
    """A published zip of <stem>/<alphabet>/characterNN/<drawing>.png."""

    name: str
    md5: str
    num_characters: int


@dataclass(frozen=True)
class Release:
    """What the archives must hold: ``num_drawings`` square images of ``side`` pixels for each character."""

    url: str
    archives: tuple[Archive, ...]
    num_drawings: int
    side: int


PUBLISHED = Release(
    url="https://raw.githubusercontent.com/brendenlake/omniglot/master/python",
    archives=(
        Archive("images_background.zip", "68d2efa1b9178cc56df9314c21c6e718", 964),
        Archive("images_evaluation.zip", "6b91aef0f799c5bb55b94e3f2daec811", 659),
    ),
    num_drawings=20,
    side=105,
)


def load_omniglot(data_root: Path, release: Release, download: bool) -> ImageSet:
    """Every character of the release, prepared as <data_root>/prepared/omniglot-28 on first use."""
    folder = data_root / "omniglot-py"
    paths = {archive: folder / archive.name for archive in release.archives}

    def require() -> None:
        missing = [archive.name for archive, path in paths.items() if not path.is_file()]
        if missing and not download:
            raise MissingDataError(
                f"Omniglot needs {' and '.join(missing)} in {folder}. To download them there: metarun ... "
                f"task.download=true. Or put the files of {release.url} there yourself, or name the folder that holds "
                "omniglot-py with data_root (or METARUN_DATA)."
            )

    def read() -> ClassImages:
        require()  # again: whoever held the lock may have taken its time
        for archive, path in paths.items():
            if not path.is_file():
                _download(release, archive, folder)
        for archive, path in paths.items():
            yield from read_characters(path, archive.num_characters, release)

    return prepared(data_root / "prepared" / f"omniglot-{SIDE}", (SIDE, SIDE), require, read)


def _download(release: Release, archive: Archive, folder: Path) -> None:
    from torchvision.datasets.utils import download_url

    partial = folder / f".{archive.name}.partial"
    try:
        download_url(f"{release.url}/{archive.name}", str(partial), archive.name, archive.md5)
        (partial / archive.name).replace(folder / archive.name)
    except (OSError, HTTPException, RuntimeError) as error:  # RuntimeError: another md5
        raise DataError(
            f"could not download {release.url}/{archive.name} (md5 {archive.md5}) to {folder}: {error}. "
            "Try again, or put the file there yourself."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def read_characters(path: Path, num_characters: int, release: Release) -> ClassImages:
    """The characters of an archive in alphabetical order: "alphabet/characterNN", uint8 [num_drawings, 28, 28].

    The archive is judged by what it holds and not by its md5: copies packed again are as good.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            characters = _members(archive, path.stem)
            sizes = {len(drawings) for drawings in characters.values()}
            if len(characters) != num_characters or sizes != {release.num_drawings}:
                raise DataError(
                    f"it holds {len(characters)} characters of {sorted(sizes)} drawings each and must hold "
                    f"{num_characters} of {release.num_drawings}"
                )
            for name, drawings in sorted(characters.items()):
                yield name, np.stack([_image(archive.read(drawing), drawing, release.side) for drawing in drawings])
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, SyntaxError, ValueError, RuntimeError) as error:
        raise DataError(
            f"{path} is not a whole Omniglot archive: {error}. Delete it and download it again: metarun ... "
            "task.download=true."
        ) from error


def _members(archive: zipfile.ZipFile, stem: str) -> dict[str, list[str]]:
    """The drawings of each character, in order."""
    pattern = re.compile(rf"{re.escape(stem)}/([^/]+/character\d+)/[^/]+\.png")
    characters: dict[str, list[str]] = {}
    for member in sorted(archive.namelist()):
        if match := pattern.fullmatch(member):
            characters.setdefault(match[1], []).append(member)
    return characters


def _image(content: bytes, name: str, side: int) -> np.ndarray:
    """uint8 [28, 28] with ink = 255."""
    with Image.open(BytesIO(content), formats=["PNG"]) as image:
        if image.size != (side, side):
            raise DataError(f"{name} has {image.size} pixels and must have {(side, side)}")
        small = image.convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    return 255 - np.asarray(small)
