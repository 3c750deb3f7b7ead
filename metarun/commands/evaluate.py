"""``metarun evaluate RUN [overrides]``: the final test of a finished run, under other conditions."""

import sys
import time
from collections.abc import Mapping
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
from metarun.evaluation.estimates import Estimate
from metarun.evaluation.intervals import Over
from metarun.evaluation.shots import too_large
from metarun.evaluation.suite import Suite
from metarun.evaluation.whole import evaluate_all
from metarun.output.cost import cost_of_evaluation
from metarun.output.figures import shots_curve
from metarun.output.folder import short_hash, slug
from metarun.output.results import results
from metarun.output.seen import kept, seen_in_training
from metarun.output.summary import NOWHERE, condensed, conditions, curves_over_shots, verdict
from metarun.output.tables import table_console
from metarun.paths import as_shown
from metarun.process import bounded_memory


def evaluate_run(path: Path, overrides: list[str], split: str, checkpoint: str, config_dirs: list[Path]) -> None:
    """Evaluate, print a table, and write ``evaluations/<name>.json`` in the run's folder; nothing else there changes."""
    if split not in ("train", "val", "test"):
        raise ConfigError([f"--split is {split!r}; use train, val or test."])
    run = trained(path, overrides, checkpoint, config_dirs)
    experiment, started = for_split(run.experiment, split), time.monotonic()
    if not experiment.num_test_tasks:
        raise ConfigError(["evaluation.num_tasks is 0: say how many episodes to score, evaluation.num_tasks=600, say."])
    experiment.suite.require(split)
    if problems := too_large(experiment.suite, split, experiment.evaluators):
        raise ConfigError(problems)
    subject = experiment.subject(run.theta, split, experiment.num_test_tasks, run.execution)
    with bounded_memory(experiment.device.type), run.calibrated():
        evaluation = evaluate_all(experiment.suite, subject, experiment.evaluators, final=True)
    scores = evaluation.scores
    decides = experiment.task.spec.objective.score_name  # another may be undefined, and is then told as null
    refuse_divergence({f"{split}/{decides}": scores[decides].mean}, run.step, experiment.seed)
    seen = seen_in_training(experiment.suite, split, run.folder.trained_on()) if split != "train" else []
    source = {"checkpoint": checkpoint, "checkpoint_step": run.step, "split": split} | kept(seen)
    content = results(experiment, evaluation, cost_of_evaluation(experiment, subject), source)
    content |= {"overrides": overrides, "argv": sys.argv}
    title = f"{split}: mean and 95% CI over {experiment.num_test_tasks} episodes"
    shown = condensed(scores)
    over = {f"{split}/{name}": evaluation.over[name] for name in shown if name in evaluation.over}
    show(title, ("metric", "mean"), {f"{split}/{name}": score for name, score in shown.items()}, digits=4, over=over)
    training: Any = OmegaConf.to_container(read_config(run.folder.path / "config.yaml").task)
    for line in seen + conditions(experiment, split, training) + verdict(experiment, evaluation, run.step):
        print(line)
    content |= {"seconds": time.monotonic() - started}
    where = run.write(name_of(overrides, split, checkpoint), content, evaluation)
    print(f"results: {as_shown(where)}")
    if curves := curves_over_shots(experiment, scores):
        drawn = where.with_suffix(".png")
        shots_curve(curves, scores).savefig(drawn, dpi=130)
        print(f"figure:  {as_shown(drawn)}")


def for_split(experiment: Experiment, split: str) -> Experiment:
    """The experiment as it is for validation and test; for training tasks with these alone, with the ways that they have,
    at full size and not augmented: a gap between the splits is then one between their tasks."""
    if split != "train":
        return experiment
    flexible = "num_ways" in hyperparameters(experiment.test_learner)
    ways = {"num_ways": experiment.task.spec.train_num_ways} if flexible else {}
    learner = replace(experiment.test_learner, **ways)  # type: ignore[type-var]
    own = experiment.suite.own._replace(task=experiment.task.for_evaluation(), learner=learner)
    return replace(experiment, suite=Suite(own, {}))


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
