"""Train in one, two and four processes, kill one of them, go on with another number, and compare all bits.

python scripts/devices_trial.py DIR [LEARNER ...] [steps=200]

On CPUs; all learners of LEARNERS where none is named, about ten minutes of two cores. Exit code 0 where every run has the
bits of one process. Linux alone.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from sweep_trial import plain

SHARED = [
    *["device=cpu", "execution=vmapped", "execution.chunk=2", "execution.threads=1", "meta_batch_size=8"],
    *[
        "log_every=10",
        "base_learner.hidden=[32]",
        "evaluation.every=50",
        "evaluation.num_val_tasks=60",
        "evaluation.num_tasks=120",
    ],
]
LEARNERS = {
    "maml": [],
    "maml_compiled": ["execution.compile=true"],
    "protonet": ["meta_learner=protonet", "task=mlp_problems"],
    "reptile": ["meta_learner=reptile"],
    "maml_plus_plus": [
        *["meta_learner=maml_plus_plus", "meta_learner.inner_lr=0.01"],
        *["meta_learner.steps_per_epoch=20", "scheduler=cosine"],
    ],
    "es_maml": ["meta_learner=es_maml", "meta_learner.num_pairs=8"],
}


def main(arguments: list[str]) -> int:
    """Run the trial; 0 where every run has the bits of one process."""
    place, *rest = arguments
    steps = next((text for text in rest if text.startswith("steps=")), "steps=200")
    names = [text for text in rest if text in LEARNERS] or list(LEARNERS)
    root, failed = Path(place).resolve(), list[str]()
    for name in names:
        said = [*SHARED, *LEARNERS[name], steps]
        one = root / name / "1"
        seconds = {1: trained(one, *said)}
        for count in (2, 4):
            seconds[count] = trained(root / name / str(count), *said, f"devices={count}")
            failed += compared(one, root / name / str(count))
        if name == "maml":
            failed += interrupted(root / name / "killed_2_to_1", one, said, (2, 1))
            failed += interrupted(root / name / "killed_1_to_4", one, said, (1, 4))
            failed += under_torchrun(root / name / "torchrun", one, said)
        told = ", ".join(f"{count}: {value:.1f}" for count, value in seconds.items())
        print(f"{name}: seconds by processes {told}", flush=True)
    print("\n".join(failed) or f"all runs in {root} are bit by bit those of one process")
    return len(failed) > 0


def command(*words: str) -> list[str]:
    """The command line of a run, with the last value of each key."""
    return [sys.executable, "-m", "metarun", *{word.partition("=")[0]: word for word in words}.values()]


def trained(run: Path, *words: str) -> float:
    """Train; the seconds of it."""
    start = time.monotonic()
    done = subprocess.run(command(*words, f"run_dir={run}"), capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(words)}\n{done.stdout}{done.stderr}")
    return time.monotonic() - start


def interrupted(run: Path, whole: Path, words: list[str], counts: tuple[int, int]) -> list[str]:
    """Kill a process of a run after its first validations, go on with another number; what is not as in ``whole``."""
    first, then = counts
    job = subprocess.Popen(command(*words, f"run_dir={run}", f"devices={first}"), stderr=subprocess.DEVNULL)
    while job.poll() is None and not validated(run, 50):
        time.sleep(0.02)
    os.kill(other_of(job.pid) if first > 1 else job.pid, signal.SIGKILL)
    code = job.wait(60)
    status = json.loads((run / "status.json").read_text())
    print(f"{run.name}: killed; exit code {code}, {status['state']} at step {status['step']}", flush=True)
    subprocess.run(command(f"resume={run}", f"devices={then}"), check=True, capture_output=True)
    return compared(whole, run)


def under_torchrun(run: Path, whole: Path, words: list[str]) -> list[str]:
    """The same run begun by torchrun in two processes; what is not as in ``whole``."""
    start = ["torch.distributed.run", "--nproc-per-node=2", "--master-port=29517", "-m", "metarun"]
    subprocess.run(
        [sys.executable, "-m", *start, *command(*words, f"run_dir={run}")[3:]], check=True, capture_output=True
    )
    return compared(whole, run)


def validated(run: Path, step: int) -> bool:
    """Whether the run has scores of this step."""
    metrics = run / "metrics.jsonl"
    return metrics.is_file() and any(f'"step": {step}, "val/' in line for line in metrics.read_text().splitlines())


def other_of(pid: int) -> int:
    """The first process that process ``pid`` has started as metarun."""
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return next(int(child) for child in listed if b"metarun" in Path(f"/proc/{child}/cmdline").read_bytes())


def compared(one: Path, other: Path) -> list[str]:
    """What ``other`` has otherwise than ``one``: checkpoints, metrics and scores, bit by bit."""
    found = []
    for name in ("last", "best"):
        a, b = (torch.load(run / "checkpoints" / f"{name}.pt", weights_only=True) for run in (one, other))
        found += [f"{other}: {name}.pt: {key}" for key in a if plain(a[key]) != plain(b[key])]
    for name in ("metrics.jsonl", "episodes.jsonl"):
        found += [f"{other}: {name}"] * ((one / name).read_bytes() != (other / name).read_bytes())
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
