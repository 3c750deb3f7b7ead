"""``metarun rerun RUN``: the same run again in a new folder, and whether its numbers are the same, bit by bit."""

import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from metarun.commands.diff import differences
from metarun.commands.job import Job
from metarun.commands.train import run
from metarun.config.compose import assigned, override_key, read_config
from metarun.errors import CheckpointError, Interrupted, wrong_command
from metarun.files import write_atomically
from metarun.output.checkpoint import load
from metarun.output.folder import RunFolder, place
from metarun.output.ledger import Run, read, run_at
from metarun.output.tables import Table, show
from metarun.trees import tree_leaves

MOST_ROWS = 20  # of numbers that are not the same
Numbers = dict[tuple[int, str], float]  # by step and name


def rerun(path: Path, run_dir: str | None) -> int:
    """Run again what ``path`` holds; exit code 0 if every number that it kept is the same, 1 if not."""
    old = run_at(path)
    cfg = read_config(old.path / "config.yaml")
    folder = RunFolder(place(run_dir, "--run-dir") if run_dir is not None else beside(old.path))
    if folder.holds_a_run:
        raise wrong_command(f"--run-dir {folder.path} already holds a run. Choose another folder.")
    cfg.run_dir, cfg.resume = str(folder.path), None
    overrides = [text for text in old.overrides if override_key(text) not in ("run_dir", "resume")]
    _keep_execution(old, folder)
    try:
        run(Job(cfg, overrides, folder, continues=False))
    except Interrupted as error:
        again = shlex.join(["metarun", assigned("resume", folder.path)])
        print(f"\nstopped; continue with: {again}, and compare with: metarun diff", file=sys.stderr)
        return error.exit_code
    return report(old, read(folder.path))


def beside(path: Path) -> Path:
    """A new folder next to ``path``: RUN-rerun, RUN-rerun2, ..."""
    names = (f"{path.name}-rerun{number if number > 1 else ''}" for number in range(1, 10**6))
    return next(folder for folder in map(path.with_name, names) if not folder.exists())


def _keep_execution(old: Run, folder: RunFolder) -> None:
    """Let the new run use the execution that the old one chose by measuring, unless that was for another kind of device."""
    chosen = old.path / "execution.json"
    if chosen.is_file() and bool(old.machine.get("gpu")) == torch.cuda.is_available():
        folder.create()
        write_atomically(folder.path / "execution.json", chosen.read_bytes())


@dataclass(frozen=True)
class Comparison:
    """What two runs of one configuration have in common."""

    equal: int
    unequal: list[tuple[int, str, float | None, float | None]]  # step, name, old and new value; None: not there
    theta: bool | None  # whether the best parameters are the same; None where one run has none

    @property
    def same(self) -> bool:
        """Whether nothing differs, and there was something to compare."""
        return self.equal > 0 and not self.unequal and self.theta is not False


def compared(old: Run, new: Run) -> Comparison:
    """Every number of the log and the test, and theta. Of an old run that did not end, as far as it got."""
    before, after = numbers_of(old), numbers_of(new)
    names = list(before) if old.state != "completed" else list(dict.fromkeys([*before, *after]))
    unequal = [(*name, before.get(name), after.get(name)) for name in names if before.get(name) != after.get(name)]
    theta = same_theta(old.path, new.path) if old.state == "completed" else None
    return Comparison(len(names) - len(unequal), unequal, theta)


def numbers_of(run: Run) -> Numbers:
    """The values of metrics.jsonl, and the scores of the test (at step -1) with their intervals."""
    logged = {
        (row["step"], name): value
        for row in run.metrics()
        if isinstance(row.get("step"), int)
        for name, value in row.items()
        if name != "step"
    }
    means = {(-1, name): score.mean for name, score in run.scores.items()}
    return logged | means | {(-1, f"{name} +-"): score.ci95 for name, score in run.scores.items()}


def same_theta(one: Path, other: Path) -> bool | None:
    """Whether the best parameters of two runs are equal bit by bit; None where one of them has none to read."""
    try:
        thetas = [load(path / "checkpoints" / "best.pt", torch.device("cpu"))["theta"] for path in (one, other)]
    except CheckpointError:
        return None
    a, b = map(tree_leaves, thetas)
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def report(old: Run, new: Run) -> int:
    """Say whether the numbers are the same and, if not, which are others and what else is; the exit code."""
    found = compared(old, new)
    how_far = "" if old.state == "completed" else f", as far as the first run got: it is {old.state}"
    if found.same:
        theta = " and theta" if found.theta else ""
        print(f"bit-equal: {found.equal} numbers of log and test{theta} are the same{how_far}")
        return 0
    if found.equal + len(found.unequal) == 0:
        print(f"nothing to compare: {old.path} kept no number; it is {old.state}")
        return 1
    theta = ", and theta is another" if found.theta is False else ""
    print(
        f"not bit-equal: {len(found.unequal)} of {found.equal + len(found.unequal)} numbers are others{theta}{how_far}"
    )
    if found.unequal:
        rows = [("test" if step < 0 else step, *rest) for step, *rest in found.unequal[:MOST_ROWS]]
        show(Table(("step", "number", "first", "again"), rows, title=f"the first {len(rows)}"))
    print("\n".join(causes(old, new)))
    return 1


def causes(old: Run, new: Run) -> Iterator[str]:
    """What differs between two runs beside their numbers, which may be why these do."""
    found: list[Any] = [row for row in differences(old, new) if row[0] != "score"]
    yield (
        "what else differs:" if found else "nothing else differs that is kept: a kernel that is not deterministic, say"
    )
    yield from (f"  {part} {name}: {before} then, {now} now" for part, name, before, now in found)
