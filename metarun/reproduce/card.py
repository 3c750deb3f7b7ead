"""A card: what a target's runs showed, beside the paper's figures. Nothing in it is written by hand.

id, command               the target, and the words that make the card again
verdict                   the worst of the figures that are judged
figures                   each with the paper's value, ours, the difference with its interval, and the verdict
common                    metarun's own protocol: for each seed, norm and number of queries, the score at each step
runs                      of each seed: command, commit, date, seconds, machine, learning curve, what it depends on
digest                    of all that was measured, so that a number that somebody changes is found
"""

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from metarun import __version__
from metarun.errors import Diverged
from metarun.files import read_json, write_json
from metarun.output.kept import moment, number
from metarun.output.ledger import Run, run_at, scores_in
from metarun.output.tables import Score
from metarun.reproduce import dependence
from metarun.reproduce.registry import Figure, Target
from metarun.reproduce.running import Seed, common_protocols
from metarun.reproduce.verdict import Measured, measured, of_all, verdict, width_of_difference

VERSION = 1
MACHINE = ("system", "python", "torch", "cpus", "threads", "gpu")
OF_THE_MACHINE = ("run_dir=", "data_root=", "resume=")
Evaluated = Callable[[Seed, Sequence[str]], dict[str, Any]]


def card(seeds: Sequence[Seed], evaluated: Evaluated) -> dict[str, Any]:
    """The card of one target, whose runs have all ended. ``evaluated(seed, overrides)``: the results of an evaluation."""
    target = seeds[0].target
    figures = [of_figure(target, figure, seeds, evaluated) for figure in target.figures]
    number = f" --seeds {len(seeds)}" if len(seeds) > 1 else ""
    content = {
        "version": VERSION,
        "id": target.id,
        "command": f"metarun reproduce {target.id}{number}",
        "metarun": __version__,
        "score": target.score,
        "verdict": of_all([figure["verdict"] for figure in figures]),
        "figures": figures,
        "common": [row for seed in seeds for row in common(target, seed, evaluated)],
        "runs": [of_run(seed) for seed in seeds],
    }
    return content | {"digest": digest(content)}


def digest(content: dict[str, Any]) -> str:
    """Of what a card says was measured; the paper's side and the verdicts follow from the registry."""
    kept = [
        content["id"],
        content["command"],
        content["common"],
        content["runs"],
        *(f["ours"] for f in content["figures"]),
    ]
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]


def of_figure(target: Target, figure: Figure, seeds: Sequence[Seed], evaluated: Evaluated) -> dict[str, Any]:
    """One figure of the paper beside ours."""
    each, by = [], evaluated_by(target, figure.evaluate)
    for seed in seeds:
        results = evaluated(seed, figure.evaluate) if by else read_json(seed.path / "results.json")
        score = score_at(target, results, figure.step)
        protocol = results["protocol"]
        width = target.scale * (score.ci95 or 0.0)
        each.append(
            {
                "seed": seed.number,
                "mean": target.in_its_units(score.mean),
                "ci95": width,
                "tasks": protocol["num_tasks"],
                "episodes": protocol.get("manifest"),
            }
        )
    ours = measured([(row["mean"], row["ci95"], row["tasks"], str(row["episodes"])) for row in each])
    kept = {**asdict(ours), "seeds": each, "step": figure.step, "evaluated_by": by}
    return judged(target, figure, kept)


def evaluated_by(target: Target, overrides: Sequence[str]) -> str | None:
    """The command of an evaluation; None where it is the run's own test."""
    words = [*(["--checkpoint", target.tested] if target.tested != "best" else []), *overrides]
    return " ".join(["metarun evaluate RUN", *words]) if words else None


def judged(target: Target, figure: Figure, kept: dict[str, Any]) -> dict[str, Any]:
    """A figure as the registry has it, ours as a card has ``kept`` it, and what follows."""
    ours = Measured.kept(kept)
    found = {
        "name": figure.name,
        "paper": {key: getattr(figure, key) for key in ("value", "interval", "interval_is", "where", "read")},
        "ours": kept,
        "verdict": verdict(target, figure, ours),
    }
    if figure.value is not None:
        found["difference"] = {"mean": ours.mean - figure.value, "ci95": width_of_difference(ours, figure)}
    return found


def score_at(target: Target, results: dict[str, Any], step: int | None) -> Score:
    """The target's score in a results.json, after ``step`` adaptation steps (None: as the test has it).

    Raises Diverged where it is no finite number, for a mean without the episodes that diverged would flatter.
    """
    name = target.measure if step is None else f"{target.measure}_step_{step}"
    found = scores_in(results).get(name)
    if found is None:
        seed = results["protocol"]["seed"]
        raise Diverged(
            f"{target.id}: {name} of seed {seed} is no finite number: adaptation diverges in a test episode, so this "
            "training has no score. Train another: --seeds, or a preset with a lower meta_learner.inner_lr."
        )
    return found


def common(target: Target, seed: Seed, evaluated: Evaluated) -> list[dict[str, Any]]:
    """What metarun's common protocol gives for one seed: the score after each adaptation step, or the one there is."""
    rows = []
    for overrides in common_protocols(seed.path, target):
        results = evaluated(seed, overrides)
        protocol = results["protocol"]
        last = score_at(target, results, None)
        steps: list[float] = []
        while f"{target.measure}_step_{len(steps)}" in results:
            steps.append(target.in_its_units(score_at(target, results, len(steps)).mean))
        rows.append(
            {
                "seed": seed.number,
                "norm": protocol["base_learner"].get("batch_norm"),
                "queries": protocol["task"]["num_queries"],
                "tasks": protocol["num_tasks"],
                "mean": target.in_its_units(last.mean),
                "ci95": target.scale * (last.ci95 or 0.0),
                "steps": steps,
                "episodes": protocol.get("manifest"),
                "evaluated_by": evaluated_by(target, overrides),
            }
        )
    return rows


def of_run(seed: Seed) -> dict[str, Any]:
    """What is kept of one run: nothing that tells of the machine's paths or name."""
    run = run_at(seed.path)
    history, commit = run.history, run.code.get("commit")
    validations = run.validations(run.score_name).items()
    return {
        "seed": seed.number,
        "command": command_of(history),
        "commit": commit,
        "dirty": bool(run.code.get("dirty")),
        "date": history[0]["started"][:10],
        "seconds": round(seconds_of(run)),
        "continued": len(history) - 1,
        "steps": run.config["steps"],
        "tested_step": seed.tested_step(),
        "execution": run.machine.get("execution"),
        "machine": {name: run.machine.get(name) for name in MACHINE},
        "curve": [[int(step), seed.target.in_its_units(score.mean)] for step, score in validations],
        "depends_on": dependence.of_run(run.path, run.facts),
    }


def command_of(history: list[dict[str, Any]]) -> str:
    """The command that makes the run in one go: as it began, with what it was told when it was continued, more steps say."""
    words = {text.partition("=")[0]: text for part in history for text in part["overrides"]}
    return " ".join(["metarun", *(text for text in words.values() if not text.startswith(OF_THE_MACHINE))])


def seconds_of(run: Run) -> float:
    """How long the run took in all its parts, by a clock that nobody sets; of a run that an earlier metarun made, by the
    dates of each part, as far as it tells when it ended."""
    if (counted := number(run.status.get("seconds"))) is not None:
        return max(0.0, counted)
    parts = [(moment(part.get("started")), moment(part.get("ended"))) for part in run.history]
    begun, ends = [start for start, _ in parts], [end for _, end in parts[:-1]] + [run.updated]
    return sum(end - start for start, end in zip(begun, ends, strict=True) if start is not None and end is not None)


def write(path: Path, content: dict[str, Any]) -> None:
    """Write a card; raises ValueError where it tells of the machine."""
    text = json.dumps(content)
    if found := re.search(r'"/(?!\()|=/|~/', text):
        raise ValueError(f"the card would hold a path of this machine: {text[found.start() : found.start() + 60]}")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, content)
