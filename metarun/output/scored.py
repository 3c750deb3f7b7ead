"""The scores of each test episode of runs, and which episodes two runs have in common."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import Any

import numpy as np

from metarun.evaluation.intervals import Over, over
from metarun.evaluation.kinds import KINDS
from metarun.output.kept import json_lines, json_object, mapping, number
from metarun.output.ledger import Run
from metarun.output.paired import higher_is_better

EPISODES = "episodes.jsonl"
OTHER_HASHES = "the hashes of their choices are others, as from another version of metarun"
Key = tuple[str, int, str]  # of an episode: its task in evaluation.task, its number, and the hash of its choices


@dataclass(frozen=True)
class Scored:
    """A run with the scores of its test, or of an evaluation made later."""

    run: Run
    name: str  # what tells it from the others
    evaluation: str = ""  # "": the final test

    @cached_property
    def results(self) -> dict[str, Any]:
        """What results.json says, or the file of the evaluation."""
        if not self.evaluation:
            return self.run.results
        return json_object(self.run.path / "evaluations" / f"{self.evaluation}.json", [])

    @cached_property
    def episodes(self) -> list[dict[str, Any]]:
        """A row for each episode; none where no such file was written."""
        inside = f"evaluations/{self.evaluation}.{EPISODES}" if self.evaluation else EPISODES
        return [row for row in json_lines(self.run.path / inside) if isinstance(row.get("scores"), dict)]

    def scores(self, name: str) -> dict[Key, float]:
        """The score ``name`` of each episode that has one which is finite; TASK/NAME: of those of one evaluation task."""
        task, _, own = name.rpartition("/")
        found = {_key(row): number(row["scores"].get(own)) for row in self.episodes}
        return {key: value for key, value in found.items() if value is not None and task in ("", key[0])}

    @cached_property
    def origins(self) -> dict[tuple[str, int], tuple[str, list[str]]]:
        """What each episode was drawn from, by its task and number, where known: one of ``KINDS``, and which ones."""
        told = [(_key(row)[:2], kind, row.get(kind)) for row in self.episodes for kind in KINDS]
        return {key: (kind, list(map(str, names))) for key, kind, names in told if isinstance(names, list)}

    @property
    def protocol(self) -> dict[str, Any]:
        """What its results say of how they came about."""
        return mapping(self.results.get("protocol"))

    def higher(self, name: str) -> bool:
        """Whether more of the score ``name`` is better."""
        return higher_is_better(name.rpartition("/")[2], self.protocol)

    @property
    def data(self) -> Any:
        """What identifies the data that the episodes are of."""
        elsewhere = {name: task.get("data") for name, task in mapping(self.protocol.get("tasks")).items()}
        return elsewhere or self.protocol.get("data") or self.run.facts.get("data")

    @property
    def conditions(self) -> dict[str, Any]:
        """What decides which episodes a test has: the seed, and the task's settings."""
        decide = ("task.", "evaluation.task")
        return {key: v for key, v in self.run.settings.items() if key == "seed" or key.startswith(decide)}


def _key(row: dict[str, Any]) -> Key:
    return str(row.get("task") or ""), int(number(row.get("episode")) or 0), str(row.get("hash"))


def by_task(scores: Mapping[Key, float]) -> dict[str, dict[int, float]]:
    """The scores of each evaluation task apart, under "" without any, by the number of the episode."""
    found: dict[str, dict[int, float]] = {}
    for (task, episode, _), value in scores.items():
        found.setdefault(task, {})[episode] = value
    return found


def mean_of(scores: Mapping[Key, float]) -> float:
    """The mean over the evaluation tasks, which count alike, however many episodes they have."""
    return fmean(fmean(values.values()) for values in by_task(scores).values())


def strata(of_seeds: Sequence[Mapping[Key, float]]) -> list[list[float]]:
    """Values that are independent of each other, in strata whose means have the mean over seeds and tasks as theirs.

    Seeds that were tested on the very same episodes are taken together episode by episode, and so are tasks whose episodes
    have the same numbers: they are drawn by these numbers, and may share classes.
    """
    return [values for scores in _apart(of_seeds) for values in _over_tasks(list(by_task(scores).values()))]


def _apart(of_seeds: Sequence[Mapping[Key, float]]) -> Sequence[Mapping[Key, float]]:
    """The scores of each seed, or of seeds with the very same episodes their mean."""
    if any(scores.keys() != of_seeds[0].keys() for scores in of_seeds):
        return of_seeds
    return [{key: fmean(scores[key] for scores in of_seeds) for key in of_seeds[0]}]


def over_others(runs: Sequence[Scored], of_seeds: Sequence[Mapping[Key, float]]) -> Over | None:
    """How sure the mean is on other classes, tasks of a table or draws of sizes than those of the episodes, which all seeds
    share; None where these are not known. ``runs``: of each seed one whose episodes these are."""
    values, members, kinds = [], [], set()
    for seed, (run, scores) in enumerate(zip(runs, _apart(of_seeds), strict=False)):
        tasks = by_task(scores)
        alike = _over_tasks(list(tasks.values()))
        if len(alike) > 1:  # tasks with episodes of their own
            return None
        for episode, value in zip(next(iter(tasks.values())), alike[0], strict=True):
            origins = [run.origins.get((task, episode), ("", [])) for task in tasks]
            names = [f"{seed} {name}" if kind == "sizes" else name for kind, own in origins for name in own]
            values.append(value)
            members.append(names)
            kinds |= {kind for kind, _ in origins}
    if len(kinds) > 1 or not all(members) or len(values) <= 1:
        return None
    return over(kinds.pop(), {"": np.array(values)}, members)[""]


def _over_tasks(tasks: list[dict[int, float]]) -> list[list[float]]:
    if all(task.keys() == tasks[0].keys() for task in tasks):
        return [[fmean(task[number] for task in tasks) for number in tasks[0]]]
    return [list(task.values()) for task in tasks]


def shared(one: Scored, other: Scored, name: str) -> dict[Key, float]:
    """The differences of the score ``name`` on the episodes that both have; none where these are of other data."""
    if one.data != other.data:
        return {}
    first, second = one.scores(name), other.scores(name)
    return {key: value - second[key] for key, value in first.items() if key in second}


def why_none(one: Scored, other: Scored) -> str:
    """Why two tests share no episode."""
    if one.data != other.data:
        return f"they are of other data: {one.data} and {other.data}"
    a, b = one.conditions, other.conditions
    unlike = [f"{key} {a.get(key)} and {b.get(key)}" for key in dict.fromkeys([*a, *b]) if a.get(key) != b.get(key)]
    return f"their episodes are drawn differently: {', '.join(unlike) or OTHER_HASHES}"


def without_numbers(runs: Sequence[Scored], name: str) -> Iterator[str]:
    """A note on each run some of whose episodes have the score ``name``, but no finite value of it."""
    task, _, own = name.rpartition("/")
    for scored in runs:
        asked = [row for row in scored.episodes if own in row["scores"] and task in ("", _key(row)[0])]
        if lost := len(asked) - len(scored.scores(name)):
            yield (
                f"{scored.name}: {lost} of {len(asked)} episodes have no finite {name}, as where adaptation diverges; "
                "they are compared on the others alone"
            )


def without_episodes(runs: Sequence[Scored], name: str) -> Iterator[tuple[Scored, str]]:
    """The runs that cannot be compared by the score ``name``, each with the reason."""
    for scored in runs:
        if not scored.episodes:
            state = "" if scored.run.state == "completed" else f"; the run is {scored.run.state}"
            yield scored, f"no scores of single episodes ({EPISODES}){state}"
        elif not scored.scores(name):
            yield scored, f"no score {name} that is finite"
