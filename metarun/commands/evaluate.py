"""``metarun evaluate RUN [overrides]``: the final test of a finished run, under other conditions."""

import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from rich.table import Table

from metarun.applied.trained import trained
from metarun.config.compose import read_config
from metarun.config.experiment import Experiment
from metarun.core import hyperparameters
from metarun.errors import ConfigError, refuse_divergence
from metarun.evaluation.calibration import calibrated
from metarun.evaluation.estimates import Estimate
from metarun.evaluation.scoring import Complexity, evaluate_all
from metarun.evaluation.suite import Suite
from metarun.output.folder import short_hash, slug
from metarun.output.report import results
from metarun.output.summary import condensed, conditions, verdict
from metarun.output.terminal import table_console


def evaluate_run(path: Path, overrides: list[str], split: str, checkpoint: str, config_dirs: list[Path]) -> None:
    """Evaluate, print a table, and write ``evaluations/<name>.json`` in the run's folder; nothing else there changes."""
    if split not in ("train", "val", "test"):
        raise ConfigError([f"--split is {split!r}; use train, val or test."])
    run = trained(path, overrides, checkpoint, config_dirs)
    experiment, started = _for_split(run.experiment, split), time.time()
    experiment.suite.require(split)
    subject = experiment.subject(run.theta, split, experiment.num_test_tasks, run.execution)
    with calibrated(experiment.learner, run.theta, run.training_task, run.execution):
        scores = evaluate_all(experiment.suite, subject, experiment.evaluators, final=True)
    means = {f"{split}/{name}": score.mean for name, score in scores.items() if "_step_" not in name}
    refuse_divergence(means, run.step, experiment.seed)
    complexity = Complexity().estimates(subject.on(experiment.suite.first))
    source = {"checkpoint": checkpoint, "checkpoint_step": run.step, "split": split}
    content = results(experiment, scores, complexity, source) | {"overrides": overrides, "argv": sys.argv}
    title = f"{split}: mean and 95% CI over {experiment.num_test_tasks} episodes"
    show(title, ("metric", "mean"), {f"{split}/{name}": score for name, score in condensed(scores).items()}, digits=4)
    training: Any = OmegaConf.to_container(read_config(run.folder.path / "config.yaml").task)
    for line in conditions(experiment, split, training) + verdict(experiment, scores):
        print(line)
    where = run.write(name_of(overrides, split, checkpoint), {**content, "seconds": time.time() - started})
    print(f"results: {where}")


def _for_split(experiment: Experiment, split: str) -> Experiment:
    """The experiment as it is for validation and test; for training tasks with these alone, and the ways that they have."""
    if split != "train":
        return experiment
    flexible = "num_ways" in hyperparameters(experiment.test_learner)
    ways = {"num_ways": experiment.task.spec.train_num_ways} if flexible else {}
    learner = replace(experiment.test_learner, **ways)  # type: ignore[type-var]
    return replace(experiment, suite=Suite(experiment.suite.own._replace(learner=learner), {}))


def name_of(overrides: list[str], *words: str) -> str:
    """A name for an evaluation, and a hash of all that makes it what it is."""
    return f"{slug('_'.join([*words, *overrides]))}-{short_hash(*words, sorted(overrides))}"


def show(title: str, columns: tuple[str, str], scores: dict[str, Estimate], digits: int) -> None:
    """Print a table of the scores with their intervals, as wide as the terminal."""
    table = Table(*columns, "+-", title=title)
    for name, (mean, ci95, _) in scores.items():
        table.add_row(name, f"{mean:.{digits}f}", f"{ci95:.{digits}f}")
    table_console(100).print(table)
