"""The part of a report that tells of the search whose folder it is."""

from collections.abc import Sequence
from pathlib import Path

from metarun.output.ledger import Run
from metarun.output.page import Section, figure, folded, notice, page, paragraph, table_part
from metarun.output.searched import axis_of, importance, parallel
from metarun.output.tables import Table
from metarun.search.kept import WINNER, Found

NO_WINNER = "no run has a final test yet: the search has no winner, or none that was run (seeds=0)"


def without_trials(runs: Sequence[Run], root: Path, search: Found | None) -> list[Run]:
    """The runs that are no trials of the search, for trials have no final test, nor of one that was the winner earlier."""
    if search is None:
        return list(runs)
    gone = {root / name for name in search.folders}
    winners = {root / WINNER / name for name in search.winner_runs}
    return [run for run in runs if run.path not in gone and (run.path.parent != root / WINNER or run.path in winners)]


def page_of(search: Found, title: str) -> str:
    """The page of a search without a winner."""
    return page(title, [notice("Before you read the scores:", [NO_WINNER])], [section_of(search)])


def section_of(search: Found | None) -> Section:
    """What a search varied and found; without parts where there was none."""
    if search is None or not search.trials:
        return Section("Search", [])
    parts = [paragraph(said(search))]
    if search.importance:
        caption = "By PED-ANOVA, over the completed trials: what sets the best tenth of them apart."
        parts.append(figure(importance(search.importance, "importance"), caption))
    if rows := search.scored:
        keys = list(search.space)
        values = {key: [row["values"].get(key) for row in rows] for key in keys}
        axes = [axis_of(key, values[key], key in search.logarithmic) for key in keys]
        axes.append(axis_of(f"val/{search.score}", [row["score"] for row in rows]))
        drawing = parallel(axes, [row.get("state") == "completed" for row in rows], search.best, "parallel")
        caption = (
            "A line is a trial: orange the best of the completed, dark the better, dotted those that were given up."
        )
        parts.append(figure(drawing, caption))
        parts.append(folded("All trials with a score", table_part(table_of(search), "trials")))
    return Section("Search", parts)


def said(search: Found) -> str:
    """How many trials there were, of what, and what giving up has saved."""
    states = [str(row.get("state")) for row in search.trials]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    space = "; ".join(f"{key} {text}" for key, text in search.space.items())
    made, planned = search.steps
    saved = f" They made {made} of {planned} steps." if planned else ""
    better = "highest" if search.higher else "lowest"
    below = "; the scores below are of the winner's runs, over fresh seeds" if search.winner_runs else ""
    return (
        f"{len(search.trials)} trials ({counts}) for the {better} val/{search.score} over: {space}.{saved} "
        f"Trials are scored on validation tasks alone{below}."
    )


def table_of(search: Found) -> Table:
    """The trials that have a score, the best first."""
    keys = list(search.space)
    rows = [
        [row.get("trial"), row.get("state"), row["score"], row.get("step"), *(row["values"].get(key) for key in keys)]
        for row in search.scored
    ]
    return Table(["trial", "state", f"val/{search.score}", "step", *keys], rows)
