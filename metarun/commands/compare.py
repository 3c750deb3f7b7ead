"""``metarun compare RUN RUN ...``: differences on the same test episodes; by groups of seeds with ``--by``."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from statistics import fmean
from typing import Any

from metarun.commands.runs import NO_VALUE, filters_in, none_passes, passing, refuse_unknown, value_of
from metarun.errors import did_you_mean, listed, wrong_command
from metarun.evaluation.kinds import KINDS
from metarun.output.ledger import runs_in
from metarun.output.paired import Difference, holm, of_others, of_strata, of_values, win_rate
from metarun.output.scored import (
    Scored,
    by_task,
    mean_of,
    over_others,
    shared,
    strata,
    why_none,
    without_episodes,
    without_numbers,
)
from metarun.output.tables import Score, Table, refuse_other_formats, show, tables_as_json, text_of
from metarun.paths import usable

# of runs that ended, or did not, before their test
_AGAIN = "metarun show RUN says why it ended; train with other settings."
_GO_ON = "metarun resume=RUN goes on with a run that was stopped."
FIXES = {"diverged": _AGAIN, "failed": _AGAIN, "interrupted": _GO_ON, "killed": _GO_ON, "pruned": _GO_ON}
FIXES |= {"running": "Wait for runs that go on."}
ROUNDING = 1e-9  # relative: an interval below it is one of equal values


@dataclass(frozen=True)
class Group:
    """What is compared as one: a run, or the runs of several seeds, by seed."""

    name: str
    members: dict[Any, Scored]

    def summary(self, score: str) -> dict[str, Score]:
        """The mean with its interval over seeds, with that over the episodes of these seeds, and with that over other
        classes or tasks where the episodes' are known; evaluation tasks count alike, however many episodes they have."""
        runs = list(self.members.values())
        values = [run.scores(score) for run in runs]
        found = {"seeds": of_values(list(map(mean_of, values))).score, "episodes": of_strata(strata(values)).score}
        others = over_others(runs, values)
        return found | ({others.kind: of_others(found["seeds"].mean, others).score} if others else {})


@dataclass(frozen=True)
class Pair:
    """The difference of two groups, the first less the second, on the episodes that both have."""

    first: str
    second: str
    over_seeds: Difference
    over_episodes: Difference
    wins: float
    over_others: dict[str, Difference] = field(default_factory=dict)  # by the kind: classes, tasks of a table, or sizes

    @property
    def caveats(self) -> Iterator[str]:
        """What a reader must know before drawing a conclusion from its intervals."""
        for kind, (score, p) in self.over_others.items():
            of_episodes = f"over episodes a difference is sure for these {score.n} {kind} alone"
            if p is None:
                yield f"{of_episodes}, and unknown for other {kind}, of which the test has too few"
            elif (score.ci95 or 0.0) > (self.over_episodes.score.ci95 or 0.0):
                yield f"{of_episodes}; conclude from that over {kind}, whose interval is wider"
        for over, (score, p) in {"seeds": self.over_seeds, "episodes": self.over_episodes, **self.over_others}.items():
            if p is not None and (score.ci95 or 0.0) <= ROUNDING * abs(score.mean):
                name = f"{self.first} and {self.second}"
                yield f"{name}: all {score.n} differences over {over} are equal: an interval of 0 tells nothing of others"


def compare_runs(words: list[str], by: str, score: str, evaluation: str, chosen: str) -> None:
    """Print the groups, and the difference of each two of them."""
    refuse_other_formats(chosen)
    runs = scored_runs(words, evaluation)
    score = score.removeprefix("test/") or next((scored.run.score_name for scored in runs if scored.run.score_name), "")
    left_out = list(without_episodes(runs, score))
    notes = [f"{scored.name} is left out: {reason}" for scored, reason in left_out]
    kept = [scored for scored in runs if scored.name not in {other.name for other, _ in left_out}]
    notes += without_numbers(kept, score)
    groups = grouped(kept, by)
    if len(groups) < 2:
        fixes = " ".join(dict.fromkeys(_fix(scored) for scored, _ in left_out)) or "Choose another --by KEY."
        raise wrong_command(
            *notes, f"there are not two to compare{f' by {score}' * bool(score)}, but {len(groups)}. {fixes}"
        )
    pairs = [pair for one, other in combinations(groups, 2) if (pair := compared(one, other, score, notes))]
    if not pairs:
        raise wrong_command(*notes)
    told(groups, pairs, score, notes, by, chosen)


def _fix(scored: Scored) -> str:
    """What to do so that a run that is left out can be compared."""
    if scored.episodes:
        return (
            f"--score takes {listed(list(dict.fromkeys(name for row in scored.episodes for name in row['scores'])))}."
        )
    return FIXES.get(
        scored.run.state, "Runs of earlier versions get them by metarun evaluate RUN; then add --evaluation NAME."
    )


def scored_runs(words: list[str], evaluation: str) -> list[Scored]:
    """The runs in the folders among ``words`` that pass the filters among them, named by what tells their paths apart."""
    filters, places = filters_in(words)
    found = list({run.path.resolve(): run for place in places for run in runs_in(usable(place, "RUN"))}.values())
    kept = {run.path.resolve(): run for run in passing(found, filters)}
    if found and not kept:
        raise wrong_command(none_passes(found, filters, listed(places)))
    if len(kept) < 2:
        raise wrong_command(f"two or more runs can be compared, and these are {len(kept)}: metarun compare RUN RUN ...")
    known = dict.fromkeys(name for run in kept.values() for name in run.evaluations())
    if evaluation and evaluation not in known:
        has = f"There is {listed(list(known))}" if known else "metarun evaluate RUN makes one"
        raise wrong_command(f"--evaluation {evaluation}: no run has it{did_you_mean(evaluation, known) or '.'} {has}.")
    names = [path.name for path in kept]
    return [
        Scored(run, path.name if names.count(path.name) == 1 else str(path), evaluation) for path, run in kept.items()
    ]


def grouped(runs: Sequence[Scored], by: str) -> list[Group]:
    """Each run by itself or, with ``by``, those that agree in its keys, by their seeds. Raises ConfigError where a group has
    two runs of a seed: they differ in something else."""
    if not by:
        return [Group(scored.name, {scored.run.seed: scored}) for scored in runs]
    refuse_unknown(by.split(","), [scored.run for scored in runs], "--by ")
    groups: dict[str, dict[Any, Scored]] = {}
    for scored in runs:
        values = {key: value_of(scored.run, key) for key in by.split(",")}
        if unknown := [key for key, value in values.items() if value is NO_VALUE]:
            raise wrong_command(f"--by {by}: {scored.name} has no {', '.join(unknown)}.")
        members = groups.setdefault(" ".join(map(text_of, values.values())), {})
        seed = scored.run.seed
        if seed in members:
            twice = f"{members[seed].name} and {scored.name} are both of seed {seed}"
            raise wrong_command(f"--by {by}: {twice}. Add the setting in which they differ, or a filter KEY=VALUE.")
        members[seed] = scored
    return [Group(name, members) for name, members in groups.items()]


def compared(one: Group, other: Group, score: str, notes: list[str]) -> Pair | None:
    """The difference of two groups, seed by seed; None, with a note, where they share no episode."""
    single = len(one.members) == len(other.members) == 1
    couples = [(a, other.members[seed]) for seed, a in one.members.items() if seed in other.members]
    couples = list(zip(one.members.values(), other.members.values(), strict=True)) if single else couples
    if alone := one.members.keys() ^ other.members.keys() if not single else set():
        notes.append(f"{one.name} and {other.name}: seeds {listed([str(s) for s in alone])} are in one of them alone")
    of_seeds, runs = [], []
    for a, b in couples:
        differences = shared(a, b, score)
        count, counts = len(differences), (len(a.scores(score)), len(b.scores(score)))
        if not differences:
            notes.append(f"{a.name} and {b.name} share no episode: {why_none(a, b)}")
        elif count < max(counts):
            notes.append(f"{a.name} and {b.name} share {count} of {counts[0]} and {counts[1]} episodes")
        of_seeds += [differences] if differences else []
        runs += [a] if differences else []
    if not of_seeds:
        return None
    higher = couples[0][0].higher(score)
    wins = fmean(
        win_rate(list(episodes.values()), higher) for scores in of_seeds for episodes in by_task(scores).values()
    )
    over_seeds, over_episodes = of_values(list(map(mean_of, of_seeds))), of_strata(strata(of_seeds))
    others = over_others(runs, of_seeds)
    apart = {others.kind: of_others(over_episodes.score.mean, others)} if others else {}
    pair = Pair(one.name, other.name, over_seeds, over_episodes, wins, apart)
    notes += [note for note in pair.caveats if note not in notes]
    return pair


def _note_of_tasks(groups: list[Group], score: str) -> list[str]:
    """What the score is a mean of, where episodes are of several evaluation tasks."""
    tasks = dict.fromkeys(
        task for group in groups for member in group.members.values() for task in by_task(member.scores(score))
    )
    if len(tasks) < 2:
        return []
    one = f"for one of them alone --score {next(iter(tasks))}/{score}"
    return [f"{score} is the mean over the evaluation tasks {listed(list(tasks))}, which count alike; {one}"]


def told(groups: list[Group], pairs: list[Pair], score: str, notes: list[str], by: str, chosen: str) -> None:
    """Print all of it in the format."""
    over = ("seeds", "episodes") if by else ("episodes",)
    tables = {"scores": of_groups(groups, score, over), "differences": of_pairs(pairs, score, over)}
    better = "higher" if next(iter(groups[0].members.values())).higher(score) else "lower"
    notes += _note_of_tasks(groups, score)
    notes.append(f"win rate: how often the first is better ({better} {score}) on an episode; equal ones count half")
    if len(pairs) > 1:
        notes.append(f"Holm's p values are corrected for {len(pairs)} comparisons: report these")
    if chosen == "json":
        print(tables_as_json(tables, score=score, notes=notes), end="")
        return
    for name, table in tables.items():
        if chosen != "csv" or name == "differences":  # a CSV is one table
            show(table, chosen)
    if chosen == "table":
        print("\n".join(notes))


def of_groups(groups: list[Group], score: str, over: Sequence[str]) -> Table:
    """The mean of each group with its intervals."""
    rows, found = [], [group.summary(score) for group in groups]
    over = [*over, *(kind for kind in KINDS if any(kind in intervals for intervals in found))]
    for group, intervals in zip(groups, found, strict=True):
        seeds = [", ".join(map(str, group.members))] if "seeds" in over else []
        rows.append([group.name, *seeds, *(intervals.get(name) for name in over)])
    seeds = ["seeds"] if "seeds" in over else []
    return Table(["run" if not seeds else "group", *seeds, *(f"{score} over {name}" for name in over)], rows, "scores")


def of_pairs(pairs: list[Pair], score: str, over: Sequence[str]) -> Table:
    """The differences with their intervals and p values, these also corrected where there are several; beside those that
    are asked for, those over other classes or tasks, where the episodes' are known."""
    over = [*over, *(kind for kind in KINDS if any(kind in pair.over_others for pair in pairs))]
    columns = ["first", "second", *(f"difference over {name}" for name in over), "win rate"]
    rows = [[pair.first, pair.second, *(d.score for d in _of(pair, over)), pair.wins] for pair in pairs]
    for name in over:
        ps = [difference.p for pair in pairs for difference in _of(pair, [name])]
        several = len(pairs) > 1
        columns += [f"p over {name}", *([f"Holm's p over {name}"] if several else [])]
        cells = zip(ps, holm(ps), strict=True) if several else zip(ps, strict=True)
        rows = [[*row, *its] for row, its in zip(rows, cells, strict=True)]
    return Table(columns, rows, f"differences in {score}")


def _of(pair: Pair, over: Sequence[str]) -> list[Difference]:
    found = {"seeds": pair.over_seeds, "episodes": pair.over_episodes, **pair.over_others}
    return [found.get(name, Difference(Score(pair.over_episodes.score.mean), None)) for name in over]
