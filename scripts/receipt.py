"""Keep what a run or a script shows that repeats no paper's figure (those have cards: cards.py), and say when it is old.

    python scripts/receipt.py RUN [NAME]     writes docs/receipts/NAME.json from a finished run
    python scripts/receipt.py RUN/evaluations/FILE.json NAME     from a later evaluation of it
    python scripts/receipt.py --tables       writes on every page how old the receipts are that it shows
    python scripts/receipt.py --outdated     lists the receipts whose code or configuration has changed since
    python scripts/receipt.py --same NAME [STEPS]     trains and tests the receipt's command for a few steps with the code of
                                             its commit and with today's; equal bit by bit, the receipt stands for today's;
                                             of a receipt of several runs, those that are equal

A receipt holds the command, the commit, the versions, the seconds and the results of a finished run, what it depends on
(see metarun/reproduce/dependence.py), and no path or host of the machine it ran on. It refuses a run whose code had
uncommitted changes.
"""

import json
import os
import re
import sys
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import same

from metarun.reproduce import dependence
from metarun.reproduce.card import command_of

RECEIPTS = Path(__file__).resolve().parent.parent / "docs" / "receipts"
README = RECEIPTS.parent.parent / "README.md"
PAGES = [README, *sorted(RECEIPTS.parent.rglob("*.md"))]
AGES = re.compile(r"(?P<begin><!-- receipts: (?P<names>[\w ]+) -->).*?<!-- end of receipts -->", re.S)
OLD = "older than the code"
HARDWARE = ("system", "python", "torch", "cpus", "threads", "gpu")


def receipt(path: Path, whole: bool = True) -> dict[str, Any]:
    """The receipt of a completed run, or of an evaluation, whose protocol says of which step, also of one that goes on;
    raises SystemExit where the code is no commit's."""
    if path.suffix == ".json":
        evaluation = json.loads(path.read_text())
        kept = receipt(path.parent.parent, whole=False)
        words = " ".join(["metarun evaluate RUN", *evaluation["overrides"]])
        results = {k: value for k, value in evaluation.items() if "/" in k or k == "protocol"}
        results["complexity"] = kept["results"]["complexity"] | evaluation["complexity"]  # of training, too
        return {**kept, "command": f"{words}   # RUN: {kept['command']}", "results": results}
    run = path
    status, facts = (json.loads((run / f"{name}.json").read_text()) for name in ("status", "run"))
    ended = run / "results.json"
    results = json.loads(ended.read_text()) if ended.is_file() else {"complexity": {}}
    if whole and status["state"] != "completed":
        sys.exit(f"{run} is {status['state']}, not completed.")
    depends_on = dependence.of_run(run, facts)
    if depends_on is None:
        sys.exit(f"{run} ran code that no one commit holds; run it again from a clean checkout.")
    return {
        "command": command_of(facts["history"]),
        "commit": facts["git"]["commit"],
        "date": facts["history"][0]["started"][:10],
        "seconds": round(seconds_between(facts["history"][0]["started"], status["updated"])),
        "depends_on": depends_on,
        "execution": json.loads((run / "execution.json").read_text())["chosen"],
        "hardware": {name: facts["hardware"][name] for name in HARDWARE},
        "results": results,
    }


def seconds_between(start: str, end: str) -> float:
    first, last = (datetime.strptime(text, "%Y-%m-%dT%H:%M:%S%z") for text in (start, end))
    return (last - first).total_seconds()


def with_ages(text: str, page: Path) -> str:
    """A page with the age of the receipts that it names after ``<!-- receipts: NAME ... -->``."""

    def filled(mark: re.Match[str]) -> str:
        to = os.path.relpath(RECEIPTS, page.parent)
        ages = [f"[{name}]({to}/{name}.json) {age_of(name) or 'current'}" for name in mark["names"].split()]
        return f"{mark['begin']}\n*Receipts: {'; '.join(ages)}.*\n<!-- end of receipts -->"

    return AGES.sub(filled, text)


@cache
def age_of(name: str) -> str:
    """How much of a receipt is older than the code that it depends on; nothing where all is current."""
    content = json.loads((RECEIPTS / f"{name}.json").read_text())
    if "command" in content:
        return OLD if dependence.is_outdated(content) else ""
    old = sum(map(dependence.is_outdated, content.values()))
    return f"{OLD} ({old} of {len(content)} runs)" if old else ""


def outdated() -> list[str]:
    names = sorted(path.stem for path in RECEIPTS.glob("*.json"))
    return [f"{name}: {age_of(name)}" for name in names if age_of(name)]


def confirm(name: str, steps: int) -> None:
    """Let a receipt stand for today's code, if ``steps`` steps and a small test are bit by bit those of its commit's; of one
    of several runs those that are, and the others are named."""
    path = RECEIPTS / f"{name}.json"
    kept = json.loads(path.read_text())
    others = []
    for label, run in ({name: kept} if "command" in kept else kept).items():
        if not dependence.is_outdated(run):
            print(f"{label}: as new as its code")
        elif said := same.difference(run["command"].rpartition("# RUN: ")[2], run["commit"], steps, label):
            others.append(said)
        else:
            run.update(same.stamp(run["command"], steps))
            path.write_text(json.dumps(kept, indent=1) + "\n")
            then, here = run["commit"][:7], run["same_at"]["commit"][:7]
            print(f"{label}: the same at {here} as at {then} for {steps} steps and their test", flush=True)
    if others:
        sys.exit("\n".join(others))


def main() -> None:
    if sys.argv[1:] == ["--tables"]:
        for page in PAGES:
            page.write_text(with_ages(page.read_text(), page))
        return
    if sys.argv[1:] == ["--outdated"]:
        print("\n".join(outdated()) or "every receipt is as new as its code")
        return
    if sys.argv[1:2] == ["--same"] and len(sys.argv) in (3, 4):
        confirm(sys.argv[2], int(sys.argv[3]) if len(sys.argv) == 4 else 20)
        return
    if len(sys.argv) not in (2, 3) or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    run = Path(sys.argv[1])
    RECEIPTS.mkdir(parents=True, exist_ok=True)
    path = RECEIPTS / f"{sys.argv[2] if len(sys.argv) == 3 else run.name}.json"
    path.write_text(json.dumps(receipt(run), indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    main()
