"""An explanation as one HTML page that needs nothing else: its figures are within it, and it asks no network."""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from metarun.output.explained.findings import named, score_of
from metarun.output.tables import Table, text_of

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
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222;
  background: #fff }
h1 { font-size: 1.5rem; margin-bottom: .2rem }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .3rem; border-top: 1px solid #ddd; padding-top: 1.2rem }
p { margin: .3rem 0 .8rem }
figure { margin: .5rem 0 }
figcaption, .facts, .absent, summary { color: #666 }
img { max-width: 100%; height: auto; display: block }
table { border-collapse: collapse; margin: .6rem 0; display: block; overflow-x: auto }
th, td { padding: .2rem 1rem .2rem 0; text-align: left; border-bottom: 1px solid #eee }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums }
summary { cursor: pointer }
"""


def page(content: Mapping[str, Any], main: Table, pictures: Mapping[str, Sequence[tuple[str, bytes]]]) -> str:
    """The page of what explain.json has. ``pictures``: by part, PNG files with their names."""
    title = f"{content['learner']} on {content['task']}: what adaptation does"
    overrides = f" with {' '.join(content['overrides'])}" if content["overrides"] else ""
    facts = (
        f"{content['run']}, {content['checkpoint']} checkpoint of step {content['checkpoint_step']}, {content['num_tasks']} "
        f"{content['split']} tasks{overrides}"
    )
    sections = "\n".join(_section(name, content, pictures.get(name, ())) for name in SECTIONS)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<link rel="icon" href="data:,">\n'
        f'<style>{STYLE}</style>\n</head>\n<body>\n<h1>{escape(title)}</h1>\n<p class="facts">{escape(facts)}</p>\n'
        f"{_table(main)}\n{sections}\n</body>\n</html>\n"
    )


def _section(name: str, content: Mapping[str, Any], pictures: Sequence[tuple[str, bytes]]) -> str:
    heading, how = SECTIONS[name]
    if name in content["left_out"]:
        body = f'<p class="absent">Left out: {escape(content["left_out"][name])}.</p>'
    else:
        drawn = "\n".join(_picture(heading, _caption(picture, content), png) for picture, png in pictures)
        tables = TABLES[name](content["parts"][name]) if name in TABLES else None
        numbers = (
            f"<details{'' if pictures else ' open'}><summary>Numbers</summary>\n{_table(tables)}\n</details>"
            if tables
            else ""
        )
        body = f"<p>{escape(how)}</p>\n{drawn}\n{numbers}"
    return f'<section id="{name}">\n<h2>{escape(heading)}</h2>\n{body}\n</section>'


def _caption(name: str, content: Mapping[str, Any]) -> str:
    """What stands under the picture of an episode."""
    if name not in ("best", "worst"):
        return ""
    shown = content["parts"]["episodes"][name]
    return f"{name}: episode {shown['episode']}, {content['score']} {shown['score']:.4g}"


def _picture(heading: str, caption: str, png: bytes) -> str:
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    image = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    return f'<figure><img alt="{escape(caption or heading)}" src="{image}">{below}</figure>'


def _table(table: Table) -> str:
    kinds = [' class="number"' if table.of_numbers(column) else "" for column in range(len(table.columns))]
    head = "".join(f"<th{kind}>{escape(name)}</th>" for name, kind in zip(table.columns, kinds, strict=True))
    rows = "\n".join(
        "<tr>"
        + "".join(f"<td{kind}>{escape(text_of(cell, ' ± '))}</td>" for cell, kind in zip(row, kinds, strict=True))
        + "</tr>"
        for row in table.rows
    )
    return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table>"


def _optional(estimate: Mapping[str, Any] | None) -> Any:
    return None if estimate is None or estimate["mean"] is None else score_of(dict(estimate))


def _layers(part: Mapping[str, Any]) -> Table:
    cells = [(named(r), r["parameters"], _optional(r["change"]), _optional(r["cka"])) for r in part["rows"]]
    return Table(("layer", "parameters", "relative change", "CKA"), cells)


def _steps(part: Mapping[str, Any]) -> Table:
    names = list(part["rows"][0])
    return Table(
        ("step", *(name.replace("_", " ") for name in names)),
        [(str(k), *(_optional(row[name]) for name in names)) for k, row in enumerate(part["rows"])],
    )


def _confusion(part: Mapping[str, Any]) -> Table:
    return Table(("class", "taken for", "times", "of"), [tuple(pair.values()) for pair in part["pairs"]])


TABLES = {"layers": _layers, "steps": _steps, "confusion": _confusion}
