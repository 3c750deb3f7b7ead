"""Drawings of a search for a page: how much each parameter matters, and all trials as lines over their values."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from metarun.output.kept import number
from metarun.output.lines import COLOURS, svg

MOST_OPTIONS = 12  # of a parameter that are written beside its axis
TICKS = 5  # of an axis of numbers


def importance(shares: dict[str, float], name: str) -> str:
    """Bars of the shares of the parameters, the largest first."""
    rows = sorted(shares.items(), key=lambda row: row[1])

    def draw(picture: Any) -> None:
        panel = picture.add_subplot()
        bars = panel.barh([key for key, _ in rows], [share for _, share in rows], color=COLOURS[0])
        panel.bar_label(bars, [f"{share:.0%}" for _, share in rows], padding=3)
        panel.set(xlabel="share of what tells good trials from others", xlim=(0, 1.1), title="Importance of parameters")
        panel.spines[["top", "right"]].set_visible(False)

    return svg(draw, (7, 1.3 + 0.35 * len(rows)), "Importance of parameters", name)


class Axis(NamedTuple):
    """An upright axis of parallel coordinates: the places in [0, 1] of values, and its ticks."""

    title: str
    places: list[float]  # of each trial
    ticks: dict[float, str]


def axis_of(title: str, values: Sequence[Any], log: bool = False) -> Axis:
    """The axis of a parameter, or of the score; of numbers where all values are."""
    numbers = [found for value in values if (found := _as_number(value)) is not None]
    if len(numbers) < len(values) or not numbers:
        options = sorted(set(map(str, values)))
        places = {option: place / max(1, len(options) - 1) for place, option in enumerate(options)}
        shown = options if len(options) <= MOST_OPTIONS else [options[0], options[-1]]
        return Axis(title, [places[str(value)] for value in values], {places[option]: option for option in shown})
    by_log = log and min(numbers) > 0
    scaled = [math.log(value) if by_log else value for value in numbers]
    low, width = min(scaled), (max(scaled) - min(scaled)) or 1.0
    places_ = [(value - low) / width for value in scaled]
    if len(set(numbers)) <= TICKS:
        return Axis(title, places_, {place: f"{value:g}" for place, value in zip(places_, numbers, strict=True)})
    ticks = [tick / (TICKS - 1) for tick in range(TICKS)]
    told = [low + width * tick for tick in ticks]
    return Axis(title, places_, {at: f"{math.exp(v) if by_log else v:.3g}" for at, v in zip(ticks, told, strict=True)})


def _as_number(value: Any) -> float | None:
    try:
        return number(float(value))
    except (TypeError, ValueError):
        return None


def parallel(axes: Sequence[Axis], full: Sequence[bool], best: int | None, name: str) -> str:
    """Parallel coordinates of trials, the best score first; those that are not ``full`` were given up, and are dotted.

    The trial at the place ``best`` is drawn on top.
    """
    title = "Parallel coordinates of the trials"

    def draw(picture: Any) -> None:
        import matplotlib as mpl

        panel, colours, count = picture.add_subplot(), mpl.colormaps["cividis"], len(full)
        for place in sorted(range(count), key=lambda place: (place == best, -place)):
            heights = [axis.places[place] for axis in axes]
            colour = COLOURS[1] if place == best else colours(place / max(1, count - 1))
            style = "-" if full[place] else ":"
            panel.plot(
                range(len(axes)), heights, style, color=colour, linewidth=2.4 if place == best else 1, alpha=0.85
            )
        for x, axis in enumerate(axes):
            panel.axvline(x, color="#5b6675", linewidth=0.8)
            for height, text in axis.ticks.items():
                box = {"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 1}
                told = {"textcoords": "offset points", "fontsize": 8, "va": "center", "bbox": box}
                panel.annotate(text, (x, height), (4, 0), **told)
        panel.set_xticks(range(len(axes)), [axis.title.replace(".", ".\n") for axis in axes])
        panel.set(yticks=[], ylim=(-0.05, 1.05), xlim=(-0.1, len(axes) - 0.7), title=title)
        panel.spines[:].set_visible(False)

    return svg(draw, (max(7, 1.7 * len(axes)), 4), title, name)
