"""``metarun data``: which data there is and in what state; preparing, checking and looking at it.

NAME is an option of the group ``task``; building a task prepares what it reads.
"""

import inspect
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from omegaconf import DictConfig, OmegaConf
from rich.table import Table

from metarun.config.build import build_task, sources_of
from metarun.config.compose import composed
from metarun.config.help import options
from metarun.config.ranges import range_problems
from metarun.config.targets import locate
from metarun.core import TaskDistribution
from metarun.drawing import picture
from metarun.errors import ConfigError, DataError
from metarun.evaluation.episodes import BLOCK
from metarun.evaluation.suite import missing
from metarun.output.tables import table_console
from metarun.paths import DATA_ROOT, usable
from metarun.tasks.misread import notes_on_file
from metarun.tasks.splits import SPLITS

KIND_WIDTH = 25  # columns, which leave room for the state at 80
STATES = ("absent", "raw files found", "ready")  # of prepared data


class Entry(NamedTuple):
    """A task distribution, and what the data root holds of it."""

    name: str
    kind: str
    state: str  # ready | raw files found | absent | generated | needs task.x
    where: str  # its folder, or what to do


def list_data(overrides: list[str], folders: list[Path]) -> None:
    """Print a table of all task distributions, in which no name is broken."""
    table = Table(box=None, pad_edge=False)
    table.add_column("name", no_wrap=True)
    table.add_column("kind", overflow="fold", max_width=KIND_WIDTH)
    table.add_column("state", overflow="fold")
    root = usable(composed(overrides, folders).data_root, DATA_ROOT)
    for name, kind, state, where in entries(overrides, folders):
        table.add_row(name, kind, ": ".join(filter(None, (state, where.removeprefix(f"{root}{os.sep}")))))
    table_console(100).print(table)
    print(f"data root: {root}")


def entries(overrides: list[str], folders: list[Path]) -> Iterator[Entry]:
    """Every option of the group ``task``, each with the overrides. Prepares nothing."""
    names = {name for root in (None, *folders) for name in options("task", root)}
    for name in sorted(name for name in names if "/" not in name):  # those of folders are parts of tasks
        cfg = composed([f"task={name}", *overrides], folders)
        yield Entry(name, _kind(cfg.task._target_), *_state(name, cfg))


def state_of(name: str, cfg: DictConfig) -> str:
    """The state of a task's data; where they are absent, also what to do."""
    state, what = _state(name, cfg)
    return f"{state}: {what}" if state == "absent" else state


def _kind(target: str) -> str:
    """The first line about a target (of a function's docstring, or of a class's module), up to a stop or colon."""
    found = locate(target, TaskDistribution)
    said = sys.modules[found.__module__].__doc__ if inspect.isclass(found) else found.__doc__
    line = (said or "").partition("\n")[0].rstrip(".")
    return min((line.partition(mark)[0] for mark in (". ", ": ", "; ")), key=len)


def _state(name: str, cfg: DictConfig) -> tuple[str, str]:
    """The state of the least ready of what the task reads, and where that lies or what to do."""
    if missing := sorted(OmegaConf.missing_keys(cfg.task)):
        return f"needs {', '.join(missing)}", ""
    try:
        found = [(source.state(), str(source.folder)) for source in sources_of(cfg)]
        if not found:
            build_task(cfg)  # a table may be missing, or something of an outsider's
            return "generated", ""
    except ConfigError:
        found = [("absent", "")]
    state, folder = min(found, key=lambda entry: STATES.index(entry[0]))
    return state, f"metarun data prepare {name}" if state == "absent" else folder


def build(name: str, overrides: list[str], folders: list[Path]) -> TaskDistribution:
    """The task NAME, its data prepared; what words of its file were misread is printed."""
    if "=" in name:
        raise ConfigError([f"{name}: the name of a task comes first: metarun data COMMAND NAME {name} ..."])
    cfg = composed([f"task={name}", *overrides], folders)
    task = build_task(cfg)
    for note in notes_on_file(str(cfg.task.get("path") or "")):
        print(note)
    return task


def prepare(name: str, overrides: list[str], folders: list[Path]) -> None:
    """Prepare the data of the task NAME, and print their fingerprint."""
    print(f"{name} is ready: {build(name, overrides, folders).fingerprint()}")


def verify(name: str, overrides: list[str], folders: list[Path]) -> None:
    """Read the prepared data of the task NAME again; raises ConfigError unless they are what was prepared."""
    task = build(name, overrides, folders)
    try:
        task.verify()
    except DataError as error:
        raise ConfigError([f"{name}: {error}"]) from error
    print(f"{name} is what was prepared: {task.fingerprint()}")


def show(
    name: str, overrides: list[str], folders: list[Path], split: str, indices: list[int], out: Path | None
) -> None:
    """Write a picture of the episodes ``indices`` of ``split``."""
    if split not in SPLITS:
        raise ConfigError([f"--split is {split!r}, but must be one of {', '.join(SPLITS)}."])
    if problems := [problem for index in indices for problem in range_problems("--episode", index, "")]:
        raise ConfigError(problems)
    if min(indices) < 0:
        raise ConfigError([f"--episode is {min(indices)}, but must be 0 or more."])
    path = out or Path(f"{name.replace('/', '-')}-{split}-{indices[0]}.png")
    if os.path.isdir(path):
        raise ConfigError([f"--out {path}: that is a folder; name a file in it, such as {path / 'episodes.png'}."])
    task = build(name, overrides, folders)
    if problems := missing("task", task, [split]):
        raise ConfigError(problems)
    if split == "test" and task.spec.num_test_tasks is not None and max(indices) >= task.spec.num_test_tasks:
        last = task.spec.num_test_tasks - 1
        raise ConfigError(
            [f"--episode is {max(indices)}, but the last test episode of {name} is {last}; use 0 to {last}."]
        )
    batch = composed([f"task={name}", *overrides], folders).meta_batch_size if split == "train" else BLOCK
    of_size: dict[TaskDistribution, list[int]] = {}
    for index in indices:
        of_size.setdefault(task.at(split, index // batch), []).append(index)
    for number, (at, alike) in enumerate(of_size.items()):  # a figure holds episodes of one size
        where = path.with_stem(f"{path.stem}-{alike[0]}") if number else path
        try:
            where.parent.mkdir(parents=True, exist_ok=True)
            picture(at, split, alike).savefig(where, dpi=120)
        except (OSError, ValueError) as error:  # ValueError: no such format
            raise ConfigError([f"--out {where}: cannot be written: {error}."]) from error
        print(f"wrote {where}")
