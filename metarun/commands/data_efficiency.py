"""Data efficiency: a sweep over shares of the training classes or tasks, and the curve of its scores."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from metarun.config.compose import composed
from metarun.errors import ConfigError
from metarun.evaluation.intervals import half_width
from metarun.files import read_json, write_json
from metarun.output.folder import RunFolder
from metarun.output.ledger import score_of

OPTION, LIST, KEY = "evaluation=data_efficiency", "evaluation.train_fractions=", "task.train_fraction="
NAME = "data_efficiency"


def spread(arguments: list[str], config_dirs: list[Path]) -> list[str]:
    """``arguments`` with the shares that they ask for as values of task.train_fraction, which makes runs of them."""
    asked = [text for text in arguments if text == OPTION or text.startswith(LIST)]
    if not asked:
        return arguments
    if own := [text for text in arguments if text.startswith(KEY)]:
        raise ConfigError([f"{own[0]}: {asked[0]} sets it; choose the shares by {LIST}[0.1,1.0], say."])
    fractions = composed(asked, config_dirs).evaluation.train_fractions
    if not fractions:
        raise ConfigError([f"{asked[-1]}: names no share; write {LIST}[0.1,1.0], say."])
    return [text for text in arguments if text not in asked] + [KEY + ",".join(f"{f:g}" for f in fractions)]


def refuse_without_shares(overrides: Sequence[str], config_dirs: Sequence[Path]) -> None:
    """Raise ConfigError where a run of ``overrides`` is on a task that has no share of training classes or tasks."""
    try:
        task = composed([text for text in overrides if not text.startswith(KEY)], [*config_dirs]).task
    except ConfigError:  # which is told with the mistakes of the other runs
        return
    if "train_fraction" not in task:
        name = str(task.get("_target_")).rpartition(".")[2]
        rule = f"{name} draws its training tasks without end, and has no share of them"
        raise ConfigError([f"{OPTION}: {rule}; choose a task on data, task=omniglot or task=csv_regression, say."])


def curves(runs: Sequence[tuple[list[str], RunFolder]]) -> dict[str, Any]:
    """The score for each share, a curve for each combination of the other settings but the seed; runs without a score.

    A point of one seed has the intervals of its episodes and classes, one of several that of their mean over seeds.
    """
    groups: dict[str, dict[float, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    missing, name, shared = [], "", set.intersection(*(set(overrides) for overrides, _ in runs))
    for overrides, folder in runs:
        fraction = next(float(text.removeprefix(KEY)) for text in overrides if text.startswith(KEY))
        others = [text for text in overrides if text not in shared and not text.startswith((KEY, "seed="))]
        status = folder.read_status()
        name = next((key for key in status if key.startswith("test/")), name)
        try:
            score = read_json(folder.path / "results.json")[name]
        except (ValueError, KeyError):
            score = None
        if score_of(score) is None:
            missing.append(folder.path.name)
            continue
        groups[" ".join(others)][fraction].append(score)
    found = [
        {"name": group, "points": [{"train_fraction": f, **_point(scores)} for f, scores in sorted(of_share.items())]}
        for group, of_share in groups.items()
    ]
    return {"version": 1, "score": name, "curves": found, "missing": missing}


def _point(scores: list[dict[str, Any]]) -> dict[str, Any]:
    if len(scores) == 1:
        return {"ci95": None, **scores[0], "num_seeds": 1}
    means = [score["mean"] for score in scores]
    return {"mean": fmean(means), "ci95_over_seeds": half_width(stdev(means), len(means)), "num_seeds": len(means)}


def leave_curves(runs: Sequence[tuple[list[str], RunFolder]], folder: Path) -> list[str]:
    """Write data_efficiency.json and .png and TensorBoard's figure into the sweep's ``folder``; lines that say so."""
    content = curves(runs)
    if not content["curves"]:
        return []
    write_json(folder / f"{NAME}.json", content)
    from metarun.drawing import as_written

    with as_written():
        drawn = figure(content)
    drawn.savefig(folder / f"{NAME}.png", dpi=130)
    from metarun.output.loggers.tensorboard import add_figures  # torch is loaded after the sweep

    add_figures(folder / NAME, {NAME: drawn}, 0)
    left_out = [f"not in the curve: {', '.join(content['missing'])}"] if content["missing"] else []
    return [f"data efficiency: {folder / NAME}.png and .json", *left_out]


def figure(content: dict[str, Any]) -> Any:
    """A matplotlib figure of the score over the share, with an interval at each point."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(5, 3.4), layout="constrained")
    axes, ticks, seen = drawn.add_subplot(), set(), set()
    kinds = {"ci95_over_seeds": "seeds", "ci95": "episodes"}
    for curve in content["curves"]:
        points = curve["points"]
        shares = [100 * point["train_fraction"] for point in points]
        keys = [next(key for key in kinds if key in point) for point in points]
        widths = [point[key] or 0.0 for key, point in zip(keys, points, strict=True)]
        axes.errorbar(shares, [point["mean"] for point in points], widths, marker="o", capsize=3, label=curve["name"])
        ticks |= {*shares}
        seen |= {kinds[key] for key in keys}
    axes.set_xscale("log")
    axes.set_xticks(sorted(ticks), [f"{share:g}" for share in sorted(ticks)])
    axes.minorticks_off()
    axes.set(
        xlabel="training classes or tasks, %", ylabel=content["score"], title=f"95% over {' or '.join(sorted(seen))}"
    )
    axes.grid(alpha=0.3)
    if len(content["curves"]) > 1:
        axes.legend(frameon=False, fontsize=8)
    return drawn
