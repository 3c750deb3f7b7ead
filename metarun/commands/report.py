"""``metarun report DIR``: a page and tables of what the runs in a folder found, over seeds."""

import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path

from metarun import __version__
from metarun.commands import report_parts as parts
from metarun.commands.compare import Group, compared, of_pairs
from metarun.commands.report_rows import Row, keys_of, rows_of, why_left_out
from metarun.commands.runs import passes, understood
from metarun.errors import listed, shortened, wrong_command
from metarun.files import write_atomically
from metarun.output.ledger import runs_in
from metarun.output.scored import Scored, without_episodes
from metarun.output.tables import Table, as_csv, as_latex, as_markdown, refuse_other_formats, show

FOLDER = "report"  # where the files lie, in the folder of the runs


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
        kinds = [k for k in ("classes", "tasks") if any(row.over_others(name, k) for row in self.rows)]
        columns = ["group", "seeds", *(["missing seeds"] if any(missing) else [])]
        columns += [f"{self.score} over {each}" for each in (*over, "episodes", *kinds)]
        cells = []
        for row, gone in zip(self.rows, missing, strict=True):
            absent = [", ".join(f"{seed} ({state})" for seed, state in gone.items())] if any(missing) else []
            intervals = [*([row.over_seeds(name)] if over else []), row.over_episodes(name)]
            intervals += [row.over_others(name, kind) for kind in kinds]
            cells.append([row.name, ", ".join(map(str, sorted(row.counted, key=str))), *absent, *intervals])
        return Table(columns, cells, f"{self.score} in the final test")

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
    def caveats(self) -> list[str]:
        """What a reader must know before the table: what is missing, failed or unequal."""
        found = list(self.notes)
        for row in self.rows:
            found += [f"{s.name} ({row.name}) does not count: {why_left_out(s, self.score)}" for s in row.others]
            early = [s for s in row.counted.values() if s.run.state != "completed"]
            found += [f"{s.name} ({row.name}) counts with a score of before: it is {s.run.state}" for s in early]
            gone = [str(seed) for seed, state in row.missing(self.seeds, self.score).items() if state == "no run"]
            found += [f"{row.name} has no run of seed {listed(gone)}, which others have"] if gone else []
        if len({frozenset(row.counted) for row in self.rows if row.counted}) > 1:
            found.append("the groups' means are over different seeds; differences are taken on those that both have")
        return [*found, *parts.unequal(self.rows, self.keys)]


def report_on(words: list[str], by: str, score: str, out: str, chosen: str) -> None:
    """Write the page and the tables; print the first table and where they are."""
    refuse_other_formats(chosen)
    root, filters = understood(words)
    if ("=" in str(root) and not root.is_dir()) or not words:
        raise wrong_command("name the folder of the runs first: metarun report DIR [KEY=VALUE ...]")
    kept = [run for run in runs_in(root) if all(passes(run, wanted) for wanted in filters)]
    if not kept:
        raise wrong_command(f"none of the runs in {root} passes the filter")
    runs = [Scored(run, _name(run.path, root)) for run in kept]
    score = _score(runs, score)
    keys, notes = keys_of(kept, by), list[str]()
    findings = Findings(_title(root), score, keys, rows_of(runs, keys, score, notes), notes)
    folder = Path(out).expanduser() if out else root / FOLDER
    write(findings, folder)
    show(findings.means, chosen)
    for line in (*findings.caveats, f"report: {folder / 'report.html'} (also .md, .tex and .csv)"):
        print(line, file=sys.stdout if chosen == "table" else sys.stderr)


def _name(path: Path, root: Path) -> str:
    return path.name if path == root else path.relative_to(root).as_posix()


def _title(root: Path) -> str:
    return f"Report on {root.resolve().name or root}"


def _score(runs: Sequence[Scored], wanted: str) -> str:
    """The score ``wanted``, or else the one that most runs have as their own. Raises ConfigError for one that none has."""
    known = {name.removeprefix("test/") for scored in runs for name in scored.run.scores if "_step_" not in name}
    own = Counter(scored.run.score_name for scored in runs if scored.run.score_name)
    if wanted and wanted not in {*known, *own}:
        has = f"they have {listed(sorted(known | {*own}))}" if known or own else "they have none yet"
        raise wrong_command(f"--score {wanted}: no run has it; {shortened(has, 300)}.")
    return wanted or (own.most_common(1)[0][0] if own else "score")


def write(findings: Findings, folder: Path) -> None:
    """Write report.html, .md, .tex and .csv into the folder. Raises ConfigError where the disk refuses."""
    from metarun.commands.report_page import html

    made = {"html": html(findings), "csv": as_csv(findings.means), **dict(_texts(findings))}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for ending, text in made.items():
            write_atomically(folder / f"report.{ending}", text.encode())
    except OSError as error:
        fix = "Name a folder that can be written: --out DIR"
        raise wrong_command(f"the report cannot be written to {folder}: {error.strerror}. {fix}") from error


def _texts(findings: Findings) -> Iterator[tuple[str, str]]:
    """The tables with what must be known of them, as Markdown and as LaTeX."""
    tables = [table for table in (findings.means, findings.paired[0]) if table]
    notes = [*findings.caveats, *findings.paired[1], *explained(findings)]
    listing = "\n".join(f"- {note}" for note in notes)
    yield "md", "\n".join([*map(as_markdown, tables), listing, ""])
    yield "tex", "\n".join([*map(as_latex, tables), *(f"% {note}" for note in notes), ""])


def explained(findings: Findings) -> Iterator[str]:
    """What the intervals of the tables mean."""
    if findings.several:
        yield "over seeds: 95% by Student's t over the seeds' means; how sure the mean is for other trainings"
    yield "over episodes: 95% for these trained runs on other episodes of the same test classes or tasks"
    if any(column.endswith((" over classes", " over tasks")) for column in findings.means.columns):
        yield "over classes or tasks: 95% on others than those of the test, which all seeds share; the mean of theirs"
    if findings.paired[0]:
        more = "higher" if findings.higher else "lower"
        yield f"differences: the first less the second, on the same episodes; {more} {findings.score} is better"
        if "Holm's p over episodes" in findings.paired[0].columns:
            yield f"Holm's p values are corrected for {len(findings.paired[0].rows)} comparisons: report these"


def stamp() -> str:
    """When and by what a report was made."""
    return f"made by metarun {__version__} on {time.strftime('%Y-%m-%d %H:%M %Z')}"
