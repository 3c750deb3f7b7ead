"""A run that can begin: built, with its data, its splits and the packages that it needs."""

from typing import Any

from omegaconf import DictConfig

from metarun.config.build import build
from metarun.config.checks import length_problems, missing_packages
from metarun.config.experiment import Experiment
from metarun.errors import ConfigError
from metarun.evaluation.shots import too_large
from metarun.evaluation.suite import Suite, missing


def ready(cfg: DictConfig, fitted: dict[str, Any] | None = None) -> Experiment:
    """Build the experiment; raises ConfigError with everything that keeps it from being trained, validated and tested."""
    experiment = build(cfg, fitted)
    problems = missing("task", experiment.task, ["train"]) + missing_packages(experiment.loggers)
    problems += length_problems(experiment.scheduler, experiment.optimizer, experiment.steps)
    if problems:
        raise ConfigError(problems)
    experiment.suite.require("val", "test")
    if problems := size_problems(experiment):
        raise ConfigError(problems)
    return experiment


def size_problems(experiment: Experiment) -> list[str]:
    """What the learner says against the largest episodes that the run will train, validate and test it on."""
    suite = experiment.suite
    problems = too_large(Suite(suite.own._replace(learner=experiment.learner), {}), "train", together=True)
    problems += too_large(suite, "val")
    return problems + (too_large(suite, "test", experiment.evaluators) if experiment.num_test_tasks else [])
