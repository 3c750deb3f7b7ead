"""``launcher=submitit``: processes of this machine, or jobs of Slurm, by submitit; the sweep's own process waits for them.

``launcher=slurm`` needs no process that waits.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from metarun.errors import ConfigError, shortened
from metarun.sweep.launchers.engine import Engine, Submit, finished


@dataclass(frozen=True)
class Submitit(Engine):
    """A job of submitit's for each run, ``jobs`` at a time."""

    cluster: Literal["local", "slurm"]
    options: dict[str, Any]

    package: ClassVar[str] = "submitit"

    @contextmanager
    def submitting(self, jobs: int, folder: Path) -> Iterator[Submit]:
        import submitit

        try:
            executor = submitit.AutoExecutor(folder=folder.parents[1] / "submitit", cluster=self.cluster)
            executor.update_parameters(**self.options)
        except (NameError, TypeError, ValueError, RuntimeError) as error:
            reason = shortened(" ".join(str(error).split()), 300)
            raise ConfigError(
                [f"launcher.cluster={self.cluster} launcher.options={self.options}: submitit refuses: {reason}."]
            ) from None
        yield lambda command: executor.submit(finished, command)

    def environment(self, wanted: dict[str, str]) -> dict[str, str]:
        """As ``Engine`` has it: Slurm gives a job its GPUs and cores itself."""
        return wanted if self.cluster == "local" else {}
