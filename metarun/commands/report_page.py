"""The page of ``metarun report``: its sections, in the order in which they are read."""

import time
from collections.abc import Iterator, Sequence

from metarun import __version__
from metarun.commands import report_parts as parts
from metarun.commands.report_findings import Findings, explained
from metarun.output.lines import Axes, Line, drawn
from metarun.output.page import Section, bullets, figure, folded, notice, page, paragraph, table_part
from metarun.output.tables import Table

BANDS = "Bands: 95% over seeds (Student's t); of a group with one seed, over its episodes."


def html(findings: Findings, search: Section) -> str:
    """The whole page; ``search`` is what there is to tell of the search that made the runs."""
    differences, notes = findings.paired
    count = sum(len(row.counted) for row in findings.rows)
    total = sum(len(row.runs) for row in findings.rows)
    made = f"made by metarun {__version__} on {time.strftime('%Y-%m-%d %H:%M %Z')}"
    better = "higher" if findings.higher else "lower"
    said = f"{count} of {total} runs count, in {len(findings.rows)} groups by {', '.join(findings.keys)}; "
    lead = [
        paragraph(f"{said}{better} {findings.score} is better; {made}.", "soft"),
        notice("Before you read the means:", findings.caveats),
    ]
    folds = [table_part(findings.folds, "folds")] if findings.folds else []
    results = Section("Scores", [table_part(findings.means, "scores"), *folds, bullets(explained(findings))])
    compared = [table_part(differences, "differences")] if differences else []
    sections = [
        search,
        results,
        Section("Paired differences", [*compared, bullets(notes)]),
        _adaptation(findings),
        _learning(findings),
        _shots(findings),
        Section("Cost", list(_cost(findings))),
        Section("What differs", list(_differences(findings))),
        Section("Alarms", _told(parts.alarms(findings.rows), "alarms")),
        Section("Runs", _told(parts.all_runs(findings.rows, findings.score), "runs")),
    ]
    return page(findings.title, lead, sections)


def _told(table: Table, name: str) -> list[str]:
    return [table_part(table, name)] if table.rows else []


def _curves(lines: Sequence[Line], axes: Axes, name: str, caption: str) -> list[str]:
    """A drawing, and its numbers on demand."""
    numbers = table_part(parts.points_table(lines, axes.x, ""), f"{name}-numbers")
    return [figure(drawn(lines, axes, name), caption), folded("The numbers", numbers)]


def _adaptation(findings: Findings) -> Section:
    """The score after each step, and how soon it is reached; learners without steps are levels."""
    score, rows = findings.score, findings.rows
    lines = list(parts.adaptation(rows, score))
    if not lines:
        return Section("Adaptation", [])
    means = {row.name: row.over_seeds(f"test/{score}") for row in rows if row.name not in {line.name for line in lines}}
    levels = [(name, mean.mean) for name, mean in means.items() if mean]
    x, y = "adaptation steps on the support", f"test {score}"
    axes = Axes("Score against adaptation step", x, y, findings.names, levels, "no steps")
    caption = f"Mean over seeds after 0, 1, ... steps. {BANDS}"
    speed = parts.speed(rows, score)
    told = [table_part(speed, "speed")] if speed.rows else []
    if told:
        told.append(
            paragraph("Mean height: the area under the curve divided by its steps. Change: from step 0.", "soft")
        )
    return Section("Adaptation", [*_curves(lines, axes, "adaptation", caption), *told])


def _learning(findings: Findings) -> Section:
    """The validation score by training step."""
    lines = list(parts.learning(findings.rows, findings.score))
    if not lines:
        return Section("Training", [])
    axes = Axes("Validation by training step", "training steps", f"validation {findings.score}", findings.names)
    caption = f"Pale lines: single runs, also those that do not count; bold: mean of those that do. {BANDS}"
    return Section("Training", _curves(lines, axes, "training", caption))


def _shots(findings: Findings) -> Section:
    """The score against the shots of the test, where there are several."""
    lines = list(parts.shots(findings.rows, findings.score, findings.keys))
    if not lines:
        return Section("Shots", [])
    x, y = "labelled examples of each class or task (shots)", f"test {findings.score}"
    axes = Axes("Score against shots", x, y, [*findings.names, *(line.name for line in lines)])
    caption = f"By evaluation.shots, by metarun evaluate RUN task.num_shots=K, or by runs trained with as many. {BANDS}"
    needed = table_part(parts.shots_needed(lines), "shots-needed")
    return Section("Shots", [*_curves(lines, axes, "shots", caption), needed])


def _cost(findings: Findings) -> Iterator[str]:
    table = parts.cost(findings.rows)
    if len(table.columns) > 1:
        yield table_part(table, "cost")
        text = "Means over seeds. Times and memory are of the machine and its load; FLOPs are counted, and compare anywhere."
        yield paragraph(text, "soft")


def _differences(findings: Findings) -> Iterator[str]:
    table = parts.differences(findings.rows)
    if table.rows:
        yield paragraph("Settings, data, code and machine that are not the same everywhere; '-': not there.", "soft")
        yield table_part(table, "differs")
