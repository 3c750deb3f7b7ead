"""The files of Omniglot: its two archives of characters, Lake's one-shot runs, and the ways to split the characters.

Lake et al., Science 2015. Prepared as in MAML and ProtoNet: LANCZOS to 28 x 28, inverted (ink = 1, paper = 0).
"""

import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from metarun.counter import uniform
from metarun.errors import DataError, MissingDataError
from metarun.tasks.download import RemoteFile, fetch
from metarun.tasks.store import ClassImages, ImageSet, prepared

SIDE = 28
Split = Literal["vinyals", "maml", "maml_plus_plus", "background_evaluation"]

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


def splits_of(split: Split, names: tuple[str, ...], num_background: int) -> list[str]:
    """The split of each class. ``num_background`` of them, the first, are those of images_background.zip.

    ``maml`` and ``maml_plus_plus`` (1100 / 100 / 423 and 1150 / 50 / 423 of 1623) cut one random order of the characters,
    the same for every seed, where those papers' programs drew one by a seed of their own. ``background_evaluation``
    is Lake's division into 964 and 659 characters of other alphabets, with Vinyals' validation alphabets, which are
    among the former, for validation.
    """
    if split == "vinyals":
        return [vinyals(name) for name in names]
    if split == "background_evaluation":
        return ["test" if c >= num_background else _not_test(name) for c, name in enumerate(names)]
    num_val, num_test = round(len(names) * VAL_SHARE[split]), round(len(names) * 423 / 1623)
    ranks = np.argsort(np.argsort(uniform(1, "omniglot/split", np.array([0]), len(names))[0], kind="stable"))
    return ["test" if r < num_test else "val" if r < num_test + num_val else "train" for r in ranks]


VAL_SHARE = {"maml": 100 / 1623, "maml_plus_plus": 50 / 1623}


def _not_test(name: str) -> str:
    return "val" if name.partition("/")[0] in VINYALS_VAL else "train"


# ------------------------------------------------------------------------------------------------------- the archives


@dataclass(frozen=True)
class Archive:
    """A published zip of <stem>/<alphabet>/characterNN/<drawing>.png."""

    name: str  # below omniglot-py
    md5: str
    num_characters: int
    on_web: str = ""  # below the release's url, where it has another name there


@dataclass(frozen=True)
class Release:
    """What the archives must hold: ``num_drawings`` square images of ``side`` pixels for each character."""

    url: str
    archives: tuple[Archive, ...]
    num_drawings: int
    side: int
    runs: Archive  # <run>/training/classNN.png, <run>/test/itemNN.png and <run>/class_labels.txt, which pairs them

    def url_of(self, archive: Archive) -> str:
        """The web address of ``archive``."""
        return f"{self.url}/{archive.on_web or archive.name}"


PUBLISHED = Release(
    url="https://raw.githubusercontent.com/brendenlake/omniglot/master/python",
    archives=(
        Archive("images_background.zip", "68d2efa1b9178cc56df9314c21c6e718", 964),
        Archive("images_evaluation.zip", "6b91aef0f799c5bb55b94e3f2daec811", 659),
    ),
    num_drawings=20,
    side=105,
    runs=Archive(
        "one_shot/all_runs.zip", "e8996daecdf12afeeb4a53a179f06b19", 400, "one-shot-classification/all_runs.zip"
    ),
)


def load_omniglot(data_root: Path, release: Release, download: bool) -> ImageSet:
    """Every character of the release, prepared as <data_root>/prepared/omniglot-28 on first use."""

    def read(paths: list[Path]) -> ClassImages:
        for archive, path in zip(release.archives, paths, strict=True):
            yield from read_characters(path, archive.num_characters, release)

    return _prepared(data_root, f"omniglot-{SIDE}", release, release.archives, download, read)


def load_runs(data_root: Path, release: Release, download: bool) -> ImageSet:
    """Lake's runs, prepared as <data_root>/prepared/omniglot-runs-28: "run01/class01", its training and its test image."""

    def read(paths: list[Path]) -> ClassImages:
        return read_runs(paths[0], release)

    return _prepared(data_root, f"omniglot-runs-{SIDE}", release, (release.runs,), download, read)


def _prepared(
    data_root: Path,
    name: str,
    release: Release,
    archives: tuple[Archive, ...],
    download: bool,
    read: Callable[[list[Path]], ClassImages],
) -> ImageSet:
    """What ``read`` makes of the archives, which lie below <data_root>/omniglot-py."""
    folder = data_root / "omniglot-py"
    paths = [folder / archive.name for archive in archives]

    def require() -> None:
        missing = [archive for archive, path in zip(archives, paths, strict=True) if not path.is_file()]
        if missing and not download:
            raise MissingDataError(
                f"Omniglot needs {' and '.join(archive.name for archive in missing)} in {folder}. To download there: "
                f"metarun ... task.download=true. Or put {' and '.join(map(release.url_of, missing))} there yourself, or "
                "name the folder that holds omniglot-py with data_root (or METARUN_DATA)."
            )

    def fetched() -> ClassImages:
        require()  # again: whoever held the lock may have taken its time
        for archive, path in zip(archives, paths, strict=True):
            fetch(RemoteFile(release.url_of(archive), archive.md5), path)
        yield from read(paths)

    return prepared(data_root / "prepared" / name, (SIDE, SIDE), require, fetched)


def read_characters(path: Path, num_characters: int, release: Release) -> ClassImages:
    """The characters of an archive in alphabetical order: "alphabet/characterNN", uint8 [num_drawings, 28, 28].

    The archive is judged by what it holds and not by its md5: copies packed again are as good.
    """
    with opened(path) as archive:
        characters = _members(archive, path.stem)
        sizes = {len(drawings) for drawings in characters.values()}
        if len(characters) != num_characters or sizes != {release.num_drawings}:
            raise DataError(
                f"it holds {len(characters)} characters of {sorted(sizes)} drawings each and must hold "
                f"{num_characters} of {release.num_drawings}"
            )
        for name, drawings in sorted(characters.items()):
            yield name, _images(archive, drawings, release.side)


def read_runs(path: Path, release: Release) -> ClassImages:
    """The classes of the runs in order: "run01/class01", uint8 [2, 28, 28]: what is learned from, what is to be known."""
    with opened(path) as archive:
        lists = sorted(name for name in archive.namelist() if name.endswith("/class_labels.txt"))
        pairs = [line.split()[::-1] for name in lists for line in archive.read(name).decode().splitlines()]
        if len(pairs) != release.runs.num_characters:
            raise DataError(f"it pairs {len(pairs)} images and must pair {release.runs.num_characters}")
        for training, test in sorted(pairs):
            yield (
                training.removesuffix(".png").replace("/training", ""),
                _images(archive, [training, test], release.side),
            )


@contextmanager
def opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """The archive; whatever is wrong with it becomes a DataError that says what to do."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        OSError,
        SyntaxError,
        ValueError,
        KeyError,
        RuntimeError,
    ) as error:
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


def _images(archive: zipfile.ZipFile, members: list[str], side: int) -> np.ndarray:
    return np.stack([_image(archive.read(member), member, side) for member in members])


def _image(content: bytes, name: str, side: int) -> np.ndarray:
    """uint8 [28, 28] with ink = 255."""
    with Image.open(BytesIO(content), formats=["PNG"]) as image:
        if image.size != (side, side):
            raise DataError(f"{name} has {image.size} pixels and must have {(side, side)}")
        small = image.convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    return 255 - np.asarray(small)
