"""What is scored at validation and test: the training task, or the task distributions of ``evaluation.task``."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from metarun.core import MetaLearner, TaskDistribution, TaskSpec, hyperparameters
from metarun.errors import ConfigError
from metarun.meta_learners.protonet import ProtoNet
from metarun.tasks.resized import Resized


class Scored(NamedTuple):
    """A task distribution, the learner with its ways and the steps of evaluation, the node it was made of, and what to
    know of how its inputs are shown."""

    task: TaskDistribution
    learner: MetaLearner
    node: dict[str, Any]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Suite:
    """What is scored: the tasks ``elsewhere``, by their names, or where there are none the training task, ``own``."""

    own: Scored
    elsewhere: dict[str, Scored]

    @property
    def first(self) -> Scored:
        """The first of what is scored."""
        return next(iter(self.elsewhere.values()), self.own)

    def fingerprints(self) -> dict[str, Any]:
        """The names of the data that it is made of, as run.json has them."""
        elsewhere = {name: scored.task.fingerprint() for name, scored in self.elsewhere.items()}
        return {"data": self.own.task.fingerprint()} | ({"evaluation_data": elsewhere} if elsewhere else {})

    def require(self, *splits: str) -> None:
        """Raise ConfigError unless all that is scored has episodes of these ``splits``."""
        places = {f"evaluation.task.{name}": scored.task for name, scored in self.elsewhere.items()}
        problems = [p for key, task in (places or {"task": self.own.task}).items() for p in missing(key, task, splits)]
        if problems:
            raise ConfigError(problems)


def missing(key: str, task: TaskDistribution, splits: Sequence[str]) -> list[str]:
    """A problem for each of ``splits`` that ``task``, the node ``key``, has no episodes of."""
    return [
        f"{key}.split leaves no class for {split!r}, which is needed here. Training needs classes in train, val and test; "
        "metarun evaluate needs them in test alone."
        for split in splits
        if split not in task.splits
    ]


def baseline_of(task: TaskDistribution) -> MetaLearner | None:
    """The nearest class mean, by cosine, of the task's frozen features; None where it has none."""
    if task.frozen is None or task.spec.num_ways is None:
        return None
    return ProtoNet(task.frozen, task.spec.objective, task.spec.num_ways, "cosine")


def learner_for(task: TaskDistribution, learner: MetaLearner, inner_steps: int | None) -> MetaLearner:
    """``learner`` with the ways of validation and test of ``task`` and its score, whose unit may be the task's own.

    With ``inner_steps`` where that is not None.
    """
    of_task = {"num_ways": task.spec.num_ways, "objective": task.spec.objective}
    changes = {name: value for name, value in of_task.items() if name in hyperparameters(learner)}
    changes |= {} if inner_steps is None else {"inner_steps": inner_steps}
    return replace(learner, **changes)  # type: ignore[type-var]


ONE_NUMBER = "Give one number of ways, or choose a learner for any number, as protonet."


def varying_ways(task: TaskSpec) -> str:
    """How many classes the episodes of ``task`` have, where that varies."""
    return f"its episodes have {task.fewest_ways} to {max(task.num_ways or 0, task.train_num_ways or 0)} classes"


def with_ways(learner: MetaLearner, task: TaskDistribution, split: str) -> MetaLearner:
    """``learner`` with the ways of an episode of ``task``, where these vary: a learner for any number knows its theta's."""
    if task.spec.fewest_ways is None or "num_ways" not in hyperparameters(learner):
        return learner
    ways = task.spec.train_num_ways if split == "train" else task.spec.num_ways
    return replace(learner, num_ways=ways)  # type: ignore[type-var]


def scored_elsewhere(
    tasks: dict[str, TaskDistribution], training: TaskDistribution, learner: MetaLearner, evaluation: dict[str, Any]
) -> dict[str, Scored]:
    """What the node ``evaluation`` names, by its names; ``tasks`` by key. Raises ConfigError where one does not fit."""
    problems: list[str] = []
    scored: dict[str, Scored] = {}
    for (key, task), (name, node) in zip(tasks.items(), evaluation["task"].items(), strict=True):
        try:
            check_outputs(key, task.spec, training.spec, learner)
            check_words(key, task.spec, training.spec)
            check_count(task.spec, evaluation["num_tasks"])
            seen = fitted(task, training.spec, evaluation["fit_images"])
            notes = (inverted(name, training.spec),) if seen.spec.inverted != task.spec.inverted else ()
            scored[name] = Scored(seen, learner_for(task, learner, evaluation["inner_steps"]), node, notes)
        except ValueError as error:
            problems.append(f"{key}: {error}")
    if problems:
        raise ConfigError(problems)
    return scored


def fitted(task: TaskDistribution, training: TaskSpec, fit_images: bool) -> TaskDistribution:
    """``task`` with inputs as those of the ``training`` task: of their shape, and inverted where they are.

    Raises ValueError where the shapes differ and images may not be resized.
    """
    own, needed = task.spec.input_shape, training.input_shape
    if own == needed and task.spec.inverted == training.inverted:
        return task
    if own != needed and not fit_images:
        fix = "Choose a task with inputs of that shape."
        if len(own) == len(needed) == 3:
            fix = "Set evaluation.fit_images=true to resize and recolour its images."
        raise ValueError(
            f"its inputs have shape {list(own)}, but the networks were built for the training task's, "
            f"of shape {list(needed)}. {fix}"
        )
    return Resized(task, needed, training.inverted)


def inverted(name: str, training: TaskSpec) -> str:
    """A line of images of the task ``name`` that are shown inverted, for those of the training are, or are not."""
    ink = "ink is 1 and paper 0" if training.inverted else "ink is 0 and paper 1"
    return f"images of {name} are inverted: in those of the training {ink}"


def check_words(key: str, task: TaskSpec, training: TaskSpec) -> None:
    """Raise ValueError where both tasks read words by number and number them differently; ``key`` names the node."""
    if None in (task.num_tokens, training.num_tokens):
        return
    if (task.num_tokens, task.vocabulary) != (training.num_tokens, training.vocabulary):
        raise ValueError(
            "it numbers its words by its own training classes, so a number stands for another word than in the "
            "training task; use features=hashed or sentence for both: "
            f"task/features=hashed task/features@{key}.features=hashed."
        )


def check_count(task: TaskSpec, num_tasks: int) -> None:
    """Raise ValueError where the test set of ``task`` has a fixed number of episodes, below ``num_tasks``."""
    if task.num_test_tasks is not None and task.num_test_tasks < num_tasks:
        raise ValueError(
            f"its test set has {task.num_test_tasks} episodes, but evaluation.num_tasks is {num_tasks}. "
            f"Set evaluation.num_tasks={task.num_test_tasks}."
        )


def check_outputs(key: str, task: TaskSpec, training: TaskSpec, learner: MetaLearner) -> None:
    """Raise ValueError unless ``learner``, made for the training task, can be scored on ``task``, the node ``key``."""
    score, expected = task.objective.score_name, training.objective.score_name
    if score != expected:
        raise ValueError(
            f"its score is {score}, but the training task's is {expected}. Choose a task with the same score."
        )
    if learner.any_ways and task.num_ways is not None:
        return
    if task.fewest_ways is not None:
        raise ValueError(
            f"{varying_ways(task)}, but the head of {type(learner).__name__} has a fixed number. {ONE_NUMBER}"
        )
    if task.num_outputs != training.num_outputs:
        fix = "Choose a task with as many."
        if task.num_ways is not None:
            fix = f"Set {key}.num_ways={training.num_outputs}, or choose a learner for any number of ways, as protonet."
        raise ValueError(
            f"it needs {task.num_outputs} outputs, but the head of {type(learner).__name__} has those of the training "
            f"task, {training.num_outputs}. {fix}"
        )
