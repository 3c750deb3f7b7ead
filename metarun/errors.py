"""Errors that are a message to the user: no traceback, an exit code of their own."""

import copyreg
import difflib
import math
import os
import re
import sysconfig
import traceback
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any


class MetarunError(Exception):
    """Something the user can act on. ``exit_code``: 1 the run failed, 2 wrong input, 3 diverged, 128 + n signal n."""

    exit_code = 1

    def __reduce__(self) -> tuple[Any, ...]:
        return _without_init(self)


class ConfigError(MetarunError):
    """Every problem found in a configuration, before the first step."""

    exit_code = 2

    def __init__(self, problems: list[str], where: str = "the configuration") -> None:
        self.problems = problems
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        super().__init__("\n".join([f"{count} in {where}:", *(f"  - {problem}" for problem in problems)]))


def wrong_command(*problems: str) -> ConfigError:
    """What is wrong with the words of a sub-command."""
    return ConfigError(list(problems), where="the command line")


class CheckpointError(MetarunError):
    """A checkpoint that cannot be read."""


class Diverged(MetarunError):
    """A loss that is no longer finite."""

    exit_code = 3


def refuse_divergence(values: Mapping[str, float], step: int, seed: int) -> None:
    """Raise Diverged if one of ``values`` is infinite or not a number."""
    for name, value in values.items():
        if not math.isfinite(value):
            raise Diverged(
                f"{name} is {value} at step {step} (seed {seed}). "
                f"Lower meta_learner.inner_lr or optimizer.lr, or clip the meta-gradient with clip_norm=10."
            )


class Interrupted(MetarunError):
    """A signal that stops a run, taken at a safe point."""

    def __init__(self, signum: int) -> None:
        self.exit_code = 128 + signum
        super().__init__(f"interrupted by signal {signum}")


EXHAUSTED = (
    *("can't allocate memory", "not enough memory", "bad_alloc", "Storage size calculation overflowed"),
    *("could not create a primitive", "can't start new thread"),
)
TO_NEED_LESS = (
    "To need less, take smaller sizes: of the base_learner or the meta_learner, fewer meta_learner.inner_steps, fewer "
    "inputs in an episode, or dtype=float32."
)


def memory_refusal(error: BaseException) -> str:
    """What an error says where there is not the memory that was asked for; empty where it says something else."""
    of_torch = type(error).__name__ == "OutOfMemoryError" or any(words in str(error) for words in EXHAUSTED)
    said = isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and of_torch)
    return (str(error).partition("\n")[0] or "no memory").rstrip(".") if said else ""


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """A question that ends an error message, about the option most like ``name``; empty where none is like it."""
    by_lower = {option.lower(): option for option in options}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.5)
    return f"; did you mean {by_lower[close[0]]!r}?" if close else ""


def listed(things: Sequence[str], most: int = 5, separator: str = ", ") -> str:
    """The first few of ``things``, the middle of long ones left out, and how many more there are."""
    rest = len(things) - most
    return separator.join(shortened(thing, 400) for thing in things[:most]) + (
        f" (and {rest} more)" if rest > 0 else ""
    )


def shortened(text: str, most: int = 120) -> str:
    """``text`` with its middle left out where it is longer than ``most`` letters."""
    return text if len(text) <= most else f"{text[: most // 2]} ... {text[-most // 4 :]}"


def place_of(error: BaseException, anywhere: bool = False) -> str:
    """Where it was raised, as ``FILE, line N``: the last line of neither metarun nor an installed package, which is the
    user's. Where there is none: empty, or with ``anywhere`` the last line of all."""
    installed = (
        f"{Path(__file__).parent}{os.sep}",
        sysconfig.get_path("stdlib"),
        sysconfig.get_path("platstdlib"),
        "<",
    )
    frames = traceback.extract_tb(error.__traceback__)
    in_packages = re.compile(r"[/\\](site|dist)-packages[/\\]").search
    own = [f for f in frames if not f.filename.startswith(installed) and not in_packages(f.filename)]
    last = [*(frames if anywhere else []), *own][-1:]
    return f"{Path(last[0].filename).name}, line {last[0].lineno}" if last else ""


class DataError(ValueError):
    """A data file is not what it should be, or cannot be written."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _without_init(self)


class DataProblems(DataError):
    """All that was found wrong with a data set, each a message of its own."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


class Faults:
    """What is found wrong with a file, so that all of it is told at once: of each kind five places and a count."""

    def __init__(self) -> None:
        self.found: dict[tuple[str, str], list[str]] = {}

    def add(self, place: str, what: str, cure: str) -> None:
        """Note that there is ``what``; ``place`` (the file) and ``cure`` are said once of all that share them. A cure is a
        sentence of its own, or goes on with a semicolon."""
        self.found.setdefault((place, cure), []).append(what)

    def refuse(self) -> None:
        """Raise DataProblems with all of it, if there is any."""
        if self.found:
            raise DataProblems([_fault(place, whats, cure) for (place, cure), whats in self.found.items()])


def _without_init(error: Exception) -> tuple[Any, ...]:
    """How ``error`` is pickled, as launchers do that hand it to another process: its ``__init__`` takes other arguments
    than the message, so it is not called again."""
    return copyreg.__newobj__, (type(error), *error.args), vars(error)  # type: ignore[attr-defined]


def _fault(place: str, whats: list[str], cure: str) -> str:
    said = f"{place}, " * bool(place) + listed(whats, separator="; ")
    return f"{said}{cure}" if cure.startswith(";") else f"{said}. {cure}".rstrip()


class MissingDataError(FileNotFoundError):
    """A data file is not there, and may not be downloaded."""
