"""A sweep whose jobs and parents are killed at random ends as one that nobody disturbs.

python scripts/sweep_trial.py DIR [--runs 24] [--parents 3] [--disturbances 40] [--seed 0]

One sweep is left alone. Of another, up to so many parents run at once; now and then a job, a parent or the process that
forks its jobs gets SIGKILL, SIGTERM or SIGHUP, and a parent that has ended is started again by the same command. Then it is
left alone too. Exit code 0 where, in the end, every number and checkpoint is that of the first sweep, no process is left,
and there were never more jobs at once than ``jobs``. Linux alone.
"""

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

JOBS = 2
BUDGET = [
    "device=cpu",
    "execution=looped",
    "meta_batch_size=4",
    "base_learner.hidden=[16]",
    "log_every=10",
    "logger=none",
]
BUDGET += ["task.num_queries=5", "evaluation.num_val_tasks=8", "evaluation.num_tasks=8"]
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP)
PATIENCE = 1800.0  # seconds for a sweep that is left alone


def command(sweep: Path, runs: int, steps: int) -> list[str]:
    """The command of a sweep of this many runs."""
    learners = "meta_learner=maml,reptile"
    texts = [*BUDGET, "evaluation.every=20", f"steps={steps}"]
    texts += [learners, f"seed=range(0,{runs // 2})", f"sweep_dir={sweep}", f"jobs={JOBS}"]
    return [sys.executable, "-m", "metarun", "-m", *texts]


def jobs_of(sweep: Path) -> list[int]:
    """The processes whose standard output is the output.txt of a run of the sweep, without those that they start."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                target = os.readlink(process / "fd" / "1") if os.getsid(int(process.name)) == int(process.name) else ""
            except OSError:  # it is another user's, or has ended
                continue
            if target.startswith(f"{sweep}/") and target.endswith("/output.txt"):
                found.append(int(process.name))
    return found


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    try:
        return [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


class Trial:
    """A sweep, its parents, and who kills them."""

    def __init__(self, sweep: Path, words: list[str], seed: int) -> None:
        self.sweep, self.words, self.random = sweep, words, random.Random(seed)
        self.parents: list[subprocess.Popen[bytes]] = []
        self.most = 0
        self.done: Counter[str] = Counter()

    def start(self) -> None:
        """Start one more parent."""
        with (self.sweep.parent / "parents.txt").open("ab") as output:
            self.parents.append(subprocess.Popen(self.words, stdout=output, stderr=output, start_new_session=True))

    def watch(self, seconds: float) -> None:
        """Count the jobs for a while, and forget parents that have ended."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.most = max(self.most, len(jobs_of(self.sweep)))
            self.parents = [parent for parent in self.parents if parent.poll() is None]
            time.sleep(0.02)

    def disturb(self) -> None:
        """Send a signal to a job, a parent, or the process that forks its jobs."""
        forking = [pid for parent in self.parents for pid in children(parent.pid)]
        kinds = {"job": jobs_of(self.sweep), "parent": [parent.pid for parent in self.parents], "forking": forking}
        if there := [kind for kind in ("job", "job", "job", "parent", "parent", "forking") if kinds[kind]]:
            kind = self.random.choice(there)
            number = self.random.choice(SIGNALS)
            try:
                os.kill(self.random.choice(kinds[kind]), number)
                self.done[f"{number.name} to a {kind}"] += 1
            except ProcessLookupError:
                pass

    def rough(self, parents: int, disturbances: int) -> None:
        """Disturb the sweep so many times."""
        while sum(self.done.values()) < disturbances and not self.completed():
            while len(self.parents) < parents:
                self.start()
            self.watch(self.random.uniform(0.3, 3.0))
            if jobs_of(self.sweep) or self.random.random() < 0.05:  # seldom while parents are still importing
                self.disturb()

    def calm(self) -> int:
        """The exit code of the command that is left alone at last, while those that are there still help."""
        self.start()
        last = self.parents[-1]
        end = time.monotonic() + PATIENCE
        while last.poll() is None and time.monotonic() < end:
            self.watch(0.2)
        code = last.poll()
        end = time.monotonic() + 5.0  # in which jobs whose parent was killed notice it
        while (self.parents or jobs_of(self.sweep)) and time.monotonic() < end:
            self.watch(0.2)
        for parent in self.parents:
            parent.wait(60)
        return -1 if code is None else code

    def completed(self) -> bool:
        """Whether every run that has begun is completed, and some have."""
        states = [json.loads(path.read_text())["state"] for path in self.sweep.glob("*/status.json")]
        return bool(states) and len(states) == runs_in(self.sweep) and set(states) == {"completed"}


def runs_in(sweep: Path) -> int:
    """The number of runs that sweep.json names."""
    return len(json.loads((sweep / "sweep.json").read_text())["jobs"]) if (sweep / "sweep.json").exists() else -1


def left_by(sweep: Path) -> dict[str, Any]:
    """By run: every score of its test, each line of its metrics, and a digest of its checkpoints."""
    found = {}
    for run in sorted(path.parent for path in sweep.glob("*/config.yaml")):
        results = run / "results.json"
        content = json.loads(results.read_text()) if results.exists() else {}
        scores = {name: value for name, value in content.items() if name.startswith("test/")}
        found[run.name] = scores, (run / "metrics.jsonl").read_text(), [digest(run, name) for name in ("last", "best")]
    return found


def digest(run: Path, name: str) -> str:
    """A hash of theta and of what else goes on from a checkpoint."""
    state = torch.load(run / "checkpoints" / f"{name}.pt", weights_only=True)
    return hashlib.sha256(repr(plain(state)).encode()).hexdigest()


def plain(node: Any) -> Any:
    """A tree with dtypes and lists of numbers for tensors."""
    if isinstance(node, torch.Tensor):
        return [str(node.dtype), node.tolist()]
    if isinstance(node, dict):
        return {key: plain(value) for key, value in node.items()}
    return [plain(value) for value in node] if isinstance(node, (list, tuple)) else node


def main() -> int:
    """Run the trial; exit code 1 where a promise is not kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    for name, value in (("runs", 24), ("steps", 100), ("parents", 3), ("disturbances", 40), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args()
    folder = given.folder.resolve()
    folder.mkdir(parents=True)
    whole, rough = folder / "whole", folder / "rough"
    assert subprocess.run(command(whole, given.runs, given.steps), check=False, capture_output=True).returncode == 0
    began = time.monotonic()
    trial = Trial(rough, command(rough, given.runs, given.steps), given.seed)
    trial.rough(given.parents, given.disturbances)
    code = trial.calm()
    orphans, expected, found = jobs_of(rough), left_by(whole), left_by(rough)
    other = [name for name in expected if found.get(name) != expected[name]]
    print(
        f"{given.runs} runs, {given.parents} parents, {time.monotonic() - began:.0f} s: {dict(sorted(trial.done.items()))}"
    )
    print(
        f"exit code of the last command {code}; at most {trial.most} jobs at once (jobs={JOBS}); left over: {orphans}"
    )
    print(f"runs that are not, bit by bit, those of the sweep that nobody disturbed: {other or 'none'}")
    good = code == 0 and trial.most <= JOBS and not orphans and not other and len(found) == len(expected) == given.runs
    print("kept" if good else "NOT KEPT")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
