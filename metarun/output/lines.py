"""Drawings of scores as SVG for a page: lines with bands, each with its own colour and marker."""

import io
import math
import re
from collections.abc import Callable, Sequence
from html import escape
from typing import Any, NamedTuple

from metarun.output.tables import Score

# the colours of Okabe and Ito, which those who see few colours can tell apart
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vP"  # one fewer than colours, so that both together repeat late
WIDEST = 80  # letters of a row of the legend
FONTS = "system-ui, 'Liberation Sans', 'DejaVu Sans', sans-serif"


class Line(NamedTuple):
    """Scores over x, with a band as wide as their intervals; ``thin`` are the single runs behind them, drawn pale."""

    name: str
    points: dict[float, Score]
    thin: Sequence[dict[float, float]] = ()


class Axes(NamedTuple):
    """What a drawing is of, and what its axes mean, with units."""

    title: str
    x: str
    y: str
    names: Sequence[str]  # of all lines of a page, which gives each the same colour everywhere
    levels: Sequence[tuple[str, float]] = ()  # what has one value at every x, and the word for why
    level: str = ""


def drawn(lines: Sequence[Line], axes: Axes, name: str) -> str:
    """The lines as an SVG for a page, with a legend below."""
    names = [line.name for line in lines] + [f"{name} ({axes.level})" for name, _ in axes.levels]
    columns = max(1, min(4, WIDEST // max(map(len, names))))

    def draw(picture: Any) -> None:
        _draw(picture.add_subplot(), lines, axes)
        picture.legend(loc="outside lower center", ncols=columns, frameon=False, fontsize=9)

    return svg(draw, (7, 3.8 + 0.22 * math.ceil(len(names) / columns)), axes.title, name)


def svg(draw: Callable[[Any], None], size: tuple[float, float], title: str, name: str) -> str:
    """What ``draw`` draws on a figure of ``size`` inches, as an SVG that can stand among others in a page: its identifiers
    begin with ``name``."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    text = io.StringIO()
    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": name, "font.family": "sans-serif", "font.size": 10}
    with mpl.rc_context({**settings, "text.parse_math": False}):  # names may hold $, which is no formula
        picture = Figure(figsize=size, layout="constrained")
        draw(picture)
        picture.savefig(text, format="svg", metadata={"Date": None})
    return _inlined(text.getvalue(), title, name)


def _draw(panel: Any, lines: Sequence[Line], axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    for line in lines:
        colour, marker = _style(line.name, axes)
        for run in line.thin:
            panel.plot(list(run), list(run.values()), color=colour, alpha=0.3, linewidth=0.9)
        xs, means = list(line.points), [score.mean for score in line.points.values()]
        widths = [score.ci95 or 0.0 for score in line.points.values()]
        if any(widths):
            low, high = ([m + sign * w for m, w in zip(means, widths, strict=True)] for sign in (-1, 1))
            panel.fill_between(xs, low, high, color=colour, alpha=0.13, linewidth=0)
        panel.plot(xs, means, color=colour, marker=marker, markersize=5, linewidth=1.8, label=line.name)
    for name, value in axes.levels:
        panel.axhline(value, color=_style(name, axes)[0], linestyle="--", linewidth=1.4, label=f"{name} ({axes.level})")
    places = {x for line in lines for x in line.points}
    if all(float(x).is_integer() for x in places):
        panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    panel.set(xlabel=axes.x, ylabel=axes.y, title=axes.title)
    panel.grid(alpha=0.25)
    panel.spines[["top", "right"]].set_visible(False)


def _style(name: str, axes: Axes) -> tuple[str, str]:
    place = axes.names.index(name) if name in axes.names else len(axes.names)
    return COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]


def _inlined(text: str, title: str, name: str) -> str:
    """The <svg> element of a file: a picture with a title for those who hear it, in the fonts of the page."""
    svg = text[text.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'((?:xlink:)?href="#|url\(#)', rf"\1{name}-", svg)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", rf"font: \1px {FONTS}", svg)
    svg = re.sub(r"font-family: [^;\"]*", f"font-family: {FONTS}", svg)
    label = f'<svg role="img" aria-labelledby="{name}-title"'
    return svg.replace("<svg", label, 1).replace(">", f'>\n<title id="{name}-title">{escape(title)}</title>', 1).strip()
