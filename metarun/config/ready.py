"""A run that can begin: built, with its data, its splits and the packages that it needs."""

from typing import Any

from omegaconf import DictConfig

from metarun.config.build import build
from metarun.config.checks import missing_packages
from metarun.config.experiment import Experiment
from metarun.errors import ConfigError
from metarun.evaluation.suite import missing


def ready(cfg: DictConfig, fitted: dict[str, Any] | None = None) -> Experiment:
    """Build the experiment; raises ConfigError with everything that keeps it from being trained, validated and tested."""
    experiment = build(cfg, fitted)
    if problems := missing("task", experiment.task, ["train"]) + missing_packages(experiment.loggers):
        raise ConfigError(problems)
    experiment.suite.require("val", "test")
    return experiment
