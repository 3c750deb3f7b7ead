"""Sentences in classes: read once, checked, rid of duplicates, kept as bytes.

A prepared text set is an ``ImageSet`` of bytes: class after class, sentence after sentence, each ended by a line feed. So
preparing, locking, checking and verifying are those of the image sets. C classes
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from metarun.errors import DataError
from metarun.tasks.store import ClassImages, ImageSet, prepared, verify

logger = logging.getLogger(__name__)


class Row(NamedTuple):
    """A labelled sentence; ``split`` is "" where its source names none, ``place`` says where it stands."""

    text: str
    label: str
    split: str
    place: str


class TextSet(NamedTuple):
    """``texts``: class after class, ``counts[c]`` of class c; ``given[c]`` is its split in the source, or ""."""

    texts: tuple[str, ...]
    names: tuple[str, ...]
    given: tuple[str, ...]
    counts: np.ndarray
    stored: ImageSet

    def labels(self) -> np.ndarray:
        """The number of the class of each sentence."""
        return np.repeat(np.arange(len(self.names)), self.counts)


def prepared_texts(
    folder: Path, source: str, require: Callable[[], None], read: Callable[[], Iterable[Row]]
) -> TextSet:
    """The text set in ``folder``, on first use written from ``read()``, the rows of ``source``; see ``images.prepared``."""
    stored = prepared(folder, (), require, lambda: _classes(read(), source))
    verify(stored)  # all of it is read now in any case
    given, names = zip(*(name.split("\t") for name in stored.names), strict=True)
    ends = np.cumsum(stored.counts)
    classes = [
        stored.images[end - count : end].tobytes().decode() for end, count in zip(ends, stored.counts, strict=True)
    ]
    counts = np.array([content.count("\n") for content in classes])
    texts = tuple(text for content in classes for text in content.split("\n")[:-1])
    return TextSet(texts, names, given, counts, stored)


def plain(text: str) -> str:
    """``text`` with single blanks, and none around it."""
    return " ".join(text.split())


def _classes(rows: Iterable[Row], source: str) -> ClassImages:
    """The classes by name and their sentences in order, so that the order of the rows has no say: "split\\tname", bytes."""
    classes: dict[str, list[str]] = {}
    splits = _Names()
    for row in _without_duplicates(rows):
        splits.add(row)
        classes.setdefault(plain(row.label), []).append(row.text)
    if len(classes) < 2:
        held = f"the class {next(iter(classes))!r} alone" if classes else "no sentence"
        raise DataError(f"{source} holds {held}, but an episode needs 2 classes or more.")
    for label, texts in sorted(classes.items()):
        content = "".join(f"{text}\n" for text in sorted(texts)).encode()
        yield f"{splits.of[label]}\t{label}", np.frombuffer(content, dtype=np.uint8)


def _without_duplicates(rows: Iterable[Row]) -> Iterator[Row]:
    """The first of equal sentences (but for case and blanks): none may be in a support set and in its query set."""
    seen: set[str] = set()
    repeated = 0
    for row in rows:
        text = plain(row.text)
        if text.casefold() in seen:
            repeated += 1
            continue
        seen.add(text.casefold())
        yield row._replace(text=text)
    if repeated:
        logger.info("%d sentences repeat another one and are left out; %d are kept.", repeated, len(seen))


class _Names:
    """Refuses labels that differ by case or blanks alone, and classes in two splits."""

    def __init__(self) -> None:
        self.first: dict[str, Row] = {}
        self.of: dict[str, str] = {}

    def add(self, row: Row) -> None:
        first = self.first.setdefault(plain(row.label).casefold(), row)
        if first.label != row.label:
            raise DataError(
                f"the labels {first.label!r} ({first.place}) and {row.label!r} ({row.place}) differ by case or blanks "
                "alone. Write them alike."
            )
        if first.split != row.split:
            raise DataError(
                f"the class {row.label!r} is in the split {first.split!r} ({first.place}) and in {row.split!r} "
                f"({row.place}), but splits must not share a class."
            )
        self.of[plain(row.label)] = row.split
