"""The page of a card."""

from typing import Any

from card_figures import OLDER, Shown, rows, table, unit
from experiments import experiment, under_more_settings

from metarun.output.tables import Score
from metarun.reproduce.registry import Target, printed
from metarun.reproduce.verdict import about_seeds
from metarun.sweep.times import shortly

POINTS = 8  # of a learning curve on a page
PROTOCOL = ("ways", "shots", "queries", "tasks", "inner_steps", "transductive", "split", "backbone", "training")
BESIDE = ("verdict", "difference", "where", "what its interval is", "read")
RUN = ("seed", "command", "commit", "date", "time", "tested", "execution", "machine")


def seeds_text(card: dict[str, Any]) -> str:
    k = len(card["runs"])
    return f"{k} seeds" if k > 1 else "1 seed"


def verdict_of(one: Shown) -> str:
    """The verdict on a target, with the cause of a miss and the age of the card."""
    verdict = one.card["verdict"]
    said = verdict + about_seeds(one.target, one.card["figures"])
    if verdict == "missed":
        said += f": {one.target.cause or 'cause unknown'}"
    if verdict == "not judged":
        drawn = all(figure["paper"]["value"] is None for figure in one.card["figures"])
        said += ": the paper prints no number" if drawn else ": nobody here has read the figure in its source"
    return said + f" ({OLDER})" * one.outdated


def of_card(one: Shown) -> str:
    """The page of a card."""
    target, card = one.target, one.card
    paper, said = target.paper, verdict_of(one)
    own = target.card.name
    theirs, cited = ("paper", f"[{paper.cited_as}]({paper.source})") if paper.source else ("repository", "No paper")
    parts = [
        f"# {target.title}",
        f"{cited}: *{paper.title}*. Card: [{own}]({own}), made by `{card['command']}`.",
        f"**{said[:1].upper()}{said[1:]}.**",
        f"## Beside the {theirs}",
        f"Score: {unit(target)}. Ours: mean over {seeds_text(card)} with its 95% interval over "
        f"{card['figures'][0]['ours']['tasks']} test episodes a seed.",
        table(
            ("figure", "metarun", "+- over seeds", theirs, *BESIDE),
            [
                (*row[:4], row.verdict, row.difference, *(f["paper"][key] for key in ("where", "interval_is", "read")))
                for row, f in zip(rows(one), card["figures"], strict=True)
            ],
        ),
        *tested_by(card),
        *again_by_others(one),
        f"The {theirs}'s protocol:",
        table(
            ("setting", "value"),
            [(name, target.protocol[name]) for name in PROTOCOL if target.protocol.get(name) is not None],
        ),
        differences(target),
        *of_the_preset(target),
        *common(card),
        *curve(target, card),
        "## Runs",
        table(RUN, [run_row(target, run) for run in card["runs"]]),
        "Times are upper bounds: the machine was shared.",
    ]
    return "\n\n".join(parts) + "\n"


def run_row(target: Target, run: dict[str, Any]) -> list[Any]:
    """What a page says of one of a card's runs."""
    time = shortly(run["seconds"]) + (f" in {run['continued'] + 1} parts" if run["continued"] else "")
    machine = run["machine"]["gpu"] or f"{run['machine']['cpus']} CPU cores, {run['machine']['threads']} used"
    known = [run["seed"], f"`{run['command']}`", run["commit"][:7], run["date"], time]
    return [*known, tested(target, run), run["execution"], machine]


def tested(target: Target, run: dict[str, Any]) -> str:
    """Which model of a run was tested; nothing where its card is from before cards kept that."""
    which = "the best on validation tasks" if target.tested == "best" else "the last, as the paper's code does"
    return f"the model of step {run['tested_step']}, {which}" if "tested_step" in run else ""


def tested_by(card: dict[str, Any]) -> list[str]:
    """The commands that test the runs of the page, where their own test at the end is not the one meant."""
    commands = {figure["name"]: figure["ours"]["evaluated_by"] for figure in card["figures"]}
    alike = len({*commands.values()}) == 1
    told = [f"{'' if alike else f'{name}: '}`{command}`" for name, command in commands.items() if command]
    return [f"Tested by {', '.join(dict.fromkeys(told))}, RUN being a run below."] if told else []


def again_by_others(one: Shown) -> list[str]:
    if not one.target.reruns:
        return []
    lines = [
        (r.figure, printed(r.value, r.interval, r.read), f"[{r.who}]({r.source})", r.read) for r in one.target.reruns
    ]
    return ["Other runs of it:", table(("figure", "value", "who", "read"), lines)]


def differences(target: Target) -> str:
    if not target.differs:
        return "Ours differs from it in nothing that is known."
    return "Ours differs from it:\n\n" + "\n".join(f"- {text}" for text in target.differs)


def of_the_preset(target: Target) -> list[str]:
    """That the preset of the target's command has another score by itself, where it does, and where that stands."""
    names = [word.partition("=")[2] for word in target.words or () if word.startswith("experiment=")]
    found = [preset for preset in map(experiment, names) if target in under_more_settings(preset)]
    return [
        f"`metarun experiment={preset.name}` without more settings is another run, with a score of its own "
        "([experiments](../../experiments.md))."
        for preset in found
    ]


def common(card: dict[str, Any]) -> list[str]:
    """metarun's common protocol: a line for each seed, norm and number of queries."""
    if not card["common"]:
        return []
    steps = max(len(line["steps"]) for line in card["common"])
    shown = [k for k in (0, 1, 2, 3, 5, 10, 20, 50) if k < steps - 1]
    lines = []
    for line in card["common"]:
        scores = Score(line["mean"], line["ci95"]).text(), *(f"{line['steps'][k]:.4g}" for k in shown)
        lines.append((line["seed"], line["norm"], line["queries"], *scores))
    score = f"score, of step {steps - 1}" if steps else "score"
    head = ("seed", "batch norm", "queries", score, *(f"step {k}" for k in shown))
    text = f"{card['common'][0]['tasks']} test tasks; 95% interval over them."
    if any(line["norm"] for line in card["common"]):
        text += " `transductive`: statistics of the query batch; `support` and `running`: nothing of the queries."
    return ["## By metarun's common protocol", text, table(head, lines)]


def curve(target: Target, card: dict[str, Any]) -> list[str]:
    """The validation score of each seed at some steps of the training."""
    # where one had no finite score, others do
    steps = sorted({step for run in card["runs"] for step, _ in run["curve"]})
    if len(steps) < 2:
        return []
    best = max if target.higher_is_better else min
    of_each = [best(run["curve"], key=lambda point: point[1])[0] for run in card["runs"] if run["curve"]]
    chosen = sorted({steps[round(i * (len(steps) - 1) / (POINTS - 1))] for i in range(POINTS)} | {*of_each})
    lines = [
        (run["seed"], *(f"{dict(map(tuple, run['curve'])).get(step, float('nan')):.4g}" for step in chosen))
        for run in card["runs"]
    ]
    which = "one that was best on them" if target.tested == "best" else "last"
    text = f"On validation episodes, by training step; the best is among them. The model that is tested is the {which}."
    if all("task." in (figure["ours"]["evaluated_by"] or "") for figure in card["figures"]):
        text += " The validation tasks are like the training's, not like those of the test above."
    return ["## Learning curve", text, table(("seed", *chosen), lines)]
