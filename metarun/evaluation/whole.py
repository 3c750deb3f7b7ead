"""A whole evaluation: of all tasks of a suite, with the scores of each episode and the intervals of their means."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from metarun.evaluation.episodes import BLOCK, by_size, hashes
from metarun.evaluation.estimates import Estimate, estimate, mean_of
from metarun.evaluation.intervals import Over
from metarun.evaluation.records import EpisodeScores, mean_over_tasks
from metarun.evaluation.scoring import Evaluator, OfTheTask, Subject, Values, score_episodes
from metarun.evaluation.suite import Suite


@dataclass(frozen=True)
class Evaluation:
    """Scores as ``<name>``, or on tasks elsewhere as ``<task>/<name>`` beside the means over these, each counted alike.

    ``over``: the intervals of scores over other classes or tasks, by the same names. ``episodes``: of each task;
    ``means``: their means over tasks, by number, where there are several.
    """

    scores: dict[str, Estimate]
    over: dict[str, Over] = field(default_factory=dict)
    episodes: Sequence[EpisodeScores] = ()
    means: EpisodeScores | None = None


def evaluate_all(suite: Suite, subject: Subject, evaluators: Sequence[Evaluator], final: bool) -> Evaluation:
    """Score ``subject`` on the training task, or on the tasks elsewhere. ``final``: with a curve, with what the evaluators
    estimate, and with what each episode is and was drawn from."""
    scored = suite.elsewhere or {"": suite.own}
    subjects = {name: subject.on(one) for name, one in scored.items()}
    parts = [_episodes(name, one, [OfTheTask(), *evaluators], final) for name, one in subjects.items()]
    scores: dict[str, Estimate] = {}
    means = mean_over_tasks(parts) if suite.elsewhere else None
    if means is not None:
        for name, values in means.values.items():
            alone = mean_of([_estimate(part.values[name]) for part in parts])
            scores[name] = alone._replace(ci95=_estimate(values).ci95)
    for part, one in zip(parts, subjects.values(), strict=True):
        found = {name: _estimate(values) for name, values in part.all.items()}
        for evaluator in evaluators if final else ():
            found |= evaluator.estimates(one)
        scores |= {_named(part.task, name): value for name, value in found.items()}
    told = [*([means] if means else []), *parts] if final else []
    over = {_named(part.task, name): value for part in told for name, value in part.over().items()}
    return Evaluation(scores, over, parts, means)


def _named(task: str, name: str) -> str:
    return f"{task}/{name}" if task else name


def _estimate(values: np.ndarray) -> Estimate:
    return estimate(torch.from_numpy(values))


def _plain(scores: Values) -> dict[str, np.ndarray]:
    return {name: values.double().cpu().numpy() for name, values in scores.items()}


def _episodes(name: str, subject: Subject, evaluators: Sequence[Evaluator], final: bool) -> EpisodeScores:
    """The scores of each episode of one task, called ``name`` in a suite."""
    values = _plain(score_episodes(subject, evaluators, curve=final))
    if not final:
        return EpisodeScores(subject.split, values, task=name)
    apart = _plain({key: found for e in evaluators for key, found in e.episode_scores(subject).items()})
    kind, members, codes = drawn_from(subject)
    return EpisodeScores(subject.split, values, apart, name, kind, members, codes)


def drawn_from(subject: Subject) -> tuple[str, list[list[str]], list[str]]:
    """What the episodes are drawn from again and again, one of ``KINDS`` or "", which ones each is of, and their hashes."""
    draws = [at.draw(subject.split, of) for at, of in by_size(subject.task, subject.split, subject.num_tasks)]
    origins = [origin for draw in draws if (origin := subject.task.drawn_from(subject.split, draw))]
    kind = origins[0].kind if origins else ""
    members = [names for origin in origins for names in origin.names]
    if not origins and subject.task.at(subject.split, 0) is not subject.task:  # episodes of a block share their size
        kind, members = "sizes", [[str(i // BLOCK)] for i in range(subject.num_tasks)]
    return kind, members, [code for draw in draws for code in hashes(draw)]
