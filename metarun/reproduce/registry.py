"""The registry of published results: ``metarun/published/*.yaml``, one file a paper.

A target is what one training reproduces, such as maml/omniglot/5w1s (file maml.yaml, key omniglot/5w1s); its figures are
what the paper prints of it. Accuracies and errors in percent stand as the paper has them.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, fields
from functools import cache, partial
from pathlib import Path
from typing import Any

import yaml

from metarun.errors import ConfigError, did_you_mean, wrong_command
from metarun.output.kept import Loader
from metarun.paths import PACKAGE, config_dir

PUBLISHED = PACKAGE / "published"
READ = ("paper", "code")  # whose text was read: only such figures are judged; others are quoted, or unread
LOWER_IS_BETTER = ("mse", "error", "query_loss")
IN_PERCENT = ("accuracy", "error")
MARKS = {"quoted": " (quoted)", "unread": " (unread)"}  # of figures that nobody here has read in their source
HOW_READ = (*READ, *MARKS)


def printed(value: float, interval: float | None, read: str) -> str:
    """A paper's figure with the digits that it has there, marked where nobody here has read it in its source."""
    return (f"{value:g}" if interval is None else f"{value:g} +- {interval:g}") + MARKS.get(read, "")


@dataclass(frozen=True)
class Paper:
    """Where figures are from. ``name``: of its file."""

    name: str
    cited_as: str
    title: str
    source: str
    code: str | None


@dataclass(frozen=True)
class Figure:
    """A number that a paper prints. ``interval``: the half width, which is what ``interval_is`` says."""

    name: str
    value: float | None  # None: the paper prints none
    interval: float | None
    interval_is: str
    where: str  # table and row
    read: str  # paper | code | quoted | unread
    step: int | None = None  # the adaptation step of our curve that is meant; None: the score of the test
    evaluate: tuple[str, ...] = ()  # overrides of ``metarun evaluate`` for the paper's protocol; none: the test's

    @property
    def is_target(self) -> bool:
        """Whether it can be reproduced: there is a number, and its source was read."""
        return self.value is not None and self.read in READ


@dataclass(frozen=True)
class Rerun:
    """What others measured who ran it again."""

    who: str
    figure: str
    value: float
    interval: float | None
    source: str
    read: str


@dataclass(frozen=True)
class Target:
    """What one training reproduces."""

    paper: Paper
    key: str
    title: str
    benchmark: str
    command: tuple[str, ...] | None  # words of ``metarun ...`` that train it; None: no preset of ours does
    trained_as: str | None  # the key of the target of this paper whose training it shares
    score: str
    protocol: dict[str, Any]  # the paper's
    differs: tuple[str, ...]  # how our run's protocol differs from it
    figures: tuple[Figure, ...]
    reruns: tuple[Rerun, ...]
    cause: str | None  # why ours misses the figure, where that was found
    tested: str = "best"  # the model whose score the paper prints: best on validation tasks, or last

    @property
    def id(self) -> str:
        """PAPER/KEY, as the command line names it."""
        return f"{self.paper.name}/{self.key}"

    @property
    def words(self) -> tuple[str, ...] | None:
        """The words that train it, its own or those of the target whose training it shares."""
        return targets()[f"{self.paper.name}/{self.trained_as}"].words if self.trained_as else self.command

    @property
    def folder(self) -> Path:
        """Where its runs lie, below the folder of all: those of the target whose training it shares."""
        return Path(self.paper.name, (self.trained_as or self.key).replace("/", "_"))

    @property
    def card(self) -> Path:
        """Where its card lies, below the folder of all cards."""
        return Path(self.paper.name, f"{self.key.replace('/', '_')}.json")

    @property
    def measure(self) -> str:
        """The name of its score in a run's results; an error is what an accuracy leaves."""
        return f"test/{'accuracy' if self.score == 'error' else self.score}"

    @property
    def higher_is_better(self) -> bool:
        """Of its score."""
        return self.score not in LOWER_IS_BETTER

    def in_its_units(self, mean: float) -> float:
        """A score of ours as the paper prints it."""
        value = 1 - mean if self.score == "error" else mean
        return 100 * value if self.score in IN_PERCENT else value

    @property
    def scale(self) -> float:
        """What an interval of ours is multiplied by, to be in the paper's units."""
        return 100.0 if self.score in IN_PERCENT else 1.0


@cache
def targets() -> dict[str, Target]:
    """Every target by its id, in the order of the files."""
    return {target.id: target for path in sorted(PUBLISHED.glob("*.yaml")) for target in targets_in(path)}


def targets_in(path: Path) -> Iterator[Target]:
    """The targets of a paper's file; raises ConfigError that names the place where it has another form."""
    content = yaml.load(path.read_bytes(), Loader)
    entries = content.pop("targets")
    paper = _made(Paper, {"name": path.stem, **content}, path.name)
    for key, entry in entries.items():
        where = f"{path.name}, {key}"
        parts: dict[str, Callable[[Any], Any]] = {"command": str, "differs": str}
        parts |= {"figures": partial(_figure, where=where), "reruns": partial(_made, Rerun, where=where)}
        values = {"command": None, "trained_as": None, **entry}
        values |= {name: tuple(map(make, values[name])) for name, make in parts.items() if values.get(name) is not None}
        yield _made(Target, {"paper": paper, "key": key, **values}, where)


def _figure(values: dict[str, Any], where: str) -> Figure:
    return _made(Figure, {**values, "evaluate": tuple(values.get("evaluate", ()))}, where)


def _made(kind: type[Any], values: dict[str, Any], where: str) -> Any:
    """A ``kind`` of the values of a file; raises ConfigError where it lacks fields, has others, or read is no such word."""
    known = {field.name: field.default is MISSING for field in fields(kind)}
    problems = [
        f"{name!r} is no field of a {kind.__name__.lower()}{did_you_mean(str(name), known)}"
        for name in values
        if name not in known
    ]
    problems += [f"{name} is missing" for name, needed in known.items() if needed and name not in values]
    if "read" in values and values["read"] not in HOW_READ:
        problems.append(f"read is {values['read']!r}; use one of {', '.join(HOW_READ)}")
    if problems:
        raise ConfigError([f"metarun/published/{where}: {'; '.join(problems)}. Correct that file."])
    return kind(**values)


def target(name: str) -> Target:
    """The target with that id; raises ConfigError where there is none."""
    known = targets()
    if name not in known:
        guess = did_you_mean(name, known) or "."
        papers = {one.paper.name for one in known.values()}
        of_paper = next((f" --paper {part}" for part in [name.partition("/")[0].lower()] if part in papers), "")
        raise wrong_command(
            f"{name} is no published result that metarun knows{guess} See: metarun reproduce --list --all{of_paper}"
        )
    return known[name]


def task_of(words: tuple[str, ...]) -> str:
    """The option of the group ``task`` that a command line chooses, read from the experiment's file without Hydra."""
    chosen = next((word.partition("=")[2] for word in words if word.startswith("task=")), None)
    if chosen:
        return chosen
    experiment = next((word.partition("=")[2] for word in words if word.startswith("experiment=")), None)
    return _task_of_experiment(experiment) if experiment else "sinusoid"


def _task_of_experiment(name: str) -> str:
    text = (config_dir() / "experiment" / f"{name}.yaml").read_text(encoding="utf-8")
    if found := re.search(r"^ +- override /task: (\w+)", text, re.M):
        return found[1]
    begins = re.search(r"^ +- (\w+) *(?:#.*)?$", text, re.M)
    return _task_of_experiment(begins[1]) if begins else "sinusoid"
