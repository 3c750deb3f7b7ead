"""What results.json says of an evaluation: docs/run_folder.md, docs/schema/results.v1.json."""

from pathlib import Path
from typing import Any

import torch

from metarun.config.experiment import Experiment
from metarun.evaluation.episodes import manifest
from metarun.evaluation.estimates import Estimate, estimate
from metarun.evaluation.intervals import Over
from metarun.evaluation.records import EpisodeScores, plain, written
from metarun.evaluation.speed import learning_speed
from metarun.evaluation.whole import Evaluation
from metarun.files import write_atomically, write_json

VERSION = 1


def results(
    experiment: Experiment, evaluation: Evaluation, complexity: dict[str, Any], source: dict[str, Any]
) -> dict[str, Any]:
    """Every metric of a split with its intervals, beside the protocol; ``source`` says which, and of which checkpoint."""
    split, num_tasks, suite = source["split"], experiment.num_test_tasks, experiment.suite
    objective = experiment.task.spec.objective
    own = {"name": objective.score_name, "higher_is_better": objective.higher_is_better}
    protocol = {**experiment.protocol, **source, "num_tasks": num_tasks, "score": own}
    if suite.elsewhere:
        protocol["tasks"] = {
            name: {"task": s.node, "data": s.task.fingerprint(), "manifest": manifest(s.task, split, num_tasks)}
            for name, s in suite.elsewhere.items()
        }
    else:
        protocol["manifest"] = manifest(suite.own.task, split, num_tasks)
    scores = {f"{split}/{name}": told(e, evaluation.over.get(name)) for name, e in evaluation.scores.items()}
    parts = [*([evaluation.means] if evaluation.means else []), *evaluation.episodes]
    speed = {
        f"{part.task}/{name}" if part.task else name: value
        for part in parts
        for name, value in learning_speed(part, _told_all).items()
    }
    return {"version": VERSION, **scores, "protocol": protocol, "complexity": complexity, "learning_speed": speed}


def told(score: Estimate, over: Over | None) -> dict[str, Any]:
    """A score as JSON: its mean, the half width over episodes, their number; then over classes or tasks, where known."""
    told = {"mean": plain(score.mean), "ci95": plain(score.ci95), "n": score.n}
    return told | ({f"ci95_over_{over.kind}": plain(over.ci95), f"num_{over.kind}": over.number} if over else {})


def _told_all(part: EpisodeScores) -> dict[str, Any]:
    over = part.over()
    return {name: told(estimate(torch.from_numpy(v)), over.get(name)) for name, v in part.values.items()}


def numbers(complexity: dict[str, Estimate]) -> dict[str, float | None]:
    """Costs as JSON: their means."""
    return {name: plain(value.mean) for name, value in complexity.items()}


def write_results(path: Path, content: dict[str, Any], evaluation: Evaluation) -> None:
    """Write the results, and the scores of their episodes beside them; raises OSError where the disk refuses."""
    name = "episodes.jsonl" if path.name == "results.json" else f"{path.stem}.episodes.jsonl"
    write_atomically(path.with_name(name), written(evaluation.episodes))
    write_json(path, {**content, "episodes": name})
