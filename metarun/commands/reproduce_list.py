"""``metarun reproduce --list``: which published figures can be repeated, what it takes, and what our cards say."""

import sys
from collections.abc import Iterator, Sequence
from typing import Any

from metarun.commands.data import state_of
from metarun.config.compose import composed
from metarun.errors import MetarunError, did_you_mean, wrong_command
from metarun.files import read_json
from metarun.output.tables import Score, Table, show
from metarun.paths import cards_dir
from metarun.reproduce.registry import Target, printed, targets, task_of
from metarun.reproduce.verdict import about_seeds
from metarun.sweep.times import FORMS, seconds_in, shortly

COLUMNS = ("name", "paper's figures", "time for a seed", "data", "our card")
LINE = "  {:<9} {:<22} {:<14} {}"  # of a figure: 80 columns, with few exceptions


def list_targets(paper: str, within: str, all_of_them: bool, place: Sequence[str], chosen: str) -> None:
    """Print what can be run, what it takes, whether its data are there, and what our cards say."""
    known = [t for t in targets().values() if not paper or t.paper.name == paper]
    if not known:
        papers = list(dict.fromkeys(t.paper.name for t in targets().values()))
        raise wrong_command(f"--paper is {paper!r}; use {', '.join(papers)}{did_you_mean(paper, papers)}")
    most = time_in(within, "--within") if within else None
    cards = {t.id: card_of(t) for t in known}
    if most is not None:
        known = [t for t in known if 0 < cost(cards[t.id]) <= most]
    shown = [t for t in known if all_of_them or t.words is not None]
    states = _data_states({task_of(t.words) for t in shown if t.words is not None}, place)
    if chosen == "table":
        lines = ["published results: metarun reproduce NAME", LINE.format("figure", "paper", "here", "verdict")]
        print("\n".join([*lines, *(line for t in shown for line in _lines(t, cards[t.id], states))]))
    else:
        show(Table(COLUMNS, [_row(t, cards[t.id], states) for t in shown], "published results"), chosen)
    if within:
        print(f"those that took less than {within} here; others, and those never run, are not shown", file=sys.stderr)


def _lines(target: Target, kept: dict[str, Any], states: dict[str, str]) -> Iterator[str]:
    """A target's name with what it takes, and a line for each figure: few enough columns for any terminal."""
    taken = f"{shortly(cost(kept))} a seed" if kept else "never run here"
    yield f"{target.id}: " + (f"{taken}, data {states[task_of(target.words)]}" if target.words else "no preset of ours")
    ours = {name: (score.text(), judged) for name, score, judged in _measured(target, kept)}
    for figure in target.figures:
        theirs = "no number" if figure.value is None else printed(figure.value, figure.interval, figure.read)
        yield LINE.format(figure.name, theirs, *ours.get(figure.name, ("", ""))).rstrip()


def _row(target: Target, kept: dict[str, Any], states: dict[str, str]) -> tuple[Any, ...]:
    """A target's row, for programs."""
    figures = ", ".join(
        f"{figure.name}: {printed(figure.value, figure.interval, figure.read)}"
        for figure in target.figures
        if figure.value is not None
    )
    if target.words is None:
        return (target.id, figures, None, None, "no preset of ours")
    found = list(_measured(target, kept))
    said = "; ".join(f"{name}: " * (len(found) > 1) + f"{ours.text()} {judged}" for name, ours, judged in found)
    taken = shortly(cost(kept)) if kept else "not measured"
    return target.id, figures, taken, states[task_of(target.words)], said or None


def _measured(target: Target, kept: dict[str, Any]) -> Iterator[tuple[str, Score, str]]:
    """The figures of a card: name, our score and the verdict."""
    for figure in kept.get("figures", ()):
        ours = figure["ours"]
        yield figure["name"], Score(ours["mean"], ours["ci95"]), figure["verdict"] + about_seeds(target, [figure])


def card_of(target: Target) -> dict[str, Any]:
    """The card that comes with metarun; empty where there is none."""
    path = cards_dir() / target.card
    if not path.is_file():
        return {}
    try:
        return read_json(path)
    except ValueError as error:
        raise MetarunError(f"{path} is damaged ({error}). Delete it, or install metarun again.") from None


def cost(kept: dict[str, Any]) -> float:
    """The seconds that a seed took, by a card; 0 where there is none."""
    runs = kept.get("runs", ())
    return sum(run["seconds"] for run in runs) / len(runs) if runs else 0.0


def _data_states(tasks: set[str], place: Sequence[str]) -> dict[str, str]:
    """Whether the data of each task are there: ready, raw files found, generated, or what to do."""
    where = [text for text in place if text.startswith("data_root=")]
    return {name: state_of(name, composed([f"task={name}", *where], [])) for name in sorted(tasks)}


def time_in(text: str, option: str) -> float:
    """The seconds of the time that an option is given."""
    if (seconds := seconds_in(text)) is None:
        raise wrong_command(f"{option} is {text!r}, but must be a time: {FORMS}.")
    return seconds
