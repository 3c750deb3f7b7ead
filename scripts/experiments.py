"""Write docs/experiments.md: every experiment, with what it needs, how long it takes and what it should reach.

    python scripts/experiments.py            writes the page anew
    python scripts/experiments.py --check    exit code 1 where the page is not what would be written

All of it stands in the headers of configs/experiment/*.yaml and in their lists of defaults.
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf

sys.path.insert(0, str(Path(__file__).parent))
import receipt
from published import markdown, write_page

ROOT = Path(__file__).resolve().parent.parent
CONFIGS, PAGE = ROOT / "configs", ROOT / "docs" / "experiments.md"
COMMAND = re.compile(r"# metarun experiment=(?P<name>[\w/]+) ?(?P<more>.*?)(?: {4,}(?P<note>.*))?$", re.M)
EXPECT = re.compile(r"# expect: (?P<all>.*(?:\n#   .*)*)")
RECEIPT = re.compile(r"docs/((?:receipts|results/\w+)/(\w+)\.json)")
NOT_MEASURED = "not measured here yet"
HEAD = """# Experiments

`metarun experiment=NAME` runs one. This page is written by `python scripts/experiments.py` from the files in
[configs/experiment](../configs/experiment); do not edit it. Shorter: `metarun experiment=NAME steps=1000`. To see whether
one runs at all: `metarun experiment=[NAME,smoke]`, twenty steps and small tests.

- **Data**: *none* is generated as it is used; a name is a data set that `task.download=true` fetches ([data.md](data.md));
  *yours* is a file or folder of your own ([your_own_data.md](your_own_data.md)).
- **Steps** are the preset's. Where the first column gives other settings, time and reached are of the command with these.
- **Time** is what was measured. Where nothing stands, nobody here has run it to its end.
- **Reached** and **paper** are test scores: accuracies in percent, errors of regression as they are, with 95% intervals. A
  paper's figure may be of other images, networks or splits than the preset has; the header of its file and
  [fidelity.md](fidelity.md) say which.

"""
BUDGETS = "\n\n## Budgets for comparisons\n\n"


class Experiment(NamedTuple):
    """What a file of the group ``experiment`` says of itself."""

    name: str
    more: str  # of its command line
    note: str  # its time, or what it is
    expect: str
    receipt: str
    chosen: dict[str, str]  # options of groups, those of the experiments that it begins with included
    steps: int | None


def experiments() -> list[Experiment]:
    """All of them, by name."""
    folder = CONFIGS / "experiment"
    names = sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))
    return [experiment(name) for name in names]


def experiment(name: str) -> Experiment:
    """One of them; raises SystemExit where its header does not begin with its command."""
    path = CONFIGS / "experiment" / f"{name}.yaml"
    text = path.read_text()
    command, expect, kept = COMMAND.search(text), EXPECT.search(text), RECEIPT.search(text)
    if not command or command["name"] != name:
        sys.exit(f"{path}: the second line must be '# metarun experiment={name} ...'.")
    said = re.sub(r"\n#\s+", " ", expect["all"]) if expect else ""
    link = f"[{kept[2]}]({kept[1]})" if kept else ""
    chosen, steps = decided(path)
    return Experiment(name, command["more"] or "", command["note"] or "", said, link, chosen, steps)


def decided(path: Path) -> tuple[dict[str, str], int | None]:
    """The options that a file's list of defaults chooses, by group, and its number of steps."""
    content: Any = OmegaConf.to_container(OmegaConf.load(path))
    chosen: dict[str, str] = {}
    steps = None
    for entry in content.get("defaults", []):
        if isinstance(entry, str):  # another experiment, which this one begins with
            inherited, steps = decided(path.with_name(f"{entry}.yaml"))
            chosen |= inherited
        else:
            chosen |= {key.removeprefix("override ").strip("/"): str(value) for key, value in entry.items()}
    return chosen, content.get("steps", steps)


def data(task: str) -> str:
    """What of data a task needs."""
    settings = (CONFIGS / "task" / f"{task}.yaml").read_text()
    if "download:" in settings:
        return task
    return "yours" if re.search(r"^path: \?\?\?", settings, re.M) else "none"


def row(x: Experiment) -> Sequence[str]:
    """The experiment's cells in the table."""
    reached, _, paper = x.expect.partition("; paper: ")
    reached = "" if reached.startswith(NOT_MEASURED) else reached
    paper = paper or x.expect.partition("paper: ")[2]
    reached = re.sub(r"^test accuracy(?: in percent|, percent:) ", "", reached)
    time = x.note.partition("; docs/")[0]
    task = x.chosen.get("task", "sinusoid")
    learner = x.chosen.get("meta_learner", "maml")
    measured = " ".join(filter(None, (reached, x.receipt and f"({x.receipt})")))
    command = f"`{x.name}`" + (f" `{x.more}`" if x.more else "")
    steps = "" if x.steps is None else str(x.steps)
    return command, learner, x.chosen.get("base_learner", "mlp"), task, data(task), steps, time, measured, paper


def page() -> str:
    """The whole page."""
    found = experiments()
    columns = ("experiment", "learner", "network", "task", "data", "steps", "time", "reached", "paper")
    budgets = markdown(("experiment", "for"), [(f"`{x.name}` `{x.more}`", x.note) for x in found if not x.expect])
    shown = " ".join(sorted({name for x in found for name in re.findall(r"receipts/(\w+)\.json", x.receipt)}))
    ages = f"<!-- receipts: {shown} -->\n<!-- end of receipts -->\n\n"
    text = HEAD + ages + markdown(columns, [row(x) for x in found if x.expect]) + BUDGETS + budgets + "\n"
    return receipt.with_ages(text, PAGE)


if __name__ == "__main__":
    write_page(__doc__, PAGE, page)
