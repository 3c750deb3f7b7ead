"""Sentences in classes: read once, checked, rid of duplicates, kept as bytes.

Prepared are bytes: class after class, sentence after sentence, each ended by a line feed.
"""

import html
import logging
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from metarun.errors import DataError, Faults
from metarun.tasks.doubtful import nearly_equal
from metarun.tasks.splits import composed, seen
from metarun.tasks.store import ClassRows, Prepared

TAGS = re.compile(r"</?[a-zA-Z][^<>]*>")
logger = logging.getLogger(__name__)


class Row(NamedTuple):
    """A labelled sentence; ``split`` is "" where its source names none, ``place`` says where it stands.

    ``group``: sentences of one group are kindred, as those of a conversation; "" where groups are not asked for.
    """

    text: str
    label: str
    split: str
    place: str
    group: str = ""


class TextSet(NamedTuple):
    """Sentences ``texts``: class after class, ``counts[c]`` of class c; ``given[c]`` is its split in the source, or ""."""

    texts: tuple[str, ...]
    names: tuple[str, ...]
    given: tuple[str, ...]
    counts: np.ndarray
    prepared: Prepared

    def labels(self) -> np.ndarray:
        """The number of the class of each sentence."""
        return np.repeat(np.arange(len(self.names)), self.counts)


def text_set(prepared: Prepared) -> TextSet:
    """The text set behind prepared bytes, which are verified, for all of them are read now."""
    given, names = zip(*(name.split("\t") for name in prepared.names), strict=True)
    ends, rows = np.cumsum(prepared.counts), prepared.verified().rows
    classes = [rows[end - count : end].tobytes().decode() for end, count in zip(ends, prepared.counts, strict=True)]
    counts = np.array([content.count("\n") for content in classes])
    texts = tuple(text for content in classes for text in content.split("\n")[:-1])
    return TextSet(texts, names, given, counts, prepared)


def plain(text: str) -> str:
    """The text with single blanks, none around it, and accents as parts of their letters (NFC)."""
    return composed(" ".join(text.split()))


def placed(notes: Sequence[str], path: object) -> list[str]:
    """The notes, each after the ``path`` of the file that it is of, if there is one."""
    return [f"{path}: {note}" if path else note for note in notes]


def say(notes: Sequence[str]) -> None:
    """Tell the user, a line each."""
    for note in notes:
        logger.info("%s", note)


class Findings:
    """What is found while sentences are read: faults, what the user should know, and groups by sentence as prepared."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Forget what was found."""
        self.faults, self.notes, self.groups = Faults(), [], []

    faults: Faults
    notes: list[str]
    groups: list[str]

    def facts(self) -> dict[str, Any]:
        """What is kept beside the sentences."""
        return {"notes": self.notes} | ({"groups": self.groups} if any(self.groups) else {})


def class_rows(rows: Iterable[Row], origin: str, findings: Findings | None = None) -> ClassRows:
    """Bytes to prepare of the ``rows`` of ``origin``: classes "split\\tname" by name and their sentences, sorted, whatever
    the order of the rows. Raises DataProblems with all faults that ``findings`` have by then.

    Without ``findings`` the rows are those of a published set, whose order is always the same: of a sentence in two classes
    the first is kept. In others it is a fault."""
    own, findings = findings is not None, findings or Findings()
    classes: dict[str, list[tuple[str, str]]] = {}
    splits = Names(findings.faults)
    kept, twins = _without_duplicates(rows, splits, findings.notes)
    for first, row in twins:
        of = f"{first.text!r} is of the class {first.label!r} ({first.place}) and of {row.label!r} ({row.place})"
        if own:
            findings.faults.add("", of, "A sentence has one class: delete it from the other.")
        else:
            findings.notes.append(f"{of}; it stays in {first.label!r}.")
    findings.faults.refuse()
    findings.notes += _notes_on_kindred(kept) if own else []
    if not own:  # beside what is prepared
        say(findings.notes)
    for row in kept:
        classes.setdefault(plain(row.label), []).append((row.text, row.group))
    if len(classes) < 2:
        held = f"the class {next(iter(classes))!r} alone" if classes else "no sentence"
        raise DataError(f"{origin} holds {held}, but an episode needs 2 classes or more.")
    for label, texts in sorted(classes.items()):
        texts.sort()
        findings.groups += [group for _, group in texts]
        content = "".join(f"{text}\n" for text, _ in texts).encode()
        yield f"{splits.of[label]}\t{label}", np.frombuffer(content, dtype=np.uint8)


def _without_duplicates(
    rows: Iterable[Row], splits: "Names", notes: list[str]
) -> tuple[list[Row], list[tuple[Row, Row]]]:
    """One of equal sentences (as they are ``seen``), for none may be in a support set and in its query set: the one that
    is lowest, whatever their order. And the pairs of which the second row has another class than the first."""
    kept: dict[str, Row] = {}
    twins, repeated = [], 0
    for given in rows:
        row = given._replace(text=plain(given.text), label=composed(given.label))
        splits.add(row)
        first = kept.setdefault(seen(row.text), row)
        if first is row:
            continue
        repeated += 1
        if seen(first.label) != seen(row.label):
            twins.append((first, row))
        elif (row.text, row.group) < (first.text, first.group):
            kept[seen(row.text)] = row
    if repeated:
        notes.append(f"{repeated} sentences repeat another one and are left out; {len(kept)} are kept.")
    return [*kept.values()], twins


def _notes_on_kindred(rows: list[Row]) -> list[str]:
    """What to say of near-equal groups, and of sentences that differ by marks alone. These are kept, for a
    mark may be what tells two classes apart, a question from a statement, and everybody sees it."""
    of_group = {(seen(row.label), _without_marks(row.text), row.group or row.text) for row in rows}
    notes = nearly_equal((row.group for row in rows), "groups")
    if alike := len(of_group) - len({kindred[:2] for kindred in of_group}):
        notes.append(
            f"{alike} sentence{'s differ' if alike > 1 else ' differs'} from another of the class by punctuation, symbols, "
            "HTML or the width of letters alone, and may be in the support while that is in the query. If they are one "
            "sentence, leave them out or name their group in task.group_field."
        )
    return notes


def _without_marks(text: str) -> str:
    """The text as it is ``seen`` without punctuation, symbols and HTML, and with letters in their usual form: \u2019 is ',
    and \uff41 is a."""
    usual = unicodedata.normalize("NFKC", html.unescape(TAGS.sub(" ", text)))
    return seen("".join(letter for letter in usual if not _is_mark(letter))) or seen(text)


def _is_mark(letter: str) -> bool:
    """Punctuation, symbols, and what joins and varies these; combining marks are parts of letters."""
    return unicodedata.category(letter)[0] in "PS" or letter in "\u200d\ufe0e\ufe0f"


class Names:
    """Notes labels that differ by case or blanks alone, and classes in two splits."""

    def __init__(self, faults: Faults) -> None:
        self.first: dict[str, Row] = {}
        self.of: dict[str, str] = {}
        self.faults, self.noted = faults, set[tuple[str, str]]()

    def add(self, row: Row) -> None:
        first = self.first.setdefault(seen(row.label), row)
        if (row.label, row.split) not in self.noted:
            self._compare(first, row)
            self.noted.add((row.label, row.split))
        self.of[plain(row.label)] = row.split

    def _compare(self, first: Row, row: Row) -> None:
        if first.label != row.label:
            self.faults.add(
                "",
                f"the labels {first.label!r} ({first.place}) and {row.label!r} ({row.place}) differ by case or blanks alone",
                "Write them alike.",
            )
        if first.split != row.split:
            self.faults.add(
                "",
                f"the class {row.label!r} is in the split {first.split!r} ({first.place}) and in {row.split!r} "
                f"({row.place})",
                "Splits must not share a class.",
            )
