"""Splits of the classes of a data set: by lot, as their source says, or as listed."""

import hashlib
import json
import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml

from metarun.counter import uniform
from metarun.errors import DataProblems, did_you_mean, listed

SPLITS = ("train", "val", "test")
SPELLINGS = {"training": "train", "valid": "val", "validation": "val", "dev": "val", "testing": "test"}
# Names of folders that are splits where they stand side by side; "background" beside "train", say, is a class. Words that
# are names of classes as well count where all folders are of their family.
SIDE_BY_SIDE = (
    (*SPLITS, *SPELLINGS, "trainval", "eval", "evaluation"),
    ("base", "novel", "val", "validation"),
    ("background", "evaluation"),
    ("seen", "unseen"),
)
UNSEEN = dict.fromkeys(  # letters without width, but for the joiners 200c and 200d, which other letters are written by
    (0xAD, 0x34F, 0x61C, 0x180E, 0x200B, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2060, 0x2070), 0xFEFF)
)
WHOLE_NUMBER = re.compile(r"0*(\d+?)(?:\.0+)?", re.ASCII)
# A mapping rather than three numbers stands in the YAML: Hydra cannot put a mapping of lists in the place of a list.
Split = Sequence[float] | Mapping[str, float | Sequence[str] | Literal["all"]] | Literal["given"]


PublishedSplit = Literal["protaugment_1", "protaugment_2", "protaugment_3", "protaugment_4", "protaugment_5"]


def published_splits(data: str) -> Any:
    """What ``class_splits`` lists of a data set: the classes of its published split, or of each by name."""
    return json.loads((Path(__file__).parent / "class_splits" / f"{data}.json").read_text(encoding="utf-8"))


def composed(text: str) -> str:
    """The text in Unicode's form NFC, so that an accent is a part of its letter, as macOS does not write it in names."""
    return unicodedata.normalize("NFC", text)


def seen(text: str) -> str:
    """What texts share that differ by case or blanks alone, or by letters that nobody sees."""
    return composed(" ".join(text.translate(UNSEEN).split())).casefold()


def likeness(name: str) -> str:
    """What names share that are ``seen`` alike, or are one whole number: 1, 1.0 and 01."""
    written = seen(name)
    number = WHOLE_NUMBER.fullmatch(written)
    return number[1] if number else written


def split_named(text: str) -> str:
    """The split that a folder or an entry of this name means; the name itself where it means none."""
    name = text.strip().lower()
    return name if name in SPLITS else SPELLINGS.get(name, text)


def say_splits(entries: Iterable[object]) -> bool:
    """Whether the ``entries`` of a column name splits, two or more, and nothing else."""
    there = [entry for entry in entries if entry is not None]
    held = {split_named(entry) for entry in there if isinstance(entry, str)} - {""}
    if not all(isinstance(entry, str) for entry in there):
        return False
    return held <= {*SPLITS} and len(held) > 1


def named_as_splits(names: Collection[str]) -> list[str]:
    """Those of the ``names`` of folders side by side that are splits by all appearance, two kinds of them or more; empty
    where there are none. They may differ by the word of a split alone: images_train, images_test."""
    read = [(name, *parts) for name in names for parts in _split_words(name)]
    for family in SIDE_BY_SIDE:
        for rest in {rest for _, word, rest in read if word in family}:
            found = {name: split_named(word) for name, word, of in read if word in family and of == rest}
            if len({*found.values()}) > 1 and (family is SIDE_BY_SIDE[0] or len(found) == len(names)):
                return sorted(found)
    return []


def _split_words(name: str) -> Iterator[tuple[str, str]]:
    """Each word of a name that may be a split, and the rest of the name, without what is often written beside splits."""
    words = [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)]
    words = [re.sub("^meta(?=.)|(?<=.)(set|data)$", "", word) for word in words]
    for at, word in enumerate(words):
        beside = ("meta", "set", "split", "data", "image", "images", "img", "imgs", "class", "classes")
        yield word, " ".join(other for other in words[:at] + words[at + 1 :] if other not in beside)


def lists_classes(split: Split | PublishedSplit) -> bool:
    """Whether ``split`` names classes."""
    return isinstance(split, Mapping) and any(isinstance(value, (list, tuple)) for value in split.values())


def by_shares(split: Split | PublishedSplit) -> bool:
    """Whether ``split`` gives shares, so that every split must get its classes."""
    listed_or_whole = lists_classes(split) or (isinstance(split, Mapping) and "all" in split.values())
    return not isinstance(split, str) and not listed_or_whole


def split_classes(
    names: Sequence[str], given: Sequence[str], split: Split | PublishedSplit, seed: int, stream: str
) -> tuple[str, ...]:
    """The split of each class: shares of them by a lot of its own ``stream``, ``given`` by the source ("": not there),
    listed by name ("" for those that no list names), or all in one. Raises ValueError when ``split`` does not fit."""
    if split == "given":
        return _given(names, given)
    if isinstance(split, str):
        raise ValueError(
            f"task.split is {split}, a published split of CLINC150 and Banking77, and these are other sentences. "
            "Give shares, lists of classes, or given."
        )
    if isinstance(split, Mapping):
        if whole := [part for part, value in split.items() if value == "all"]:
            return _all_in(whole, names)
        if sorted(split) != sorted(SPLITS):
            raise ValueError(
                f"task.split names classes or shares for {', '.join(split)}, but must do so for {', '.join(SPLITS)}."
            )
        lists = {part: value for part, value in split.items() if not isinstance(value, (int, float))}
        if wrong := [part for part, value in lists.items() if not isinstance(value, (list, tuple))]:
            raise ValueError(
                f"task.split.{wrong[0]} is {split[wrong[0]]!r}, but must be a share, a list of classes, or all."
            )
        if lists and len(lists) < len(SPLITS):
            raise ValueError(
                f"task.split lists the classes of {', '.join(lists)} alone; list those of all, or give shares."
            )
        if lists:
            return _listed([*map(composed, names)], lists)
    shares: list[Any] = [split[part] for part in SPLITS] if isinstance(split, Mapping) else list(split)
    if len(shares) != 3 or min(shares) <= 0:
        raise ValueError(f"task.split is {shares}; give three shares above 0, for training, validation and test.")
    ends = np.rint(len(names) * np.cumsum(shares) / np.sum(shares)).astype(int)
    ranks = np.argsort(np.argsort(uniform(seed, stream, np.arange(1), len(names))[0], kind="stable"))
    return tuple(SPLITS[place] for place in np.searchsorted(ends, ranks, side="right"))


def split_digest(names: Sequence[str], split_of: Sequence[str]) -> str:
    """A short name for the classes and the split of each; equal for equal splits."""
    classes = json.dumps([*zip(names, split_of, strict=True)])
    return hashlib.sha256(classes.encode()).hexdigest()[:16]


def train_share(names: Sequence[str], fraction: float) -> set[str]:
    """That share of the training classes or tasks, at least one of them: those whose names have the lowest hashes.

    So it depends on no seed and on no other name, and a smaller share is part of every larger one.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"task.train_fraction is {fraction}, but must be above 0 and at most 1: a share of training.")
    ranked = sorted({*names}, key=lambda name: hashlib.sha256(name.encode()).digest())
    return {*ranked[: max(1, round(fraction * len(ranked)))]}


def thinned(names: Sequence[str], split_of: Sequence[str], fraction: float) -> tuple[str, ...]:
    """The split of each class, "" of training classes outside their ``train_share``."""
    kept = train_share([name for name, of in zip(names, split_of, strict=True) if of == "train"], fraction)
    return tuple("" if of == "train" and name not in kept else of for name, of in zip(names, split_of, strict=True))


def _given(names: Sequence[str], given: Sequence[str]) -> tuple[str, ...]:
    unnamed = [(name, of) for name, of in zip(names, given, strict=True) if of not in SPLITS]
    if unnamed:
        said = [f"{name!r}" + (f" (it says {of!r})" if of else "") for name, of in unnamed]
        what = f"the class {said[0]} is" if len(said) == 1 else f"the classes {listed(said)} are"
        raise ValueError(
            f"task.split is given, but the data does not say which of {', '.join(SPLITS)} {what} in. Name the split so, or "
            "validation, valid, dev; or give shares instead: 'task.split={train:6,val:2,test:2}'."
        )
    return tuple(given)


def _all_in(whole: list[str], names: Sequence[str]) -> tuple[str, ...]:
    """All classes in one split; Hydra merges what is typed with shares or lists of before, which do not count then."""
    if whole[1:] or whole[0] not in SPLITS:
        raise ValueError(f"task.split puts all classes in {', '.join(whole)}; name one of {', '.join(SPLITS)}.")
    return tuple(whole * len(names))


def _listed(names: Sequence[str], split: Mapping[str, Sequence[Any]]) -> tuple[str, ...]:
    of: dict[str, str] = {}
    problems = []
    for part, members in split.items():
        for member in members:
            spellings = [composed(member)] if isinstance(member, str) else spellings_of(member, names)
            name = spellings[0] if len(spellings) == 1 else str(member)
            if len(spellings) > 1:
                quoted = ", ".join(f'"{text}"' for text in spellings)
                problems.append(
                    f"task.split.{part} has the {_kind(member)} {member!r}, which may be any of the classes {quoted}: put "
                    "the name in quotation marks."
                )
            elif name not in names:
                problems.append(f"task.split.{part} names {name!r}, which is no class{_near(name, member, names)}")
            elif name in of:
                problems.append(f"task.split lists the class {name!r} twice; splits must not share a class.")
            else:
                of[name] = part
    if problems:
        raise DataProblems(problems)
    return tuple(of.get(name, "") for name in names)


# -------------------------------------------------------------------------------------- names that YAML takes for values


def spellings_of(value: Any, names: Sequence[str]) -> list[str]:
    """Those of ``names`` that YAML or a command line reads as ``value``: of 1000, say, 1_000 and 1000."""
    return [name for name in names if repr(value) in _readings(name)]


@cache
def _readings(name: str) -> frozenset[str]:
    """What a bare ``name`` may be read as, each as Python writes it."""
    readings = {name, {"true": "True", "false": "False", "null": "None"}.get(name.lower(), name)}
    for reads in ((yaml.safe_load,), (int, float)):  # YAML's octal 010 is 8, the command line's 10; both know 1_000
        for read in reads:
            try:
                readings.add(repr(read(name)))
                break
            except (yaml.YAMLError, ValueError):
                continue
    return frozenset(readings)


def _near(name: str, member: Any, names: Sequence[str]) -> str:
    """The end of a sentence: the class most like ``name``, or what a number or truth value may have been written as."""
    if not isinstance(member, str):
        return f" (it was read as a {_kind(member)}: put the name in quotation marks)" + (
            did_you_mean(name, names) or "."
        )
    alike = [repr(other) for other in names if _readings(other) & _readings(name)]
    return f"; did you mean {' or '.join(alike)}?" if alike else did_you_mean(name, names) or "."


def _kind(value: Any) -> str:
    return {bool: "truth value", int: "number", float: "number"}.get(type(value), "value")
