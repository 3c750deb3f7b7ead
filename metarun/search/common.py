"""What all trials of a search are scored on: one score, on the same validation episodes, of data that stay as they are."""

import hashlib
import json
from functools import cached_property
from typing import Any

from metarun.config.experiment import Experiment
from metarun.core import TaskDistribution
from metarun.errors import ConfigError
from metarun.evaluation.episodes import chunks_of
from metarun.trees import tree_leaves

RULE = "and trials are compared by their scores, so all are scored alike. Give one value to what changes"


class Common:
    """What the first of the experiments that it is shown is scored on; one that is scored on anything else is refused."""

    def __init__(self) -> None:
        self.first: Experiment | None = None
        self.data: dict[str, dict[str, Any]] = {}  # the names of the data, by the settings that they depend on

    def __call__(self, experiment: Experiment, config: dict[str, Any]) -> None:
        """Raise ConfigError where ``experiment``, made of ``config``, is not scored as the first one."""
        settings = _settings(config)
        if settings in self.data:
            return
        if self.first is None:
            self.first = experiment
        else:
            self._compare(self.first, experiment)
        self.data[settings] = experiment.suite.fingerprints()

    def _compare(self, first: Experiment, other: Experiment) -> None:
        (score, then), (name, now) = ((one.task.spec.objective.score_name, one.every) for one in (first, other))
        if score != name:
            raise ConfigError([f"the trials have different scores ({score}, {name}), {RULE} the task."])
        if then != now:
            raise ConfigError([f"a validation comes every {now} steps, not every {then}, {RULE} evaluation.every."])
        if self._episodes_of_first != episodes(other):
            said = "the validation episodes are not those of the other trials"
            raise ConfigError([f"{said}, {RULE} them; what training alone follows, as task.train_num_shots, may vary."])

    @cached_property
    def _episodes_of_first(self) -> str:
        assert self.first is not None
        return episodes(self.first)

    def objective(self) -> tuple[str, bool]:
        """The name of the score, and whether a higher one is better."""
        assert self.first is not None
        objective = self.first.task.spec.objective
        return objective.score_name, objective.higher_is_better

    def of(self, config: dict[str, Any]) -> dict[str, Any]:
        """The names of the data that a run of ``config`` reads; nothing where no such experiment was shown."""
        return self.data.get(_settings(config), {})

    def names(self) -> list[str]:
        """The names of all the data so far."""
        return sorted({name for data in self.data.values() for name in _texts(data)})


def episodes(experiment: Experiment) -> str:
    """A hash of the numbers in the validation episodes: equal hash, equal tasks, in equal units."""
    scored = {name: scored.task for name, scored in experiment.suite.elsewhere.items()} or {"": experiment.task}
    digest = hashlib.sha256()
    for name, task in scored.items():
        digest.update(name.encode())
        _add(digest, task, experiment.num_val_tasks)
    return digest.hexdigest()


def _add(digest: Any, task: TaskDistribution, num_tasks: int) -> None:
    for at, indices in chunks_of(task, "val", num_tasks):
        for leaf in tree_leaves(at.sample("val", indices)):
            values = leaf.float() if leaf.is_floating_point() else leaf  # so that dtype may vary
            digest.update(repr((values.dtype, tuple(values.shape))).encode() + values.cpu().numpy().tobytes())


def _settings(config: dict[str, Any]) -> str:
    """The settings on which episodes and their score depend, beside those that all trials share."""
    return json.dumps([config[name] for name in ("task", "evaluation", "dtype")], sort_keys=True, default=str)


def _texts(data: dict[str, Any]) -> list[str]:
    return [data["data"], *data.get("evaluation_data", {}).values()]
