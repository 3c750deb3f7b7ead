"""A finished run again: the one way in which every command, and Python, loads it.

Its configuration under the caller's overrides is built, with what its task fitted on the training tasks, and a checkpoint
is put in the place of theta.
"""

import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from metarun.config.build import build, build_task
from metarun.config.calls import GROUPS
from metarun.config.compose import composed, override_key, read_config, readable, with_value
from metarun.config.elsewhere import inheriting, keys_of_tasks, option_trained_on, without_effect
from metarun.config.experiment import Experiment
from metarun.config.networks import foreign_networks
from metarun.config.overrides import given_twice
from metarun.config.probe import networks_of
from metarun.config.ready import lot_problems
from metarun.core import MetaLearner, Params, TaskDistribution, frozen, hyperparameters
from metarun.errors import ConfigError, MetarunError
from metarun.evaluation.calibration import calibrated, calibrates
from metarun.evaluation.whole import Evaluation
from metarun.execution.choice import Choice
from metarun.execution.execution import Execution
from metarun.files import write_json
from metarun.output.checkpoint import load
from metarun.output.folder import RunFolder, place
from metarun.output.results import write_results
from metarun.trees import leaf_names, tree_leaves, zip_map

CHANGEABLE = ("task", "base_learner", "meta_learner", "evaluation", "execution", "device", "data_root", "seed", "dtype")
PLACE = ("device", "data_root", "dtype")  # keys that say where and how it is computed
# keys of what a run was trained on
OTHER_DATA = re.compile(r"task(\.path|\.split.*|\.(val|test)_(share|tasks)|\.train_fraction)?")


@dataclass(frozen=True)
class Trained:
    """A finished run again: its objects under the overrides, and the theta of a checkpoint."""

    folder: RunFolder
    experiment: Experiment
    training_task: TaskDistribution  # whose batch norms' statistics an evaluation takes
    theta: Params
    step: int  # of the checkpoint
    execution: Execution

    @property
    def training_learner(self) -> MetaLearner:
        """The learner with the ways of the ``training_task``."""
        learner, ways = self.experiment.learner, self.training_task.spec.train_num_ways
        return replace(learner, num_ways=ways) if "num_ways" in hyperparameters(learner) else learner  # type: ignore[type-var]

    def calibrated(self) -> AbstractContextManager[None]:
        """A context in which norms in mode ``running`` have the statistics that they have in the run's own final test."""
        return calibrated(self.training_learner, self.theta, self.training_task, self.execution)

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


def _checkpoint(folder: RunFolder, checkpoint: str) -> Path:
    """Where the checkpoint is; raises ConfigError where it is not there, with what brings it."""
    saved, other = (
        folder.checkpoints / f"{name}.pt" for name in (checkpoint, {"best": "last", "last": "best"}[checkpoint])
    )
    if saved.exists():
        return saved
    rule = "A run writes it at its first validation: let it go on, by metarun resume=RUN."
    if (folder.path / "results.json").is_file():  # a run that has ended had it, and cannot go on without it
        left = f"; --checkpoint {other.stem} takes the one that is left" if other.exists() else ""
        rule = f"It was removed after the run had ended: restore it{left}."
    state = folder.read_status()["state"]
    raise ConfigError([f"there is no checkpoint {saved} (the run's state: {state}). {rule}"])


def trained(path: Path, overrides: list[str], checkpoint: str, config_dirs: list[Path]) -> Trained:
    """The run in ``path`` with ``overrides``; raises ConfigError where there is none, or they do not fit."""
    folder = RunFolder(place(str(path), "RUN"))
    if not folder.holds_a_run:
        raise ConfigError([f"{folder.path} holds no run (no config.yaml)."])
    if checkpoint not in ("best", "last"):
        raise ConfigError([f"--checkpoint is {checkpoint!r}; use best or last."])
    fitted = folder.fitted()
    cfg = changed(read_config(folder.path / "config.yaml"), overrides, config_dirs, folder.overrides())
    saved = _checkpoint(folder, checkpoint)
    try:
        experiment = build(cfg, fitted)
    except ConfigError as error:
        if overrides:
            raise
        raise ConfigError(error.problems, where=str(folder.path / "config.yaml")) from error
    roots = {override_key(text).split(".")[0] for text in overrides}
    if "task" in roots and not fitted and experiment.task.fitted():
        print(
            f"{folder.path} has no fitted.json: means, vocabulary or ranges of images are those of the data as given now."
        )
    if not roots & {"task", "seed", "dtype"}:
        data = {"data": experiment.task.fingerprint()}
        folder.refuse_other_data(
            data, "Restore them, or score new data, all of them as test: task.path=NEW 'task.split={test: all}'"
        )
    if roots & {"seed", "task"}:
        _take_what_theta_lacks(experiment.learner, cfg, folder, overrides)
    state = load(saved, experiment.device)
    theta = _fitted(experiment.theta_0, state["theta"], saved)
    training_task = _training_task(experiment, folder, overrides)
    return Trained(folder, experiment, training_task, theta, state["step"], _execution(experiment, folder, overrides))


def changed(
    cfg: DictConfig, overrides: list[str], config_dirs: list[Path], began_with: Sequence[str] = ()
) -> DictConfig:
    """The run's own configuration with ``overrides``: values by key, whole groups by name.

    ``began_with``: the run's own overrides, which say what option of the group ``task`` it was trained on.
    """
    said, training = readable(overrides), OmegaConf.to_container(cfg.task)
    problems = given_twice(said)
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
    if problems := problems + without_effect(cfg, said):
        raise ConfigError(problems)
    cfg = inheriting(cfg, training, option_trained_on(readable([*began_with]), training), said)
    if problems := lot_problems(cfg, keys_of_tasks(said)):
        raise ConfigError(problems)
    return cfg


def _training_task(experiment: Experiment, folder: RunFolder, overrides: list[str]) -> TaskDistribution:
    """The task under the overrides; where those name other data or classes and the learner has batch norms that need
    training tasks, that of the run as it was trained. If its data are gone the training classes of the others must do."""
    if not any(OTHER_DATA.fullmatch(override_key(text)) for text in overrides) or not calibrates(experiment.learner):
        return experiment.task
    try:
        return build_task(_as_begun(folder, overrides))
    except ConfigError as error:
        if "train" not in experiment.task.splits:
            raise
        reason = f"what the run was trained on cannot be read ({error.problems[0]})"
        print(f"running batch norms take the statistics of the training classes as given now, for {reason}")
        return experiment.task


def _as_begun(folder: RunFolder, overrides: list[str]) -> DictConfig:
    """The run's configuration as it was trained, computed where and how the ``overrides`` say."""
    place = [text for text in overrides if override_key(text) in PLACE]
    return changed(read_config(folder.path / "config.yaml"), place, [])


def _take_what_theta_lacks(learner: MetaLearner, cfg: DictConfig, folder: RunFolder, overrides: list[str]) -> None:
    """Give the networks the frozen parameters and buffers that theta was trained beside: no checkpoint holds them, and under
    another seed or number of classes a constructor draws others. If its data are gone, those of the run's seed must do."""
    if not _beside_theta(learner):
        return
    began = _as_begun(folder, overrides)
    try:
        own = build(began, folder.fitted())
    except ConfigError:
        own = build(with_value(cfg, f"seed={began.seed}"), folder.fitted())
    held = _beside_theta(own.learner)
    for name, tensor in _beside_theta(learner).items():
        if name in held and held[name].shape == tensor.shape:
            tensor.data.copy_(held[name])


def _beside_theta(learner: MetaLearner) -> dict[str, Tensor]:
    """The frozen parameters and the buffers of networks that metarun has not made, by name; norms' statistics are empty
    here. In metarun's own all of them are constants."""
    named: dict[str, Tensor] = {}
    for key in foreign_networks(learner):
        net = networks_of(learner)[key]
        named |= {f"{key}.{name}": tensor for name, tensor in [*frozen(net).items(), *net.named_buffers()]}
    return {name: tensor for name, tensor in named.items() if tensor.numel()}


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
