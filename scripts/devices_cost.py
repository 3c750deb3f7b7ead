"""How much faster a step is in two processes than in one, and what it would be with a core for each of four or eight.

python scripts/devices_cost.py DIR [steps=300]

MAML on sine waves with a small and a large network, two tasks a chunk. "not shared" is what a step of two processes takes
beyond half of one's, as a share of the latter: the meta-gradients of all chunks that are sent and added, the optimizer's
step, which each process takes, and the questions whether all go on. The model of N processes is a step of one over N, and
that beside it. Ratios of one run; repeated with the same DIR, what was measured is kept. Use a quiet machine. Linux alone.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

SHARED = ["device=cpu", "execution=vmapped", "execution.chunk=2", "execution.threads=1", "logger=none", "log_every=50"]
SHARED += ["evaluation.every=100000", "evaluation.num_val_tasks=4", "evaluation.num_tasks=4"]
NETWORKS = {"40, 40": "1.8 thousand", "512, 512": "264 thousand"}  # hidden units, and the numbers in theta
TASKS, PROCESSES, MODELLED = (8, 16, 32), (1, 2, 4), (4, 8)


def milliseconds(run: Path, words: list[str]) -> float:
    """The median milliseconds of a step of the run with these settings."""
    command = [sys.executable, "-m", "metarun", *SHARED, *words, f"run_dir={run}", "resume=auto"]
    subprocess.run(command, check=True, capture_output=True)
    return json.loads((run / "results.json").read_text())["complexity"]["step_ms"]


def main(arguments: list[str]) -> None:
    """Measure, and print the table."""
    place, *rest = arguments
    steps, cores = next(iter(rest), "steps=300"), len(os.sched_getaffinity(0))
    heads = ["hidden units", "numbers in theta", "tasks", "2 processes", f"4, on {cores} cores", "not shared"]
    print("|", " | ".join([*heads, *(f"model of {n}" for n in MODELLED)]), "|")
    print("|---" * (len(heads) + len(MODELLED)) + "|")
    for network, size in NETWORKS.items():
        for tasks in TASKS:
            words = [f"base_learner.hidden=[{network}]", f"meta_batch_size={tasks}", steps]
            folder = f"{network.partition(',')[0]}-{tasks}"
            one, two, four = (milliseconds(Path(place) / f"{folder}-{n}", [*words, f"devices={n}"]) for n in PROCESSES)
            alone = max(two - one / 2, 0.0)
            model = [one / (one / n + alone) if tasks // 2 % n == 0 else None for n in MODELLED]
            told = [f"{one / two:.2f}", f"{one / four:.2f}", f"{alone / one:.0%}"]
            told += ["-" if ratio is None else f"{ratio:.2f}" for ratio in model]
            print("|", " | ".join([network, size, str(tasks), *told]), "|", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
