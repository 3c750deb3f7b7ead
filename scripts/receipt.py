"""Keep what a run shows: python scripts/receipt.py RUN [NAME] writes docs/receipts/NAME.json.

A receipt holds the command, the commit, the versions, the seconds and the results of a finished run, and no path or host
of the machine it ran on. It refuses a run whose code had uncommitted changes.
"""

import json
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

RECEIPTS = Path(__file__).resolve().parent.parent / "docs" / "receipts"
HARDWARE = ("system", "python", "torch", "cpus", "threads", "gpu")
OF_THE_MACHINE = ("run_dir=", "data_root=", "resume=")


def receipt(run: Path) -> dict[str, Any]:
    """The receipt of a completed run; raises SystemExit for one that is not, or whose code is no commit's."""
    status, facts, results = (json.loads((run / f"{name}.json").read_text()) for name in ("status", "run", "results"))
    if status["state"] != "completed":
        sys.exit(f"{run} is {status['state']}, not completed.")
    if not facts["git"] or facts["git"]["dirty"]:
        sys.exit(f"{run} ran code that no commit holds; run it again from a clean checkout.")
    overrides = [text for text in facts["overrides"] if not text.startswith(OF_THE_MACHINE)]
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


def main() -> None:
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    run = Path(sys.argv[1])
    RECEIPTS.mkdir(parents=True, exist_ok=True)
    path = RECEIPTS / f"{sys.argv[2] if len(sys.argv) == 3 else run.name}.json"
    path.write_text(json.dumps(receipt(run), indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    main()
