"""``launcher=ray``: tasks of Ray, on this machine or on the machines of a Ray cluster."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from metarun.errors import ConfigError, shortened
from metarun.sweep.launchers.engine import Engine, Submit, finished


@dataclass(frozen=True)
class Ray(Engine):
    """A task of Ray's for each run, ``jobs`` at a time; Ray chooses the machine, and gives it cores and GPUs."""

    address: str | None
    cpus: float
    gpus: float

    package: ClassVar[str] = "ray"

    @contextmanager
    def submitting(self, jobs: int, folder: Path) -> Iterator[Submit]:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        import ray

        here: dict[str, Any] = {"num_cpus": max(1, round(jobs * self.cpus)), "include_dashboard": False}
        try:
            ray.init(
                address=self.address or "local",
                log_to_driver=False,
                logging_level="error",
                **({} if self.address else here),
            )
        except (ConnectionError, ValueError, RuntimeError) as error:
            reason = shortened(" ".join(str(error).split()), 300)
            why = f"launcher.address={self.address}: no Ray answers there ({reason})"
            fix = "Start it with 'ray start --head', or leave the address out: Ray is then started on this machine."
            raise ConfigError([f"{why}. {fix}"]) from None
        try:
            task: Any = ray.remote(num_cpus=self.cpus, num_gpus=self.gpus, max_retries=0)(finished)
            yield lambda command: task.remote(command).future()
        finally:
            ray.shutdown()

    def environment(self, wanted: dict[str, str]) -> dict[str, str]:
        """As ``Engine`` has it: as many threads as cores. Ray says which GPUs are the task's."""
        return {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(max(1, int(self.cpus)))}
