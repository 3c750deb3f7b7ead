"""All that is found out about what adaptation does, over the tasks of a split, as JSON can hold it.

T tasks, K adaptation steps
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metarun.core import Episode, MetaLearner, Params
from metarun.errors import refuse_divergence
from metarun.evaluation.estimates import estimate
from metarun.evaluation.eval_mode import fixed_draws, takes_steps
from metarun.evaluation.explaining.numbers import (
    LEVELS,
    Guesses,
    between,
    confused,
    cosines,
    coverage,
    recalled,
    reliability,
)
from metarun.evaluation.explaining.observed import BODY, Observed, observe
from metarun.evaluation.explaining.of_one import curve, embedding
from metarun.evaluation.intervals import over
from metarun.evaluation.scoring import Subject
from metarun.evaluation.whole import drawn_from
from metarun.execution.execution import Execution, MetaLoss
from metarun.trees import ravel, slice_tasks, tree_leaves, tree_map

ALIGNED = 16  # training tasks whose meta-gradients are compared: one of them is as large as theta
WORST = 10  # pairs of classes, and hardest classes
PARTS = (
    "layers",
    "steps",
    "tasks_alignment",
    "gradient_alignment",
    "calibration",
    "confusion",
    "embedding",
    "episodes",
)


@dataclass
class Explanation:
    """The ``parts`` by name, and of each that a learner or task does not have, why it is ``left_out``."""

    parts: dict[str, Any] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, part: dict[str, Any] | str) -> None:
        """Take in a part, or the reason why there is none."""
        if isinstance(part, str):
            self.left_out[name] = part
        else:
            self.parts[name] = part


def explain(subject: Subject, step: int, seed: int) -> Explanation:
    """Everything but the meta-gradients, which are of training tasks. ``step`` and ``seed`` are told where a loss is no
    number."""
    seen = list(observe(subject))
    name = subject.task.spec.objective.score_name
    refuse_divergence({f"{subject.split}/loss": seen_loss(seen)}, step, seed)
    found = Explanation()
    found.add("layers", layers(subject, seen))
    found.add("steps", steps(subject, seen))
    found.add("gradient_alignment", gradient_alignment(subject, seen))
    found.add("calibration", calibration(subject, seen))
    found.add("confusion", confusion(subject, seen))
    found.add("embedding", embedding(subject, 0))
    found.add("episodes", ranked(subject, [one.steps[-1][f"query_{name}"] for one in seen]))
    return found


def seen_loss(seen: Sequence[Observed]) -> float:
    """The mean loss on the queries after adaptation."""
    return sum(one.steps[-1]["query_loss"] for one in seen) / len(seen)


def told(values: Iterable[float]) -> dict[str, Any]:
    """A mean over tasks as JSON has it."""
    return estimate(torch.tensor(list(values), dtype=torch.float64))._asdict()


def no_steps(subject: Subject) -> str:
    """Why something of inner steps is left out."""
    return f"{type(subject.learner).__name__} takes no inner steps, before and after which it could be compared"


def layers(subject: Subject, seen: Sequence[Observed]) -> dict[str, Any] | str:
    """By layer the relative change of its parameters and the similarity (CKA) of its outputs on the queries."""
    if not takes_steps(subject.learner):
        return no_steps(subject)
    names = list(dict.fromkeys([*seen[0].similarity, *seen[0].change]))
    rows = [
        {
            "layer": name,
            "kind": kind_of(subject.learner, name),
            "parameters": seen[0].sizes.get(name),
            "change": told(one.change[name] for one in seen) if name in seen[0].change else None,
            "cka": told(one.similarity[name] for one in seen) if name in seen[0].similarity else None,
        }
        for name in names
    ]
    return {"rows": rows}


def kind_of(learner: MetaLearner, layer: str) -> str | None:
    """The class of a layer of the base learner; None of the whole body, and of what is none of its layers."""
    net = getattr(learner, "base_learner", None)
    modules = {} if net is None or layer == BODY else dict(net.named_modules())
    return type(modules[layer]).__name__ if layer in modules else None


def steps(subject: Subject, seen: Sequence[Observed]) -> dict[str, Any]:
    """After each step 0 ... K the mean of each score on support and query; after adaptation alone where there are none.

    Beside their intervals over episodes those over other classes or tasks, where the episodes' are known.
    """
    count, names = len(seen[0].steps), seen[0].steps[0]
    kind, members, _ = drawn_from(subject)
    rows = []
    for k in range(count):
        values = {name: np.array([one.steps[k][name] for one in seen]) for name in names}
        others = over(kind, values, members) if kind else {}
        wider = {name: {f"ci95_over_{kind}": other.ci95, f"num_{kind}": other.number} for name, other in others.items()}
        rows.append({name: told(values[name].tolist()) | wider.get(name, {}) for name in names})
    return {"rows": rows}


def gradient_alignment(subject: Subject, seen: Sequence[Observed]) -> dict[str, Any] | str:
    """The cosine of a task's support and query gradients where its adaptation begins."""
    if not takes_steps(subject.learner):
        return no_steps(subject)
    values = [one.alignment for one in seen if one.alignment is not None]
    return (
        {"cosine": told(values), "values": values} if values else "adaptation moves no parameter, or a gradient is zero"
    )


def tasks_alignment(loss: MetaLoss, theta: Params, episodes: Episode, execution: Execution) -> dict[str, Any] | str:
    """The cosines of the meta-gradients of training tasks [T] at theta."""
    rows, num_tasks = [], len(tree_leaves(episodes)[0])
    with fixed_draws():
        for i in range(num_tasks):
            gradient, _ = execution.eager.mean_grad(loss, theta, slice_tasks(episodes, slice(i, i + 1)))
            rows.append(ravel(tree_map(lambda leaf: leaf.detach().float().cpu(), gradient))[0])
    matrix = cosines(torch.stack(rows))
    pairs = between(matrix)
    pairs = pairs[pairs.isfinite()]
    if not len(pairs):
        return "the meta-gradients are zero"
    share = (pairs > 0).double().mean().item()
    return {"mean": pairs.mean().item(), "share_above_zero": share, "num_tasks": num_tasks, "matrix": matrix.tolist()}


def calibration(subject: Subject, seen: Sequence[Observed]) -> dict[str, Any] | str:
    """Of classes how often predictions are right by how sure they are; of numbers how many lie in their intervals, or
    the residuals."""
    found = [one.predictions for one in seen if one.predictions is not None]
    if not found:
        return f"{type(subject.learner).__name__} predicts nothing of single queries"
    outputs, y = torch.cat([one.outputs for one in found]), torch.cat([one.y for one in found])
    if not y.is_floating_point():  # classes
        found_bins = reliability(outputs, y)
        return {"kind": "classes", **found_bins._asdict(), "num_predictions": len(y)}
    residuals = (y - outputs).flatten()
    common = {"num_predictions": len(residuals), "bias": residuals.mean().item(), "rmse": _root_mean_square(residuals)}
    if found[0].below is None:
        quantiles = torch.linspace(0, 1, 41, dtype=torch.float64)
        spread = torch.quantile(_thinned(residuals), quantiles).tolist()
        return {"kind": "residuals", **common, "quantiles": spread}
    below = torch.cat([one.below for one in found if one.below is not None])
    levels = [*LEVELS, 0.99]
    return {"kind": "intervals", **common, "levels": levels, "coverage": coverage(below, levels)}


def _root_mean_square(values: Tensor) -> float:
    return math.sqrt(values.double().square().mean().item())


def _thinned(values: Tensor) -> Tensor:
    """At most a million of them: torch's quantiles take no more."""
    return values.double()[:: max(1, len(values) // 10**6)]


def confusion(subject: Subject, seen: Sequence[Observed]) -> dict[str, Any] | str:
    """The classes that are mistaken for each other, and the hardest ones, by name."""
    if seen[0].predictions is None or seen[0].predictions.y.is_floating_point():
        return "the task has no classes"
    origin = subject.task.drawn_from(subject.split, subject.task.draw(subject.split, range(len(seen))))
    if origin is None or origin.kind != "classes":
        return "the task's classes have no names"
    guesses = [
        Guesses(one.predictions.y.tolist(), one.predictions.outputs.argmax(1).tolist(), names)
        for one, names in zip(seen, origin.names, strict=True)
        if one.predictions is not None
    ]
    hardest = [{"class": name, "right": right, "number": n} for name, right, n in recalled(guesses)[:WORST]]
    return {"pairs": [pair._asdict() for pair in confused(guesses)[:WORST]], "hardest": hardest}


def ranked(subject: Subject, values: Sequence[float]) -> dict[str, Any]:
    """The score of each episode, and which one is best and worst."""
    higher = subject.task.spec.objective.higher_is_better
    choose: tuple[Callable[..., float], ...] = (max, min) if higher else (min, max)
    best, worst = (values.index(chosen(values)) for chosen in choose)
    ends: dict[str, dict[str, Any]] = {
        name: {"episode": i, "score": values[i]} for name, i in (("best", best), ("worst", worst))
    }
    for end in ends.values():
        end["curve"] = curve(subject, int(end["episode"]))
    return {**ends, "scores": list(values)}
