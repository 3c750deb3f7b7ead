"""The places of jobs that run at the same time: each has its share of the cores, and its GPUs.

A place is a locked file in the sweep's folder. A job holds its lock as long as it lives, so that a machine never runs more
jobs of a sweep than ``jobs``, however many processes start them, and whoever of those has died.
"""

import os
import platform
import shutil
import subprocess
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from metarun.output.folder import slug
from metarun.output.lock import locked

FOLDER = ".slots"


def usable_cpus() -> int:
    """The number of cores that this process may use; all of the machine where the system does not tell."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def visible_gpus() -> list[str]:
    """The GPUs by index, as the environment limits them or the driver lists them; asked without importing torch."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [gpu for gpu in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if gpu]
    if shutil.which("nvidia-smi") is None:
        return []
    listing = subprocess.run(
        ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"], capture_output=True, text=True, check=False
    )
    return listing.stdout.split() if listing.returncode == 0 else []


@dataclass
class Slots:
    """The jobs at a time, and what each may use: cores are shared out, GPUs go round."""

    jobs: int
    gpus: list[str] = field(default_factory=visible_gpus)

    def threads(self) -> dict[str, str]:
        """The environment by which torch takes a job's share of the cores."""
        share = str(max(1, usable_cpus() // self.jobs))
        return {} if self.jobs == 1 or "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": share}

    def environment(self, slot: int, devices: int = 1) -> dict[str, str]:
        """The environment of a job in slot 0 ... ``jobs`` - 1, of which each has ``devices`` GPUs, as far as there are so
        many."""
        environment = {**os.environ, **self.threads()}
        if self.jobs > 1 and self.gpus:
            places = range(slot * devices, slot * devices + min(devices, len(self.gpus)))
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(self.gpus[place % len(self.gpus)] for place in places)
        return environment

    def take(self, sweep: Path, taken: Collection[int]) -> tuple[int, IO[bytes]] | None:
        """A slot that no job on this machine has, and its locked file; None where all are taken. ``taken``: by this
        process's jobs, for file systems without locks."""
        for slot in sorted({*range(self.jobs)} - {*taken}):
            path = sweep / FOLDER / f"{slug(platform.node())}-{slot}"
            with suppress(FileExistsError):
                path.parent.mkdir(parents=True)
            file = path.open("ab")
            if locked(file, tries=1) is not False:
                return slot, file
            file.close()
        return None
