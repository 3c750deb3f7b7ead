"""Keep what a run shows, and say when that has grown old.

    python scripts/receipt.py RUN [NAME]     writes docs/receipts/NAME.json from a finished run
    python scripts/receipt.py RUN/evaluations/FILE.json NAME     from a later evaluation of it
    python scripts/receipt.py --tables       writes the result table of README.md anew from all receipts, and on every page
                                             how old the receipts are that it shows
    python scripts/receipt.py --outdated     lists the receipts whose code or configuration has changed since
    python scripts/receipt.py --same NAME [STEPS]     trains and tests the receipt's command for a few steps with the code of
                                             its commit and with today's; equal bit by bit, the receipt stands for today's

A receipt holds the command, the commit, the versions, the seconds and the results of a finished run, what it depends on
(see expiry.py), and no path or host of the machine it ran on. It refuses a run whose code had uncommitted changes.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import expiry

RECEIPTS = Path(__file__).resolve().parent.parent / "docs" / "receipts"
README = RECEIPTS.parent.parent / "README.md"
PAGES = [README, *sorted(RECEIPTS.parent.rglob("*.md"))]
AGES = re.compile(r"(?P<begin><!-- receipts: (?P<names>[\w ]+) -->).*?<!-- end of receipts -->", re.S)
OLD = "older than the code"
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
        results = {k: value for k, value in evaluation.items() if "/" in k or k in ("protocol", "complexity")}
        return {**kept, "command": f"{words}   # RUN: {kept['command']}", "results": results}
    run = path
    status, facts, results = (json.loads((run / f"{name}.json").read_text()) for name in ("status", "run", "results"))
    if status["state"] != "completed":
        sys.exit(f"{run} is {status['state']}, not completed.")
    if not facts["git"] or facts["git"]["dirty"]:
        sys.exit(f"{run} ran code that no commit holds; run it again from a clean checkout.")
    return {
        "command": command_of(facts["history"]),
        "commit": facts["git"]["commit"],
        "date": facts["history"][0]["started"][:10],
        "seconds": round(seconds_between(facts["history"][0]["started"], status["updated"])),
        "depends_on": expiry.digests(expiry.saved(run / "config.yaml"), facts["git"]["commit"]),
        "execution": json.loads((run / "execution.json").read_text())["chosen"],
        "hardware": {name: facts["hardware"][name] for name in HARDWARE},
        "results": results,
    }


def command_of(history: list[dict[str, Any]]) -> str:
    """The command that makes the run in one go: as it began, with what it was told when it was continued, more steps say."""
    words = {text.partition("=")[0]: text for part in history for text in part["overrides"]}
    return " ".join(["metarun", *(text for text in words.values() if not text.startswith(OF_THE_MACHINE))])


def seconds_between(start: str, end: str) -> float:
    first, last = (datetime.strptime(text, "%Y-%m-%dT%H:%M:%S%z") for text in (start, end))
    return (last - first).total_seconds()


def table() -> str:
    """The receipts of experiments that a paper reports, as a Markdown table: those that are as new as their code. Below it
    the names of the others."""
    left_out = []
    rows = ["| experiment | measured (95% CI, tasks) | paper | steps, minutes | receipt |", "|---|---|---|---|---|"]
    for name, (paper, source) in PAPERS.items():
        for path in sorted(RECEIPTS.glob(f"{name}*.json")):
            if age_of(path.stem):
                left_out.append(f"[{path.stem}](docs/receipts/{path.name})")
                continue
            kept = json.loads(path.read_text())
            cells = f"`{kept['command']}` | {score(kept['results'])} | {paper} ({source})"
            steps = next((w.split("=")[1] for w in kept["command"].split() if w.startswith("steps=")), "full")
            where = f"[{kept['commit'][:7]}](docs/receipts/{path.name})"
            rows.append(f"| {cells} | {steps}, {kept['seconds'] / 60:.0f} | {where} |")
    older = f"\nLeft out, for their code has changed since: {', '.join(left_out)}."
    return "\n".join(rows + [older] * bool(left_out))


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
        return OLD if expiry.is_outdated(content) else ""
    old = sum(map(expiry.is_outdated, content.values()))
    return f"{OLD} ({old} of {len(content)} runs)" if old else ""


def outdated() -> list[str]:
    names = sorted(path.stem for path in RECEIPTS.glob("*.json"))
    return [f"{name}: {age_of(name)}" for name in names if age_of(name)]


def confirm(name: str, steps: int) -> None:
    """Let a receipt stand for today's code, if ``steps`` steps and a small test are bit by bit those of its commit's."""
    path = RECEIPTS / f"{name}.json"
    kept = json.loads(path.read_text())
    words = kept["command"].rpartition("# RUN: ")[2].split()[1:]
    if expiry.git("status", "--porcelain", "--", "metarun", "configs").strip():
        sys.exit("metarun or configs have uncommitted changes; commit them first.")
    with tempfile.TemporaryDirectory() as folder:
        then = Path(folder, "then")
        expiry.git("worktree", "add", "--detach", str(then), kept["commit"])
        try:
            found = [brief(code, Path(folder, code.name), words, steps) for code in (then, expiry.ROOT)]
        finally:
            expiry.git("worktree", "remove", "--force", str(then))
    if found[0] != found[1]:
        sys.exit(f"{name}: {steps} steps and their test are others at {kept['commit'][:7]} than now; run it again.")
    here = expiry.git("rev-parse", "HEAD").strip()
    kept |= {"depends_on": expiry.today(kept["command"]), "same_at": {"commit": here, "steps": steps}}
    path.write_text(json.dumps(kept, indent=1) + "\n")
    print(f"{name}: the same at {here[:7]} as at {kept['commit'][:7]} for {steps} steps and their test")


def brief(code: Path, run: Path, words: list[str], steps: int) -> tuple[dict[str, float], list[bytes]]:
    """Mean scores and bytes of the last theta of the command ``words`` in a short form, with the code in ``code``."""
    short = [f"steps={steps}", f"evaluation.every={steps}", "evaluation.num_val_tasks=20", "evaluation.num_tasks=20"]
    short += ["device=cpu", "execution=looped", "execution.threads=1", f"run_dir={run / 'run'}"]
    fixed = {text.split("=")[0] for text in short}
    kept = [text for text in words if text.split("=")[0] not in fixed and not text.startswith("execution.")]
    last = ["evaluate", str(run / "run"), "--checkpoint", "last"]  # the best may be the start, in newer code alone
    for command in ([*kept, *short], last):
        subprocess.run([sys.executable, "-m", "metarun", *command], cwd=code, check=True, stdout=subprocess.DEVNULL)
    import torch

    leaves = torch.utils._pytree.tree_leaves(torch.load(run / "run/checkpoints/last.pt", weights_only=True)["theta"])
    (evaluated,) = (run / "run" / "evaluations").glob("*.json")
    results = json.loads(evaluated.read_text())
    # means alone, for older code had other intervals; and none of methods without training, which it did not have
    scores = {name: value["mean"] for name, value in results.items() if re.match("test/(?!baseline_)", name)}
    return scores, [leaf.detach().contiguous().numpy().tobytes() for leaf in leaves]


def main() -> None:
    if sys.argv[1:] == ["--tables"]:
        README.write_text(with_table(README.read_text()))
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
