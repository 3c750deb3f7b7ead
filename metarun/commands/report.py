"""``metarun report DIR``: a page and tables of what the runs in a folder found, over seeds."""

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from metarun.commands.report_findings import Findings, explained
from metarun.commands.report_page import html
from metarun.commands.report_rows import keys_of, rows_of
from metarun.commands.report_search import NO_WINNER, section_of, table_of, texts_of, without_trials
from metarun.commands.runs import passes, understood
from metarun.errors import listed, shortened, wrong_command
from metarun.files import write_atomically
from metarun.output.ledger import Run, runs_in
from metarun.output.scored import Scored
from metarun.output.tables import as_csv, as_latex, as_markdown, refuse_other_formats, show
from metarun.paths import usable
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
    folder, search = usable(out, "--out") if out else root / FOLDER, found(root)
    kept = without_trials(kept, root, search)
    if kept or not search:
        findings = _findings(kept, by, score, root)
        table, notes, folds = findings.means, findings.caveats, findings.folds
        texts = {"html": html(findings, section_of(search)), **dict(_texts(findings))}
    else:
        table, notes, folds, texts = table_of(search), [NO_WINNER], None, texts_of(search, _title(root))
    write({**texts, "csv": as_csv(table)}, folder)
    show(table, chosen)
    if folds and chosen == "table":
        show(folds, chosen)
    for line in (*notes, f"report: {folder / 'report.html'} (also .md, .tex and .csv)"):
        print(line, file=sys.stdout if chosen == "table" else sys.stderr)


def _findings(kept: Sequence[Run], by: str, score: str, root: Path) -> Findings:
    runs = [Scored(run, _name(run.path, root)) for run in kept]
    score = _score(runs, score)
    keys, notes = keys_of(kept, by), list[str]()
    return Findings(_title(root), score, keys, rows_of(runs, keys, score, notes), notes)


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


def write(texts: dict[str, str], folder: Path) -> None:
    """Write a report's texts, by their endings, into the folder. Raises ConfigError where the disk refuses."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for ending, text in texts.items():
            write_atomically(folder / f"report.{ending}", text.encode())
    except OSError as error:
        fix = "Name a folder that can be written: --out DIR"
        raise wrong_command(f"the report cannot be written to {folder}: {error.strerror}. {fix}") from error


def _texts(findings: Findings) -> Iterator[tuple[str, str]]:
    """The tables with what must be known of them, as Markdown and as LaTeX."""
    tables = [table for table in (findings.means, findings.folds, findings.paired[0]) if table]
    notes = [*findings.caveats, *findings.paired[1], *explained(findings)]
    listing = "\n".join(f"- {note}" for note in notes)
    yield "md", "\n".join([*map(as_markdown, tables), listing, ""])
    yield "tex", "\n".join([*map(as_latex, tables), *(f"% {note}" for note in notes), ""])
