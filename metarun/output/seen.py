"""Which classes, or tasks of the data, a run is scored on though it was trained on them, by their names."""

from collections.abc import Sequence
from typing import Any

from metarun.core import TaskDistribution
from metarun.errors import listed
from metarun.evaluation.suite import Suite


def kind_of_names(task: TaskDistribution, split: str) -> str:
    """What the task's ``class_names`` are names of: "classes", or "tasks" of a table or of arrays."""
    origin = task.drawn_from(split, task.draw(split, [0]))
    return origin.kind if origin else "classes"


def seen_in_training(suite: Suite, split: str, trained_on: Sequence[str]) -> list[str]:
    """A line where classes, or tasks of a table, are scored that have the names of those of the training."""
    lines = []
    for name, scored in suite.elsewhere.items() or [("", suite.own)]:
        names, place = {*scored.task.class_names(split)}, f" of {name}" if name else ""
        if both := sorted(names & {*trained_on}):
            kind = kind_of_names(scored.task, split)
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
