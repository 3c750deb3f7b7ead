"""``metarun export RUN --to DIR``: weights, a program that adapts and predicts, a model card and an example."""

import io
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import yaml

from metarun.applied.adapted import OF_ALL_QUERIES
from metarun.applied.card import card_of, example_of, shareable
from metarun.applied.exporting import Inputs, NoProgram, flat_tensors, program_of
from metarun.applied.model import Model, model_of
from metarun.applied.trained import trained
from metarun.core import FewShotLearner, Params
from metarun.errors import ConfigError, DataError, DataProblems, MissingDataError
from metarun.files import read_json
from metarun.output.folder import FITTED
from metarun.training.signals import StopRequest
from metarun.trees import slice_tasks

TITLES = {
    "theta": "what was meta-trained, by the names of its parts",
    "phi": "theta adapted to the support that was given",
    "program.pt2": "adapting and predicting as one program: torch.export.load needs no metarun",
    "example.py": "how the program is used, in about 20 lines",
    "episode.npz": "the support and the queries that were given, as the program takes them",
    "config.yaml": "all settings of the training, files by their bare names",
    FITTED: "what was fitted on the training tasks: means and deviations, or a vocabulary",
}


def export_run(
    path: Path,
    overrides: list[str],
    to: Path,
    support: Path | None,
    query: Path | None,
    checkpoint: str,
    config_dirs: list[Path],
) -> None:
    """Write the files and say which; the folder is there whole, or not at all."""
    if query is not None and support is None:
        raise ConfigError(["--query goes with --support: name labelled examples, too."])
    with _new_folder(to) as folder:
        model = model_of(trained(path, overrides, checkpoint, config_dirs))
        learner, inputs, classes = _inputs(model, support, query)
        _write_weights(folder / "theta", model.run.theta, {"step": str(model.run.step)})
        if support is not None:
            adapted = model.computed(learner.adapt, model.run.theta, inputs.support)
            _write_weights(folder / "phi", adapted, {"classes": json.dumps(classes)})
            support_x, support_y, query_x = (v.cpu().numpy() for v in (*inputs.support[:2], inputs.query_x))
            np.savez(folder / "episode.npz", support_x=support_x, support_y=support_y, query_x=query_x)
        _write_program(folder, model, learner, inputs, classes)
        config = yaml.safe_load((model.run.folder.path / "config.yaml").read_text(encoding="utf-8"))
        (folder / "config.yaml").write_text(yaml.safe_dump(shareable(config), sort_keys=False), encoding="utf-8")
        if (model.run.folder.path / FITTED).is_file():
            shutil.copyfile(model.run.folder.path / FITTED, folder / FITTED)
        _write_card(folder, model)
        names = sorted(file.name for file in folder.iterdir())
    for name in names:
        print(f"{to / name}")


@contextmanager
def _new_folder(to: Path) -> Iterator[Path]:
    """A folder that becomes ``to`` when all of it is written, and goes where a signal stops that. Raises ConfigError where
    there is one with files, and Interrupted."""
    if to.exists() and not (to.is_dir() and not any(to.iterdir())):
        raise ConfigError([f"--to {to}: that is there already; name a new folder."])
    partial = to.absolute().with_name(f".{to.name}.{os.getpid()}.partial")
    stop = StopRequest()
    stop.last_words = lambda signum: shutil.rmtree(partial, ignore_errors=True)
    try:
        with stop.listening(), stop.breakable():
            partial.mkdir(parents=True)
            yield partial
        if to.exists():
            to.rmdir()
        partial.rename(to)
    except OSError as error:
        raise ConfigError([f"--to {to}: it cannot be written: {error.strerror}."]) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _inputs(model: Model, support: Path | None, query: Path | None) -> tuple[FewShotLearner, Inputs, list[str] | None]:
    """The learner, and what its program is made for: the examples of the user, or those of the first test episode."""
    if support is None:
        episode = slice_tasks(model.run.experiment.task.sample("test", [0]), 0)
        ways = model.run.experiment.task.spec.num_ways
        return model.learner, Inputs(episode.support, episode.query.x, ways), None
    try:
        given = model.reader.read(support, labelled=True)
        learner, batch, classes = model.task_of(given.x, given.labels)
        asked = batch.x if query is None else model.reader.read(query, labelled=False).x
    except (DataError, MissingDataError) as error:
        problems = error.problems if isinstance(error, DataProblems) else [str(error)]
        raise ConfigError(problems, where="the examples") from error
    names = None if classes is None else [str(name) for name in classes]
    return learner, Inputs(batch, asked, None if names is None else len(names)), names


def _write_weights(path: Path, tree: Params, facts: dict[str, str]) -> None:
    """As safetensors, or where that is not installed as a file of torch, with a message."""
    tensors = flat_tensors(tree)
    if find_spec("safetensors") is None:
        torch.save(tensors, path.with_suffix(".pt"))
        print(f"{path.name}.pt is a file of torch: for safetensors pip install 'metarun[export]'.")
        return
    from safetensors.torch import save

    path.with_suffix(".safetensors").write_bytes(save(tensors, {"format": "pt", **facts}))


def _write_program(
    folder: Path, model: Model, learner: FewShotLearner, inputs: Inputs, classes: list[str] | None
) -> None:
    """The program and its example; a line says why where there is none."""
    try:
        program = program_of(model, learner, inputs)
    except NoProgram as error:
        print(f"no program.pt2 and no example.py: {error}.")
        return
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    (folder / "program.pt2").write_bytes(buffer.getvalue())
    (folder / "example.py").write_text(example_of(model, inputs, classes), encoding="utf-8")
    print(f"program.pt2: {len(inputs.support.x)} support examples, {len(inputs.query_x)} queries at a time")
    if model.looks_at_all_queries:
        print(f"{OF_ALL_QUERIES} Export with a --query of as many as you will ask.")


def _write_card(folder: Path, model: Model) -> None:
    try:
        results = read_json(model.run.folder.path / "results.json")
    except ValueError:
        results = {}
    named = {file.name: TITLES.get(file.name, TITLES.get(file.stem, "")) for file in sorted(folder.iterdir())}
    (folder / "README.md").write_text(card_of(model, results, named), encoding="utf-8")
