"""``metarun diff RUN RUN``: in what two runs differ."""

from pathlib import Path
from typing import Any

from metarun.output.kept import text_lines
from metarun.output.ledger import Run, run_at
from metarun.output.tables import Table, refuse_other_formats, show

PLACES = ("run_dir", "resume")
ABSENT = "(not there)"


def show_difference(one: Path, other: Path, chosen: str) -> None:
    """Print a row for everything that is not the same in both runs."""
    refuse_other_formats(chosen)
    runs = run_at(one), run_at(other)
    rows = differences(*runs)
    if rows or chosen != "table":
        cells = rows if chosen == "json" else [["null" if cell is None else cell for cell in row] for row in rows]
        show(Table(("part", "name", *names(*runs)), cells), chosen)
    else:
        print("the two runs do not differ")


def names(one: Run, other: Run) -> tuple[str, str]:
    """The names of two runs in a table: their folders', or their paths where these are the same."""
    if one.path.name != other.path.name:
        return one.path.name, other.path.name
    return str(one.path), str(other.path)


def differences(one: Run, other: Run) -> list[tuple[str, str, Any, Any]]:
    """(part, name, value, other value) for every fact of two runs that is not the same."""
    first, second = facts_of(one), facts_of(other)
    return [
        (part, name, first[part].get(name, ABSENT), second[part].get(name, ABSENT))
        for part in first
        for name in dict.fromkeys([*first[part], *second[part]])
        if first[part].get(name, ABSENT) != second[part].get(name, ABSENT)
    ]


def facts_of(run: Run) -> dict[str, dict[str, Any]]:
    """What two runs can differ in, part by part."""
    return {
        "setting": {key: value for key, value in run.settings.items() if key not in PLACES},
        "data": {name: run.facts[name] for name in ("data", "evaluation_data") if name in run.facts},
        "code": run.code,
        "machine": run.machine,
        "package": dict(line.partition("==")[::2] for line in text_lines(run.path / "freeze.txt")),
        "score": {name: score for name, score in run.scores.items() if "_step_" not in name},
    }
