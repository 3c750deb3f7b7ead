"""Pictures of tasks, by matplotlib: curves with their support points, motions of mechanical systems, images, numbers."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch.nn.functional as F

from metarun.core import Batch, Episode, TaskDistribution
from metarun.evaluation.estimates import Estimate

MAX_ROWS = 10  # TensorBoard fits a picture into a card, where sixty rows would be a speckled line
MAX_COLUMNS = 12
LINE, GAP = 1, 6  # pixels around an image, and between support and query
GREY, WHITE = 0.5, 1.0

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 3


@contextmanager
def as_written() -> Iterator[None]:
    """A context, or decorator, in which matplotlib draws texts letter by letter: names of users may hold $, which is no
    formula."""
    import matplotlib as mpl

    with mpl.rc_context({"text.parse_math": False}):
        yield


def curves(
    episode: Episode, titles: Sequence[str], joined: bool = True, labels: tuple[str, str] = ("x", "y")
) -> "Figure":
    """Draw a panel for each task [B]: its support as dots, its query as a line in the order of x, or as small dots.

    Where there are several inputs or outputs, the first of each is shown. ``labels`` are those of the two axes.
    """
    from matplotlib.figure import Figure

    rows = -(-len(titles) // COLUMNS)
    columns = min(len(titles), COLUMNS)
    figure = Figure(figsize=(3.4 * columns, 2.6 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True).flat
    for panel, title, *points in zip(panels, titles, *(leaf.cpu() for batch in episode[:2] for leaf in batch[:2])):  # noqa: B905
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
    """Draw a row for each coordinate: its course and that of its velocity in each of B motions.

    ``states`` [B, T + 1, 2n] are the motions, ``seconds`` [T + 1] their times, ``coordinates`` [n] the names
    and units of the rows, ``names`` [B] those of the motions.
    """
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
    """Draw the return after each of ``numbers`` of transitions, between the scores named ``lowest`` and ``highest``."""
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


def class_figure(episodes: Episode, titles: Sequence[str], names: Sequence[Sequence[str]]) -> Any:
    """Draw image episodes, each under its title; a row is a class, with its label and name.

    The images x [B, N * M, C, H, W] are in any order, in [0, 1] (else scaled to it); ``names`` is [B][N]. At most
    MAX_ROWS classes and MAX_COLUMNS images of each are shown.
    """
    from matplotlib.figure import Figure

    batches = {"support": episodes.support, "query": episodes.query}
    blocks = {part: _mosaics(batch, len(names[0])) for part, batch in batches.items()}  # [B, height, width, 3]
    widths = [mosaics.shape[2] for mosaics in blocks.values()]
    scale = min(9 / sum(widths), 0.65 / episodes.support.x.shape[-1])  # inches a pixel
    row_height = blocks["support"].shape[1] * scale + 0.6
    figure = Figure(figsize=(sum(widths) * scale + 2.5, row_height * len(titles)), layout="constrained")
    grid = figure.subplots(len(titles), 2, squeeze=False, width_ratios=widths)
    for b, title in enumerate(titles):
        for axes, (part, mosaics) in zip(grid[b], blocks.items(), strict=True):
            axes.imshow(mosaics[b], interpolation="nearest")
            axes.set_title(f"{title}\n{part}" if part == "support" else part, fontsize=9, loc="left")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        shown = min(len(names[b]), MAX_ROWS)
        middles = (np.arange(shown) + 0.5) * blocks["support"].shape[1] / shown
        labels = [f"{n}: {name}" for n, name in enumerate(names[b][:shown])]
        grid[b][0].set_yticks(middles, labels, fontsize=8)
        grid[b][0].tick_params(length=0)
    return figure


def _mosaics(batch: Batch, num_ways: int) -> np.ndarray:
    """Lay framed images in rows, a class a row: x [B, N * M, C, H, W] -> [B, N * (H + 2), M * (W + 2), 3]."""
    low, high = batch.x.min().clamp(max=0), batch.x.max().clamp(min=1)
    order = batch.y.argsort(dim=1, stable=True)[:, :, None, None, None]
    x = (batch.x - low).take_along_dim(order, 1) / (high - low)
    rows = x.float().unflatten(1, (num_ways, -1))[:, :MAX_ROWS, :MAX_COLUMNS]  # [B, N, M, C, H, W]
    framed = F.pad(rows, (LINE, LINE, LINE, LINE), value=WHITE)
    mosaics = framed.permute(0, 1, 4, 2, 5, 3).flatten(3, 4).flatten(1, 2)  # [B, N * H, M * W, C]
    return mosaics.expand(*mosaics.shape[:3], 3).cpu().numpy()


def numbers_figure(episodes: Episode, titles: Sequence[str]) -> Any:
    """Draw episodes of numbers: y over x where both are single numbers, else a heat map of x beside y."""
    from matplotlib.figure import Figure

    single = episodes.support.x.shape[2:] == episodes.support.y.shape[2:] == (1,)
    figure = Figure(figsize=(10, 2.6 * len(titles)), layout="constrained")
    grid = figure.subplots(len(titles), 1 if single else 2, squeeze=False)
    for b, title in enumerate(titles):
        for i, (part, batch) in enumerate((("support", episodes.support), ("query", episodes.query))):
            axes = grid[b][0 if single else i]
            x, y = (leaf[b].reshape(len(leaf[b]), -1).cpu().numpy() for leaf in batch[:2])  # [S, D], [S, O]
            if single:
                axes.plot(x, y, "o", markersize=6 - 3 * i, label=part)
                axes.legend(frameon=False)
            else:
                figure.colorbar(axes.imshow(np.concatenate([x, y], 1), aspect="auto"), ax=axes)
                axes.axvline(x.shape[1] - 0.5, color="white")
            axes.set_title(title if single else f"{title}: {part}, inputs | targets", fontsize=9, loc="left")
    return figure


@as_written()
def picture(task: TaskDistribution, split: str, indices: Sequence[int]) -> "Figure":
    """Draw those episodes as the task itself shows them; where it has no picture, draw numbers or nameless images."""
    if own := task.show(split, indices):
        return own
    episodes, titles = task.sample(split, indices), [f"{split} episode {index}" for index in indices]
    num_ways = task.spec.train_num_ways if split == "train" else task.spec.num_ways
    if num_ways is not None and len(task.spec.input_shape) == 3:
        return class_figure(episodes, titles, [["class"] * num_ways] * len(titles))
    return numbers_figure(episodes, titles)
