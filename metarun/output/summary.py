"""The scores of a test in a few lines: how good, under which conditions, and whether training helped."""

import math
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import torch

from metarun.config.experiment import Experiment
from metarun.config.networks import transductive
from metarun.evaluation.baselines import baseline_name
from metarun.evaluation.estimates import Estimate, estimate
from metarun.evaluation.intervals import Over
from metarun.evaluation.records import SHOTS, EpisodeScores, mean_over_tasks
from metarun.evaluation.whole import Evaluation
from metarun.output.seen import kind_of_names
from metarun.output.terminal import plain

STEPS_SHOWN = (0, 1, 2, 3, 5, 10, 20, 50, 100, 200)  # of the adaptation curve
NOWHERE: Mapping[str, Over] = MappingProxyType({})  # no interval over other classes is known
LIKELIHOOD = "negative_log_likelihood"
GAIN = "gain"
NAMES_SHOWN = 10  # test classes at most: so few that it matters which they are
ONE = {"classes": "class", "tasks": "task"}


def step_of(name: str) -> int:
    """k of ``<score>_step_k``; 0 of other names."""
    _, separator, step = name.rpartition("_step_")
    return int(step) if separator else 0


def condensed(scores: dict[str, Estimate]) -> dict[str, Estimate]:
    """``scores`` with an adaptation curve of about ten steps, for the eye; results.json has them all."""
    last = max(map(step_of, scores))
    return {name: score for name, score in scores.items() if step_of(name) in (*STEPS_SHOWN, last)}


Curves = dict[str, dict[int, Estimate]]  # by the name of a score, the score for each number of shots


def curves_over_shots(experiment: Experiment, scores: dict[str, Estimate]) -> Curves:
    """Those that are shown: of the task's own score and of the likelihood, on each task that is scored."""
    own = [experiment.task.spec.objective.score_name, LIKELIHOOD]
    prefixes = [f"{name}/" for name in experiment.suite.elsewhere] or [""]
    return _over_shots(scores, [prefix + name for prefix in prefixes for name in own])


def _over_shots(scores: dict[str, Estimate], names: list[str]) -> Curves:
    """The curves of those of ``names`` that were scored over shots."""
    found: dict[str, dict[int, Estimate]] = {name: {} for name in names}
    for key, score in scores.items():
        name, separator, shots = key.rpartition(SHOTS)
        if separator and name in names:
            found[name][int(shots)] = score
    return {name: curve for name, curve in found.items() if curve}


def references_over_shots(scores: dict[str, Estimate], name: str) -> Curves:
    """By the method, the curves of those without training that were scored as ``name`` over shots."""
    prefix, _, base = name.rpartition("/")
    start, end = prefix + "/" * bool(prefix), f"_{base}"
    heads = dict.fromkeys(key.rpartition(SHOTS)[0] for key in scores)
    names = [head for head in heads if head.startswith(start) and head.endswith(end)]
    return {head.removeprefix(start).removesuffix(end): curve for head, curve in _over_shots(scores, names).items()}


def lines_over_shots(experiment: Experiment, scores: dict[str, Estimate]) -> list[str]:
    """A line for each score over shots."""
    return [
        f"{name} over shots {plain({f'{k}:': score.mean for k, score in curve.items()})}"
        for name, curve in curves_over_shots(experiment, scores).items()
    ]


def lines_of_oracles(scores: dict[str, Estimate]) -> list[str]:
    """A line for each score that one who knows how the episodes were made has, too."""
    pairs = ((key, scores.get(f"oracle_{key}")) for key in scores)
    return [
        f"{key} = {scores[key].mean:.4f} +- {scores[key].ci95:.4f}, knowing the process {best.mean:.4f} +- {best.ci95:.4f}"
        for key, best in pairs
        if best is not None
    ]


def summary(experiment: Experiment, evaluation: Evaluation, step: int) -> str:
    """The final scores, of the checkpoint of ``step``, those without training and elsewhere, and what they depend on."""
    name, scores, over = experiment.task.spec.objective.score_name, evaluation.scores, evaluation.over
    final = scores[name]
    lines = [f"test/{name} = {final.mean:.4f} +- {final.ci95:.4f} (95% CI, {final.n} tasks){_over(over.get(name))}"]
    for other in experiment.suite.elsewhere:
        mean, ci95, n = scores[f"{other}/{name}"]
        lines.append(f"test/{other}/{name} = {mean:.4f} +- {ci95:.4f} ({n} tasks){_over(over.get(f'{other}/{name}'))}")
    if found := without_training(experiment, evaluation):
        what, baseline = found
        lines.append(f"without any training ({what}): {baseline.mean:.4f} +- {baseline.ci95:.4f}")
    lines += lines_of_oracles(scores)
    steps = f"{name}_step_"
    curve = {step_of(key): score.mean for key, score in condensed(scores).items() if key.startswith(steps)}
    if curve:
        lines.append(f"after adaptation step {plain({f'{k}:': value for k, value in curve.items()})}")
    lines += lines_over_shots(experiment, scores)
    return "\n".join([*lines, *conditions(experiment, "test"), *verdict(experiment, evaluation, step)])


def _over(over: Over | None) -> str:
    """The end of a score's line: how sure it is on other classes, tasks of a table or draws of sizes than those few."""
    if over is None:
        return ""
    what = {"tasks": "tasks of the data", "sizes": "draws of sizes"}.get(over.kind, over.kind)
    if math.isnan(over.ci95):
        return f"; unknown for other {what}: {over.number} here"
    return f"; +- {over.ci95:.4f} over the {over.number} {what}"


def without_training(experiment: Experiment, evaluation: Evaluation) -> tuple[str, Estimate] | None:
    """What was scored without training, and its score; over the tasks elsewhere the mean, where each has one: episode by
    episode, for tasks may share classes."""
    found = [(part.all, *_baseline(experiment, part)) for part in evaluation.episodes]
    if not found or any(key not in scores for scores, key, _ in found):
        return None
    values = np.mean([scores[key] for scores, key, _ in found], 0)
    return ", ".join(dict.fromkeys(what for *_, what in found)), estimate(torch.from_numpy(values))


def _baseline(experiment: Experiment, part: EpisodeScores) -> tuple[str, str]:
    """The name of the score without training of the task that these episodes are of, and what gets it."""
    scored = experiment.suite.elsewhere.get(part.task, experiment.suite.own)
    return baseline_name(scored.task, experiment.task.spec.objective.score_name)


def gain_of_training(experiment: Experiment, evaluation: Evaluation) -> tuple[Estimate, Over | None]:
    """By how much the score is better than that without training, episode by episode; over tasks elsewhere the mean. How
    sure that is on other episodes, and on other classes or tasks, where these are known."""
    objective, parts = experiment.task.spec.objective, []
    for part in evaluation.episodes:
        key, _ = _baseline(experiment, part)
        gain = part.all[objective.score_name] - part.all[key]
        gains = {GAIN: gain if objective.higher_is_better else -gain}
        parts.append(EpisodeScores(part.split, gains, kind=part.kind, members=part.members))
    mean = mean_over_tasks(parts)
    return estimate(torch.from_numpy(mean.values[GAIN])), mean.over().get(GAIN)


def verdict(experiment: Experiment, evaluation: Evaluation, step: int) -> list[str]:
    """A line where training did not help, or may not have: where the checkpoint, of ``step``, is the start, or its score is
    not above that without training by more than the intervals of their difference, over episodes and over classes or tasks.
    """
    found = without_training(experiment, evaluation)
    start = ["training did not help: the best checkpoint is the start"] * (step == 0)
    if found is None:
        return start
    (gain, interval, _), over = gain_of_training(experiment, evaluation)
    widest = interval if over is None or math.isnan(over.ci95) else max(interval, over.ci95)
    unknown = _over(over) if over and math.isnan(over.ci95) else ""
    by = f"by {abs(gain):.4f} +- {interval:.4f}{'' if unknown else _over(over)}"
    if start and gain < -widest:
        return [f"{start[0]}, and {found[0]} would be better {by}{unknown}"]
    if start or gain > widest:
        return start
    compared = f"{found[0]} would be better" if gain < 0 else f"it is better than {found[0]}"
    over_kind = f" over the {over.kind}" if over and abs(gain) > interval else ""
    within = f", which is within the interval{over_kind}" if abs(gain) <= widest else ""
    doubt = "may not have helped" if within and gain > 0 else "did not help"
    return [f"training {doubt}: {compared} {by}{within}{unknown}"]


def conditions(experiment: Experiment, split: str, training: dict[str, Any] | None = None) -> list[str]:
    """A line for each condition of the scores that moves them; ``training``: the task's node of the run, where another."""
    suite, trained = experiment.suite, training or experiment.suite.own.node
    lines, readers = list[str](), transductive(experiment)
    for name, scored in suite.elsewhere.items() or [("", suite.own)]:
        place = f" on {name}" if name else ""
        lines += scored.notes
        number = f" (num_queries={scored.node['num_queries']})" if "num_queries" in scored.node else ""
        lines += [
            f"{reader} the whole query batch{place}{number}: with other queries the score changes" for reader in readers
        ]
        if split != "train" and (others := list(differences(trained, scored.node))):
            lines.append(f"training had other episodes than the {split}{place}: {', '.join(others)} here")
        classes = list(dict.fromkeys(scored.task.class_names(split)))
        if scored.task.spec.num_ways is not None and 0 < len(classes) <= NAMES_SHOWN:
            kind = kind_of_names(scored.task, split)
            kind = ONE.get(kind, kind) if len(classes) == 1 else kind
            lines.append(f"only {len(classes)} {split} {kind}{place}: {', '.join(classes)}")
    return lines


def differences(trained: dict[str, Any], scored: dict[str, Any]) -> Iterator[str]:
    """The ways and shots of training where those of the scored node are others."""
    for key in ("num_ways", "num_shots"):
        own = trained.get(f"train_{key}") or trained.get(key)
        if None not in (own, scored.get(key)) and own != scored[key]:
            yield f"{key} was {own}, and is {scored[key]}"
