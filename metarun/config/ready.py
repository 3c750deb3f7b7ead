"""A run that can begin: built, with its data, its splits and the packages that it needs."""

from typing import Any

from omegaconf import DictConfig, OmegaConf

from metarun.config.build import build
from metarun.config.checks import length_problems, missing_packages
from metarun.config.experiment import Experiment
from metarun.errors import ConfigError
from metarun.evaluation.shots import too_large
from metarun.evaluation.suite import Suite, missing
from metarun.tasks.splits import by_shares


def ready(cfg: DictConfig, fitted: dict[str, Any] | None = None) -> Experiment:
    """Build the experiment; raises ConfigError with everything that keeps it from being trained, validated and tested."""
    experiment = build(cfg, fitted)
    problems = missing("task", experiment.task, ["train"]) + missing_packages(experiment.loggers)
    problems += lot_problems(cfg.task)
    problems += length_problems(experiment.scheduler, experiment.optimizer, experiment.steps)
    if problems:
        raise ConfigError(problems)
    experiment.suite.require("val", "test")
    if problems := size_problems(experiment):
        raise ConfigError(problems)
    return experiment


def lot_problems(node: Any) -> list[str]:
    """What is wrong with a seed of the lot of classes where no lot is drawn."""
    task: Any = OmegaConf.to_container(node)
    seed = task.get("split_seed")
    if not seed or by_shares(task.get("split")):
        return []
    return [
        f"task.split_seed={seed} has no effect, for task.split says which classes are in which split. Leave it out."
    ]


def size_problems(experiment: Experiment) -> list[str]:
    """What the learner says against the largest episodes that the run will train, validate and test it on."""
    suite = experiment.suite
    problems = too_large(Suite(suite.own._replace(learner=experiment.learner), {}), "train", together=True)
    problems += too_large(suite, "val")
    return problems + (too_large(suite, "test", experiment.evaluators) if experiment.num_test_tasks else [])
