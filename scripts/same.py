"""Whether today's code trains and tests a command to the same bits as the code of another commit."""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from metarun.reproduce import dependence


def difference(command: str, commit: str, steps: int, name: str) -> str:
    """Why ``steps`` steps of ``metarun ...`` and a small test are not bit by bit those of ``commit``; empty if they are."""
    words = command.split()[1:]
    if dependence.git("status", "--porcelain", "--", "metarun", "configs").strip():
        sys.exit("metarun or configs have uncommitted changes; commit them first.")
    with tempfile.TemporaryDirectory() as folder:
        then = Path(folder, "then")
        dependence.git("worktree", "add", "--detach", str(then), commit)
        try:
            found = [brief(code, Path(folder, code.name), words, steps) for code in (then, dependence.ROOT)]
        except subprocess.CalledProcessError as error:
            return f"{name}: does not run ({error}); run it again."
        finally:
            dependence.git("worktree", "remove", "--force", str(then))
    if found[0] == found[1]:
        return ""
    return f"{name}: {steps} steps and their test are others at {commit[:7]} than now; run it again."


def stamp(command: str, steps: int) -> dict[str, Any]:
    """What a card or receipt holds of ``command`` once its ``steps`` steps have been found the same."""
    here = dependence.git("rev-parse", "HEAD").strip()
    return {"depends_on": dependence.today(command), "same_at": {"commit": here, "steps": steps}}


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
    (evaluated,) = (path for path in (run / "run" / "evaluations").glob("*.json"))
    results = json.loads(evaluated.read_text())
    # means alone, for older code had other intervals; and none of methods without training, which it did not have
    scores = {name: value["mean"] for name, value in results.items() if re.match("test/(?!baseline_)", name)}
    return scores, [leaf.detach().contiguous().numpy().tobytes() for leaf in leaves]
