"""A campaign of wrong inputs against metarun, and what is wrong with its answers.

    python scripts/campaign.py [--short] [--values N] [--seed N] [--faults FILE]

Config values over every key of every composition, command lines, and damaged files: each must be refused with exit code 2,
or another documented one, with a message, without a traceback, within 10 s and 2 GB, and before anything has started.
Prints a table; FILE gets a line of JSON for each fault, with the command that shows it. Exit code 1 if there are any.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import damaged_files
import small_runs
import wrong_commands
import wrong_values
from wrong_input import Case, Outcome, answer, preload

SHORT = {"values": 40, "commands": 40, "files": 12}
FULL = {"values": 3000, "commands": 300, "files": 80}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the campaign; the exit code."""
    options = _options(arguments)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    preload()
    place = Path(tempfile.mkdtemp(prefix="metarun-campaign-"))
    try:
        os.environ.setdefault("METARUN_DATA", str(place / "data"))
        cases = _cases(options, place)
        faults = _run(cases, place / "cases", options.verbose)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    if options.faults:
        options.faults.write_text("".join(json.dumps(fault, ensure_ascii=False) + "\n" for fault in faults))
    return 1 if faults else 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="a sample, for the test suite")
    parser.add_argument("--values", type=int, help=f"how many values; default {FULL['values']}")
    parser.add_argument("--seed", type=int, default=0, help="of what is tried, and in which order")
    parser.add_argument("--only", choices=tuple(FULL), help="one part alone")
    parser.add_argument("--match", default="", help="only cases whose command holds this text")
    parser.add_argument("--faults", type=Path, help="the file for the faults")
    parser.add_argument("--verbose", action="store_true", help="print each fault as it is found")
    return parser.parse_args(arguments)


def _cases(options: argparse.Namespace, place: Path) -> list[Case]:
    """What is tried."""
    numbers = dict(SHORT if options.short else FULL)
    if options.values is not None:
        numbers["values"] = options.values
    chosen = {part: number for part, number in numbers.items() if options.only in (None, part)}
    data = small_runs.own_data(place / "own")
    found: list[Case] = []
    if "values" in chosen:
        compositions = wrong_values.compositions(data, place / "composed", options.short)
        found += wrong_values.cases(chosen["values"], options.seed, wrong_values.settings(compositions))
    if "commands" in chosen:
        found += wrong_commands.cases(chosen["commands"], options.seed, place / "beside")
    if "files" in chosen:
        found += damaged_files.cases(chosen["files"], options.seed, data, place / "run")
    return [case for case in found if options.match in case.command]


def _run(cases: list[Case], folder: Path, verbose: bool) -> list[dict[str, str | int]]:
    """Run them all, and print the table; what was not answered as it should be."""
    faults: list[dict[str, str | int]] = []
    rows: dict[str, Counter[str]] = {}
    slowest: tuple[float, str] = (0.0, "")
    largest: tuple[float, str] = (0.0, "")
    began = time.monotonic()
    for number, case in enumerate(cases):
        place = folder / str(number)
        outcome = answer(case, place)
        shutil.rmtree(place, ignore_errors=True)
        slowest = max(slowest, (outcome.seconds, case.command))
        largest = max(largest, (outcome.megabytes, case.command))
        row = rows.setdefault(f"{case.kind}: {case.what}", Counter())
        row["tried"] += 1
        row[_answered(outcome)] += 1
        for fault in outcome.faults(case):
            row["faults"] += 1
            said = "\n".join(outcome.text.strip().splitlines()[-6:])[-1500:]
            kind = {"kind": f"{case.kind}: {case.what}", "fault": fault, "what": case.what}
            faults.append({**kind, "command": case.command, "code": outcome.code, "said": said})
            if verbose:
                print(f"{fault}: {case.command[:600]}\n    {said[-400:]}\n", flush=True)
    _table(rows)
    print(f"{len(cases)} inputs, {len(faults)} faults, {time.monotonic() - began:.0f} s", end="")
    print(f"; slowest {slowest[0]:.1f} s, most memory {largest[0]:.0f} MB")
    if verbose:
        print(f"slowest: {slowest[1][:300]}\nlargest: {largest[1][:300]}")
    return faults


def _answered(outcome: Outcome) -> str:
    return {0: "taken", 2: "refused", 1: "failed", 3: "diverged"}.get(outcome.code, "other")


def _table(rows: dict[str, Counter[str]]) -> None:
    columns = ("tried", "refused", "taken", "failed", "diverged", "other", "faults")
    print("| kind |" + "".join(f" {name} |" for name in columns))
    print("|---" * (len(columns) + 1) + "|")
    for name, row in sorted(rows.items()):
        print(f"| {name} |" + "".join(f" {row[column] or ''} |" for column in columns))


if __name__ == "__main__":
    sys.exit(main())
