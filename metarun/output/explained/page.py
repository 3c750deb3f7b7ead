"""An explanation as one HTML page that needs nothing else: its figures are within it, and it asks no network."""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from metarun.output.explained.findings import begins_at_zero, named
from metarun.output.ledger import score_of
from metarun.output.page import Section, figure, folded, paragraph, table_part
from metarun.output.page import page as whole_page
from metarun.output.tables import Table

SECTIONS = {  # by part: its heading, and how it is read
    "layers": (
        "What changes in the network",
        "Left: how far adaptation moves the parameters of each layer, |phi - theta| / |theta|. Right: how alike its outputs "
        "on the queries are before and after, by linear CKA: 1 is the same up to rotation and scale. A body near 1 under a "
        "head that changes is feature reuse; a body far below 1 is rapid learning (Raghu et al. 2020). CKA is the higher, "
        "the fewer queries there are.",
    ),
    "steps": (
        "Loss and score at each step",
        "Means over the tasks, with 95% confidence. A query loss that rises while the support loss falls is overfitting to "
        "the support.",
    ),
    "gradient_alignment": (
        "Support and query gradients of a task",
        "The cosine of the gradients of the two losses where the adaptation begins, over the parameters that it moves. "
        "Above 0, a step that lowers the support loss lowers the query loss, too.",
    ),
    "tasks_alignment": (
        "Meta-gradients of the tasks",
        "The cosine of the meta-gradients of each two training tasks at theta. Below 0, what helps one task harms the "
        "other.",
    ),
    "calibration": (
        "Is it as sure as it is right?",
        "Of classes: how often predictions are right by how sure they are (Guo et al. 2017, 15 bins). Of numbers: how many "
        "targets lie within the intervals that the learner gives, or how far they are from the predictions.",
    ),
    "confusion": (
        "Classes that are hard",
        "Each mistake is counted in the episodes that had both classes. The most frequent ones are shown.",
    ),
    "embedding": (
        "The features of an episode",
        "Outputs of the body for support and query, in the plane in which they differ most (principal components, the same "
        "before and after). A colour is a class, or the size of a target.",
    ),
    "episodes": ("The best and the worst episode", "By the score of the queries after adaptation."),
}


def page(content: Mapping[str, Any], main: Table, pictures: Mapping[str, Sequence[tuple[str, bytes]]]) -> str:
    """The page of what explain.json has. ``pictures``: by part, PNG files with their names."""
    title = f"{content['learner']} on {content['task']}: what adaptation does"
    overrides = f" with {' '.join(content['overrides'])}" if content["overrides"] else ""
    facts = (
        f"{content['run']}, {content['checkpoint']} checkpoint of step {content['checkpoint_step']}, {content['num_tasks']} "
        f"{content['split']} tasks{overrides}"
    )
    lead = [paragraph(facts, "soft"), table_part(main, "findings", interactive=False)]
    sections = [_section(name, content, pictures.get(name, ())) for name in SECTIONS]
    return whole_page(title, lead, sections, interactive=False)


def _section(name: str, content: Mapping[str, Any], pictures: Sequence[tuple[str, bytes]]) -> Section:
    heading, how = SECTIONS[name]
    if name in content["left_out"]:
        return Section(heading, [paragraph(f"Left out: {content['left_out'][name]}.", "soft")], name)
    parts = [paragraph(how), *(_picture(heading, _caption(picture, content), png) for picture, png in pictures)]
    if name in TABLES:
        numbers = table_part(TABLES[name](content["parts"][name]), f"{name}-numbers", interactive=False)
        parts.append(folded("Numbers", numbers) if pictures else numbers)
    return Section(heading, parts, name)


def _caption(name: str, content: Mapping[str, Any]) -> str:
    """What stands under the picture of an episode."""
    if name not in ("best", "worst"):
        return ""
    shown = content["parts"]["episodes"][name]
    return f"{name}: episode {shown['episode']}, {content['score']} {shown['score']:.4g}"


def _picture(heading: str, caption: str, png: bytes) -> str:
    image = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    return figure(f'<img alt="{escape(caption or heading)}" src="{image}">', caption)


def _layers(part: Mapping[str, Any]) -> Table:
    cells = [(named(r), r["parameters"], _change(r), score_of(r["cka"])) for r in part["rows"]]
    return Table(("layer", "parameters", "relative change", "CKA"), cells)


def _change(row: Mapping[str, Any]) -> Any:
    return "away from zero" if begins_at_zero(row) else score_of(row["change"])


def _steps(part: Mapping[str, Any]) -> Table:
    names = list(part["rows"][0])
    return Table(
        ("step", *(name.replace("_", " ") for name in names)),
        [(str(k), *(score_of(row[name]) for name in names)) for k, row in enumerate(part["rows"])],
    )


def _confusion(part: Mapping[str, Any]) -> Table:
    return Table(("class", "taken for", "times", "of"), [tuple(pair.values()) for pair in part["pairs"]])


TABLES = {"layers": _layers, "steps": _steps, "confusion": _confusion}
