"""``metarun report DIR``: a page and tables of what the runs in a folder found, over seeds."""

import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from metarun.commands.report_findings import Findings, explained
from metarun.commands.report_page import html
from metarun.commands.report_rows import keys_of, rows_of
from metarun.commands.report_search import NO_WINNER, page_of, section_of, table_of, without_trials
from metarun.commands.runs import none_passes, passing, understood
from metarun.errors import listed, shortened, wrong_command
from metarun.files import write_atomically
from metarun.output.ledger import Run, runs_in
from metarun.output.scored import Scored
from metarun.output.tables import Table, as_csv, as_latex, as_markdown, refuse_other_formats, show, tables_as_json
from metarun.paths import usable
from metarun.search.kept import found

FOLDER = "report"  # where the files lie, in the folder of the runs
TABLES = ("scores", "folds", "differences", "trials")  # the last of a search without a winner, in place of the others


def report_on(words: list[str], by: str, score: str, out: str, chosen: str) -> None:
    """Write the page and the tables; print the scores, and where they are."""
    refuse_other_formats(chosen)
    root, filters = understood(words)
    if ("=" in str(root) and not root.is_dir()) or not words:
        raise wrong_command("name the folder of the runs first: metarun report DIR [KEY=VALUE ...]")
    runs = runs_in(root)
    kept = passing(runs, filters)
    if not kept:
        raise wrong_command(none_passes(runs, filters, root))
    folder, search = usable(out, "--out") if out else root / FOLDER, found(root)
    kept = without_trials(kept, root, search)
    tables: Mapping[str, Table | None]
    if kept or not search:
        findings = _findings(kept, by, score, root)
        score, tables, notes = findings.score, findings.tables, findings.caveats
        page, further = html(findings, section_of(search)), [*findings.paired[1], *explained(findings)]
    else:
        score, tables, notes = search.score, {"trials": table_of(search)}, [NO_WINNER]
        page, further = page_of(search, _title(root)), []
    texts = dict(_texts(tables, [*notes, *further], score=score))
    write({"html": page, **texts}, folder)
    if chosen == "table":
        for name, table in tables.items():
            if table and name != "differences":
                show(table)
    else:
        print(texts["tex" if chosen == "latex" else chosen], end="")
    also = ", ".join(f".{ending}" for ending, text in texts.items() if text)
    for line in (*notes, f"report: {folder / 'report.html'} (also {also})"):
        print(line, file=sys.stdout if chosen == "table" else sys.stderr)


def _findings(kept: Sequence[Run], by: str, score: str, root: Path) -> Findings:
    runs = [Scored(run, _name(run.path, root)) for run in kept]
    score = _score(runs, score.removeprefix("test/"))
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


def write(texts: Mapping[str, str], folder: Path) -> None:
    """Write a report's texts, by their endings, into the folder; where one is empty, the file of an earlier report goes.
    Raises ConfigError where the disk refuses."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for ending, text in texts.items():
            file = folder / f"report.{ending}"
            write_atomically(file, text.encode()) if text else file.unlink(missing_ok=True)
    except OSError as error:
        fix = "Name a folder that can be written: --out DIR"
        raise wrong_command(f"the report cannot be written to {folder}: {error.strerror}. {fix}") from error


def _texts(tables: Mapping[str, Table | None], notes: Sequence[str], **facts: str) -> Iterator[tuple[str, str]]:
    """The tables with what must be known of them, by the endings of the files. A CSV is one table: that of the first has
    no name."""
    known = [table for table in tables.values() if table]
    yield "md", "\n".join([*map(as_markdown, known), *(f"- {note}" for note in notes), ""])
    yield "tex", "\n".join([*map(as_latex, known), *(f"% {note}" for note in notes), ""])
    yield "json", tables_as_json({**dict.fromkeys(TABLES), **tables}, notes=notes, **facts)
    yield "csv", as_csv(known[0])
    for name in TABLES[1:]:
        further = tables.get(name)
        yield f"{name}.csv", as_csv(further) if further and further is not known[0] else ""
