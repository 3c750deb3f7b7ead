"""The figures of a card as the pages of the results show them."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from published import markdown

from metarun.output.tables import Score
from metarun.reproduce.registry import Figure, Target, printed
from metarun.reproduce.verdict import Measured, about_seeds, verdict

OLDER = "older than the code"


class Shown(NamedTuple):
    """A card, its target, and whether its code has changed since."""

    target: Target
    card: dict[str, Any]
    outdated: bool


class Row(NamedTuple):
    """One figure of a card as pages show it."""

    name: str
    ours: str
    over_seeds: str
    paper: str
    difference: str
    verdict: str
    rerun: str
    in_short: str  # ours, with the interval over seeds where it is the wider: there the training is what varies
    quoted: str  # what the rule says of a figure that was read where it is quoted; nothing of others


def rows(one: Shown) -> Iterator[Row]:
    """The figures of a card."""
    for figure in one.card["figures"]:
        ours, paper = figure["ours"], figure["paper"]
        spread = "" if ours["over_seeds"] is None else f"{Score(0, ours['over_seeds']).text().split(' +- ')[1]}"
        theirs = "" if paper["value"] is None else printed(paper["value"], paper["interval"], paper["read"])
        difference = Score(*figure["difference"].values()).text() if "difference" in figure else ""
        again = sorted(
            (rerun for rerun in one.target.reruns if rerun.figure == figure["name"]),
            key=lambda rerun: rerun.value,
            reverse=one.target.higher_is_better,
        )
        others = [f"{printed(r.value, r.interval, r.read)} ([{r.who}]({r.source}))" for r in again]
        ours_text = Score(ours["mean"], ours["ci95"]).text()
        in_short = ours_text + (f" (over seeds +- {spread})" if (ours["over_seeds"] or 0.0) > ours["ci95"] else "")
        quoted = as_quoted(one.target, figure)
        judged = figure["verdict"] + about_seeds(one.target, [figure]) + (f"; as quoted: {quoted}" if quoted else "")
        yield Row(figure["name"], ours_text, spread, theirs, difference, judged, (others or [""])[0], in_short, quoted)


def as_quoted(target: Target, figure: dict[str, Any]) -> str:
    """What the rule says of a figure that was read where it is quoted; nothing of others."""
    paper = figure["paper"]
    if paper["read"] != "quoted" or paper["value"] is None:
        return ""
    as_read = figure | {"paper": paper | {"read": "paper"}}
    told = Figure(figure["name"], **as_read["paper"])
    said = verdict(target, told, Measured.kept(figure["ours"]))
    return said + about_seeds(target, [as_read | {"verdict": said}])


def table(columns: Sequence[str], lines: Sequence[Sequence[Any]]) -> str:
    """A Markdown table without the columns that hold nothing."""
    texts = [["" if cell is None else str(cell) for cell in line] for line in lines]
    kept = [i for i in range(len(columns)) if any(line[i] for line in texts)] or list(range(len(columns)))
    return markdown([columns[i] for i in kept], [[line[i] for i in kept] for line in texts])


def unit(target: Target) -> str:
    return f"{target.score}, percent" if target.scale == 100 else target.score
