"""What is written from several cards: leaderboards, an index, README's table; and the header of a preset."""

from collections.abc import Sequence
from pathlib import Path

from card_figures import OLDER, Row, Shown, rows, table, unit

from metarun.commands.reproduce_list import cost
from metarun.reproduce.registry import Target, printed
from metarun.reproduce.verdict import about_seeds
from metarun.sweep.times import shortly

INDEX = """# Results

Papers' figures beside ours. A card is written by `metarun reproduce NAME`, which trains the paper's setting for as long as
the paper says (where it does not say, the card's page has the length that we chose), tests it by the paper's protocol and
by metarun's common one, and judges by rule. Nothing in it is written by hand: a digest of what was measured is part of it.
These pages are written from the cards by `python scripts/cards.py --pages`.

The verdict on a figure is the first of these that holds:

1. *not judged*: there is no number to compare with, or nobody here has read it in its source. Such figures are marked in
   the column "paper": *(quoted)* was read in another work, *(unread)* is from memory.
2. *reproduced*: ours and the paper's differ by no more than our 95% interval over test episodes, or than the paper's
   interval, whatever that is of (the card's page says what is known of it).
3. *close*: they differ by no more than one point of percent; where the score is no percentage, by a tenth of the paper's
   figure.
4. *missed*: ours is worse. The card's page names the cause, if it was found.
5. *better*: ours is better.

*As quoted* is the verdict that a quoted figure would get if somebody had read it. A card of several figures has the worst of
their verdicts. The rule looks at test episodes; trainings of other seeds may differ by more. *Within the seeds*: the
difference is no more than our 95% interval over seeds, so that another seed may get another verdict. *1 of 3 seeds alone*:
the mean of the seeds is reproduced, and so is one of them by itself. The interval over seeds stands beside a figure in this
table where it is the wider one.

The interval of a *difference* is ours and the paper's together where the paper's is one of 95%, else ours alone. The rule
takes each interval by itself, so that a figure may be better or missed, and the interval of its difference hold 0.

*Older*: code or configuration behind a card has changed since it was made. It counts as new again once
`python scripts/cards.py --same NAME` has found that the first steps of its training (five or more), run one task at a time
by the code of then and of now, and their test are the same bit by bit; else it is run again.

`metarun reproduce --list` has what can be run, with its time and whether the data are there; `--list --all` every published
figure that metarun knows of.
"""
OF_PAPER = ("queries", "tasks", "transductive", "backbone", "training")  # its protocol
PUBLISHED = ("method", "figure", "paper", "read", "metarun can run it")


def leaderboard(benchmark: str, shown: Sequence[Shown], others: Sequence[Target]) -> str:
    """The page of a benchmark: every card of it, the best first, and the published figures that have none."""
    first = shown[0].target

    def best(one: Shown) -> float:
        mean = one.card["figures"][0]["ours"]["mean"]
        return -mean if one.target.higher_is_better else mean

    lines = []
    for one in sorted(shown, key=best):
        where = one.target.card.with_suffix(".md").as_posix()
        own = one.card["common"]
        inductive = [line for line in own if line["norm"] in ("support", "running") and line["queries"] == 15]
        for row in rows(one):
            cells = [row.name, row.ours, row.over_seeds, row.paper, row.verdict + " (older)" * one.outdated]
            cells.append(f"{inductive[0]['mean']:.4g}" if inductive else "")
            lines.append(
                [f"[{one.target.title}]({where})", *cells, *(one.target.protocol.get(key) for key in OF_PAPER)]
            )
    columns = ("method", "figure", "metarun", "+- over seeds", "paper", "verdict", "inductive, 15 queries")
    parts = [
        f"# {benchmark}",
        f"Score: {unit(first)}. The last columns, from the queries on, are the paper's protocol as far as it is known. "
        "Those of the rows differ, and ours may differ from them: each page says in what. On the site a click on a column's "
        "head sorts.",
        table((*columns, *OF_PAPER), lines),
    ]
    figures: list[tuple[str, ...]] = []
    for t in others:
        name, runs = f"{t.title} ({t.paper.cited_as})", "no" if t.words is None else "yes"
        known = [f for f in t.figures if f.value is not None]
        figures += [(name, f.name, printed(f.value, f.interval, f.read), f.read, runs) for f in known]
    if figures:
        parts += ["## Published, without a card here", table(PUBLISHED, figures)]
    return "\n\n".join(parts) + "\n"


def table_of_readme(shown: Sequence[Shown]) -> str:
    """metarun, the paper, the best independent re-run, and the verdict: a row for each target that somebody has read, in
    its source or where it is quoted."""
    lines, others = [], 0
    for one in shown:
        if not any(figure["paper"]["read"] != "unread" and figure["paper"]["value"] for figure in one.card["figures"]):
            others += 1
            continue
        where = f"docs/results/{one.target.card.with_suffix('.md').as_posix()}"
        found = list(rows(one))
        paper = f"{together(found, 'paper')} ({one.target.paper.cited_as})"
        said = one.card["verdict"]
        if said == "not judged":
            said += f"; as quoted: {told}" if (told := together(found, "quoted")) else ""
        said += f", {OLDER}" * one.outdated
        said = f"**{said}**" if one.card["verdict"] == "missed" else said
        ours, again = together(found, "in_short"), together(found, "rerun")
        said += about_seeds(one.target, one.card["figures"])
        lines.append((f"[{one.target.title}]({where})", ours, paper, said, again))
    more = (
        f"\n\n{others} more [results](docs/results/index.md) have no verdict: the paper prints no number, or nobody here "
        "could read it."
    )
    return table(("", "metarun", "paper", "verdict", "best independent re-run"), lines) + more * bool(others)


def together(found: Sequence[Row], column: str) -> str:
    """A column of all the figures of a card in one cell, each with its name where there are several."""
    cells = [(row.name, getattr(row, column)) for row in found if getattr(row, column)]
    return "; ".join(f"{name}: {cell}" if len(found) > 1 else cell for name, cell in cells)


def index(shown: Sequence[Shown]) -> str:
    """The first page: all cards, by benchmark."""
    lines = []
    for one in sorted(shown, key=lambda one: (one.target.benchmark, one.target.id)):
        benchmark, taken = one.target.benchmark, cost(one.card)
        where = one.target.card.with_suffix(".md").as_posix()
        links = [f"[{benchmark}]({benchmark.replace('/', '_')}.md)", f"[{one.target.title}]({where})"]
        for row in rows(one):
            figure = f"{row.name} ({'percent' if one.target.scale == 100 else one.target.score})"
            verdict = row.verdict + " (older)" * one.outdated
            lines.append([*links, figure, row.in_short, row.paper, verdict, len(one.card["runs"]), shortly(taken)])
    columns = ("benchmark", "method", "figure", "metarun", "paper", "verdict", "seeds", "time for a seed")
    return INDEX + "\n" + table(columns, lines) + "\n"


def header(one: Shown) -> str:
    """The first comment lines of the preset that a card is of."""
    name = one.target.words[0].removeprefix("experiment=")  # type: ignore[index]
    run = one.card["runs"][-1]
    machine = run["machine"]["gpu"] or "one CPU core"
    ours, theirs = (
        ", ".join(f"{row.name}: {getattr(row, which)}" for row in rows(one) if getattr(row, which))
        for which in ("in_short", "paper")
    )
    source = f"{one.target.paper.cited_as}, {one.card['figures'][0]['paper']['where']}"
    where, number = Path("docs/results", one.target.card), len(one.card["runs"])
    seeds = f", mean of {number} seeds" if number > 1 else ""
    said = f"{theirs or 'no figure'} ({source}): {one.card['verdict']}"
    return (
        f"# metarun experiment={name}        {shortly(cost(one.card))} on {machine}\n"
        f"# expect: test {unit(one.target)}{seeds}: {ours}; paper: {said}\n"
        f"# last verified: {run['date']}, commit {run['commit'][:12]}, {where.as_posix()}\n"
    )
