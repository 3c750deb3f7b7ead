"""``metarun show RUN``: what one run is, what it reached, what it cost, and what is unusual about it."""

import json
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from metarun.commands.runs import age, note
from metarun.config.choices import options_of
from metarun.errors import ConfigError
from metarun.evaluation.kinds import KINDS
from metarun.output.kept import flat, mapping, number, text_lines
from metarun.output.ledger import Run, run_at, score_of, scores_in
from metarun.output.tables import Score, Table, plain, refuse_other_formats, show, text_of

Parts = dict[str, dict[str, Any]]
PLACES = ("run_dir", "resume", "data_root")  # they differ from machine to machine, and decide no number
# of a curve with so many points the places of those that are drawn, beside the last
STEPS_SHOWN: dict[str, Callable[[int], Sequence[int]]] = {
    "curve": lambda count: (0, 1, 2, 3, 5, 10, 20, 50, 100, 200),
    "validation": lambda count: range(0, count, 1 + count // 10),
}
BAR = 30  # columns
TITLES = {
    "curve": "{} after each adaptation step",
    "validation": "{} on validation tasks by training step",
    "differs": "differs from the defaults",
}
TITLES |= {"evaluations": "evaluated later", "warnings": "what the log warns of", "damaged": "what cannot be read"}
# what a reader of the score should know, as the log has it
WARNINGS = re.compile(
    r"(?:warning|alarm)\b|training (?:did not help|may not have helped|had other)|[^:]* reads? the whole query batch|"
    r"only \d+ test (?:classes|tasks)",
    re.IGNORECASE,
)


def show_run(path: Path, chosen: str) -> None:
    """Print all parts of the run."""
    refuse_other_formats(chosen)
    run = run_at(path)
    parts = {name: part for name, part in parts_of(run).items() if part}
    if chosen == "json":
        print(json.dumps(plain(parts), indent=2))
    elif chosen == "table":
        print("\n".join(_lines(parts, run.score_name)))
    else:
        rows = [(part, name, _cell(value)) for part, values in parts.items() for name, value in values.items()]
        show(Table(("part", "name", "value"), rows), chosen)


def parts_of(run: Run) -> Parts:
    """What is told of a run, part by part; a part of which nothing is known is empty."""
    protocol, cost = (mapping(run.results.get(name)) for name in ("protocol", "complexity"))
    scores = {**run.scores, **dict.fromkeys(run.infinite, "not finite")}
    return {
        "run": _head(run),
        "protocol": {name: value for name, value in protocol.items() if not isinstance(value, dict)},
        "scores": {name: score for name, score in scores.items() if "_step_" not in name and "_shots_" not in name},
        "over shots": {name: score for name, score in scores.items() if "_shots_" in name},
        **dict(_over_others(run)),
        "curve": {str(step): score for step, score in enumerate(run.curve(f"test/{run.score_name}"))},
        "validation": {str(step): score for step, score in run.validations(run.score_name).items()},
        "learning speed": flat(mapping(run.results.get("learning_speed"))),
        "cost": {
            name: score_of(value) or value
            for name, value in cost.items()
            if score_of(value) or number(value) is not None
        },
        "differs": differences_from_defaults(run),
        "evaluations": dict(_later(run)),
        "made with": _known({"data": run.facts.get("data"), **run.code, **run.machine}),
        "warnings": {str(count): line for count, line in enumerate(warnings(run), 1)},
        "damaged": {text.partition(": ")[0]: text.partition(": ")[2] for text in (*run.damaged, *_cut(run))},
    }


def _cut(run: Run) -> Iterator[str]:
    lost = sum(bool(line.strip()) for line in text_lines(run.path / "metrics.jsonl")) - len(run.metrics())
    if lost:
        yield f"metrics.jsonl: {lost} of its lines cannot be read, as of a run that was killed while it wrote"


def _known(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value not in (None, [], "")}


def _head(run: Run) -> dict[str, Any]:
    step, steps = (run.status.get(name) for name in ("step", "steps"))
    said = {
        "folder": str(run.path),
        "state": run.state,
        "began": f"{age(run.started)} ago" if run.started else None,
        "step": step if steps in (None, step) else f"{step} of {steps}",
        "best validation": None if run.score else run.best_validation,
        "error": note(run) if run.status.get("error") else None,
        "overrides": shlex.join(run.overrides) if run.overrides else None,
        "continued": len(run.history) - 1 if len(run.history) > 1 else None,
        **{group: run.option(group) for group in ("meta_learner", "task", "base_learner")},
    }
    return _known(said)


def differences_from_defaults(run: Run) -> dict[str, Any]:
    """The settings that are others than metarun would choose for the run's task, networks and learner, each with that."""
    from omegaconf import OmegaConf  # it takes a moment, and so does composing

    from metarun.config.compose import composed

    if not run.settings:
        return {}
    try:
        cfg = composed(options_of(run.config), [])
    except ConfigError:  # options that do not go together, or of an earlier metarun
        cfg = composed([], [])
    defaults: Any = OmegaConf.to_container(cfg, resolve=True)
    chosen = flat(defaults)
    return {
        key: {"value": value, "default": chosen.get(key)}
        for key, value in run.settings.items()
        if key not in PLACES and (key not in chosen or chosen[key] != value)
    }


def _over_others(run: Run) -> Iterator[tuple[str, dict[str, Score]]]:
    """The scores with their intervals over other classes, tasks and sizes than those of the test, where it tells these."""
    for kind in KINDS:
        told = {name: mapping(run.results.get(name)) for name in run.scores if "_step_" not in name}
        width, count = f"ci95_over_{kind}", f"num_{kind}"
        found = {
            name: {**value, "ci95": value[width], "n": value.get(count)}
            for name, value in told.items()
            if width in value
        }
        yield f"over other {kind}", scores_in(found)


def _later(run: Run) -> Iterator[tuple[str, Any]]:
    for name, content in run.evaluations().items():
        found = scores_in(content)
        own = next((key for key in found if key.partition("/")[2] == run.score_name), None)
        yield name, found[own] if own else None


def warnings(run: Run) -> list[str]:
    """The alarms that the run kept, and the lines of its log that warn of something, without their times; each once."""
    told = [f"alarm at step {alarm['step']}: {alarm['text']}" for alarm in run.alarms()]
    lines = [re.sub(r"^[\d-]{10} [\d:]{8}  ", "", line) for line in text_lines(run.path / "log.txt")]
    return list(dict.fromkeys([*told, *(line for line in lines if WARNINGS.match(line))]))


def _lines(parts: Parts, score_name: str) -> Iterator[str]:
    for part, all_values in parts.items():
        values = _once(all_values, score_name)
        yield TITLES.get(part, part).format(score_name)
        width = min(40, max(map(len, values)))
        bars = _bars(values, STEPS_SHOWN[part](len(values))) if part in STEPS_SHOWN else dict.fromkeys(values, "")
        for name, bar in bars.items():
            yield f"  {text_of(name):<{width}}  {text_of(_cell(values[name]))}  {bar}".rstrip()


def _once(values: dict[str, Any], score_name: str) -> dict[str, Any]:
    """``values`` without those of the query loss that the score's repeat: in regression the loss is the score."""
    own = {name: name.replace("query_loss", score_name) for name in values}
    return {name: value for name, value in values.items() if own[name] == name or values.get(own[name]) != value}


def _bars(scores: dict[str, Score], shown: Sequence[int]) -> dict[str, str]:
    """For some of the steps a bar, as long as the score is large among them; negative ones count from the lowest."""
    steps = [step for place, step in enumerate(scores) if place in shown or place == len(scores) - 1]
    means = [scores[step].mean for step in steps]
    low, high = min(0.0, *means), max(means)
    length = BAR / (high - low) if high > low else 0.0
    return {step: "#" * round(length * (mean - low)) for step, mean in zip(steps, means, strict=True)}


def _cell(value: Any) -> Any:
    """A value of a part as a cell: a difference from the defaults is a line."""
    if isinstance(value, dict) and value.keys() == {"value", "default"}:
        default = "nothing" if value["default"] is None else text_of(value["default"])
        return f"{text_of(value['value']) or 'null'}  (default {default})"
    return value
