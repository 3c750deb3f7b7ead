"""Which split the classes of a data set belong to: by lot, as their source says, or as listed."""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from metarun.targets import did_you_mean
from metarun.tasks.counter import uniform

SPLITS = ("train", "val", "test")
Split = Sequence[float] | Mapping[str, Sequence[str]] | Literal["given"]


def split_classes(names: Sequence[str], given: Sequence[str], split: Split, seed: int, stream: str) -> tuple[str, ...]:
    """The split of each class: shares of them by a lot of its own ``stream``, ``given`` by the source ("": not there),
    or listed by name ("" for those that no list names). Raises ValueError when ``split`` does not fit."""
    if split == "given":
        if unnamed := [name for name, of in zip(names, given, strict=True) if of not in SPLITS]:
            raise ValueError(
                f"task.split is given, but the data does not say which of {', '.join(SPLITS)} the class {unnamed[0]!r} is "
                "in. Give three shares instead: task.split=[0.6,0.2,0.2]."
            )
        return tuple(given)
    if isinstance(split, Mapping):
        return _listed(names, split)
    assert not isinstance(split, str)
    if len(split) != 3 or min(split) <= 0:
        raise ValueError(f"task.split is {list(split)}; give three shares above 0, for training, validation and test.")
    ends = np.rint(len(names) * np.cumsum(split) / np.sum(split)).astype(int)
    ranks = np.argsort(np.argsort(uniform(seed, stream, np.arange(1), len(names))[0], kind="stable"))
    return tuple(SPLITS[place] for place in np.searchsorted(ends, ranks, side="right"))


def _listed(names: Sequence[str], split: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    if sorted(split) != sorted(SPLITS):
        raise ValueError(f"task.split lists classes for {', '.join(split)}, but must do so for {', '.join(SPLITS)}.")
    of: dict[str, str] = {}
    for part, members in split.items():
        for name in map(str, members):
            if name not in names:
                raise ValueError(f"task.split.{part} names {name!r}, which is no class{did_you_mean(name, names)}.")
            if name in of:
                raise ValueError(f"task.split lists the class {name!r} twice; splits must not share a class.")
            of[name] = part
    return tuple(of.get(name, "") for name in names)
