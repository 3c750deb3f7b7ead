"""Image files listed by class, from folders, and what lies beside them that is not read."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from metarun.errors import DataError, listed
from metarun.tasks.image_files import ENDINGS, hidden, is_image
from metarun.tasks.splits import SPLITS, composed, named_as_splits, seen, split_named


class Row(NamedTuple):
    """An image file and its class; ``split`` is "" where its source names none, ``place`` says where that stands.

    ``group``: images of one group are kindred, as the frames of a burst; "" where groups are not asked for.
    """

    file: Path
    label: str
    split: str
    place: str
    group: str = ""

    @property
    def shown(self) -> str:
        """Its name in messages."""
        return f"{self.label}/{self.file.name}"


class Listing(NamedTuple):
    """The images that were found, and what the user should know of what else was."""

    rows: list[Row]
    notes: list[str]


# ------------------------------------------------------------------------------------------------------------- folders


def rows_of_folders(root: Path, with_splits: bool, by_name: bool, labelled: bool = True) -> Listing:
    """Every image below ``root``; its class is the path of its folder: from ``root``, or from root/<split>. One that lies
    in none is refused, unless they need not be ``labelled``.

    Folders that are splits of another kind than was asked for are refused, unless classes are chosen ``by_name``.
    """
    found = [*_folders(root, tuple(root.resolve().parents))]
    rows = [_row(file, root, with_splits, labelled) for folder in found for file in folder.files if is_image(file)]
    if not by_name:
        _refuse_parts(root, [row.label.split("/") for row in rows], "" if with_splits else "task.split=given")
    return Listing(rows, [*_left_out(root, found)])


class Folder(NamedTuple):
    """A folder, the visible folders in it that are read too, its visible files, and links that lead nowhere new."""

    path: Path
    inner: list[Path]
    files: list[Path]
    links: list[Path]


def _folders(path: Path, above: tuple[Path, ...]) -> Iterator[Folder]:
    """``path`` and all below it, by name; links are followed, but not back to a folder ``above``."""
    try:
        entries = sorted(entry for entry in path.iterdir() if not hidden(entry.name))
    except OSError as error:
        raise DataError(f"the folder {path} cannot be read: {error.strerror}.") from error
    above = (*above, path.resolve())
    inner = [entry for entry in entries if entry.is_dir()]
    back = [entry for entry in inner if entry.resolve() in above]
    files = [entry for entry in entries if entry.is_file()]
    dead = [entry for entry in entries if entry not in inner and entry not in files]
    inner = [entry for entry in inner if entry not in back]
    yield Folder(path, inner, files, back + dead)
    for entry in inner:
        yield from _folders(entry, above)


def _row(file: Path, root: Path, with_splits: bool, labelled: bool) -> Row:
    folders = file.relative_to(root).parts[:-1]
    split, inner = (folders[:1], folders[1:]) if with_splits else ((), folders)
    if not inner and labelled:
        where = f"{root}/<train, val or test>/<class>" if with_splits else f"{root}/<class>"
        raise DataError(f"{file} lies in no class: put the images of each class into a folder {where}.")
    return Row(file, "/".join(inner), split_named("".join(split)), str(file.parent))


def _refuse_parts(root: Path, labels: Iterable[Sequence[str]], fix: str) -> None:
    """Raise DataError where folders are named as splits, or as the parts of episodes, and would become classes."""
    children: dict[tuple[str, ...], set[str]] = {}
    for parts in labels:
        for depth, part in enumerate(parts):
            children.setdefault(tuple(parts[:depth]), set()).add(part)
    for inside, names in children.items():
        where = "/".join((str(root), *inside))
        if {"support", "query"} <= {name.lower() for name in names}:
            raise DataError(
                f"{where} has folders named support and query, but metarun draws both itself, anew in every episode, from "
                "the images of a class. Put all images of a class into one folder."
            )
        if splits := named_as_splits(names):
            rename = "" if all(split_named(name) in SPLITS for name in splits) else "name them train, val and test and "
            otherwise = f"{rename}add {fix}" if fix and not inside else "put all images of a class into one folder"
            raise DataError(
                f"{where} has folders named {', '.join(splits)}, which are splits and no classes. If they are splits, "
                f"{otherwise}; if they are classes, list them by name in task.split."
            )


def _left_out(root: Path, found: list[Folder]) -> Iterator[str]:
    """What lies below ``root`` and is not read."""
    ignored = [file for folder in found for file in folder.files if not is_image(file)]
    if ignored:
        yield f"{_count(len(ignored), 'file')} ignored in {root}: {_endings(ignored)} (read are {', '.join(ENDINGS)})."
    bare = [
        f"{folder.path.relative_to(root).as_posix()} ({_endings(folder.files) or 'empty'})"
        for folder in found
        if folder.path != root and not folder.inner and not any(map(is_image, folder.files))
    ]
    if bare:
        yield f"{_count(len(bare), 'folder')} of {root} without an image that can be read, so no class: {listed(bare)}."
    links = [link.relative_to(root).as_posix() for folder in found for link in folder.links]
    if links:
        yield f"{_count(len(links), 'link')} ignored in {root}, to nothing or back to a folder above: {listed(links)}."


def _endings(files: Iterable[Path]) -> str:
    counts = Counter(file.suffix.lower() or "without ending" for file in files)
    return ", ".join(f"{ending} {count}" for ending, count in counts.most_common())


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


# -------------------------------------------------------------------------------------------------- groups and classes


def grouped(rows: list[Row], root: Path, pattern: str) -> list[Row]:
    """The rows with groups: what the parentheses of ``pattern`` hold, or all that it matches, in a path below ``root``.

    Where the group is a folder, the class is the folder that it lies in.
    """
    try:
        regex = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"task.group_pattern is {pattern!r}, which is no regular expression: {error}.") from error
    paths = [row.file.as_posix().removeprefix(f"{root.as_posix()}/") for row in rows]
    found = [regex.search(path) for path in paths]
    groups = ["/".join(match.groups("") or (match[0],)) if match else "" for match in found]
    if none := [path for path, group in zip(paths, groups, strict=True) if not group.strip("/")]:
        raise DataError(
            f"task.group_pattern {pattern!r} finds no group in {listed(none)}. Every image needs one; write a pattern that "
            "matches all paths below task.path."
        )
    labels = [_label(row, match) for row, match in zip(rows, found, strict=True)]
    return [row._replace(group=group, label=label) for row, group, label in zip(rows, groups, labels, strict=True)]


def _is_text(name: str) -> bool:
    """Whether a name can be written as UTF-8; bytes of a file system that are none are half characters in it."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def _label(row: Row, match: re.Match[str] | None) -> str:
    """The class of a row whose group was found: a folder's name, if that begins where the group does, is none of it."""
    assert match is not None
    before, folders = match.string[: match.start(1 if match.re.groups else 0)], match.string.split("/")[:-1]
    of_class = folders[len(folders) - len(row.label.split("/")) : before.count("/")]
    inside = before.endswith("/") and before.count("/") < len(folders) and row.label.startswith("/".join(of_class))
    return "/".join(of_class) if inside and of_class else row.label


def by_class(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """The rows of each class, in the order of their names.

    Refuses a file that is named twice (it could be support and query at once), a class in two splits, and near-equal names.
    """
    classes: dict[str, list[Row]] = {}
    spelt: dict[str, Row] = {}
    files: dict[Path, Row] = {}
    rows = [*rows]
    if odd := sorted({row.label for row in rows if not _is_text(row.label)}):
        raise DataError(
            f"names of classes that are no text in UTF-8: {listed([*map(ascii, odd)])}. Archives of other systems leave "
            "such names: rename their folders."
        )
    for given in rows:
        row = given._replace(label=composed(given.label), group=composed(given.group))
        if files.setdefault(row.file, row) is not row:
            raise DataError(f"{row.file} is named twice ({files[row.file].place} and {row.place}). Delete one of them.")
        first = spelt.setdefault(seen(row.label), row)
        if first.split != row.split:
            raise DataError(
                f"the class {row.label!r} is in the split {first.split!r} ({first.place}) and in {row.split!r} "
                f"({row.place}), but splits must not share a class."
            )
        if first.label != row.label:
            raise DataError(
                f"the classes {first.label!r} ({first.place}) and {row.label!r} ({row.place}) differ by case or blanks "
                "alone. Write them alike if they are one class, and rename one if they are two."
            )
        classes.setdefault(row.label, []).append(row)
    return dict(sorted(classes.items()))
