"""A run that can begin: built, with its data, its splits and the packages that it needs."""

from collections.abc import Collection
from typing import Any

from omegaconf import DictConfig, OmegaConf

from metarun.config.apart import taken_apart
from metarun.config.build import build
from metarun.config.calls import named_nodes
from metarun.config.checks import length_problems, missing_packages
from metarun.config.experiment import Experiment
from metarun.errors import ConfigError
from metarun.evaluation.shots import too_large
from metarun.evaluation.suite import Suite, missing
from metarun.tasks.splits import by_shares


def ready(cfg: DictConfig, fitted: dict[str, Any] | None = None, begun: bool = False) -> Experiment:
    """Build the experiment; raises ConfigError with everything that keeps it from being trained, validated and tested.

    ``begun``: the run has begun with these settings, so that one without effect stays.
    """
    experiment = build(cfg, fitted)
    problems = missing("task", experiment.task, ["train"]) + missing_packages(experiment.loggers)
    problems += [] if begun else lot_problems(cfg) + taken_apart(experiment)
    problems += length_problems(experiment.scheduler, experiment.optimizer, experiment.steps)
    if problems:
        raise ConfigError(problems)
    experiment.suite.require("val", "test")
    if problems := size_problems(experiment):
        raise ConfigError(problems)
    return experiment


def lot_problems(cfg: DictConfig, given: Collection[str] | None = None) -> list[str]:
    """What is wrong with seeds of the lot of classes, of training or evaluation tasks, where no lot is drawn.

    ``given``: the keys that are looked at; else all, but for seeds that are the training task's and may be inherited.
    """
    plain: Any = OmegaConf.to_container(cfg)
    problems = []
    for place, task in ({"task": plain["task"]} | named_nodes(plain, "task")).items():
        key, seed, decides = f"{place}.split_seed", (task or {}).get("split_seed"), not_by_lot(task or {})
        inherited = place != "task" and seed == plain["task"].get("split_seed")
        if seed and decides and (not inherited if given is None else key in given):
            rule = f"for {place}.{decides} says which classes are in which split"
            problems.append(f"{key}={seed} has no effect, {rule}. Leave it out.")
    return problems


def not_by_lot(task: Any) -> str:
    """The setting of a task's node that says which classes are in which split; empty where a lot does."""
    if not by_shares(task.get("split")):
        return "split"
    return next((name for name in ("split_column", "val_tasks") if task.get(name)), "")


def size_problems(experiment: Experiment) -> list[str]:
    """What the learner says against the largest episodes that the run will train, validate and test it on."""
    suite = experiment.suite
    problems = too_large(Suite(suite.own._replace(learner=experiment.learner), {}), "train", together=True)
    problems += too_large(suite, "val")
    return problems + (too_large(suite, "test", experiment.evaluators) if experiment.num_test_tasks else [])
