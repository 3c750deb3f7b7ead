"""Predictions for a user's files and folders: of a support set with labels and a query set, as a table."""

import csv
import io
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from metarun.applied.adapted import Adapted, AdaptedClassifier, AdaptedRegressor
from metarun.applied.model import Model
from metarun.errors import DataError, listed
from metarun.tasks.image_files import hidden
from metarun.tasks.image_layout import notes_on_beside, refuse_beside
from metarun.tasks.misread import notes_on_file, notes_on_folders
from metarun.tasks.reading import Examples

PARTS = ("support", "query")


@dataclass(frozen=True)
class Prediction:
    """What a model adapted to the support of one task says of its queries.

    ``columns``: of the table, each with an entry for each query. ``scores`` are means over the ``num_scored`` queries that
    have a label, without the ``num_seen`` that the support holds, too; nothing where none is left.
    """

    adapted: Adapted
    num_shots: int
    columns: Mapping[str, Sequence[str]]
    scores: Mapping[str, float]
    num_scored: int
    num_seen: int
    notes: Sequence[str]


def predicted(model: Model, support: Path, query: Path) -> Prediction:
    """The model adapted to the examples in ``support``, on those in ``query``. Raises DataError and MissingDataError."""
    given = model.reader.read(support, labelled=True)
    beside = _beside(support, given)
    adapted = model.adapted_to(given.x, given.labels)
    asked = model.reader.read(query, labelled=False)
    if given.task and asked.task and given.task != asked.task:
        raise DataError(
            f"{query} holds rows of {asked.task!r}, but the support those of {given.task!r}: name one task."
        )
    of_kind = _of_classes if isinstance(adapted, AdaptedClassifier) else _of_numbers
    keys, sought = _keys(given, model.classifies), _keys(asked, model.classifies)
    held = {*keys}
    seen = np.array([key in held for key in sought])
    repeats = [*_repeated(given, keys, support, "support"), *_repeated(asked, sought, query, "query")]
    columns, scores, count = of_kind(adapted, asked, query, ~seen)  # type: ignore[arg-type]
    notes = [*given.notes, *beside, *asked.notes, *repeats, *notes_on_file(support), *notes_on_file(query)]
    if names := [item for item, known in zip(asked.items, seen, strict=True) if known]:
        said = f"{len(names)} of {len(seen)} queries are examples of the support, too, and no score counts them"
        notes.append(f"{query}: {said}: {listed(names)}.")
    return Prediction(adapted, len(given.x), columns, scores, count, len(names), notes)


def _beside(support: Path, given: Examples) -> list[str]:
    """What to say of a folder of images with masks or the like beside them. Raises DataError where these are classes."""
    if not support.is_dir():
        return []
    files = [support / item for item in given.items]
    refuse_beside(support, files)
    return notes_on_beside(support, files) + notes_on_folders(given.labels.tolist())


def _keys(of: Examples, classes: bool) -> list[Hashable]:
    """Keys that are equal for examples that are the same; of numbers with the same targets, for others are measured anew."""
    return [*of.keys] if classes else [(key, y.tobytes()) for key, y in zip(of.keys, of.labels, strict=True)]


def _repeated(of: Examples, keys: Sequence[Hashable], path: Path, part: str) -> list[str]:
    """A note on examples that are there more than once, by their keys, as none is in an episode of the training."""
    first: dict[Hashable, str] = {}
    again = []
    for item, key in zip(of.items, keys, strict=True):
        if key in first:
            again.append(item if item == first[key] else f"{item} = {first[key]}")
        first.setdefault(key, item)
    what = "example repeats" if len(again) == 1 else "examples repeat"
    return [f"{path}: {len(again)} {what} another of the {part}, and each counts: {listed(again)}."] if again else []


def _of_classes(
    adapted: AdaptedClassifier, asked: Examples, query: Path, counted: np.ndarray
) -> tuple[dict[str, Sequence[str]], dict[str, float], int]:
    labelled = asked.labels != ""
    if unknown := sorted({*asked.labels[labelled]} - {*adapted.classes_}):
        raise DataError(
            f"{query} has the classes {listed([repr(name) for name in unknown])}, but the support has "
            f"{listed([repr(name) for name in adapted.classes_], 20)} alone. Add examples of them to the support; queries "
            "without a class lie directly in the folder, or have no label."
        )
    probabilities = adapted.probabilities(asked.x)
    best = adapted.classes_[probabilities.argmax(1)]
    columns: dict[str, Sequence[str]] = {"item": asked.items}
    if labelled.any():
        columns["label"] = [*asked.labels]
    columns["predicted"] = [*best]
    columns |= {f"p_{name}": _numbers(probabilities[:, i]) for i, name in enumerate(adapted.classes_)}
    right = (best == asked.labels)[labelled & counted]
    return columns, {"accuracy": float(right.mean())} if len(right) else {}, len(right)


def _of_numbers(
    adapted: AdaptedRegressor, asked: Examples, query: Path, counted: np.ndarray
) -> tuple[dict[str, Sequence[str]], dict[str, float], int]:
    reader = adapted.model.reader
    mean, deviation = adapted.moments(asked.x)
    columns: dict[str, Sequence[str]] = {"item": asked.items}
    labelled = np.isfinite(asked.labels).all(1)
    for i, name in enumerate(reader.output_names):
        if labelled.any():
            columns[f"given_{name}"] = _numbers(asked.labels[:, i])
        columns[f"predicted_{name}"] = _numbers(mean[:, i])
        if deviation is not None:
            columns[f"deviation_{name}"] = _numbers(deviation[:, i])
    scores: dict[str, float] = {}
    scored = labelled & counted
    if scored.any():
        truth, found = asked.labels[scored], mean[scored]
        scores["mse"] = float(((reader.targets(truth) - reader.targets(found)) ** 2).mean())  # in the units of training
        scores |= {
            f"mae_{name}": float(np.abs(truth - found)[:, i].mean()) for i, name in enumerate(reader.output_names)
        }
    return columns, scores, int(scored.sum())


def _numbers(values: np.ndarray) -> list[str]:
    return ["" if np.isnan(value) else f"{value:.9g}" for value in values]


def tasks_in(folder: Path) -> dict[str, tuple[Path, Path]]:
    """The support and query of each task: the folders of ``folder``, which hold both, as folders or files of any ending.
    Raises DataError for one that does not."""
    found: dict[str, tuple[Path, Path]] = {}
    for task in sorted(entry for entry in folder.iterdir() if entry.is_dir() and not hidden(entry.name)):
        inside = [entry for entry in sorted(task.iterdir()) if not hidden(entry.name)]
        parts = [[entry for entry in inside if part in (entry.name, entry.stem)] for part in PARTS]
        if wrong := [part for part, entries in zip(PARTS, parts, strict=True) if len(entries) != 1]:
            held = listed([entry.name for entry in inside]) or "nothing"
            raise DataError(f"{task} must hold one {' and one '.join(wrong)} (a folder or a file); it holds {held}.")
        found[task.name] = (parts[0][0], parts[1][0])
    if not found:
        raise DataError(f"{folder} holds no folder. Put support and query of each task into a folder of its own there.")
    return found


def as_csv(predictions: Mapping[str, Prediction]) -> bytes:
    """The table of all predictions; the column ``task`` says whose, where tasks have names."""
    names = [*dict.fromkeys(name for prediction in predictions.values() for name in prediction.columns)]
    named = [*predictions] != [""]
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*["task"] * named, *names])
    for task, prediction in predictions.items():
        count = len(prediction.columns["item"])
        of = [prediction.columns.get(name, [""] * count) for name in names]
        writer.writerows([*[task] * named, *row] for row in zip(*of, strict=True))
    return text.getvalue().encode(errors="backslashreplace")  # names of files may be no text
