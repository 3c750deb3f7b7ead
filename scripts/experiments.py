"""Write docs/experiments.md: every experiment, with what it needs, how long it takes and what it should reach.

    python scripts/experiments.py            writes the page anew
    python scripts/experiments.py --check    exit code 1 where the page is not what would be written

All of it stands in the headers of configs/experiment/*.yaml and in their lists of defaults.
"""

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf

sys.path.insert(0, str(Path(__file__).parent))
import receipt
from published import markdown, write_page

from metarun.output.tables import Score
from metarun.reproduce.registry import Target, targets

ROOT = Path(__file__).resolve().parent.parent
CONFIGS, PAGE, RESULTS = ROOT / "configs", ROOT / "docs" / "experiments.md", ROOT / "docs" / "results"
COMMAND = re.compile(r"# metarun experiment=(?P<name>[\w/]+) ?(?P<more>.*?)(?: {4,}(?P<note>.*))?$", re.M)
EXPECT = re.compile(r"# expect: (?P<all>.*(?:\n#   .*)*)")
RECEIPT = re.compile(r"docs/((?:receipts|results/\w+)/(\w+)\.json)")
NOT_MEASURED = "not measured here yet"
HEAD = """# Experiments

`metarun experiment=NAME` runs one. This page is written by `python scripts/experiments.py` from the files in
[configs/experiment](../configs/experiment); do not edit it. Shorter: `metarun experiment=NAME steps=1000`. To see whether
one runs at all: `metarun experiment=[NAME,smoke]`, twenty steps and small tests.

- **Task**: data marked *download* are fetched by `task.download=true` ([data.md](data.md)), *yours* are a file or folder
  of your own ([your_own_data.md](your_own_data.md)), others are generated as they are used.
- **Steps** are the preset's. Where the first column gives other settings, time and reached are of the command with these.
- **Time** is what was measured. Where none stands, nobody here has run it to its end.
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


def with_its_data(task: str) -> str:
    """A task, with where its data come from."""
    settings = (CONFIGS / "task" / f"{task}.yaml").read_text()
    if "download:" in settings:
        return f"{task} (download)"
    return f"{task} (yours)" if re.search(r"^path: \?\?\?", settings, re.M) else task


def under_more_settings(x: Experiment) -> list[Target]:
    """The targets with a card whose command is this preset's with more settings, and which have its task, ways and shots:
    the preset then has two scores. Of a preset whose own score is a card's, the cards' pages say what each is of."""
    content: Any = OmegaConf.to_container(OmegaConf.load(CONFIGS / "experiment" / f"{x.name}.yaml"))
    own = {
        "task": x.chosen.get("task"),
        **{f"task.{key}": str(value) for key, value in content.get("task", {}).items()},
    }
    found = []
    for target in targets().values():
        given = dict(word.partition("=")[::2] for word in target.words or ())
        same = all(given.get(key) in (None, own.get(key)) for key in ("task", "task.num_ways", "task.num_shots"))
        if (
            "receipts/" in x.receipt
            and given.get("experiment") == x.name
            and same
            and (RESULTS / target.card).is_file()
        ):
            found.append(target)
    return found


def also(target: Target) -> str:
    """The score of a card, with a link to its page, which has the settings."""
    (ours, *_) = (figure["ours"] for figure in json.loads((RESULTS / target.card).read_text())["figures"])
    page = target.card.with_suffix(".md").as_posix()
    return f"; with the settings of [{target.id}](results/{page}) {Score(ours['mean'], ours['ci95']).text()}"


def row(x: Experiment) -> Sequence[str]:
    """The experiment's cells in the table."""
    reached, _, paper = x.expect.partition("; paper: ")
    reached = "" if reached.startswith(NOT_MEASURED) else reached
    paper = paper or x.expect.partition("paper: ")[2]
    reached = re.sub(r"^test accuracy(?: in percent|, percent:) ", "", reached)
    time = x.note.partition("; docs/")[0]
    measured = " ".join(filter(None, (reached, x.receipt and f"({x.receipt})"))) + "".join(
        map(also, under_more_settings(x))
    )
    command = " ".join(f"`{word}`" for word in (x.name, *x.more.split()))  # so that it can be wrapped
    steps = "" if x.steps is None else f"{x.steps} steps"
    networks = f"{x.chosen.get('meta_learner', 'maml')}, {x.chosen.get('base_learner', 'mlp')}"
    trained = f"{networks} on {with_its_data(x.chosen.get('task', 'sinusoid'))}"
    return command, trained, ", ".join(filter(None, (steps, time))), measured, paper


def page() -> str:
    """The whole page."""
    found = experiments()
    columns = ("experiment", "learner, network and task", "steps and time", "reached", "paper")
    budgets = markdown(("experiment", "for"), [(f"`{x.name}` `{x.more}`", x.note) for x in found if not x.expect])
    shown = " ".join(sorted({name for x in found for name in re.findall(r"receipts/(\w+)\.json", x.receipt)}))
    ages = f"<!-- receipts: {shown} -->\n<!-- end of receipts -->\n\n"
    text = HEAD + ages + markdown(columns, [row(x) for x in found if x.expect]) + BUDGETS + budgets + "\n"
    return receipt.with_ages(text, PAGE)


if __name__ == "__main__":
    write_page(__doc__, PAGE, page)
