"""Figures of an explanation, by matplotlib: one function for each part, whose numbers it takes as JSON has them."""

from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np

from metarun.drawing import as_written
from metarun.output.explained.findings import begins_at_zero, named

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = 20  # of classes; more are not told apart
BEFORE, AFTER, SUPPORT, QUERY = "0.55", "C0", "C3", "C0"


@as_written()
def drawn(parts: dict[str, Any], score: str) -> "dict[str, Figure]":
    """A figure of each part that has one, by its name."""
    found: dict[str, Figure | None] = {name: draw(parts[name]) for name, draw in OF_PARTS.items() if name in parts}
    if "steps" in parts:
        found["steps"] = steps(parts["steps"], score)
    return {name: figure for name, figure in found.items() if figure is not None}


def _panels(number: int, width: float, height: float, **settings: Any) -> Any:
    """A figure and its panels side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    panels = figure.subplots(1, number, squeeze=False, **settings)[0]
    for panel in panels:
        panel.spines[["top", "right"]].set_visible(False)
    return figure, panels


def _numbers(estimates: Sequence[dict[str, Any] | None], key: str) -> np.ndarray:
    return np.array([np.nan if e is None or e[key] is None else e[key] for e in estimates], float)


def layers(part: dict[str, Any]) -> "Figure":
    """Bars of each layer: how far its parameters moved, and how alike its outputs are before and after."""
    rows = part["rows"]
    figure, panels = _panels(2, 9, 0.28 * len(rows) + 1.1, sharey=True)
    places = np.arange(len(rows))
    titles = {"change": "relative change of the parameters", "cka": "similarity of the outputs (CKA)"}
    for panel, (key, title) in zip(panels, titles.items(), strict=True):
        estimates = [row[key] for row in rows]
        means, widths = _numbers(estimates, "mean"), _numbers(estimates, "ci95")
        shown = np.isfinite(means)
        whiskers = np.where(np.isfinite(widths), widths, 0)[shown]
        panel.barh(places[shown], means[shown], xerr=whiskers, color=AFTER, height=0.65, error_kw={"lw": 1})
        panel.set_title(title, fontsize=10, loc="left")
        panel.grid(axis="x", alpha=0.3)
    for place in (place for place, row in zip(places, rows, strict=True) if begins_at_zero(row)):
        panels[0].text(0, place, " away from zero", fontsize=8, va="center")
    panels[0].set_yticks(places, [named(row) for row in rows], fontsize=8)
    panels[0].set(xlim=(0, None), ylim=(len(rows) - 0.5, -0.5))
    panels[1].set_xlim(0, 1.02)
    return figure


def steps(part: dict[str, Any], score: str) -> "Figure | None":
    """Loss and score of support and query after each step; None where there are no steps."""
    from matplotlib.ticker import MaxNLocator

    rows = part["rows"]
    if len(rows) < 2:
        return None
    same = all(row["query_loss"] == row[f"query_{score}"] for row in rows)  # the score is the loss
    names = ["loss"] if same else ["loss", score]
    figure, panels = _panels(len(names), 4.5 * len(names), 3.2)
    for panel, name in zip(panels, names, strict=True):
        for which, color in (("support", SUPPORT), ("query", QUERY)):
            estimates = [row.get(f"{which}_{name}") for row in rows]
            means, widths = _numbers(estimates, "mean"), np.nan_to_num(_numbers(estimates, "ci95"), posinf=0)
            panel.fill_between(range(len(rows)), means - widths, means + widths, color=color, alpha=0.2, linewidth=0)
            panel.plot(means, marker="o", markersize=4 if len(rows) <= 12 else 2, color=color, label=which)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        panel.set(xlabel="adaptation steps", ylabel=name)
        panel.grid(alpha=0.3)
    panels[0].legend(frameon=False)
    return figure


def tasks_alignment(part: dict[str, Any]) -> "Figure":
    """The cosine of the meta-gradients of each two tasks, as a map."""
    figure, (panel,) = _panels(1, 4.6, 3.8)
    image = panel.imshow(np.array(part["matrix"], float), vmin=-1, vmax=1, cmap="RdBu")
    figure.colorbar(image, ax=panel, label="cosine")
    ticks = range(0, len(part["matrix"]), 5)
    panel.set(xlabel="training task", ylabel="training task", xticks=ticks, yticks=ticks)
    return figure


def gradient_alignment(part: dict[str, Any]) -> "Figure":
    """How many tasks have which cosine of their support and query gradients."""
    figure, (panel,) = _panels(1, 4.6, 3)
    panel.hist(part["values"], bins=np.linspace(-1, 1, 41), color=AFTER)
    panel.axvline(0, color="0.4", linewidth=0.8)
    panel.yaxis.get_major_locator().set_params(integer=True)
    panel.set(xlabel="cosine of a task's support and query gradients", ylabel="tasks")
    panel.set(xlim=(-1, 1), xticks=(-1, -0.5, 0, 0.5, 1))
    return figure


def calibration(part: dict[str, Any]) -> "Figure":
    """The reliability diagram of classes, the coverage of intervals, or quantiles of residuals beside normal ones."""
    return {"classes": _reliability, "intervals": _coverage, "residuals": _residuals}[part["kind"]](part)


def _reliability(part: dict[str, Any]) -> "Figure":
    figure, (panel, counts) = _panels(2, 9, 3.4)
    bins = len(part["counts"])
    middles = (np.arange(bins) + 0.5) / bins
    panel.bar(middles, np.array(part["accuracy"], float), width=0.9 / bins, color=AFTER, label="accuracy")
    panel.plot([0, 1], [0, 1], color="0.4", linestyle="--", linewidth=1, zorder=3, label="calibrated")
    panel.plot(np.array(part["confidence"], float), np.array(part["accuracy"], float), ".", color=SUPPORT)
    panel.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
    panel.set_title(f"expected calibration error {part['error']:.3f}", fontsize=10, loc="left")
    panel.legend(frameon=False, fontsize=8, loc="upper left")
    counts.bar(middles, part["counts"], width=0.9 / bins, color="0.6")
    counts.set(xlabel="confidence", ylabel="queries", xlim=(0, 1))
    return figure


def _coverage(part: dict[str, Any]) -> "Figure":
    figure, (panel,) = _panels(1, 4.6, 3.8)
    panel.plot([0, 1], [0, 1], color="0.4", linestyle="--", linewidth=1, label="calibrated")
    panel.plot(part["levels"], part["coverage"], marker=".", color=AFTER, label="intervals of the learner")
    panel.set(xlabel="level of the interval", ylabel="share of targets within", xlim=(0, 1), ylim=(0, 1))
    panel.legend(frameon=False, fontsize=8)
    panel.grid(alpha=0.3)
    return figure


def _residuals(part: dict[str, Any]) -> "Figure":
    figure, (panel,) = _panels(1, 4.6, 3.8)
    spread = np.array(part["quantiles"], float)[1:-1]
    normal = [NormalDist().inv_cdf((k + 1) / (len(spread) + 1)) for k in range(len(spread))]
    panel.plot(normal, part["rmse"] * np.array(normal), color="0.4", linestyle="--", linewidth=1, label="normal")
    panel.plot(normal, spread, marker=".", color=AFTER, label="residuals")
    panel.set(xlabel="quantile of a normal distribution", ylabel="target - prediction")
    panel.legend(frameon=False, fontsize=8)
    panel.grid(alpha=0.3)
    return figure


def confusion(part: dict[str, Any]) -> "Figure | None":
    """Bars of the most frequent mistakes and of the hardest classes; None where there is no mistake."""
    if not part["pairs"]:
        return None
    pairs = [(f"{_short(p['true'])} → {_short(p['taken'])}", p["times"], p["number"]) for p in part["pairs"]]
    hardest = [(_short(c["class"]), c["right"], c["number"]) for c in part["hardest"]]
    figure, panels = _panels(2, 11, 0.3 * max(len(pairs), len(hardest)) + 1.1)
    titles = ("share mistaken (class → taken for)", "share recognised (hardest classes)")
    for panel, values, color, title in zip(panels, (pairs, hardest), (SUPPORT, AFTER), titles, strict=True):
        panel.barh(range(len(values)), [times / number for _, times, number in values], color=color, height=0.65)
        panel.set_yticks(range(len(values)), [name for name, *_ in values], fontsize=8)
        for row, (_, times, number) in enumerate(values):
            panel.text(times / number + 0.01, row, f"{times} of {number}", fontsize=8, va="center")
        panel.set_title(title, fontsize=10, loc="left")
        panel.set(xlim=(0, 1.15), xticks=(0, 0.25, 0.5, 0.75, 1))
        panel.invert_yaxis()
        panel.grid(axis="x", alpha=0.3)
    return figure


def _short(name: str) -> str:
    return name if len(name) <= 28 else f"{name[:12]} … {name[-13:]}"


def embedding(part: dict[str, Any]) -> "Figure":
    """The features of an episode's support (large) and query (small), in one plane before and after adaptation."""
    moments = [name for name in ("before", "after") if name in part]
    figure, panels = _panels(len(moments), 4.6 * len(moments), 4, sharex=True, sharey=True)
    labels = {which: np.array(values) for which, values in part["labels"].items()}
    every = np.concatenate([*labels.values()])
    classes = every.dtype.kind == "i"
    limits = (0, COLOURS - 1) if classes else (every.min(), every.max())
    colors = {"cmap": "tab20" if classes else "viridis", "vmin": limits[0], "vmax": limits[1]}
    for panel, name in zip(panels, moments, strict=True):
        for which, size, edge in (("query", 14, "none"), ("support", 90, "black")):
            shown = labels[which] < COLOURS if classes else labels[which] == labels[which]
            x, y = np.array(part[name][which], float)[shown].T
            panel.scatter(x, y, s=size, c=labels[which][shown], edgecolors=edge, marker="o", label=which, **colors)
        panel.set_title(f"{name} adaptation" if len(moments) > 1 else "features", fontsize=10, loc="left")
        panel.set(xticks=[], yticks=[])
    few = f"the first {COLOURS} of {every.max() + 1} classes" if classes and every.max() >= COLOURS else None
    legend = {"loc": "outside lower center", "ncols": 2, "frameon": False, "title": few}
    figure.legend(*panels[0].get_legend_handles_labels(), **legend)
    return figure


def curves(part: dict[str, Any]) -> "Figure | None":
    """The best and the worst episode of single numbers, with what is predicted; None where they are something else."""
    if not part["best"]["curve"]:
        return None
    figure, panels = _panels(2, 9, 3.2)
    for panel, name in zip(panels, ("best", "worst"), strict=True):
        points = part[name]["curve"]
        panel.plot(points["query"]["x"], points["query"]["y"], color="0.2", linewidth=1, label="the task (query)")
        for moment, color in (("before", BEFORE), ("after", AFTER)):
            if moment in points:
                panel.plot(points["query"]["x"], points[moment], "--", color=color, label=f"predicted {moment}")
        panel.plot(points["support"]["x"], points["support"]["y"], "o", color=SUPPORT, label="support")
        panel.set_title(f"{name}: episode {part[name]['episode']}", fontsize=10, loc="left")
        panel.set(xlabel="x", ylabel="y")
        panel.grid(alpha=0.3)
    panels[0].legend(frameon=False, fontsize=8)
    return figure


OF_PARTS: "dict[str, Callable[[dict[str, Any]], Figure | None]]" = {
    "layers": layers,
    "tasks_alignment": tasks_alignment,
    "gradient_alignment": gradient_alignment,
    "calibration": calibration,
    "confusion": confusion,
    "embedding": embedding,
    "episodes": curves,
}
