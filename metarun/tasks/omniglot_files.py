"""The files of Omniglot: its two archives of characters, Lake's one-shot runs, and the ways to split the characters.

Lake et al., Science 2015. Resized to 28 x 28 and inverted (ink = 1, paper = 0). The published drawings are black and white,
and Pillow resizes such images by the nearest pixel whatever filter is asked for: the releases of MAML, ProtoNet, R2-D2,
Reptile and MAML++ therefore have binary images ("nearest"). "lanczos" makes them grey first, as iMAML's does.
"""

import re
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
from PIL import Image

from metarun.counter import uniform
from metarun.errors import DataError
from metarun.tasks.image_files import Ranges, plain, squared
from metarun.tasks.published import Published, PublishedFile
from metarun.tasks.store import ClassRows

SIDE = 28
PUBLISHED_SIDE = 105
VAL_SHARE = {"maml": 100 / 1623, "maml_plus_plus": 50 / 1623}
CHARACTER = re.compile(r"(?:.*/)?([^/]+/character\d+)/[^/.][^/]*\.png")
LISTED = re.compile(r"(.*/)?[^/]+/class_labels\.txt")
Resize = Literal["lanczos", "nearest"]
Scheme = Literal["vinyals", "maml", "maml_plus_plus", "background_evaluation"]

# The split of Vinyals et al. 2016, as released with Snell et al. 2017 (github.com/jakesnell/prototypical-networks):
# 1028 / 172 / 423 characters. Whole alphabets, but for the last four characters of Gurmukhi.
VINYALS = {
    "val": "Hebrew Mkhedruli_(Georgian) Armenian Early_Aramaic Bengali",
    "test": "Kannada Keble Malayalam Manipuri Mongolian Old_Church_Slavonic_(Cyrillic) Oriya Syriac_(Serto) Sylheti Tengwar "
    "Tibetan ULOG Gurmukhi/character42 Gurmukhi/character43 Gurmukhi/character44 Gurmukhi/character45",
}


def vinyals(name: str) -> str:
    """The split that the class ``name`` ("alphabet/characterNN") belongs to."""
    here = {name, name.partition("/")[0]}
    return next((split for split, listed in VINYALS.items() if here & {*listed.split()}), "train")


def splits_of(split: Scheme, names: tuple[str, ...], num_background: int) -> list[str]:
    """The split of each class. ``num_background`` of them, the first, are those of images_background.zip.

    ``maml`` and ``maml_plus_plus`` (1100 / 100 / 423 and 1150 / 50 / 423 of 1623) cut one random order of the characters,
    the same for every seed, where those papers' programs drew one by a seed of their own. ``background_evaluation``
    is Lake's division into 964 and 659 characters of other alphabets, with Vinyals' validation alphabets, which are
    among the former, for validation.
    """
    if split == "vinyals":
        return [vinyals(name) for name in names]
    if split == "background_evaluation":
        return [
            "test" if c >= num_background else "val" if vinyals(name) == "val" else "train"
            for c, name in enumerate(names)
        ]
    num_val, num_test = round(len(names) * VAL_SHARE[split]), round(len(names) * 423 / 1623)
    ranks = np.argsort(np.argsort(uniform(1, "omniglot/split", np.array([0]), len(names))[0], kind="stable"))
    return ["test" if r < num_test else "val" if r < num_test + num_val else "train" for r in ranks]


# ------------------------------------------------------------------------------------------------------- the archives


def read_characters(places: dict[Path, PublishedFile], resize: Resize = "lanczos") -> ClassRows:
    """Characters of each archive in alphabetical order: "alphabet/characterNN", uint8 [num_drawings, 28, 28].

    An archive is judged by what it holds and not by its md5: copies packed again are as good.
    """
    for path, expected in places.items():
        with opened(path) as archive:
            drawings, count = _drawings(archive, path.stem), expected.num_examples // expected.num_classes
            counts = {len(members) for members in drawings.values()}
            if len(drawings) != expected.num_classes or counts != {count}:
                raise DataError(
                    f"it holds {len(drawings)} characters of {sorted(counts)} drawings each and must hold "
                    f"{expected.num_classes} of {count}"
                )
            for name, members in sorted(drawings.items()):
                yield name, _images(archive, members, resize)


def read_runs(places: dict[Path, PublishedFile]) -> ClassRows:
    """Classes of the runs in order: "run01/class01", uint8 [2, 28, 28]: what is learned from, what is to be known."""
    ((path, expected),) = places.items()
    with opened(path) as archive:
        lists = [match for name in archive.namelist() if (match := LISTED.fullmatch(name))]
        pairs = [
            (*line.split()[::-1], found[1] or "")
            for found in lists
            for line in archive.read(found[0]).decode().splitlines()
        ]
        if len(pairs) != expected.num_classes:
            raise DataError(f"it pairs {len(pairs)} images and must pair {expected.num_classes}")
        for training, test, above in sorted(pairs):
            images = _images(archive, [above + training, above + test], "lanczos")
            yield training.removesuffix(".png").replace("/training", ""), images


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


def _drawings(archive: zipfile.ZipFile, stem: str) -> dict[str, list[str]]:
    """The drawings of each character, in order, in whatever folder of the archive; beside a folder ``stem``, in that."""
    characters: dict[str, list[str]] = {}
    names = sorted(archive.namelist())
    for member in [name for name in names if f"/{stem}/" in f"/{name}"] or names:
        if match := CHARACTER.fullmatch(member):
            characters.setdefault(match[1], []).append(member)
    return characters


def drawing(source: Path | BinaryIO | Image.Image, name: object, resize: Resize) -> np.ndarray:
    """A drawing of any size, cut and resized as those of the archives, not inverted: uint8 [1, 28, 28]."""
    return squared(plain(source, name, 1, Ranges()), SIDE, Image.Resampling[resize.upper()])


def _images(archive: zipfile.ZipFile, members: list[str], resize: Resize) -> np.ndarray:
    return np.stack([_image(archive.read(member), member, resize) for member in members])


def _image(content: bytes, name: str, resize: Resize) -> np.ndarray:
    """uint8 [28, 28] with ink = 255."""
    with Image.open(BytesIO(content), formats=["PNG"]) as image:
        if image.size != (PUBLISHED_SIDE, PUBLISHED_SIDE):
            raise DataError(f"{name} has {image.size} pixels and must have {(PUBLISHED_SIDE, PUBLISHED_SIDE)}")
        small = image.convert("L").resize((SIDE, SIDE), Image.Resampling[resize.upper()])
    return 255 - np.asarray(small)


URL = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python"
# <stem>/<alphabet>/characterNN/<drawing>.png, 20 drawings of each character
OMNIGLOT = Published(
    "Omniglot",
    (
        PublishedFile(
            "images_background.zip", f"{URL}/images_background.zip", "68d2efa1b9178cc56df9314c21c6e718", 964, 19280
        ),
        PublishedFile(
            "images_evaluation.zip", f"{URL}/images_evaluation.zip", "6b91aef0f799c5bb55b94e3f2daec811", 659, 13180
        ),
    ),
    name=f"omniglot-{SIDE}",
    row_shape=(SIDE, SIDE),
    read=read_characters,
    folder="omniglot-py",
)


def characters(resize: Resize) -> Published:
    """Omniglot's characters, resized in this way; each way is prepared in a folder of its own."""
    if resize == "lanczos":
        return OMNIGLOT
    return replace(OMNIGLOT, name=f"{OMNIGLOT.name}-{resize}", read=partial(read_characters, resize=resize))


# <run>/training/classNN.png, <run>/test/itemNN.png and <run>/class_labels.txt, which pairs them
ALL_RUNS = PublishedFile(
    "one_shot/all_runs.zip",
    f"{URL}/one-shot-classification/all_runs.zip",
    "e8996daecdf12afeeb4a53a179f06b19",
    num_classes=400,
    num_examples=800,
)
RUNS = replace(OMNIGLOT, files=(ALL_RUNS,), name=f"omniglot-runs-{SIDE}", read=read_runs)
