"""What is written from cards: a page for each, leaderboards, an index, README's table, and the headers of presets."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from published import markdown

from metarun.commands.reproduce import cost
from metarun.output.tables import Score
from metarun.reproduce.registry import Figure, Target, printed
from metarun.reproduce.verdict import Measured, verdict
from metarun.sweep.times import shortly

POINTS = 8  # of a learning curve on a page
OLDER = "older than the code"
PROTOCOL = ("ways", "shots", "queries", "tasks", "inner_steps", "transductive", "split", "backbone", "training")
INDEX = """# Results

Papers' figures beside ours. A card is written by `metarun reproduce NAME`, which trains the paper's setting for as long as
the paper says (where it does not say, the card's page has the length that we chose), tests it by the paper's protocol and
by metarun's common one, and judges by rule. Nothing in it is written by hand: a digest of what was measured is part of it.
These pages are written from the cards by `python scripts/cards.py --pages`.

The verdict on a figure is the first of these that holds:

1. *not judged*: there is no number to compare with, or nobody here has read it in its source. Such figures are marked in
   the column "paper": *(quoted)* was read in another work, *(unread)* is from memory.
2. *reproduced*: ours and the paper's differ by no more than our 95% interval over test episodes, or than the paper's
   interval.
3. *close*: they differ by no more than one point of percent; where the score is no percentage, by a tenth of the paper's
   figure.
4. *missed*: ours is worse. The card's page names the cause, if it was found.
5. *better*: ours is better.

*As quoted* is the verdict that a quoted figure would get if somebody had read it. A card of several figures has the worst of
their verdicts. The rule looks at test episodes; trainings of other seeds may differ by more. *Within the seeds*: the
difference is no more than our 95% interval over seeds, so that another seed may get another verdict. *1 of 3 seeds alone*:
the mean of the seeds is reproduced, and so is one of them by itself.

*Older*: code or configuration behind a card has changed since it was made. It counts as new again once
`python scripts/cards.py --same NAME` has found that the first steps of its training (five or more), run one task at a time
by the code of then and of now, and their test are the same bit by bit; else it is run again.

`metarun reproduce --list` has what can be run, with its time and whether the data are there; `--list --all` every published
figure that metarun knows of.
"""


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


def about_seeds(target: Target, figures: Sequence[dict[str, Any]]) -> str:
    """What the seeds say of the verdicts on these figures: that a difference is less than what seeds differ by, or that
    some seed alone would not have reproduced a figure that all together have."""
    if any(within_seeds(figure) for figure in figures):
        return ", within the seeds"
    alone = [alone_reproduces(target, figure) for figure in figures if figure["verdict"] == "reproduced"]
    fewest = min(alone, key=sum, default=[])
    return "" if all(fewest) else f", {sum(fewest)} of {len(fewest)} seeds alone"


def within_seeds(figure: dict[str, Any]) -> bool:
    """Whether a verdict other than reproduced is on a difference that is less than what seeds differ by."""
    spread = figure["ours"]["over_seeds"]
    judged = figure["verdict"] in ("better", "close", "missed")
    return judged and spread is not None and abs(figure["difference"]["mean"]) <= spread


def alone_reproduces(target: Target, figure: dict[str, Any]) -> list[bool]:
    """Whether each seed alone reproduces the figure."""
    told = Figure(figure["name"], **figure["paper"])
    return [
        verdict(target, told, Measured(seed["mean"], seed["ci95"], seed["tasks"], None)) == "reproduced"
        for seed in figure["ours"]["seeds"]
    ]


def as_quoted(target: Target, figure: dict[str, Any]) -> str:
    """What the rule says of a figure that was read where it is quoted; nothing of others."""
    paper = figure["paper"]
    if paper["read"] != "quoted" or paper["value"] is None:
        return ""
    told = Figure(figure["name"], **{**paper, "read": "paper"})
    return verdict(target, told, Measured.kept(figure["ours"]))


def table(columns: Sequence[str], lines: Sequence[Sequence[Any]]) -> str:
    """A Markdown table without the columns that hold nothing."""
    texts = [["" if cell is None else str(cell) for cell in line] for line in lines]
    kept = [i for i in range(len(columns)) if any(line[i] for line in texts)] or list(range(len(columns)))
    return markdown([columns[i] for i in kept], [[line[i] for i in kept] for line in texts])


def unit(target: Target) -> str:
    return f"{target.score}, percent" if target.scale == 100 else target.score


def seeds_text(card: dict[str, Any]) -> str:
    k = len(card["runs"])
    return f"{k} seeds" if k > 1 else "1 seed"


def verdict_of(one: Shown) -> str:
    """The verdict on a target, with the cause of a miss and the age of the card."""
    said = one.card["verdict"]
    if said == "missed":
        said += f": {one.target.cause or 'cause unknown'}"
    if said == "not judged":
        drawn = all(figure["paper"]["value"] is None for figure in one.card["figures"])
        said += ": the paper prints no number" if drawn else ": nobody here has read the figure in its source"
    return said + f" ({OLDER})" * one.outdated


def of_card(one: Shown) -> str:
    """The page of a card."""
    target, card = one.target, one.card
    paper = target.paper
    own = target.card.name
    theirs, cited = ("paper", f"[{paper.cited_as}]({paper.source})") if paper.source else ("repository", "No paper")
    parts = [
        f"# {target.title}",
        f"{cited}: *{paper.title}*. Card: [{own}]({own}), made by `{card['command']}`.",
        f"**{verdict_of(one)[:1].upper()}{verdict_of(one)[1:]}.**",
        f"## Beside the {theirs}",
        f"Score: {unit(target)}. Ours: mean over {seeds_text(card)} with its 95% interval over "
        f"{card['figures'][0]['ours']['tasks']} test episodes a seed.",
        table(
            (
                "figure",
                "metarun",
                "+- over seeds",
                theirs,
                "verdict",
                "difference",
                "where",
                "what its interval is",
                "read",
            ),
            [
                (*row[:4], row.verdict, row.difference, *(f["paper"][key] for key in ("where", "interval_is", "read")))
                for row, f in zip(rows(one), card["figures"], strict=True)
            ],
        ),
        *again_by_others(one),
        f"The {theirs}'s protocol:",
        table(
            ("setting", "value"),
            [(name, target.protocol[name]) for name in PROTOCOL if target.protocol.get(name) is not None],
        ),
        differences(target),
        *common(card),
        *curve(target, card),
        "## Runs",
        table(
            ("seed", "command", "commit", "date", "time", "tested", "execution", "machine"),
            [
                (
                    r["seed"],
                    f"`{r['command']}`",
                    r["commit"][:7],
                    r["date"],
                    shortly(r["seconds"]) + (f" in {r['continued'] + 1} parts" if r["continued"] else ""),
                    tested(target, r),
                    r["execution"],
                    r["machine"]["gpu"] or f"{r['machine']['cpus']} CPU cores, {r['machine']['threads']} used",
                )
                for r in card["runs"]
            ],
        ),
        "Times are upper bounds: the machine was shared.",
    ]
    return "\n\n".join(parts) + "\n"


def tested(target: Target, run: dict[str, Any]) -> str:
    """Which model of a run was tested; nothing where its card is from before cards kept that."""
    which = "the best on validation tasks" if target.tested == "best" else "the last, as the paper's code does"
    return f"the model of step {run['tested_step']}, {which}" if "tested_step" in run else ""


def again_by_others(one: Shown) -> list[str]:
    if not one.target.reruns:
        return []
    lines = [
        (r.figure, printed(r.value, r.interval, r.read), f"[{r.who}]({r.source})", r.read) for r in one.target.reruns
    ]
    return ["Run again by others:", table(("figure", "value", "who", "read"), lines)]


def differences(target: Target) -> str:
    if not target.differs:
        return "Ours differs from it in nothing that is known."
    return "Ours differs from it:\n\n" + "\n".join(f"- {text}" for text in target.differs)


def common(card: dict[str, Any]) -> list[str]:
    """metarun's common protocol: a line for each seed, norm and number of queries."""
    if not card["common"]:
        return []
    steps = max(len(line["steps"]) for line in card["common"])
    shown = sorted({k for k in (0, 1, 2, 3, 5, 10, 20, 50) if k < steps} | ({steps - 1} if steps else set()))
    lines = [
        (
            line["seed"],
            *((line["norm"],) if any(r["norm"] for r in card["common"]) else ()),
            line["queries"],
            Score(line["mean"], line["ci95"]).text(),
            *(f"{line['steps'][k]:.4g}" for k in shown),
        )
        for line in card["common"]
    ]
    norm = ("batch norm",) if any(r["norm"] for r in card["common"]) else ()
    head = ("seed", *norm, "queries", "score", *(f"step {k}" for k in shown))
    text = f"{card['common'][0]['tasks']} test tasks; 95% interval over them."
    if norm:
        text += " `transductive`: statistics of the query batch; `support` and `running`: nothing of the queries."
    return ["## By metarun's common protocol", text, table(head, lines)]


def curve(target: Target, card: dict[str, Any]) -> list[str]:
    """The validation score of each seed at some steps of the training."""
    steps = sorted(
        {step for run in card["runs"] for step, _ in run["curve"]}
    )  # where one had no finite score, others do
    if len(steps) < 2:
        return []
    chosen = sorted({steps[round(i * (len(steps) - 1) / (POINTS - 1))] for i in range(POINTS)})
    lines = [
        (run["seed"], *(f"{dict(map(tuple, run['curve'])).get(step, float('nan')):.4g}" for step in chosen))
        for run in card["runs"]
    ]
    which = "one that was best on them" if target.tested == "best" else "last"
    text = f"On validation episodes, by training step. The model that is tested is the {which}."
    return ["## Learning curve", text, table(("seed", *chosen), lines)]


def leaderboard(benchmark: str, shown: Sequence[Shown], others: Sequence[Target]) -> str:
    """The page of a benchmark: every card of it, the best first, and the published figures that have none."""
    first = shown[0].target

    def best(one: Shown) -> float:
        mean = one.card["figures"][0]["ours"]["mean"]
        return -mean if one.target.higher_is_better else mean

    lines = []
    for one in sorted(shown, key=best):
        where = one.target.card.with_suffix(".md").as_posix()
        own, p = one.card["common"], one.target.protocol
        inductive = [line for line in own if line["norm"] in ("support", "running") and line["queries"] == 15]
        for row in rows(one):
            lines.append(
                (
                    f"[{one.target.title}]({where})",
                    row.name,
                    row.ours,
                    row.over_seeds,
                    row.paper,
                    row.verdict + " (older)" * one.outdated,
                    f"{inductive[0]['mean']:.4g}" if inductive else "",
                    *(p.get(key) for key in ("queries", "tasks", "transductive", "backbone", "training")),
                )
            )
    columns = ("method", "figure", "metarun", "+- over seeds", "paper", "verdict", "inductive, 15 queries")
    parts = [
        f"# {benchmark}",
        f"Score: {unit(first)}. The last columns, from the queries on, are the paper's protocol. On the site a click "
        "on a column's head sorts.",
        table((*columns, "queries", "tasks", "transductive", "backbone", "training"), lines),
    ]
    figures = [
        (
            f"{t.title} ({t.paper.cited_as})",
            f.name,
            printed(f.value, f.interval, f.read),
            f.read,
            "no" if t.words is None else "yes",
        )
        for t in others
        for f in t.figures
        if f.value is not None
    ]
    if figures:
        head = ("method", "figure", "paper", "read", "metarun can run it")
        parts += ["## Published, without a card here", table(head, figures)]
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
        for row in rows(one):
            lines.append(
                (
                    f"[{benchmark}]({benchmark.replace('/', '_')}.md)",
                    f"[{one.target.title}]({where})",
                    f"{row.name} ({'percent' if one.target.scale == 100 else one.target.score})",
                    row.in_short,
                    row.paper,
                    row.verdict + " (older)" * one.outdated,
                    len(one.card["runs"]),
                    shortly(taken),
                )
            )
    columns = ("benchmark", "method", "figure", "metarun", "paper", "verdict", "seeds", "time for a seed")
    return INDEX + "\n" + table(columns, lines) + "\n"


def header(one: Shown) -> str:
    """The first comment lines of the preset that a card is of."""
    name = one.target.words[0].removeprefix("experiment=")  # type: ignore[index]
    run = one.card["runs"][-1]
    machine = run["machine"]["gpu"] or "one CPU core"
    ours, theirs = (
        ", ".join(f"{row.name}: {getattr(row, which)}" for row in rows(one) if getattr(row, which))
        for which in ("ours", "paper")
    )
    source = f"{one.target.paper.cited_as}, {one.card['figures'][0]['paper']['where']}"
    where = Path("docs/results", one.target.card)
    return (
        f"# metarun experiment={name}        {shortly(cost(one.card))} on {machine}\n"
        f"# expect: test {unit(one.target)}: {ours}; paper: {theirs or 'no figure'} ({source}): {one.card['verdict']}\n"
        f"# last verified: {run['date']}, commit {run['commit'][:12]}, {where.as_posix()}\n"
    )
