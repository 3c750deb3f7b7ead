"""Write docs/algorithms/equations.md: what each meta-learner computes, from the docstring of its module.

python scripts/equations.py            writes the page anew
python scripts/equations.py --check    exit code 1 where the page is not what would be written
"""

import ast
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from published import write_page

ROOT = Path(__file__).resolve().parent.parent
LEARNERS, PAGE = ROOT / "configs" / "meta_learner", ROOT / "docs" / "algorithms" / "equations.md"
FAMILIES = ("gradient_based", "metric", "closed_form", "transfer", "black_box", "learned_optimizers")
TARGET = re.compile(r"^_target_: ([\w.]+)\.\w+", re.M)
HEAD = """# Equations of the meta-learners

What each learner computes, how it differs from its paper, the reference and the cost: the docstrings of the files in
`metarun/meta_learners`. This page is written by `python scripts/equations.py`; do not edit it. When to take which:
[the families](README.md). Theta is what is learned, phi what a task makes of it; support and query are a task's two
sets ([concepts](../concepts.md)).
"""


def page() -> str:
    """The whole page, family by family."""
    parts, waiting = [HEAD], {path.stem: path for path in sorted(LEARNERS.glob("*.yaml"))}
    for family in FAMILIES:
        text = (PAGE.parent / f"{family}.md").read_text()
        title = text.splitlines()[0].removeprefix("# ")
        rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
        names = [name for name in re.findall(r"`(\w+)`", " ".join(rows)) if name in waiting]
        parts += [f"## {title}\n\n[When, and what it costs]({family}.md)\n"]
        parts += [learner(name, waiting.pop(name)) for name in dict.fromkeys(names)]
    parts += ["## Others\n"] * bool(waiting) + [learner(name, path) for name, path in waiting.items()]
    return "\n".join(parts)


def learner(name: str, path: Path) -> str:
    """A learner's part of the page."""
    target = TARGET.search(path.read_text())
    if target is None:
        sys.exit(f"{path} has no _target_.")
    module = target[1].replace(".", "/") + ".py"
    text = ast.get_docstring(ast.parse((ROOT / module).read_text())) or ""
    settings = f"[settings](../settings.md#meta_learner{name}), `{module}`"
    return f"### {name}\n\n{as_markdown(text)}\n\n`metarun meta_learner={name}`: {settings}\n"


def as_markdown(docstring: str) -> str:
    """A docstring as a page shows it: what is indented is code as it stands."""
    lines = docstring.splitlines()
    return "\n".join(line if line.startswith("    ") else prose(line) for line in lines)


def prose(line: str) -> str:
    """A line outside of equations: names as code, addresses and pages as links, nothing else as Markdown."""
    parts = re.split(r"(``.+?``|https?://[^\s,;)]*[^\s,;).])", line)
    for i, part in enumerate(parts):
        if part.startswith("``"):
            parts[i] = part[1:-1]
        elif part.startswith("http"):
            parts[i] = f"<{part}>"
        else:
            parts[i] = re.sub(r"docs/(\w+)\.md", r"[\1](../\1.md)", re.sub(r"(<(?=\w)|\*(?=\S)|\b_\B)", r"\\\1", part))
    return "".join(parts)


if __name__ == "__main__":
    write_page(__doc__, PAGE, page)
