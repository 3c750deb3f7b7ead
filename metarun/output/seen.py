"""Which classes, or tasks of a table, a run is scored on though it was trained on them, by their names."""

from collections.abc import Sequence
from typing import Any

from metarun.core import TaskDistribution
from metarun.errors import listed
from metarun.evaluation.suite import Suite


def seen_in_training(suite: Suite, split: str, trained_on: Sequence[str]) -> list[str]:
    """A line where classes, or tasks of a table, are scored that have the names of those of the training."""
    lines = []
    for name, scored in suite.elsewhere.items() or [("", suite.own)]:
        names, place = {*scored.task.class_names(split)}, f" of {name}" if name else ""
        if both := sorted(names & {*trained_on}):
            kind = "tasks" if scored.task.spec.num_ways is None else "classes"
            lines.append(
                f"{len(both)} of {len(names)} {split} {kind}{place} were trained on, by name: {listed(both, 10)}"
            )
    return lines


def seen_ahead(suite: Suite, training: TaskDistribution) -> str | None:
    """What a run that begins should say of its validation and test: those lines as one text; None where all is new.

    Of the training task's own splits the test alone: validation classes among the training's are its setting ``trainval``.
    """
    splits = ("val", "test") if suite.elsewhere else ("test",)
    lines = [line for split in splits for line in seen_in_training(suite, split, training.class_names("train"))]
    if not lines:
        return None
    fix = "Scores on them say nothing of new classes: look at evaluation.task.NAME and task.split."
    return "; ".join(lines) + f". {fix}"


def kept(lines: Sequence[str]) -> dict[str, Any]:
    """The lines as a part of a protocol; nothing where there are none."""
    return {"seen_in_training": [*lines]} if lines else {}
