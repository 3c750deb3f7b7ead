"""How the folders of a user's images are laid out: what lies beside images and is no example, as masks, depth maps and
thumbnails; lists of images that are not read; classes that are in all splits. Names alone tell it, so what may be meant is
told, and what cannot be meant is refused.
"""

import os
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from operator import itemgetter
from pathlib import Path

from metarun.errors import DataError, listed
from metarun.tasks.image_files import ENDINGS, hidden
from metarun.tasks.image_rows import Listing, Row, rows_of_folders
from metarun.tasks.misread import notes_on_folders
from metarun.tasks.splits import SPLITS, named_as_splits, split_named

OF_IMAGES = {
    *("image", "images", "img", "imgs", "jpegimages", "photo", "photos", "picture", "pictures", "frames", "rgb"),
    *("color", "colour", "input", "inputs", "original", "originals", "raw"),
}
NAMES_BESIDE = (
    *("mask", "label", "annotation", "segmentation", "seg", "trimap", "depth", "depthmap", "heatmap", "gt"),
    *("thumbnail", "thumb", "groundtruth", "segmentationclass", "segmentationobject"),
)
BESIDE = {*NAMES_BESIDE, *(f"{name}s" for name in NAMES_BESIDE)}
NO_CLASSES = (
    "thumbnail",
    "thumbnails",
    "thumbs",
    "annotations",
    "segmentations",
    "groundtruth",
    "unlabeled",
    "unlabelled",
)
GAP = re.compile(r"[\s._-]+")
LISTS = (".csv", ".tsv", ".txt", ".json", ".jsonl")
NAME_OF_IMAGE = re.compile(rf"\w({'|'.join(map(re.escape, ENDINGS))})\b".encode(), re.IGNORECASE)
SHOWN = 5  # files that a message names
LOOKED_AT = 4096  # bytes of a file that may be a list of images


def laid_out(root: Path, with_splits: bool, by_name: bool) -> Listing:
    """Every image below ``root`` with its class, and notes, as ``rows_of_folders`` has them. Raises DataError, too, where
    folders hold what belongs to images, or splits share classes; not of folders that are chosen ``by_name``."""
    try:
        rows, notes = rows_of_folders(root, with_splits, by_name)
    except DataError as error:
        raise DataError(" ".join([str(error), *_splits_of_all_classes(root), *lists_in(root)])) from error
    files = [row.file for row in rows]
    if not by_name:
        refuse_beside(root, files, ", or list the classes that are meant by name in task.split")
        _refuse_shared(root, rows if with_splits else ())
    misread = notes_on_folders({row.label for row in rows})
    return Listing(rows, [*notes, *notes_on_beside(root, files), *misread, *lists_in(root)])


# ----------------------------------------------------------------------------------------------- what belongs to images


def refuse_beside(root: Path, files: Iterable[Path], otherwise: str = "") -> None:
    """Raise DataError where folders with ``files`` below ``root`` would be classes, and hold images and what belongs to
    each, as masks; or hold all images, and are called so. ``otherwise``: what to do where classes are meant."""
    holders = {Path(folder) for folder in {os.path.dirname(os.fspath(file)) for file in files}}
    inside: dict[Path, set[str]] = {}
    for folder in {above for holder in holders for above in (holder, *holder.parents) if root in above.parents}:
        inside.setdefault(folder.parent, set()).add(folder.name)
    for folder, names in sorted(inside.items()):
        of_images, beside = (sorted(n for n in names if _letters(n) in words) for words in (OF_IMAGES, BESIDE))
        if {*of_images, *beside} != names:
            continue
        top = folder == root or (folder.parent == root and split_named(folder.name) in SPLITS)
        bare = [str(folder / name) for name in of_images if top and len(of_images) == 1 and folder / name in holders]
        said = [
            f"{folder} has images, and beside them {' and '.join(beside)}, which by the name holds what belongs to each and "
            f"would be a class of its own. Move such folders out of {root}{otherwise}."
        ]
        none = [
            f"The images in {listed(bare)} lie in no class: put those of each class into a folder that has its name, or "
            "name a CSV file with the columns filename and label.",
            *lists_in(root),
        ]
        if problems := said * bool(beside and (of_images or folder in holders)) + none * bool(bare):
            raise DataError(" ".join(problems))


def notes_on_beside(root: Path, files: Sequence[Path]) -> list[str]:
    """What to say of ``files`` below ``root`` that by their names belong to an image beside them, or to no class."""
    places = [os.path.split(os.fspath(file)) for file in files]
    named = [(place, of) for place in places if (of := _image_of(_words(place[1])))]
    folders = {place[0] for place, _ in named}
    there = {(folder, _bare(_words(name))) for folder, name in places if folder in folders}
    found = [os.path.join(*place) for place, of in named if (place[0], of) in there]
    shown = [Path(file).relative_to(root).as_posix() for file in found[:SHOWN]] + found[SHOWN:]
    told = f"{len(found)} of the images are by their names what belongs to another, as a mask or a thumbnail"
    parts = {part for folder in {*map(itemgetter(0), places)} for part in Path(folder).relative_to(root).parts}
    none = sorted(part for part in parts if _letters(part) in NO_CLASSES)
    fix = f"Move them out of {root} if they are no examples."
    return [
        *[f"{told}: {listed(shown, SHOWN)}. Each counts as an example of its class. {fix}"] * bool(found),
        *[f"images in folders named {listed(none)} count as examples of a class. {fix}"] * bool(none),
    ]


def _words(name: str) -> tuple[str, ...]:
    """The words of a file's name, in small letters; ground truth is one."""
    words = GAP.split(os.path.splitext(name)[0].lower())
    return (*words[:-2], "groundtruth") if words[-2:] == ["ground", "truth"] else tuple(words)


def _image_of(words: tuple[str, ...]) -> tuple[str, ...]:
    """The words of the image that one of these belongs to, as 7 of 7_mask_1 or of mask_7; empty where it is none."""
    known = words[:-1] if words[-1].isdecimal() else words
    if len(known) > 1 and known[-1].rstrip("0123456789") in BESIDE:
        return _bare(known[:-1])
    return _bare(words[1:]) if words[0] in BESIDE else ()


def _bare(words: tuple[str, ...]) -> tuple[str, ...]:
    """The words without one that says that it is an image: 7 of 7_rgb and of image_7."""
    words = words[1:] if len(words) > 1 and words[0] in OF_IMAGES else words
    return words[:-1] if len(words) > 1 and words[-1] in OF_IMAGES else words


def _letters(name: str) -> str:
    """JPEGImages, ground_truth and masks-2 are jpegimages, groundtruth and masks."""
    return "".join(filter(str.isalpha, name.casefold()))


def without_last(labels: Collection[str]) -> list[str]:
    """The ``labels`` without the folder that all of them end with, where it is called images or the like."""
    ends = {label.rpartition("/")[2] for label in labels}
    same = len(ends) == 1 and _letters("".join(ends)) in OF_IMAGES
    return [label.rpartition("/")[0] or label if same else label for label in labels]


# ------------------------------------------------------------------------------------------------------ lists and splits


def lists_in(root: Path) -> list[str]:
    """A sentence on files in the folder ``root`` that name images, and are not read; nothing without them."""
    files = [file for file in _visible(root) if file.suffix.lower() in LISTS]
    if not (found := [file for file in files if _names_images(file)]):
        return []
    names, fix = (
        listed([file.name for file in found]),
        "To take classes from a list, name it in place of the folder, as",
    )
    columns = "a CSV file with the columns filename and label"
    return [f"{root} has what names images and is not read: {names}. {fix} {found[0].with_suffix('.csv')}: {columns}."]


def _names_images(file: Path) -> bool:
    try:
        with file.open("rb") as content:
            return NAME_OF_IMAGE.search(content.read(LOOKED_AT)) is not None
    except OSError:
        return False


def _refuse_shared(root: Path, rows: Iterable[Row]) -> None:
    """Raise DataError where splits that folders name have classes in common."""
    first: dict[str, Row] = {}
    shared = {row.label: (first[row.label], row) for row in rows if first.setdefault(row.label, row).split != row.split}
    for label, (one, other) in sorted(shared.items())[:1]:
        more = f" So {'is' if len(shared) == 2 else 'are'} {len(shared) - 1} more." if len(shared) > 1 else ""
        raise DataError(
            f"the class {label!r} is in the split {one.split!r} ({one.place}) and in {other.split!r} ({other.place}), but "
            f"splits must not share a class.{more} Put all images of a class into the folder of one split; where all splits "
            f"have all classes, {_joined(root)}."
        )


def _joined(root: Path) -> str:
    return f"put those of a class into one folder {root}/<class>, and classes are split by lot"


def _splits_of_all_classes(root: Path) -> Iterator[str]:
    """A sentence on folders of ``root`` that are splits, with the same classes in each."""
    splits = named_as_splits([entry.name for entry in _visible(root) if entry.is_dir()])
    held = [{inside.name for inside in _visible(root / name) if inside.is_dir()} for name in splits]
    if held and (shared := sorted(set.intersection(*held))):
        yield f"They all have {listed(shared)}, and splits must not share a class: {_joined(root)}."


def _visible(folder: Path) -> list[Path]:
    """What lies in a folder, but for hidden things; nothing where it cannot be read, which others say."""
    try:
        return sorted(entry for entry in folder.iterdir() if not hidden(entry.name))
    except OSError:
        return []
