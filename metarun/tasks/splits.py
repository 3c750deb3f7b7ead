"""Splits of the classes of a data set: by lot, as their source says, or as listed."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from metarun.counter import uniform
from metarun.errors import did_you_mean

SPLITS = ("train", "val", "test")
# A mapping rather than three numbers stands in the YAML: Hydra cannot put a mapping of lists in the place of a list.
Split = Sequence[float] | Mapping[str, float | Sequence[str]] | Literal["given"]


def split_classes(names: Sequence[str], given: Sequence[str], split: Split, seed: int, stream: str) -> tuple[str, ...]:
    """The split of each class: shares of them by a lot of its own ``stream``, ``given`` by the source ("": not there),
    or listed by name ("" for those that no list names). Raises ValueError when ``split`` does not fit."""
    if split == "given":
        if unnamed := [name for name, of in zip(names, given, strict=True) if of not in SPLITS]:
            raise ValueError(
                f"task.split is given, but the data does not say which of {', '.join(SPLITS)} the class {unnamed[0]!r} is "
                "in. Give shares instead: 'task.split={train:6,val:2,test:2}'."
            )
        return tuple(given)
    if isinstance(split, Mapping):
        if sorted(split) != sorted(SPLITS):
            raise ValueError(
                f"task.split names classes or shares for {', '.join(split)}, but must do so for {', '.join(SPLITS)}."
            )
        lists = {part: value for part, value in split.items() if not isinstance(value, (int, float))}
        if lists and len(lists) < len(SPLITS):
            raise ValueError(
                f"task.split lists the classes of {', '.join(lists)} alone; list those of all, or give shares."
            )
        if lists:
            return _listed(names, lists)
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


def _listed(names: Sequence[str], split: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    of: dict[str, str] = {}
    for part, members in split.items():
        for name in map(str, members):
            if name not in names:
                raise ValueError(f"task.split.{part} names {name!r}, which is no class{did_you_mean(name, names)}.")
            if name in of:
                raise ValueError(f"task.split lists the class {name!r} twice; splits must not share a class.")
            of[name] = part
    return tuple(of.get(name, "") for name in names)
