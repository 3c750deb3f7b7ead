"""``metarun report DIR``: a page and tables of what the runs in a folder found, over seeds."""

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from metarun.commands.report_findings import Findings, explained
from metarun.commands.report_page import html
from metarun.commands.report_rows import keys_of, rows_of
from metarun.commands.report_search import section_of, without_trials
from metarun.commands.runs import passes, understood
from metarun.errors import listed, shortened, wrong_command
from metarun.files import write_atomically
from metarun.output.ledger import runs_in
from metarun.output.page import Section
from metarun.output.scored import Scored
from metarun.output.tables import as_csv, as_latex, as_markdown, refuse_other_formats, show
from metarun.search.kept import found

FOLDER = "report"  # where the files lie, in the folder of the runs


def report_on(words: list[str], by: str, score: str, out: str, chosen: str) -> None:
    """Write the page and the tables; print the first table and where they are."""
    refuse_other_formats(chosen)
    root, filters = understood(words)
    if ("=" in str(root) and not root.is_dir()) or not words:
        raise wrong_command("name the folder of the runs first: metarun report DIR [KEY=VALUE ...]")
    kept = [run for run in runs_in(root) if all(passes(run, wanted) for wanted in filters)]
    if not kept:
        raise wrong_command(f"none of the runs in {root} passes the filter")
    search = found(root)
    kept = without_trials(kept, root, search)
    runs = [Scored(run, _name(run.path, root)) for run in kept]
    score = _score(runs, score)
    keys, notes = keys_of(kept, by), list[str]()
    findings = Findings(_title(root), score, keys, rows_of(runs, keys, score, notes), notes)
    folder = Path(out).expanduser() if out else root / FOLDER
    write(findings, section_of(search), folder)
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


def write(findings: Findings, search: Section, folder: Path) -> None:
    """Write report.html, .md, .tex and .csv into the folder. Raises ConfigError where the disk refuses."""
    made = {"html": html(findings, search), "csv": as_csv(findings.means), **dict(_texts(findings))}
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
