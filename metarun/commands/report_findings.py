"""What the runs of a folder found: the tables of a report, and what a reader must know of them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from statistics import fmean

from metarun.commands import report_parts as parts
from metarun.commands.compare import Group, compared, of_pairs
from metarun.commands.report_rows import Row, name_of, why_left_out
from metarun.errors import listed
from metarun.evaluation.kinds import KINDS
from metarun.output.paired import of_values
from metarun.output.scored import without_episodes
from metarun.output.tables import Table

TESTED, VALIDATED = "task.test_tasks", "task.val_tasks"  # keys in which the folds of a cross-validation differ
ALSO = ("negative_log_likelihood",)  # stands beside the score of learners that predict distributions


@dataclass(frozen=True)
class Findings:
    """What the runs of a folder found, as tables."""

    title: str
    score: str
    keys: Sequence[str]
    rows: Sequence[Row]
    notes: Sequence[str]  # of runs that stand in no row

    @cached_property
    def higher(self) -> bool:
        """Whether more of the score is better."""
        return next((s.higher(self.score) for row in self.rows for s in (*row.counted.values(), *row.others)), True)

    @property
    def names(self) -> list[str]:
        """Those of the groups."""
        return [row.name for row in self.rows]

    @property
    def seeds(self) -> list[int | None]:
        """Those of any run."""
        found = {run.seed for row in self.rows for run in row.runs}
        return sorted(found, key=lambda seed: (seed is None, seed or 0))

    @cached_property
    def several(self) -> bool:
        """Whether any row has several seeds, so that there is something to say over seeds."""
        return any(len(row.counted) > 1 for row in self.rows)

    @cached_property
    def means(self) -> Table:
        """A row for each group: its seeds, those that are missing, and the mean with each of its intervals."""
        name, over = f"test/{self.score}", ["seeds"] if self.several else []
        missing = [row.missing(self.seeds, self.score) for row in self.rows]
        kinds = [k for k in KINDS if any(row.over_others(name, k) for row in self.rows)]
        columns = ["group", "seeds", *(["missing seeds"] if any(missing) else [])]
        columns += [f"{self.score} over {each}" for each in (*over, "episodes", *kinds)]
        also = [each for each in ALSO if each != self.score and any(row.scores(f"test/{each}") for row in self.rows)]
        columns += [f"{each} over episodes" for each in also]
        cells = []
        for row, gone in zip(self.rows, missing, strict=True):
            absent = [", ".join(f"{seed} ({state})" for seed, state in gone.items())] if any(missing) else []
            intervals = [*([row.over_seeds(name)] if over else []), row.over_episodes(name)]
            intervals += [row.over_others(name, kind) for kind in kinds]
            intervals += [row.over_episodes(f"test/{each}") for each in also]
            cells.append([row.name, ", ".join(map(str, sorted(row.counted, key=str))), *absent, *intervals])
        return Table(columns, cells, f"{self.score} in the final test")

    @cached_property
    def folds(self) -> Table | None:
        """The mean over runs that differ in the tasks they are tested on, for each group; None where none do."""
        if TESTED not in self.keys:
            return None
        groups: dict[str, dict[str, list[float]]] = {}
        for row in self.rows:
            if mean := row.over_seeds(f"test/{self.score}"):
                run = next(iter(row.counted.values())).run
                name = name_of(run, [key for key in self.keys if key not in (TESTED, VALIDATED)])
                groups.setdefault(name, {}).setdefault(name_of(run, [TESTED]), []).append(mean.mean)
        cells = [[n, len(of), of_values([fmean(means) for means in of.values()]).score] for n, of in groups.items()]
        return Table(["group", "folds", f"{self.score} over folds"], cells, f"{self.score} over folds of {TESTED}")

    @cached_property
    def paired(self) -> tuple[Table | None, list[str]]:
        """The differences on the same episodes, and notes on them."""
        counted = [scored for row in self.rows for scored in row.counted.values()]
        lost = {scored.name: reason for scored, reason in without_episodes(counted, self.score)}
        notes = [f"{name} is left out of the paired differences: {reason}" for name, reason in lost.items()]
        kept = [Group(row.name, {k: s for k, s in row.counted.items() if s.name not in lost}) for row in self.rows]
        couples = combinations([group for group in kept if group.members], 2)
        pairs = [pair for one, other in couples if (pair := compared(one, other, self.score, notes))]
        over = ("seeds", "episodes") if self.several else ("episodes",)
        return (of_pairs(pairs, self.score, over) if pairs else None), notes

    @property
    def tables(self) -> dict[str, Table | None]:
        """What a report says in every format, by the names that the page has for it."""
        return {"scores": self.means, "folds": self.folds, "differences": self.paired[0]}

    @property
    def caveats(self) -> list[str]:
        """What a reader must know before the table: what is missing, failed or unequal."""
        found = list(self.notes)
        for row in self.rows:
            found += [f"{s.name} ({row.name}) does not count: {why_left_out(s, self.score)}" for s in row.others]
            early = [s for s in row.counted.values() if s.run.state != "completed"]
            found += [f"{s.name} ({row.name}) counts with a score of before: it is {s.run.state}" for s in early]
            lost = [(s, name) for s in row.counted.values() for name in s.run.infinite]
            curve = f"test/{self.score}_"
            found += [f"{s.name}: {name} is not finite, and not drawn" for s, name in lost if name.startswith(curve)]
            gone = [str(seed) for seed, state in row.missing(self.seeds, self.score).items() if state == "no run"]
            found += [f"{row.name} has no run of seed {listed(gone)}, which others have"] if gone else []
        if len({frozenset(row.counted) for row in self.rows if row.counted}) > 1:
            found.append("the groups' means are over different seeds; differences are taken on those that both have")
        return [*found, *parts.unequal(self.rows, self.keys)]


def explained(findings: Findings) -> Iterator[str]:
    """What the intervals of the tables mean."""
    if findings.several:
        yield "over seeds: 95% by Student's t over the seeds' means; how sure the mean is for other trainings"
    yield "over episodes: 95% for these trained runs on other episodes of the same test classes or tasks"
    if findings.folds:
        yield "over folds: 95% by Student's t over the folds' means, each over its seeds; folds share training tasks"
    if any(column.endswith((" over classes", " over tasks", " over sizes")) for column in findings.means.columns):
        yield "over classes, tasks or sizes: 95% on others than those of the test, which all seeds share"
    if findings.paired[0]:
        more = "higher" if findings.higher else "lower"
        yield f"differences: the first less the second, on the same episodes; {more} {findings.score} is better"
        if "Holm's p over episodes" in findings.paired[0].columns:
            yield f"Holm's p values are corrected for {len(findings.paired[0].rows)} comparisons: report these"
