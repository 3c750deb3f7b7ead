"""Write docs/settings.md: every setting of every part, its default and what it means, from the comments in configs.

python scripts/settings.py            writes the page anew
python scripts/settings.py --check    exit code 1 where the page is not what would be written
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent))
from published import write_page

ROOT = Path(__file__).resolve().parent.parent
CONFIGS, PAGE = ROOT / "configs", ROOT / "docs" / "settings.md"
GROUPS = ("task", "base_learner", "meta_learner", "optimizer", "scheduler", "execution", "evaluation", "logger")
LINE = re.compile(r"""( *)([\w/]+): *((?:"[^"]*"|'[^']*'|[^#'"])*?) *(?:#+ *(.*))?""")
COMMENT = re.compile(r" *#+ *(.*)")
LEFT_OUT = ("_target_", "_partial_", "defaults", "hydra")
HEAD = """# Settings

Every setting that a run has, with its default. This page is written by `python scripts/settings.py` from the comments in
[configs](../configs); do not edit it. How to change them: [the command line](command_line.md). What presets change:
[experiments](experiments.md). The values of one run: `metarun --cfg job ...`.
An option that builds on another shows what it changes.
"""


class Setting(NamedTuple):
    """A setting's dotted name within its file, its default as it is written, and its comment."""

    name: str
    default: str
    comment: str


def settings(text: str) -> Iterator[Setting]:
    """The settings of a YAML file in their order; a comment goes on in lines that are nothing else."""
    kept: list[Setting] = []
    parents: list[tuple[int, str]] = []
    for line in text.splitlines():
        more, found = COMMENT.fullmatch(line), LINE.fullmatch(line)
        if more and kept:
            kept[-1] = kept[-1]._replace(comment=f"{kept[-1].comment} {more[1]}".strip())
        elif found:
            indent, key = len(found[1]), found[2]
            parents = [(depth, name) for depth, name in parents if depth < indent]
            kept.append(Setting(".".join([*(name for _, name in parents), key]), found[3], found[4] or ""))
            parents.append((indent, key))
    inside = {name.rpartition(".")[0] for name, _, _ in kept}
    return (
        s for s in kept if s.name.split(".")[0] not in LEFT_OUT and "_target_" not in s.name and s.name not in inside
    )


def table(prefix: str, text: str) -> str:
    """The settings of a YAML file as a table; a line that says so where it has none."""
    rows = [
        f"| `{prefix}{name}` | `{default or 'null'}` | {readable(comment)} |"
        for name, default, comment in settings(text)
    ]
    return "\n".join(["| setting | default | |", "|---|---|---|", *rows] if rows else ["No settings."])


def readable(comment: str) -> str:
    """A comment as a cell of a table shows it."""
    return comment.replace("|", "\\|").replace("<", "&lt;")


def page() -> str:
    """The whole page: the root, then each option of each group."""
    parts = [HEAD, "## Every run\n", table("", (CONFIGS / "config.yaml").read_text())]
    for group in GROUPS:
        folder = CONFIGS / group
        paths = sorted(folder.rglob("*.yaml"), key=lambda path: (len(path.parts), path))
        parts += [f"\n## {group}\n"] if paths else []
        for path in paths:
            option = path.relative_to(folder).with_suffix("").as_posix()
            inner, _, name = option.rpartition("/")
            chosen = f"{group}/{inner}={name}" if inner else f"{group}={name}"
            key = f"{group}.{inner}." if inner else f"{group}."
            parts += [f"### `{chosen}`\n", table(key, path.read_text()) + "\n"]
    return "\n".join(parts).rstrip("\n") + "\n"


if __name__ == "__main__":
    write_page(__doc__, PAGE, page)
