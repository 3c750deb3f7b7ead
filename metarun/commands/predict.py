"""``metarun predict RUN``: a finished run's model, adapted to labelled examples of the user's, labels others."""

import io
import math
import pickle
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from metarun.applied.adapted import OF_ALL_QUERIES, AdaptedClassifier
from metarun.applied.model import Model, model_of
from metarun.applied.prediction import Prediction, as_csv, predicted, tasks_in
from metarun.applied.trained import trained
from metarun.errors import ConfigError, DataError, DataProblems, MissingDataError
from metarun.evaluation.estimates import estimate
from metarun.files import write_atomically
from metarun.process import bounded_memory


def predict_run(  # noqa: PLR0913, PLR0917
    path: Path,
    overrides: list[str],
    support: Path | None,
    query: Path | None,
    tasks: Path | None,
    out: Path,
    save_phi: Path | None,
    checkpoint: str,
    config_dirs: list[Path],
) -> None:
    """Print what was adapted and scored, and write the predictions; nothing is written where something is wrong."""
    written = {"--out": out, "--save-phi": save_phi}
    try:
        places = _places(support, query, tasks)
        for option, file in written.items():
            refuse_place(option, file)
        _refuse_overwriting(written, [file for of_task in places.values() for file in of_task])
    except OSError as error:  # a name that is too long for the system, or a folder that may not be read
        raise ConfigError([f"{error.filename} cannot be used: {error.strerror}."]) from error
    model = model_of(trained(path, overrides, checkpoint, config_dirs))
    with bounded_memory(model.run.experiment.device.type):
        predictions = _predicted(model, places)
    for note in dict.fromkeys(note for prediction in predictions.values() for note in prediction.notes):
        print(note, file=sys.stderr)
    if model.looks_at_all_queries:
        print(OF_ALL_QUERIES, file=sys.stderr)
    _tell(predictions)
    content = {out: as_csv(predictions)} | ({save_phi: _phi_of(model, predictions)} if save_phi else {})
    _write(content)
    print(f"predictions: {out}")
    if save_phi is not None:
        print(f"phi: {save_phi}")


def _places(support: Path | None, query: Path | None, tasks: Path | None) -> dict[str, tuple[Path, Path]]:
    """Support and query of each task by its name; "" is that of --support and --query. Raises ConfigError."""
    if tasks is not None:
        if support or query:
            raise ConfigError(["--tasks names tasks with a support and query each: leave --support and --query out."])
        if not tasks.is_dir():
            raise ConfigError([f"--tasks {tasks}: there is no such folder."])
        try:
            return tasks_in(tasks)
        except DataError as error:
            raise ConfigError([f"--tasks: {error}"]) from error
    if support is None or query is None:
        raise ConfigError(["name labelled examples by --support and those to be predicted by --query, or use --tasks."])
    named = {"--support": support, "--query": query}
    if missing := [
        f"{name} {file}: there is no such file or folder." for name, file in named.items() if not file.exists()
    ]:
        raise ConfigError(missing)
    return {"": (support, query)}


def refuse_place(option: str, file: Path | None) -> None:
    """Raise ConfigError where no file can be, or one is that another predict did not write: a picture, a checkpoint."""
    if file is None:
        return
    if file.is_dir() or not file.absolute().parent.is_dir():
        why = "that is a folder" if file.is_dir() else f"there is no folder {file.absolute().parent}"
        raise ConfigError([f"{option} {file}: {why}; name a file."])
    if str(file) == "-" or (file.exists() and not file.is_file()):
        raise ConfigError([f"{option} {file}: that is no regular file, and nothing else is written; name a file."])
    ours = _is_phi if option == "--save-phi" else _is_table
    if file.exists() and file.stat().st_size and not ours(file):
        rule = "that file holds something else, which would be lost; name another, or delete it."
        raise ConfigError([f"{option} {file}: {rule}"])


def _is_table(file: Path) -> bool:
    """Whether it begins as a table of predictions, also where a spreadsheet saved it: BOM, quotes, other separators."""
    with file.open("rb") as content:
        return bool(re.match(rb'(\xef\xbb\xbf)?("?task"?[,;\t])?"?item"?[,;\t]', content.read(20)))


def _is_phi(file: Path) -> bool:
    try:
        return {*torch.load(file, map_location="cpu", weights_only=True)} == {"run", "step", "tasks"}
    except (OSError, RuntimeError, ValueError, TypeError, EOFError, pickle.UnpicklingError):
        return False


def _refuse_overwriting(written: Mapping[str, Path | None], examples: Sequence[Path]) -> None:
    """Raise ConfigError where a file that is written is one of the examples, or written twice."""
    taken = {file.resolve(): "holds examples that are read" for file in examples}
    for option, file in written.items():
        if file is None:
            continue
        if file.resolve() in taken:
            raise ConfigError([f"{option} {file}: that file {taken[file.resolve()]}; name another."])
        taken[file.resolve()] = f"is that of {option}"


def _predicted(model: Model, places: Mapping[str, tuple[Path, Path]]) -> dict[str, Prediction]:
    """The predictions of every task. Raises ConfigError with all that is wrong with their examples."""
    predictions: dict[str, Prediction] = {}
    problems: list[str] = []
    for name, (support, query) in places.items():
        try:
            predictions[name] = predicted(model, support, query)
        except (DataError, MissingDataError) as error:
            of = f"{name}: " * bool(name)
            problems += [of + said for said in (error.problems if isinstance(error, DataProblems) else [str(error)])]
    if problems:
        raise ConfigError(problems, where="the examples")
    return predictions


def _tell(predictions: Mapping[str, Prediction]) -> None:
    """Say what each model was adapted to, and the scores where labels are given."""
    every = [*predictions.values()]
    if len(every) == 1:
        one, count = every[0], len(every[0].columns["item"])
        classes = f" of {len(one.adapted.classes_)} classes" if isinstance(one.adapted, AdaptedClassifier) else ""
        print(f"adapted to {one.num_shots} examples{classes}; predicted {count}")
        for name, score in one.scores.items():
            others = " and are not in the support" * bool(one.num_seen)
            print(f"{name}: {score:.4g}, over the {one.num_scored} queries that have a label{others}")
        return
    print(f"adapted to {len(every)} tasks; predicted {sum(len(one.columns['item']) for one in every)}")
    scored = [one for one in every if one.scores]
    for name in scored[0].scores if scored else ():
        mean, ci95, n = estimate(torch.tensor([one.scores[name] for one in scored]))
        if 0 < ci95 < math.inf:
            print(f"{name}: {mean:.4g} +- {ci95:.2g}, mean and 95% CI over {n} tasks that have labels")
        else:
            why = "1 task has labels" if n == 1 else f"the {n} tasks that have labels score the same"
            print(f"{name}: {mean:.4g}; the interval over other tasks is unknown, for {why}")


def _phi_of(model: Model, predictions: Mapping[str, Prediction]) -> bytes:
    """All phi as torch.load(..., weights_only=True) reads them: by task, with the names of the classes."""
    content: dict[str, Any] = {"run": str(model.run.folder.path), "step": model.run.step, "tasks": {}}
    for name, one in predictions.items():
        classes = [str(c) for c in one.adapted.classes_] if isinstance(one.adapted, AdaptedClassifier) else None
        content["tasks"][name] = {"phi": one.adapted.phi, "classes": classes}
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def _write(content: Mapping[Path, bytes]) -> None:
    """Write all files. Raises ConfigError where the disk refuses one, with those that are written by then."""
    written = ""
    for file, new in content.items():
        try:
            write_atomically(file, new)
        except OSError as error:
            raise ConfigError([f"{file} cannot be written: {error.strerror}.{written}"]) from error
        written = f" {file} is written."
