"""Names of classes, tasks and groups that the user should look at: missing ones, several at once, parts of others, twins."""

import html
import re
import unicodedata
import warnings
from collections.abc import Collection, Iterable, Sequence

from metarun.errors import listed
from metarun.tasks.splits import likeness, seen

MISSING = ("na", "n/a", "nan", "null", "?", "-")  # how programs write an entry that is not there
MISSING_NUMBER = ("none", "<na>", "#n/a", "n.a.", "nat", "undefined", ".", "--")  # and that, unless among words
BETWEEN_WORDS = re.compile(r"(?<=[^\W_])[\s_-]+(?=[^\W_])")
NUMBERED = re.compile(r"\d")
FRACTION = re.compile(r"[+-]?\d*\.\d*[1-9]\d*(?:e[+-]?\d+)?", re.ASCII)
BETWEEN_NAMES = re.compile(r"[|;,+&]")


def notes_on_classes(names: Collection[str]) -> list[str]:
    """What to say of the ``names`` of classes: of two that are one, one may be for training and the other for the test."""
    alike = nearly_equal(names, "classes")
    return [*missing_names(names, "classes"), *_of_several(names), *_parts(names), *_in_several(names), *alike]


def notes_on_labels(names: Collection[str]) -> list[str]:
    """What to say of the ``names`` of the classes of a support set."""
    return [*missing_names(names, "classes"), *nearly_equal(names, "classes"), *_quantities(names)]


def missing_names(names: Iterable[str], what: str) -> list[str]:
    """A note on ``names`` (of ``what``: classes, tasks, groups) by which programs write that there is none."""
    if not (found := sorted({name for name in names if seen(name) in (*MISSING, *MISSING_NUMBER)})):
        return []
    said = f"{what} named {', '.join(map(repr, found))} are what missing entries are often written as"
    return [f"{said}; each is taken for one of the {what}. Leave its examples out if they have none."]


def _quantities(names: Collection[str]) -> list[str]:
    numbers = sorted({name for name in names if FRACTION.fullmatch(name)})
    if len(numbers) < 2 or 2 * len(numbers) <= len({*names}):
        return []
    said = f"classes that are numbers with fractions, as of a quantity: {listed(numbers)}"
    return [f"{said}. Each different number is a class of its own; to predict numbers train on a task of regression."]


def _of_several(names: Collection[str]) -> list[str]:
    known = {*map(seen, names)}
    found = []
    for name in sorted(names):
        parts = [seen(part.strip(" []{}()'\"")) for part in BETWEEN_NAMES.split(name)]
        found += [repr(name)] if len(parts) > 1 and {*parts} <= known else []
    said = f"classes that are several others at once, and taken for classes of their own: {listed(found)}"
    return [f"{said}. An example has one class: leave them out."] if found else []


def _parts(names: Collection[str]) -> list[str]:
    pairs = ((name, name[: mark.start()]) for name in sorted(names) for mark in re.finditer("/", name))
    found = [f"{name!r} of {whole!r}" for name, whole in pairs if whole in names]
    said = f"classes whose names are parts of other classes, and taken for different ones: {listed(found)}"
    return [f"{said}. Join each with that class if it is of it."] if found else []


def _in_several(names: Collection[str]) -> list[str]:
    """A note on a name that several folders have, as 2019/oak and 2020/oak; numbered ones (character01) are their own."""
    of: dict[str, list[str]] = {}
    for name in sorted(names):
        folder, _, last = name.rpartition("/")
        if folder and not NUMBERED.search(last):
            of.setdefault(seen(last), []).append(name)
    alike = [listed([*map(repr, several)], 3) for several in of.values() if len(several) > 1]
    said = f"classes of one name in several folders, and taken for different ones: {listed(alike, separator='; ')}"
    return [f"{said}. Join those that are one class."] if alike else []


def nearly_equal(names: Iterable[str], what: str) -> list[str]:
    """A note on the ``names`` (of ``what``: classes, tasks, groups) that differ by case, blanks or the like alone."""
    spelt: dict[str, list[str]] = {}
    for name in sorted({*names}):
        spelt.setdefault(likeness(BETWEEN_WORDS.sub(" ", _bare(name))), []).append(name)
    alike = [" and ".join(map(repr, several)) for several in spelt.values() if len(several) > 1]
    said = f"names of {what} that are nearly equal, and taken for different ones: {listed(alike)}"
    return [f"{said}. Write them alike where they are one."] if alike else []


def _bare(name: str) -> str:
    """The name without quotation marks and the like around it, and with letters in their usual form: &amp; is &."""
    usual = unicodedata.normalize("NFKC", html.unescape(name))
    return usual.strip(" \"'_") or usual


def warn_of(notes: Sequence[str], stacklevel: int) -> None:
    """Warn of what the user should know, as from the caller that many levels above."""
    for note in notes:
        warnings.warn(f"metarun: {note}", UserWarning, stacklevel=stacklevel)
