"""Keep what a run shows: python scripts/receipt.py RUN [NAME] writes docs/receipts/NAME.json, and the tables from them.

    python scripts/receipt.py RUN [NAME]     a receipt from a finished run
    python scripts/receipt.py RUN/evaluations/FILE.json NAME     one from a later evaluation of it
    python scripts/receipt.py --tables       write the result table of README.md anew from all receipts

A receipt holds the command, the commit, the versions, the seconds and the results of a finished run, and no path or host
of the machine it ran on. It refuses a run whose code had uncommitted changes.
"""

import json
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

RECEIPTS = Path(__file__).resolve().parent.parent / "docs" / "receipts"
README = RECEIPTS.parent.parent / "README.md"
BEGIN, END = "<!-- results: written by scripts/receipt.py --tables -->", "<!-- end of results -->"
PAPERS = {  # published figures of the experiment, with their source
    "maml_sinusoid": ("0.67 / 0.35", "Finn et al. 2017, Table 2 (5-shot, 1 / 10 steps)"),
    "maml_omniglot_5w1s": ("98.7 +- 0.4", "Finn et al. 2017, Table 1"),
    "maml_mlp_omniglot_5w1s": ("89.7 +- 1.1", "Finn et al. 2017, Table 1"),
    "fomaml_omniglot_5w1s": ("98.3 +- 0.5", "Nichol et al. 2018, Table 2"),
    "reptile_omniglot_5w1s": ("97.68 +- 0.04", "Nichol et al. 2018, Table 2, transductive"),
    "protonet_omniglot_5w1s": ("98.8", "Snell et al. 2017, Table 1"),
    "protonet_omniglot_20w1s": ("96.0", "Snell et al. 2017, Table 1"),
    "protonet_cifar_fs_5w5s": ("72.0 +- 0.6", "Bertinetto et al. 2019, Table 1"),
}
HARDWARE = ("system", "python", "torch", "cpus", "threads", "gpu")
OF_THE_MACHINE = ("run_dir=", "data_root=", "resume=")


def receipt(path: Path) -> dict[str, Any]:
    """The receipt of a completed run, or of an evaluation of one; raises SystemExit where the code is no commit's."""
    if path.suffix == ".json":
        evaluation = json.loads(path.read_text())
        kept = receipt(path.parent.parent)
        words = " ".join(["metarun evaluate RUN", *evaluation["overrides"]])
        results = {
            name: value for name, value in evaluation.items() if "/" in name or name in ("protocol", "complexity")
        }
        return {**kept, "command": f"{words}   # RUN: {kept['command']}", "results": results}
    run = path
    status, facts, results = (json.loads((run / f"{name}.json").read_text()) for name in ("status", "run", "results"))
    if status["state"] != "completed":
        sys.exit(f"{run} is {status['state']}, not completed.")
    if not facts["git"] or facts["git"]["dirty"]:
        sys.exit(f"{run} ran code that no commit holds; run it again from a clean checkout.")
    overrides = [text for text in facts["history"][0]["overrides"] if not text.startswith(OF_THE_MACHINE)]
    return {
        "command": " ".join(["metarun", *overrides]),
        "commit": facts["git"]["commit"],
        "date": facts["history"][0]["started"][:10],
        "seconds": round(seconds_between(facts["history"][0]["started"], status["updated"])),
        "execution": json.loads((run / "execution.json").read_text())["chosen"],
        "hardware": {name: facts["hardware"][name] for name in HARDWARE},
        "results": results,
    }


def seconds_between(start: str, end: str) -> float:
    first, last = (datetime.strptime(text, "%Y-%m-%dT%H:%M:%S%z") for text in (start, end))
    return (last - first).total_seconds()


def table() -> str:
    """The receipts of experiments that a paper reports, as a Markdown table."""
    rows = ["| experiment | measured (95% CI, tasks) | paper | steps, minutes | receipt |", "|---|---|---|---|---|"]
    for name, (paper, source) in PAPERS.items():
        for path in sorted(RECEIPTS.glob(f"{name}*.json")):
            kept = json.loads(path.read_text())
            cells = f"`{kept['command']}` | {score(kept['results'])} | {paper} ({source})"
            steps = next((w.split("=")[1] for w in kept["command"].split() if w.startswith("steps=")), "full")
            rows.append(
                f"| {cells} | {steps}, {kept['seconds'] / 60:.0f} | [{kept['commit'][:7]}](docs/receipts/{path.name}) |"
            )
    return "\n".join(rows)


def score(results: dict[str, Any]) -> str:
    """The headline of a result: accuracy in percent, or the error after 1 and 10 steps."""
    if "test/accuracy" in results:
        mean, ci95, n = (results["test/accuracy"][key] for key in ("mean", "ci95", "n"))
        return f"{100 * mean:.2f} +- {100 * ci95:.2f} ({n})"
    steps = [results[f"test/mse_step_{k}"] for k in (1, 10)]
    return " / ".join(f"{step['mean']:.3f} +- {step['ci95']:.3f}" for step in steps) + f" ({steps[0]['n']})"


def with_table(text: str) -> str:
    """README with the table between its two marks."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{table()}\n{END}{rest.split(END)[1]}"


def main() -> None:
    if sys.argv[1:] == ["--tables"]:
        README.write_text(with_table(README.read_text()))
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
