"""``metarun evaluate RUN [overrides]``: the final test of a finished run, under other conditions."""

import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from rich.table import Table

from metarun.config.build import build
from metarun.config.calls import GROUPS
from metarun.config.compose import composed, override_key, read_config, readable, with_value, without_effect
from metarun.config.experiment import Experiment
from metarun.config.overrides import given_twice
from metarun.core import Params, hyperparameters
from metarun.errors import ConfigError, MetarunError, refuse_divergence
from metarun.evaluation.calibration import calibrated
from metarun.evaluation.estimates import Estimate
from metarun.evaluation.scoring import baseline_scores, complexity, evaluate_all
from metarun.evaluation.suite import Scored
from metarun.execution.choice import stored
from metarun.execution.execution import Execution
from metarun.files import write_json
from metarun.output.checkpoint import load
from metarun.output.folder import RunFolder, place, short_hash, slug
from metarun.output.report import condensed, results
from metarun.output.terminal import table_console
from metarun.trees import leaf_names, tree_leaves, zip_map

CHANGEABLE = ("task", "base_learner", "meta_learner", "evaluation", "execution", "device", "data_root", "seed", "dtype")


@dataclass(frozen=True)
class Trained:
    """A finished run again: its objects under the overrides, and the theta of a checkpoint."""

    folder: RunFolder
    x: Experiment
    theta: Params
    step: int  # of the checkpoint
    execution: Execution

    def write(self, name: str, content: dict[str, Any]) -> Path:
        """``content`` as evaluations/<name>.json in the run's folder; where it is."""
        where = self.folder.path / "evaluations" / f"{name}.json"
        try:
            where.parent.mkdir(exist_ok=True)
            write_json(where, content)
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
    cfg = changed(read_config(folder.path / "config.yaml"), overrides, config_dirs)
    try:
        x = build(cfg)
    except ConfigError as error:
        if overrides:
            raise
        raise ConfigError(error.problems, where=str(folder.path / "config.yaml")) from error
    if not any(override_key(text).split(".")[0] in ("task", "seed", "dtype") for text in overrides):
        folder.refuse_other_data({"data": x.task.fingerprint()}, "Restore them, or name the data: task.path=FILE, say.")
    state = load(folder.checkpoints / f"{checkpoint}.pt", x.device)
    theta = _fitted(x.learner.init(), state["theta"], folder.checkpoints / f"{checkpoint}.pt")
    return Trained(folder, x, theta, state["step"], _execution(x, folder, overrides))


def evaluate_run(path: Path, overrides: list[str], split: str, checkpoint: str, config_dirs: list[Path]) -> None:
    """Evaluate, print a table, and write ``evaluations/<name>.json`` in the run's folder; nothing else there changes."""
    if split not in ("train", "val", "test"):
        raise ConfigError([f"--split is {split!r}; use train, val or test."])
    run = trained(path, overrides, checkpoint, config_dirs)
    x, theta, execution = _for_split(run.x, split), run.theta, run.execution
    started = time.time()
    with calibrated(x.learner, theta, x.task, execution):
        scores = evaluate_all(x.scored, theta, split, x.num_test_tasks, execution, curve=True)
    refuse_divergence(
        {f"{split}/{name}": score.mean for name, score in scores.items() if "_step_" not in name}, run.step, x.seed
    )
    scores |= baseline_scores(x.scored, split, x.num_test_tasks, execution)
    first = next(iter(x.scored.values()))
    content = results(x, scores, split, {"checkpoint": checkpoint, "checkpoint_step": run.step})
    content |= {
        "complexity": complexity(first.learner, theta, first.task, split),
        "overrides": overrides,
        "argv": sys.argv,
    }
    _show(scores, split, x.num_test_tasks)
    where = run.write(name_of(overrides, split, checkpoint), {**content, "seconds": time.time() - started})
    print(f"results: {where}")


def _for_split(x: Experiment, split: str) -> Experiment:
    """``x`` as it is for validation and test; for training tasks with these alone, and the ways that they have."""
    if split != "train":
        return x
    flexible = "num_ways" in hyperparameters(x.test_learner)
    ways = {"num_ways": x.task.train_num_ways} if flexible else {}
    learner = replace(x.test_learner, **ways)  # type: ignore[type-var]
    return replace(x, scored={"": Scored(x.task, learner, x.protocol["task"])})


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
            elif key in GROUPS:
                cfg[key] = composed([text], config_dirs)[key]
            elif key == "evaluation.task":
                cfg.evaluation.task = composed([text], config_dirs).evaluation.task
            else:
                cfg = with_value(cfg, text)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(problems)
    return cfg


def _execution(x: Experiment, folder: RunFolder, overrides: list[str]) -> Execution:
    """The one that the run settled on, or another if ``overrides`` ask for it."""
    if not any(override_key(text).split(".")[0] == "execution" for text in overrides):
        return stored(folder.path / "execution.json", like=x.execution)
    if x.execution.threads != "auto":
        torch.set_num_threads(x.execution.threads)
    return x.execution


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


def _show(scores: dict[str, Estimate], split: str, num_tasks: int) -> None:
    table = Table(title=f"{split}: mean and 95% CI over {num_tasks} episodes")
    for column in ("metric", "mean", "+-"):
        table.add_column(column)
    for name, (mean, ci95, _) in condensed(scores).items():
        table.add_row(f"{split}/{name}", f"{mean:.4f}", f"{ci95:.4f}")
    table_console(100).print(table)
