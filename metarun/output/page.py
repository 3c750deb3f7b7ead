"""A web page in one file: tables, figures and lists, with nothing to fetch. Everything given as text is escaped."""

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any, NamedTuple

from metarun.output.tables import Score, Table, text_of

SHORT = 40  # letters of a heading that stays on one line
STYLE = """
:root { color-scheme: light; --ink: #1d2530; --soft: #5b6675; --line: #d9dee5; --tint: #f5f7fa; --link: #0b5cad; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 72rem; padding: 1.5rem 1.25rem 4rem; background: #fff; color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem; padding-top: .75rem; border-top: 1px solid var(--line); }
p, ul { max-width: 50rem; } ul { padding-left: 1.2rem; } li { margin: .2rem 0; overflow-wrap: anywhere; }
a { color: var(--link); } nav a { margin-right: 1rem; white-space: nowrap; }
.soft, figcaption, caption { color: var(--soft); font-size: .9rem; }
.scroll { overflow-x: auto; margin: .75rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .93rem; }
caption { text-align: left; padding-bottom: .4rem; }
th, td { padding: .35rem .8rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
thead th { background: var(--tint); border-bottom: 2px solid var(--line); vertical-align: bottom; }
.number { text-align: right; white-space: nowrap; } th.short { white-space: nowrap; }
tbody tr:hover { background: var(--tint); }
th button { all: unset; cursor: pointer; font-weight: 600; } th button:focus-visible { outline: 2px solid var(--link); }
th button::after { content: "\\a0\\2195"; color: #9aa5b3; } th[aria-sort=ascending] button::after { content: "\\a0\\2191"; }
th[aria-sort=descending] button::after { content: "\\a0\\2193"; }
figure { margin: 1rem 0; } figure svg { width: 100%; max-width: 46rem; height: auto; }
figure img { max-width: 100%; height: auto; display: block; }
.notice { border-left: 4px solid #d98200; background: #fff8ec; padding: .5rem 1rem; max-width: 52rem; }
.notice ul { margin: .3rem 0; } summary { cursor: pointer; color: var(--link); }
@media (max-width: 40rem) { body { padding: 1rem .75rem 3rem; } th, td { padding: .3rem .5rem; } }
@media print { nav, th button::after { display: none; } h2 { break-after: avoid; } figure, tr { break-inside: avoid; } }
"""
SCRIPT = """
for (const head of document.querySelectorAll("th > button")) head.addEventListener("click", () => {
  const cell = head.parentNode, body = cell.closest("table").tBodies[0], up = cell.getAttribute("aria-sort") !== "ascending";
  for (const other of cell.parentNode.cells) other.removeAttribute("aria-sort");
  cell.setAttribute("aria-sort", up ? "ascending" : "descending");
  const value = row => row.cells[cell.cellIndex].dataset.value ?? row.cells[cell.cellIndex].textContent;
  const order = (a, b) => !a || !b ? !a - !b : (up ? 1 : -1) * (isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b);
  body.append(...[...body.rows].sort((one, other) => order(value(one), value(other))));
});
"""


class Section(NamedTuple):
    """A part of a page with its heading; ``parts`` are HTML. ``name`` identifies it, or else its heading does."""

    title: str
    parts: Sequence[str]
    name: str = ""

    @property
    def anchor(self) -> str:
        """What a link leads to."""
        return self.name or _anchor(self.title)


def page(title: str, lead: Sequence[str], sections: Sequence[Section], interactive: bool = True) -> str:
    """The whole file; sections without parts are left out. ``lead`` is HTML, ``title`` text.

    ``interactive``: with links to the sections, and a script that sorts tables.
    """
    shown = [section for section in sections if any(section.parts)]
    links = " ".join(f'<a href="#{section.anchor}">{escape(section.title)}</a>' for section in shown)
    nav = f'<nav aria-label="Sections">{links}</nav>\n' if interactive else ""
    body = "\n".join(
        f'<section id="{section.anchor}">\n<h2>{escape(section.title)}</h2>\n'
        + "\n".join(filter(None, section.parts))
        + "\n</section>"
        for section in shown
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<header>
<h1>{escape(title)}</h1>
{chr(10).join(filter(None, lead))}
{nav}</header>
<main>
{body}
</main>
{f"<script>{SCRIPT}</script>" if interactive else ""}
</body>
</html>
"""


def _anchor(title: str) -> str:
    return "about-" + "-".join("".join(letter if letter.isalnum() else " " for letter in title.lower()).split())


def table_part(table: Table, name: str, interactive: bool = True) -> str:
    """A table, ``interactive`` if a click on a heading sorts its rows; ``name`` identifies it. Numbers stand in full in
    ``data-value``."""
    numbers = [table.of_numbers(place) for place in range(len(table.columns))]
    sides = [' class="number"' if of_numbers else "" for of_numbers in numbers]
    heads = "".join(_head(*column, interactive) for column in zip(table.columns, numbers, strict=True))
    rows = "\n".join(f"<tr>{''.join(map(_cell, row, sides))}</tr>" for row in table.rows)
    caption = f"<caption>{escape(table.title)}</caption>\n" if table.title else ""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(table.title or name)}">'
        f'<table id="{name}">\n{caption}<thead><tr>{heads}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table></div>'
    )


def _head(column: str, of_numbers: bool, interactive: bool) -> str:
    kinds = " ".join([*(["number"] if of_numbers else []), *(["short"] if len(column) < SHORT else [])])
    text = escape(text_of(column))
    shown = f'<button type="button">{text}</button>' if interactive else text
    return f'<th scope="col" class="{kinds}">{shown}</th>'


def _cell(cell: Any, side: str) -> str:
    value = cell.mean if isinstance(cell, Score) else cell
    numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
    full = f' data-value="{value!r}"' if numeric else ""
    return f"<td{side}{full}>{escape(text_of(cell, ' ± '))}</td>"


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph."""
    named = f' class="{kind}"' if kind else ""
    return f"<p{named}>{escape(text)}</p>"


def bullets(texts: Iterable[str]) -> str:
    """A list; empty where there is nothing in it."""
    items = "\n".join(f"<li>{escape(text_of(text))}</li>" for text in texts)
    return f"<ul>\n{items}\n</ul>" if items else ""


def notice(heading: str, texts: Sequence[str]) -> str:
    """A list that stands out; empty where there is nothing in it."""
    return f'<div class="notice" role="note">{escape(heading)}{bullets(texts)}</div>' if texts else ""


def folded(heading: str, inside: str) -> str:
    """What is shown on demand; empty where there is nothing in it."""
    return f"<details><summary>{escape(heading)}</summary>\n{inside}\n</details>" if inside else ""


def figure(drawing: str, caption: str) -> str:
    """A drawing, as HTML, with a line below it where there is one to say."""
    below = f"<figcaption>{escape(caption)}</figcaption>\n" if caption else ""
    return f"<figure>\n{drawing}\n{below}</figure>"
