"""The script of an array of Slurm's: which task is which run, and what happens when a run has ended.

Slurm signals the processes that srun has started, a run writes its checkpoint and exits with 128 + n, and the script asks
for its job to be queued again. Where the script itself gets SIGTERM, Slurm has cancelled the job, or queues it again itself.
"""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

HEAD = """#!/bin/bash
# Written by metarun: each task of this array is a run of the sweep. The same metarun command submits what is not done.
"""
BODY = r"""
status=$run/status.json
printf '$ python -m metarun %s\n' "${{*@Q}}" >> "$run/output.txt"
trap 'told=1' TERM
srun --ntasks=1 --cpus-per-task={cpus} {python} -m metarun "$@" >> "$run/output.txt" 2>&1
code=$?
if ((code == 0)); then exit 0; fi

# As a sweep without Slurm: what a signal ended, or what found no memory, is tried again.
again() {{ ((code > 128)) || {{ ((code == 1)) && grep -Eqs '"error": "(out of memory|.*MemoryError\b)' "$status"; }}; }}
echo "$run: exit code $code, attempt $((${{SLURM_RESTART_COUNT:-0}} + 1))"
if [[ -z $told ]] && again && ((${{SLURM_RESTART_COUNT:-0}} < {retries})); then
  scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID" && echo "$run: queued again" && exit 0
fi
exit "$code"
"""


class Task(NamedTuple):
    """A run: its folder, and the arguments of ``python -m metarun``."""

    folder: Path
    command: list[str]


def script(options: Sequence[str], tasks: Sequence[Task], retries: int, cpus: int, setup: Sequence[str]) -> str:
    """The text of the script; ``options`` are sbatch's, and ``setup`` are lines of shell."""
    cases = [
        f"  {number}) run={shlex.quote(str(task.folder))}; set -- {shlex.join(task.command)} ;;"
        for number, task in enumerate(tasks)
    ]
    lines = [
        *(f"#SBATCH {option}" for option in options),
        "",
        f"export OMP_NUM_THREADS=${{OMP_NUM_THREADS:-{cpus}}}",
        *setup,
        f"cd {shlex.quote(str(Path.cwd()))} || exit 1",
        'case "$SLURM_ARRAY_TASK_ID" in',
        *cases,
        '  *) echo "no run has the number $SLURM_ARRAY_TASK_ID"; exit 2 ;;',
        "esac",
    ]
    body = BODY.format(cpus=cpus, python=shlex.quote(sys.executable), retries=retries)
    return HEAD + "\n".join(lines) + body
