"""The places of jobs that run at the same time: each has its share of the cores, and a GPU."""

import os
import shutil
import subprocess
from dataclasses import dataclass, field


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

    def environment(self, slot: int) -> dict[str, str]:
        """The environment of a job in slot 0 ... ``jobs`` - 1."""
        environment = dict(os.environ)
        if self.jobs > 1:
            environment.setdefault("OMP_NUM_THREADS", str(max(1, usable_cpus() // self.jobs)))
            if self.gpus:
                environment["CUDA_VISIBLE_DEVICES"] = self.gpus[slot % len(self.gpus)]
        return environment
