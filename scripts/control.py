"""Receipts and tables of docs/control.md.

python scripts/control.py RUNS              prints the tables. RUNS/SYSTEM/NAME are runs of
                                            experiment=matrix/system_identification, NAME a meta-learner or scratch;
                                            with what metarun control left in their evaluations/
python scripts/control.py RUNS --publish    writes them, receipts and pictures into docs/ instead
python scripts/control.py --publish         writes the tables anew from docs/receipts/control_SYSTEM.json
"""

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from published import command_line, filled, markdown, read_receipts, write_receipts
from receipt import RECEIPTS, receipt

PAGE = RECEIPTS.parent / "control.md"
SYSTEMS = ("pendulum", "cart_pole", "two_link_arm")
ROWS = {  # label: the run, and the adaptation step of its curve (None: its score)
    "joint training, not adapted": ("fine_tune", 0),
    "from scratch on the K transitions": ("scratch", None),
    "joint training, then 10 steps": ("fine_tune", 10),
    "joint training, then 50 steps": ("fine_tune", 50),
    "ANIL, 3 steps": ("anil", None),
    "CNP": ("cnp", None),
    "MAML, 3 steps": ("maml", None),
    "ridge head (r2d2)": ("r2d2", None),
}


def collect(runs: Path) -> dict[str, dict[str, Any]]:
    """By system, the receipt of every run, and of its controlled episodes."""
    found: dict[str, dict[str, Any]] = {system: {} for system in SYSTEMS}
    for system, kept in found.items():
        for run in sorted(path.parent for path in (runs / system).glob("*/results.json")):
            again = next((run / "evaluations").glob("test_last_*.json"), run)  # a later evaluation counts instead
            kept[run.name] = receipt(again)
            for path in sorted((run / "evaluations").glob("control_*.json")):
                content = json.loads(path.read_text())
                words = " ".join(word for word in content["argv"][1:] if "/" not in word)
                command = f"metarun {words.replace('control', 'control RUN', 1)}   # RUN: {kept[run.name]['command']}"
                kept[f"{run.name}_control"] = kept[run.name] | {"command": command, "results": content["return"]}
    if not any(found.values()):
        sys.exit(f"{runs} holds no completed runs in {', '.join(SYSTEMS)}.")
    return found


def publish(runs: Path) -> None:
    """docs/receipts/control_SYSTEM.json and docs/figures/control_SYSTEM.png of the systems that were run."""
    for system, kept in collect(runs).items():
        if kept:
            write_receipts(RECEIPTS / f"control_{system}.json", kept)
        for path in sorted((runs / system).glob("*/evaluations/control_*.png")):
            shutil.copy(path, RECEIPTS.parent / "figures" / f"control_{system}.png")


def error_table(kept: dict[str, Any], metric: str) -> str:
    """One row a method, one column a system: mean and half of the 95% confidence interval."""
    rows = []
    for label, (run, step) in ROWS.items():
        name = f"test/{metric}" if step is None else f"test/{metric}_step_{step}"
        found = [kept[system].get(run, {"results": {}})["results"].get(name) for system in SYSTEMS]
        rows.append(
            [label, *("not run" if row is None else f"{row['mean']:.3g} +- {row['ci95']:.1g}" for row in found)]
        )
    return markdown(("method", *SYSTEMS), rows)


def return_table(kept: dict[str, Any]) -> str:
    rows = []
    for system in SYSTEMS:
        for name, row in kept[system].get("r2d2_control", {"results": {}})["results"].items():
            words = name if "(" in name or "random" in name else f"ridge head, {name}"
            rows.append([system, words, f"{row['mean']:.1f} +- {row['ci95']:.1f}"])
    return markdown(("system", "model of the planner", "return, 95% CI"), rows)


def table(name: str, kept: dict[str, Any]) -> str:
    return return_table(kept) if name == "returns" else error_table(kept, name)


def with_tables(text: str) -> str:
    """``text`` with the tables that the receipts give."""
    kept = {system: read_receipts(RECEIPTS / f"control_{system}.json") for system in SYSTEMS}
    return filled(text, "control", lambda name: table(name, kept))


def main(argv: list[str] | None = None) -> None:
    parser = command_line(__doc__)
    parser.add_argument("runs", metavar="RUNS", nargs="?", type=Path, help="the folder of the runs")
    args = parser.parse_args(argv)
    if args.publish:
        if args.runs:
            publish(args.runs)
        PAGE.write_text(with_tables(PAGE.read_text()))
        return
    if args.runs is None:
        parser.error("give RUNS to see their tables, or --publish to write those of the receipts into docs/.")
    kept = collect(args.runs)
    for name in re.findall(r"<!-- control: (\w+) -->", PAGE.read_text()):
        print(f"{name}\n\n{table(name, kept)}\n")


if __name__ == "__main__":
    main()
