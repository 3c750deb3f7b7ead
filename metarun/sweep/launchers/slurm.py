"""``launcher=slurm``: one array of Slurm's, a task for each run that is not done, and nobody who has to wait for it."""

import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from metarun.errors import ConfigError, MetarunError, shortened
from metarun.files import read_json, write_atomically, write_json
from metarun.output.folder import short_hash, slug
from metarun.output.lock import alone, busy
from metarun.paths import as_shown
from metarun.sweep.job import Job
from metarun.sweep.launcher import Launcher
from metarun.sweep.launchers.slurm_script import Task, script
from metarun.sweep.times import FORMS, seconds_in
from metarun.sweep.way import Sweep, Way

FOLDER = "slurm"  # in the sweep's, with each script and what became of it
SBATCH = "sbatch"
WAIT_SECONDS = 5.0  # between two looks at the queue
SILENT_SECONDS = 600.0  # for which squeue may fail while somebody waits


@dataclass(frozen=True)
class Slurm(Way):
    """An array, whose script asks Slurm to begin a run again after a signal, as often as ``retries`` says."""

    partition: str | None
    account: str | None
    time: str | int | None
    warning: int
    cpus: int
    gpus: int
    memory: str | None
    options: list[str]
    setup: list[str]
    wait: bool

    forks: ClassVar[bool] = False

    def __post_init__(self) -> None:
        problems = []
        if self.time is not None and (limit := seconds_in(str(self.time))) is None:
            problems.append(f"launcher.time={self.time}: must be the time that an attempt may take: {FORMS}.")
        elif self.time is not None and (limit or 0) <= self.warning:
            problems.append(
                f"launcher.time={self.time}: must be longer than the {self.warning} s before its end at which a run is "
                "warned; give more time, or lower launcher.warning."
            )
        for name, least in (("warning", 1), ("cpus", 1), ("gpus", 0)):
            if getattr(self, name) < least:
                problems.append(f"launcher.{name}={getattr(self, name)}: must be {least} or more.")
        problems += [
            f"launcher.options: {text!r} is no option of sbatch; write --NAME=VALUE."
            for text in self.options
            if not re.fullmatch(r"-[^\s-][^\n]*|--[^\s-][^\n]*", text)
        ]
        if problems:
            raise ConfigError(problems)

    def refuse(self, words: Collection[str]) -> None:
        problems = []
        if shutil.which(SBATCH) is None:
            problems.append(
                "launcher=slurm: there is no command sbatch here. Give this command on a machine that submits to Slurm, or "
                "leave out launcher: then the runs start on this machine."
            )
        if "timeout" in words:
            problems.append("timeout: Slurm keeps the time of its jobs; write launcher.time=12h instead.")
        if problems:
            raise ConfigError(problems)

    def run(self, sweep: Sweep, forked: Callable[[], Launcher]) -> int | None:
        """As ``Way`` has it: once the array is submitted this process ends, unless it is to wait."""
        folder = sweep.folder / FOLDER
        folder.mkdir(exist_ok=True)
        with alone(folder / ".lock"):  # of two commands at a time the second sees what the first has submitted
            left = [job for job in sweep.jobs if not job.says_completed]
            names = {job.folder.path.name for job in left}
            there = queued(folder, names)
            new = [job for job in left if job.folder.path.name not in there and not busy(job.folder.path)]
            if len(left) > len(new):
                print(f"{len(left) - len(new)} runs are in Slurm's queue, or in progress", file=sys.stderr)
            if new := _usable(new):
                number = self._submitted(folder, new, sweep)
                print(f"submitted as Slurm's job {number}: {len(new)} runs", file=sys.stderr)
        if self.wait or not left:
            waited(folder, names)
            return None
        if new:
            print(
                f"states: {shlex.join(['metarun', 'runs', as_shown(sweep.folder)])}\n"
                "the same command again submits only what is neither done nor in the queue"
            )
        return int(any(job.unusable for job in left))

    def _submitted(self, folder: Path, jobs: Sequence[Job], sweep: Sweep) -> str:
        """The number of a new array of these jobs."""
        count = 1 + max((int(path.stem) for path in folder.glob("*.sh") if path.stem.isdecimal()), default=0)
        tasks = [Task(job.folder.path, job.command(sweep.flags)) for job in jobs]
        path = folder / f"{count}.sh"
        unique = f"{slug(f'metarun-{sweep.folder.name}')}-{short_hash(time.time_ns(), str(path))}"
        name = self._chosen(r"(?:--job-name=|-J ?)(.+)") or unique
        options = self._options(path, name, len(jobs), sweep)
        text = script(options, tasks, sweep.limits.retries, self.cpus, self.setup)
        write_atomically(path, text.encode())
        # before sbatch: if this process ends, or sbatch hears no answer, the array is found again by its name
        array = {
            "name": name,
            "cluster": self._chosen(r"(?:--clusters?=|-M ?)(.+)"),
            "runs": [job.folder.path.name for job in jobs],
        }
        write_json(path.with_suffix(".json"), array)
        done = asked(SBATCH, "--parsable", str(path))
        if done.returncode:
            raise MetarunError(
                f"sbatch refuses {path}: {_said(done)}. Change what it names by launcher.KEY=VALUE (partition, account, "
                "time, ...); where the array is too large (scontrol show config | grep MaxArraySize), give the sweep in "
                "parts."
            )
        number, _, cluster = done.stdout.strip().partition(";")
        write_json(path.with_suffix(".json"), {**array, "job": number, "cluster": cluster or array["cluster"]})
        return number

    def _chosen(self, pattern: str) -> str | None:
        """The value of the option of ``options`` that is like ``pattern``."""
        found = (re.fullmatch(pattern, text) for text in self.options)
        return next((match[1] for match in found if match), None)

    def _options(self, path: Path, name: str, tasks: int, sweep: Sweep) -> list[str]:
        """The options of sbatch for an array with this ``name``."""
        minutes = -(-int(seconds_in(str(self.time)) or 0) // 60) if self.time else None
        values: dict[str, Any] = {
            "job-name": name,
            "array": f"0-{tasks - 1}" + (f"%{sweep.most}" if sweep.most else ""),
            "open-mode": "append",
            "signal": f"USR1@{self.warning}",
            "output": path.with_name(f"{path.stem}-%a.txt"),
            "ntasks": 1,
            "cpus-per-task": self.cpus,
            "partition": self.partition,
            "account": self.account,
            "time": minutes,
            "gres": f"gpu:{self.gpus}" if self.gpus else None,
            "mem": self.memory,
        }
        return [
            "--requeue",
            *(shlex.quote(f"--{name}={value}") for name, value in values.items() if value is not None),
            *self.options,
        ]


def _usable(jobs: Sequence[Job]) -> list[Job]:
    """Those of the jobs whose folders could be made; the others are told."""
    for job in jobs:
        with job.noting_trouble():
            job.folder.create()
        if job.unusable:
            print(f"{job.name}: not submitted: {job.unusable}", file=sys.stderr)
    return [job for job in jobs if not job.unusable]


def queued(folder: Path, wanted: Collection[str]) -> set[str]:
    """Those of the folders of runs ``wanted`` whose tasks wait in Slurm's queue, or run. Raises MetarunError where Slurm
    does not say."""
    found: set[str] = set()
    for path in folder.glob("*.json"):
        try:
            array = read_json(path)
            runs = array["runs"]
        except (ValueError, KeyError):
            continue
        if not {*runs} & {*wanted}:
            continue
        which = f"--jobs={array['job']}" if "job" in array else f"--name={array['name']}"
        cluster = [f"--clusters={array['cluster']}"] if array.get("cluster") else []
        done = asked("squeue", "--noheader", "--array", which, *cluster, "--format=%K")
        if done.returncode and "Invalid job id" not in done.stderr:  # as Slurm says of an array that is long over
            raise MetarunError(
                f"squeue does not say which runs of {folder.parent} are in the queue: {_said(done)}. Nothing is submitted, "
                "for it could be there already; give the same command again when Slurm answers."
            )
        places = [int(text) for text in done.stdout.split() if text.isdecimal()]
        found |= {runs[place] for place in places if place < len(runs)}
    return found & {*wanted}


def waited(folder: Path, wanted: Collection[str]) -> None:
    """Return when none of the runs ``wanted`` is in the queue any more. Raises MetarunError where Slurm has not said so for
    ten minutes."""
    silent = 0
    while True:
        try:
            if not queued(folder, wanted):
                return
            silent = 0
        except MetarunError:
            silent += 1
            if silent * WAIT_SECONDS > SILENT_SECONDS:
                raise
        time.sleep(WAIT_SECONDS)


def _said(done: "subprocess.CompletedProcess[str]") -> str:
    """Why a command of Slurm's failed, in its words."""
    return shortened(" ".join(done.stderr.split()), 400) or f"exit code {done.returncode}"


def asked(*command: str) -> "subprocess.CompletedProcess[str]":
    """What a command of Slurm's says; raises MetarunError where it cannot be started."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise MetarunError(f"cannot run {command[0]} ({error.strerror}). Is Slurm whole on this machine?") from None
