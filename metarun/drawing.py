"""Pictures of generated tasks, by matplotlib: curves with their support points, and motions of mechanical systems."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from metarun.core import Episode
from metarun.evaluation.scoring import Estimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 3


def curves(
    episode: Episode, titles: Sequence[str], joined: bool = True, labels: tuple[str, str] = ("x", "y")
) -> "Figure":
    """One panel a task [B]: the support as dots, the query as a line in the order of x, or as small dots.

    Of several inputs or outputs the first are shown.
    """
    from matplotlib.figure import Figure

    rows = -(-len(titles) // COLUMNS)
    columns = min(len(titles), COLUMNS)
    figure = Figure(figsize=(3.4 * columns, 2.6 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True).flat
    for panel, title, *points in zip(panels, titles, *(leaf.cpu() for batch in episode[:2] for leaf in batch)):  # noqa: B905
        support_x, support_y, query_x, query_y = (leaf[:, 0].double().numpy() for leaf in points)
        order, name = np.argsort(query_x), "the task" if joined else "query"
        panel.plot(query_x[order], query_y[order], "-" if joined else ".", color="C0", linewidth=1.2, label=name)
        panel.plot(support_x, support_y, "o", color="C3", markersize=5, label="support")
        panel.set_title(title, fontsize=9)
        panel.set(xlabel=labels[0], ylabel=labels[1])
        panel.label_outer()
        panel.grid(alpha=0.3)
    for panel in list(panels):  # those left over
        panel.set_axis_off()
    figure.axes[0].legend(frameon=False, fontsize=8)
    return figure


def motions(seconds: np.ndarray, states: np.ndarray, coordinates: list[str], names: list[str]) -> "Figure":
    """A row a coordinate: its course, and that of its velocity, in each of the motions ``states`` [B, T + 1, 2n]."""
    from matplotlib.figure import Figure

    n = len(coordinates)
    figure = Figure(figsize=(9, 2.4 * n + 0.22 * len(names) + 0.3), layout="constrained")
    panels = figure.subplots(n, 2, squeeze=False, sharex=True)
    labels = [name.replace(", ", " (") + ")" for name in coordinates] + [f"{name}/s" for name in coordinates]
    for k, (panel, label) in enumerate(zip(panels.T.flat, labels, strict=True)):
        for motion, name in zip(states, names, strict=True):
            panel.plot(seconds, motion[:, k], linewidth=1.3, label=name)
        panel.set_ylabel(label if k < n else f"velocity of {label.split(',')[0]}")
        panel.grid(alpha=0.3)
    for panel in panels[-1]:
        panel.set_xlabel("seconds")
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", fontsize=8, frameon=False)
    return figure


def returns(scores: dict[str, Estimate], numbers: list[int], lowest: str, highest: str) -> "Figure":
    """The return after each of ``numbers`` of transitions, between those named ``lowest`` and ``highest``."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.4), layout="constrained")
    axes = figure.add_subplot()
    rows = [score for name, score in scores.items() if name not in (lowest, highest)]
    places = range(len(numbers))
    axes.errorbar(places, [r.mean for r in rows], [r.ci95 for r in rows], marker="o", capsize=3, label="adapted model")
    for name, color in ((highest, "C2"), (lowest, "C3")):
        axes.axhline(scores[name].mean, color=color, linestyle="--", label=name)
    axes.set_xticks(list(places), [str(k) for k in numbers])
    axes.set(xlabel="transitions seen", ylabel="return", title=f"{rows[0].n} systems, 95% confidence")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    return figure
