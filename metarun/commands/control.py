"""``metarun control RUN``: a finished run's model, adapted to K transitions of an unknown system, plans its motion."""

import sys
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from metarun.applied.trained import trained
from metarun.commands.evaluate import name_of, show
from metarun.control.closed_loop import at_random, controlled
from metarun.control.planner import Model
from metarun.core import Episode, FewShotLearner, Params, hyperparameters
from metarun.drawing import returns
from metarun.errors import ConfigError
from metarun.evaluation.estimates import Estimate, estimate
from metarun.evaluation.eval_mode import eval_mode
from metarun.evaluation.scoring import Evaluator, Subject
from metarun.paths import as_shown
from metarun.tasks.system_identification import SystemIdentification
from metarun.trees import tree_leaves, tree_map

RANDOM, ORACLE = "random actions", "true dynamics (oracle)"


def control_run(
    path: Path, overrides: list[str], shots: str, num_tasks: int, checkpoint: str, config_dirs: list[Path]
) -> None:
    """Score, print a table, and write evaluations/control_*.json and .png in the run's folder."""
    numbers = numbers_in(shots)
    if num_tasks < 2:
        raise ConfigError([f"--tasks is {num_tasks}; an interval needs 2 or more."])
    run = trained(path, [*overrides, f"task.num_shots={max(1, *numbers)}"], checkpoint, config_dirs)
    experiment = run.experiment
    if not isinstance(experiment.task, SystemIdentification):
        kind = type(experiment.task).__name__
        raise ConfigError(
            [f"{run.folder.path} was trained on {kind}; control needs a task that is a mechanical system."]
        )
    started = time.monotonic()
    with run.calibrated():
        scores = ClosedLoop(numbers).estimates(experiment.subject(run.theta, "test", num_tasks, run.execution))
    show(f"return: mean and 95% CI over {num_tasks} systems", ("model after", "return"), scores, digits=1)
    content: dict[str, Any] = {"return": {name: score._asdict() for name, score in scores.items()}}
    source = {"checkpoint": checkpoint, "checkpoint_step": run.step, "split": "test"}
    content |= {"protocol": {**experiment.protocol, **source}}
    content |= {"overrides": overrides, "argv": sys.argv, "seconds": time.monotonic() - started}
    where = run.write(name_of(overrides, "control", shots, str(num_tasks), checkpoint), content)
    returns(scores, numbers, RANDOM, ORACLE).savefig(where.with_suffix(".png"), dpi=130)
    print(f"results: {as_shown(where)}\npicture: {as_shown(where.with_suffix('.png'))}")


def numbers_in(shots: str) -> list[int]:
    """The whole numbers in ``shots``, a text such as "0,1,3": ascending, each once. Raises ConfigError for others."""
    words = shots.split(",")
    if not all(word.strip().isdecimal() for word in words):
        raise ConfigError([f"--shots is {shots!r}; write whole numbers with commas, such as 0,1,3."])
    return sorted({int(word) for word in words})


@dataclass(frozen=True)
class ClosedLoop(Evaluator):
    """The return with random actions, with the model after each number of transitions, and with the true dynamics."""

    numbers: list[int]

    @torch.no_grad()
    def estimates(self, subject: Subject) -> dict[str, Estimate]:
        task = subject.task
        assert isinstance(task, SystemIdentification)
        draw = task.draw(subject.split, range(subject.num_tasks))
        parameters, episodes = task.parameters(draw).to(task.device), task.episodes(draw)
        system, steps, seed = task.system, task.control_steps, task.seed
        drive = partial(controlled, system, parameters, planner=task.planner, num_steps=steps, seed=seed)
        scores = {RANDOM: estimate(at_random(system, parameters, steps, seed)[0])}
        with eval_mode(subject.learner):
            for k in self.numbers:
                scores[words_for(k)] = estimate(drive(model=model_after(subject, task, episodes, k))[0])
                print(f"after {words_for(k)}: return {scores[words_for(k)].mean:.1f}", file=sys.stderr)
        scores[ORACLE] = estimate(drive(model=lambda state, action: system.step(parameters[:, None], state, action))[0])
        return scores


def words_for(k: int) -> str:
    """Name of the model after ``k`` transitions: "1 transition", "3 transitions"."""
    return f"{k} transition{'' if k == 1 else 's'}"


def model_after(subject: Subject, task: SystemIdentification, episodes: Episode, k: int) -> Model:
    """What follows a state and an action, by the learner adapted to the first ``k`` transitions of each episode."""
    learner = subject.learner
    assert isinstance(learner, FewShotLearner)
    if k == 0 and "inner_steps" in hyperparameters(learner):
        learner = replace(learner, inner_steps=0)  # type: ignore[call-arg]
    few = episodes._replace(support=tree_map(lambda leaf: leaf[:, :k], episodes.support))
    phis = subject.execution.map(lambda theta, episode: learner.adapt(theta, episode.support), subject.theta, few)
    predict: Any = vmap(learner.predict)
    first = predict(phis, episodes.query.x[:, :1])
    if not all(torch.isfinite(leaf).all() for leaf in tree_leaves([phis, first])):
        raise ConfigError(
            [f"{type(learner).__name__} has no finite model after {words_for(k)}; leave {k} out of --shots."]
        )
    return partial(follow, task, predict, phis)


def follow(task: SystemIdentification, predict: Any, phis: Params, state: Tensor, action: Tensor) -> Tensor:
    """The states [T, N, 2n] that ``phis``, a model for each task, predict to follow ``state`` under ``action``."""
    inputs = task.encoding.inputs(state, action).to(task.dtype)
    return task.encoding.advance(state, predict(phis, inputs).to(state))
