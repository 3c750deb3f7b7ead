"""``metarun reproduce``: which published figures can be repeated, and how ours stand beside them."""

import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metarun.commands.data import state_of
from metarun.commands.evaluate import evaluate_run, name_of
from metarun.commands.reproduce_list import list_targets, time_in
from metarun.config.build import build_task, check
from metarun.config.compose import composed
from metarun.config.overrides import MOST_RUNS
from metarun.errors import ConfigError, Interrupted, wrong_command
from metarun.files import read_json
from metarun.output.folder import place_of_runs
from metarun.output.tables import Score, Table, refuse_other_formats, show
from metarun.paths import as_shown
from metarun.reproduce import card
from metarun.reproduce.registry import Target, printed, target, task_of
from metarun.reproduce.running import OF_THE_PLACE, Seed, as_typed, protocols, refuse_another, seeds_of, train
from metarun.reproduce.verdict import about_seeds


@dataclass(frozen=True)
class Wanted:
    """The options of the command, as they were given."""

    listed: bool
    all_of_them: bool
    paper: str
    within: str
    seeds: int
    budget: str
    to: Path
    chosen: str


def reproduce(words: list[str], wanted: Wanted) -> int:
    """List the targets, or let those named in ``words`` run and write their cards; the exit code."""
    refuse_other_formats(wanted.chosen)
    names, place = [w for w in words if "=" not in w], [w for w in words if "=" in w]
    if wanted.listed:
        _refuse_beside_the_list(names, place, wanted)
        list_targets(wanted.paper, wanted.within, wanted.all_of_them, place, wanted.chosen)
        return 0
    if wanted.within or wanted.paper or wanted.all_of_them or wanted.chosen != "table":
        raise wrong_command("--paper, --within, --all and --format go with --list.")
    _refuse(names, place, wanted)
    place_of_runs(str(wanted.to), "--to")
    for name in names:
        seeds = seeds_of(target(name), wanted.to, wanted.seeds)
        if any(seed.state() != "completed" for seed in seeds):
            refuse_what_is_missing(target(name), place)
        for seed in seeds:
            refuse_another(seed, place)
    until = time.monotonic() + time_in(wanted.budget, "--budget") if wanted.budget else None
    for name in names:
        try:
            one(target(name), place, wanted, until)
        except Interrupted as error:
            why = "the budget is used up" if until is not None and time.monotonic() >= until else "stopped"
            print(f"\n{why}; the same command goes on where {name} stands", file=sys.stderr)
            return error.exit_code
    return 0


def _refuse_beside_the_list(names: list[str], place: list[str], wanted: Wanted) -> None:
    """Raise ConfigError for what has no effect on the list."""
    problems = [f"--list stands without names; leave out {' '.join(names)}, or say --paper PAPER."] if names else []
    problems += [f"{text} has no effect on the list." for text in place if not text.startswith("data_root=")]
    problems += ["--seeds and --budget go with a name."] if wanted.seeds != 1 or wanted.budget else []
    if problems:
        raise wrong_command(*problems)


def refuse_what_is_missing(target: Target, place: Sequence[str]) -> None:
    """Raise ConfigError where the target's data are absent, with what fetches them, or where it cannot run as asked."""
    cfg = composed([*(target.words or ()), *place], [])
    if problems := check(cfg):
        raise ConfigError(problems)
    if state_of(task_of(target.words or ()), cfg).startswith("absent"):
        try:
            build_task(cfg)  # fetches them if it may, or says what does
        except ConfigError as error:
            raise as_typed(error) from None


def _refuse(names: list[str], place: list[str], wanted: Wanted) -> None:
    """Raise ConfigError for all that is wrong with the command, before anything runs."""
    problems = [] if names else ["name what to reproduce, such as maml/sinusoid/5s. See: metarun reproduce --list"]
    others = [
        text for text in place if not text.startswith(tuple(f"{key}{end}" for key in OF_THE_PLACE for end in "=."))
    ]
    words = target(names[0]).words if names else None
    own = f" For a run of yours: metarun {' '.join(words or ('experiment=NAME',))}"
    problems += [
        f"{text} would reproduce something else; beside a name stand {', '.join(OF_THE_PLACE)}.{own} {text}"
        for text in others
    ]
    if not 1 <= wanted.seeds <= MOST_RUNS:
        problems.append(f"--seeds is {wanted.seeds}, but must be 1 or more, and {MOST_RUNS} or less.")
    if problems:
        raise wrong_command(*problems)
    for name in names:
        if target(name).words is None:
            raise wrong_command(
                f"{name} can be listed, not run: metarun has no preset that trains it as the paper does. "
                "Those that can be run: metarun reproduce --list"
            )


def one(target: Target, place: Sequence[str], wanted: Wanted, until: float | None) -> None:
    """Train and test the runs of one target, write its card, and print what it says."""
    seeds = seeds_of(target, wanted.to, wanted.seeds)
    for seed in seeds:
        print(f"{target.id}, seed {seed.number}: metarun {' '.join(seed.words)}   in {as_shown(seed.path)}", flush=True)
        train(seed, place, until)
        seed.refuse_damaged()
    log = wanted.to / target.folder / "evaluations.txt"
    number = sum(len(protocols(seed)) for seed in seeds)
    print(f"testing by the paper's protocol and by the common one: {number} evaluations", flush=True)
    content = card.card(seeds, lambda seed, overrides: evaluated(seed, overrides, log))
    where = wanted.to / target.card
    card.write(where, content)
    show(of_card(target, content))
    print("\n".join(said(target, content)))
    print(f"card: {as_shown(where)}")


def evaluated(seed: Seed, overrides: Sequence[str], log: Path) -> dict[str, Any]:
    """What ``metarun evaluate RUN OVERRIDES`` leaves, from its file where the run's model is still that one's."""
    tested = seed.target.tested
    where = seed.path / "evaluations" / f"{name_of(list(overrides), 'test', tested)}.json"
    with contextlib.suppress(ValueError, KeyError, TypeError):  # absent or damaged: it is made again
        kept = read_json(where)
        whole = not seed.lost_scores(kept, overrides)
        if whole and kept["protocol"]["checkpoint_step"] == seed.tested_step():
            return kept
    with log.open("a", encoding="utf-8") as file, contextlib.redirect_stdout(file):
        evaluate_run(seed.path, list(overrides), "test", seed.model.stem, [])
    made = read_json(where)
    seed.refuse_another_model(made["protocol"]["checkpoint_step"])
    return made


def of_card(target: Target, content: dict[str, Any]) -> Table:
    """The figures of a card as a table."""
    rows = []
    for figure in content["figures"]:
        ours, paper = figure["ours"], figure["paper"]
        theirs = None if paper["value"] is None else printed(paper["value"], paper["interval"], paper["read"])
        over_seeds = None if ours["over_seeds"] is None else round(ours["over_seeds"], 4)
        difference = Score(*figure["difference"].values()) if "difference" in figure else None
        judged = figure["verdict"] + about_seeds(target, [figure])
        rows.append((figure["name"], Score(ours["mean"], ours["ci95"]), over_seeds, theirs, difference, judged))
    unit = " in percent" if target.scale == 100 else ""
    title = f"{target.title}: {target.score}{unit}, 95% over {content['figures'][0]['ours']['tasks']} episodes"
    columns = ("figure", "metarun", "+- over seeds", target.paper.cited_as, "difference", "verdict")
    return Table(columns, rows, title)


def said(target: Target, content: dict[str, Any]) -> Iterator[str]:
    """What else a reader of the figures has to know."""
    if target.differs:
        yield "differs from the paper's protocol: " + "; ".join(target.differs)
    if target.tested == "last":
        yield "tested: the last model of each training, as the paper's code does"
    if len(content["runs"]) == 1:
        yield "one seed: trainings of others may differ by more than this interval over episodes (--seeds 3)"
    if content["verdict"] == "missed":
        yield f"missed: {target.cause or 'cause unknown'}"
    if any(figure["paper"]["read"] not in ("paper", "code") for figure in content["figures"]):
        yield "not judged: a figure that nobody here has read in its source (marked quoted or unread)"
