"""The scores of each episode, and the file that holds them: episodes.jsonl (docs/run_folder.md).

n episodes, K adaptation steps
"""

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from metarun.evaluation.intervals import Over, over

STEP = "_step_"
SHOTS = "_shots_"  # of scores over the number of support examples


@dataclass(frozen=True)
class EpisodeScores:
    """Scores by name [n] of the episodes 0 ... n - 1 of a split of one task; ``<name>_step_k``: after k steps.

    ``apart`` are scores that took a pass of their own, such as baselines. ``task`` is its name in evaluation.task, "" of
    the training task. ``kind`` and ``members``: what each episode was drawn from, "" where that is not known.
    """

    split: str
    values: dict[str, np.ndarray]
    apart: dict[str, np.ndarray] = field(default_factory=dict)
    task: str = ""
    kind: str = ""
    members: Sequence[Sequence[str]] = ()
    hashes: Sequence[str] = ()

    @property
    def all(self) -> dict[str, np.ndarray]:
        """Those of the pass that adapts, and those apart from it."""
        return self.values | self.apart

    def over(self) -> dict[str, Over]:
        """The intervals over other classes or tasks, where it is known which ones the episodes are of."""
        return over(self.kind, self.all, self.members) if self.kind else {}

    def curves(self) -> dict[str, np.ndarray]:
        """The scores after 0, 1, ... K steps [n, K + 1], by name."""
        steps: dict[str, list[np.ndarray]] = defaultdict(list)
        for name, values in self.values.items():  # steps ascend
            base, separator, _ = name.rpartition(STEP)
            if separator:
                steps[base].append(values)
        return {name: np.stack(columns, 1) for name, columns in steps.items()}

    def lines(self) -> Iterator[str]:
        """A line of JSON for each episode."""
        curves = self.curves()
        for i, code in enumerate(self.hashes):
            row: dict[str, Any] = {"episode": i, "split": self.split}
            row |= {"task": self.task} if self.task else {}
            row |= {"hash": code}
            row["scores"] = {name: plain(values[i]) for name, values in self.all.items() if STEP not in name}
            if curves:
                row["curve"] = {name: [plain(value) for value in curve[i]] for name, curve in curves.items()}
            row |= {self.kind: list(self.members[i])} if self.kind else {}
            yield json.dumps(row) + "\n"


def mean_over_tasks(parts: Sequence[EpisodeScores]) -> EpisodeScores:
    """The mean over tasks of what all have scored, by the episodes' numbers; it is of all the classes of those.

    Episodes of equal number can be alike in tasks that share data, so the interval is that of their mean.
    """
    common = [name for name in parts[0].values if all(name in part.values for part in parts)]
    values = {name: np.mean([part.values[name] for part in parts], 0) for name in common}
    kinds = {part.kind for part in parts}
    if len(kinds) > 1 or kinds == {""}:
        return EpisodeScores(parts[0].split, values)
    members = [
        [name for names in episode for name in names] for episode in zip(*(p.members for p in parts), strict=True)
    ]
    return EpisodeScores(parts[0].split, values, kind=kinds.pop(), members=members)


def plain(value: float) -> float | None:
    """``value`` as JSON can hold it: None where it is not finite."""
    return float(value) if math.isfinite(value) else None


def written(parts: Iterable[EpisodeScores]) -> bytes:
    """What a file of these scores holds."""
    return "".join(line for part in parts for line in part.lines()).encode()


def read_records(path: Path) -> list[dict[str, Any]]:
    """The lines of such a file; raises ValueError where it is absent or damaged."""
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, RecursionError) as error:
        raise ValueError(str(error)) from error
    if not all(isinstance(row, dict) and isinstance(row.get("scores"), dict) for row in rows):
        raise ValueError(f"{path} holds other lines than those of episodes")
    return rows
