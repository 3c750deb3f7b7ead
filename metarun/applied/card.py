"""What lies beside exported weights: a model card with its scores, and a program that needs no metarun."""

from pathlib import Path
from typing import Any

import yaml

from metarun.applied.adapted import OF_ALL_QUERIES
from metarun.applied.exporting import Inputs
from metarun.applied.model import Model
from metarun.evaluation.records import SHOTS
from metarun.output.ledger import OF_OTHERS, scores_in
from metarun.output.tables import Score

EXAMPLE = '''"""Adapt the exported model to labelled examples, and predict others. Needs torch and numpy, and no metarun.

python example.py [FILE.npz with support_x, support_y and query_x; without it the numbers are random]
"""

import sys

import numpy as np
import torch

SUPPORT, QUERIES, SHAPE, CLASSES = {support}, {queries}, {shape}, {classes}
program = torch.export.load("program.pt2").module()
arrays = dict(np.load(sys.argv[1])) if len(sys.argv) > 1 else {{}}
support_x = torch.as_tensor(arrays.get("support_x", {random_x}(SUPPORT, *SHAPE))).to(torch.{x_dtype})
support_y = torch.as_tensor(arrays.get("support_y", {random_y})).to(torch.{y_dtype})
query_x = torch.as_tensor(arrays.get("query_x", {random_x}(QUERIES, *SHAPE))).to(torch.{x_dtype})
parts = []
{refusal}for part in query_x.split(QUERIES):  # the program takes exactly as many: the last part is filled up
    filled = torch.cat([part, part[:1].expand(QUERIES - len(part), *part.shape[1:])])
    parts.append(program(support_x, support_y, filled)[0][: len(part)])
print(np.array2string(torch.cat(parts).detach().numpy(), precision=6, suppress_small=True))  # {what}
'''


TOGETHER = """if len(query_x) != QUERIES:
    sys.exit(f"{len(query_x)} queries: the batch norms look at all of them together, so give {QUERIES}")
"""
PLACES = ("path", "data_root", "run_dir", "sweep_dir")  # settings that name a file or a folder


def example_of(model: Model, inputs: Inputs, classes: list[str] | None) -> str:
    """A program of about 20 lines that adapts the exported one and predicts."""
    spec = model.run.experiment.task.spec
    count = len(inputs.support.x)
    words = spec.num_tokens is not None
    of_regression = f"torch.randn(SUPPORT, {spec.num_outputs})"
    return EXAMPLE.format(
        refusal=TOGETHER if model.looks_at_all_queries else "",
        support=count,
        queries=len(inputs.query_x),
        shape=spec.input_shape,
        classes=classes or inputs.num_ways,
        random_x=f"(lambda *size: torch.randint({spec.num_tokens}, size))" if words else "torch.rand",
        random_y=of_regression if inputs.num_ways is None else "torch.arange(SUPPORT) % " + str(inputs.num_ways),
        x_dtype=str(inputs.support.x.dtype).removeprefix("torch."),
        y_dtype=str(inputs.support.y.dtype).removeprefix("torch."),
        what="probabilities of the classes" if inputs.num_ways is not None else "the mean of each output",
    )


def card_of(model: Model, results: dict[str, Any], files: dict[str, str]) -> str:
    """The model card: metadata as Hugging Face reads them, with scores, intervals and protocol; and what the files are."""
    learner, target = type(model.learner).__name__, model.run.experiment.protocol["task"]["_target_"]
    name, kind = f"{learner} on {target.rpartition('.')[2]}", _kind(model)
    found = scores_in(results)
    scores = {key.removeprefix("test/"): value for key, value in found.items() if key.startswith("test/")}
    scores = {
        key: value for key, value in scores.items() if "_step_" not in key and SHOTS not in key and "/" not in key
    }
    head: dict[str, Any] = {"library_name": "metarun", "tags": ["meta-learning", kind.replace(" ", "-"), learner]}
    if scores:
        head["model-index"] = [{"name": name, "results": [_result(model, scores)]}]
    about = f"A model for {kind}, meta-trained by metarun ({learner}, step {model.run.step})"
    return "\n".join(
        [
            f"---\n{_yaml(head)}---",
            f"# {name}\n",
            f"{about}: it adapts to a few labelled examples of a new task.\n",
            *[f"{OF_ALL_QUERIES.capitalize()}\n"] * model.looks_at_all_queries,
            *_score_lines(scores, results.get("protocol", {})),
            "## Files\n",
            *(f"- `{file}`: {what}" for file, what in files.items()),
            "",
        ]
    )


def _kind(model: Model) -> str:
    return "few-shot classification" if model.classifies else "few-shot regression"


def _result(model: Model, scores: dict[str, Score]) -> dict[str, Any]:
    """An entry of ``model-index``: the model's own scores, each with its interval and what the episodes were."""
    experiment, kind = model.run.experiment, _kind(model)
    settings = experiment.protocol["task"]
    shown = {key: settings[key] for key in ("num_ways", "num_shots", "num_queries", "split") if key in settings}
    metrics = [
        {
            "type": key,
            "name": f"{key}: mean and 95% interval over {_known(value.n)} test episodes",
            "value": value.mean,
            "args": {"ci95": value.ci95, "episodes": value.n, **shown, "seed": experiment.seed},
        }
        for key, value in scores.items()
        if not key.startswith(OF_OTHERS)
    ]
    data = {"type": settings["_target_"].rpartition(".")[2], "name": experiment.task.fingerprint()}
    return {"task": {"type": kind.replace(" ", "-"), "name": kind}, "dataset": data, "metrics": metrics}


class _Plain(yaml.SafeDumper):
    """Writes equal values out each time, without anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _yaml(content: Any) -> str:
    return yaml.dump(content, Dumper=_Plain, sort_keys=False, allow_unicode=True, width=120)


def shareable(node: Any, key: str = "") -> Any:
    """The settings with the bare names of files and folders: where they lie on this machine is nobody else's business."""
    if isinstance(node, dict):
        return {name: shareable(value, name) for name, value in node.items()}
    if isinstance(node, list):
        return [shareable(value, key) for value in node]
    named = isinstance(node, str) and (key in PLACES or node.startswith("~") or Path(node).is_absolute())
    return Path(node).name if named else node


def _known(value: Any, digits: str = "") -> str:
    return "unknown" if value is None else f"{value:{digits}}"


def _score_lines(scores: dict[str, Score], protocol: dict[str, Any]) -> list[str]:
    if not scores:
        return ["The run has no test scores yet.\n"]
    rows = [f"| {key} | {mean:.4f} | {_known(ci95, '.4f')} | {_known(n)} |" for key, (mean, ci95, n) in scores.items()]
    table = ["| score | mean | 95% interval, +- | episodes |", "|---|---|---|---|", *rows, ""]
    lines = ["## Scores on tasks that training has not seen\n", *table, "Protocol:\n", "```"]
    return [*lines, _yaml(shareable(protocol)).rstrip(), "```", ""]
