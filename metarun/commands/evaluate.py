"""``metarun evaluate RUN [overrides]``: the final test of a finished run, under other conditions."""

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from rich.table import Table

from metarun.config.build import build, build_task
from metarun.config.calls import GROUPS
from metarun.config.compose import composed, override_key, read_config, readable, with_value, without_effect
from metarun.config.experiment import Experiment
from metarun.config.overrides import given_twice
from metarun.core import Params, TaskDistribution, hyperparameters
from metarun.errors import ConfigError, MetarunError, refuse_divergence
from metarun.evaluation.calibration import calibrated, calibrates
from metarun.evaluation.estimates import Estimate
from metarun.evaluation.intervals import Over
from metarun.evaluation.suite import Suite
from metarun.evaluation.whole import Evaluation, evaluate_all
from metarun.execution.choice import Choice
from metarun.execution.execution import Execution
from metarun.files import write_json
from metarun.output.checkpoint import load
from metarun.output.cost import cost_of_evaluation
from metarun.output.folder import RunFolder, place, short_hash, slug
from metarun.output.results import results, write_results
from metarun.output.summary import NOWHERE, condensed, conditions, verdict
from metarun.output.tables import table_console
from metarun.paths import as_shown
from metarun.trees import leaf_names, tree_leaves, zip_map

CHANGEABLE = ("task", "base_learner", "meta_learner", "evaluation", "execution", "device", "data_root", "seed", "dtype")


@dataclass(frozen=True)
class Trained:
    """A finished run again: its objects under the overrides, and the theta of a checkpoint."""

    folder: RunFolder
    experiment: Experiment
    training_task: TaskDistribution  # whose batch norms' statistics an evaluation takes
    theta: Params
    step: int  # of the checkpoint
    execution: Execution

    def write(self, name: str, content: dict[str, Any], evaluation: Evaluation | None = None) -> Path:
        """Write ``content`` as evaluations/<name>.json in the run's folder, with the scores of each episode of an
        ``evaluation`` beside it; returns where it is."""
        where = self.folder.path / "evaluations" / f"{name}.json"
        try:
            where.parent.mkdir(exist_ok=True)
            if evaluation is None:
                write_json(where, content)
            else:
                write_results(where, content, evaluation)
        except OSError as error:
            raise MetarunError(f"the scores above could not be written to {where}: {error.strerror}.") from error
        return where


def trained(path: Path, overrides: list[str], checkpoint: str, config_dirs: list[Path]) -> Trained:
    """The run in ``path`` with ``overrides``; raises ConfigError where there is none, or they do not fit."""
    folder = RunFolder(place(str(path), "RUN"))
    if not folder.holds_a_run:
        raise ConfigError([f"{folder.path} holds no run (no config.yaml)."])
    if checkpoint not in ("best", "last"):
        raise ConfigError([f"--checkpoint is {checkpoint!r}; use best or last."])
    fitted = folder.fitted()
    cfg = changed(read_config(folder.path / "config.yaml"), overrides, config_dirs)
    try:
        experiment = build(cfg, fitted)
    except ConfigError as error:
        if overrides:
            raise
        raise ConfigError(error.problems, where=str(folder.path / "config.yaml")) from error
    roots = {override_key(text).split(".")[0] for text in overrides}
    if "task" in roots and not fitted and experiment.task.fitted():
        print(f"{folder.path} has no fitted.json: means, deviations and vocabulary are those of the data as given now.")
    if not roots & {"task", "seed", "dtype"}:
        data = {"data": experiment.task.fingerprint()}
        folder.refuse_other_data(data, "Restore them, or name the data: task.path=FILE, say.")
    state = load(folder.checkpoints / f"{checkpoint}.pt", experiment.device)
    theta = _fitted(experiment.theta_0, state["theta"], folder.checkpoints / f"{checkpoint}.pt")
    training_task = _training_task(experiment, folder, overrides)
    return Trained(folder, experiment, training_task, theta, state["step"], _execution(experiment, folder, overrides))


def evaluate_run(path: Path, overrides: list[str], split: str, checkpoint: str, config_dirs: list[Path]) -> None:
    """Evaluate, print a table, and write ``evaluations/<name>.json`` in the run's folder; nothing else there changes."""
    if split not in ("train", "val", "test"):
        raise ConfigError([f"--split is {split!r}; use train, val or test."])
    run = trained(path, overrides, checkpoint, config_dirs)
    experiment, started = _for_split(run.experiment, split), time.time()
    experiment.suite.require(split)
    subject = experiment.subject(run.theta, split, experiment.num_test_tasks, run.execution)
    with calibrated(experiment.learner, run.theta, run.training_task, run.execution):
        evaluation = evaluate_all(experiment.suite, subject, experiment.evaluators, final=True)
    scores = evaluation.scores
    means = {f"{split}/{name}": score.mean for name, score in scores.items() if "_step_" not in name}
    refuse_divergence(means, run.step, experiment.seed)
    source = {"checkpoint": checkpoint, "checkpoint_step": run.step, "split": split}
    content = results(experiment, evaluation, cost_of_evaluation(experiment, subject), source)
    content |= {"overrides": overrides, "argv": sys.argv}
    title = f"{split}: mean and 95% CI over {experiment.num_test_tasks} episodes"
    shown = condensed(scores)
    over = {f"{split}/{name}": evaluation.over[name] for name in shown if name in evaluation.over}
    show(title, ("metric", "mean"), {f"{split}/{name}": score for name, score in shown.items()}, digits=4, over=over)
    training: Any = OmegaConf.to_container(read_config(run.folder.path / "config.yaml").task)
    for line in conditions(experiment, split, training) + verdict(experiment, scores, run.step):
        print(line)
    content |= {"seconds": time.time() - started}
    where = run.write(name_of(overrides, split, checkpoint), content, evaluation)
    print(f"results: {as_shown(where)}")


def _for_split(experiment: Experiment, split: str) -> Experiment:
    """The experiment as it is for validation and test; for training tasks with these alone, and the ways that they have."""
    if split != "train":
        return experiment
    flexible = "num_ways" in hyperparameters(experiment.test_learner)
    ways = {"num_ways": experiment.task.spec.train_num_ways} if flexible else {}
    learner = replace(experiment.test_learner, **ways)  # type: ignore[type-var]
    return replace(experiment, suite=Suite(experiment.suite.own._replace(learner=learner), {}))


def changed(cfg: DictConfig, overrides: list[str], config_dirs: list[Path]) -> DictConfig:
    """The run's own configuration with ``overrides``: values by key, whole groups by name."""
    problems = without_effect(overrides) + given_twice(readable(overrides))
    groups = (*GROUPS, "evaluation.task")
    for text in sorted(overrides, key=lambda text: text.partition("=")[0] not in groups):  # groups decide on the keys
        try:
            key = override_key(text)
            root = key.split(".")[0]
            if root not in CHANGEABLE and root in cfg:
                changeable = ", ".join(CHANGEABLE)
                problems.append(f"{text}: an evaluation can change {changeable}; for another {root} train another run.")
            elif key in groups or text.startswith("+evaluation.evaluator."):
                chosen = OmegaConf.select(composed([text], config_dirs), key)
                OmegaConf.update(cfg, key, chosen, merge=False, force_add=True)
            else:
                cfg = with_value(cfg, text)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return cfg


def _training_task(experiment: Experiment, folder: RunFolder, overrides: list[str]) -> TaskDistribution:
    """The task under the overrides; that of the run as it was trained, where those leave no training classes and the
    learner needs some for its batch norms."""
    if "train" in experiment.task.splits or not calibrates(experiment.learner):
        return experiment.task
    place = [text for text in overrides if override_key(text) in ("device", "data_root", "dtype")]
    return build_task(changed(read_config(folder.path / "config.yaml"), place, []))


def _execution(experiment: Experiment, folder: RunFolder, overrides: list[str]) -> Execution:
    """The execution that the run chose, or another if ``overrides`` ask for it, with torch's threads set for it."""
    choice = Choice(experiment.execution, threads=experiment.execution.num_threads)
    if not any(override_key(text).split(".")[0] == "execution" for text in overrides):
        choice = Choice.read(folder.path / "execution.json", like=experiment.execution)
    torch.set_num_threads(choice.threads)
    return choice.execution


def _fitted(fresh: Params, saved: Params, path: Path) -> Params:
    """The theta saved in ``path`` in the dtype of a ``fresh`` one; raises ConfigError unless it has its names and shapes."""
    need, have = [
        [(name, tuple(leaf.shape)) for name, leaf in zip(leaf_names(tree), tree_leaves(tree), strict=True)]
        for tree in (fresh, saved)
    ]
    if need != have:
        a, b = next(((n, h) for n, h in zip(need, have, strict=False) if n != h), (len(need), len(have)))
        raise ConfigError(
            [f"the run's parameters do not fit: {a} is needed and {b} is in {path}. Keep ways and networks as trained."]
        )
    return zip_map(lambda old, new: old.to(new.dtype), saved, fresh)


def name_of(overrides: list[str], *words: str) -> str:
    """A name for an evaluation, and a hash of all that makes it what it is."""
    return f"{slug('_'.join([*words, *overrides]))}-{short_hash(*words, sorted(overrides))}"


def show(
    title: str,
    columns: tuple[str, str],
    scores: dict[str, Estimate],
    digits: int,
    over: Mapping[str, Over] = NOWHERE,
) -> None:
    """Print a table of the scores with their intervals, those over other classes or tasks too; as wide as the terminal."""
    kinds = sorted({value.kind for value in over.values()})
    table = Table(*columns, "+-", *(f"+- over {kind}" for kind in kinds), title=title)
    for name, (mean, ci95, _) in scores.items():
        wider = [over[name] if name in over and over[name].kind == kind else None for kind in kinds]
        cells = [f"{value.ci95:.{digits}f} ({value.number})" if value else "" for value in wider]
        cells = [cell.replace("nan", "unknown") for cell in cells]
        table.add_row(name, f"{mean:.{digits}f}", f"{ci95:.{digits}f}", *cells)
    table_console(100).print(table)
