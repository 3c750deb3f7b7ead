"""``launcher=joblib``: processes of this machine, which joblib's pool (loky) begins."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from metarun.sweep.launchers.engine import Engine, Submit, finished


@dataclass(frozen=True)
class Joblib(Engine):
    """A pool of ``jobs`` processes, each of which waits for a run at a time."""

    package: ClassVar[str] = "joblib"

    @contextmanager
    def submitting(self, jobs: int, folder: Path) -> Iterator[Submit]:
        """As ``Engine`` has it. Ctrl-C is the sweep's alone, which passes it on."""
        from joblib.externals.loky import ProcessPoolExecutor

        silent = (signal.SIGINT, signal.SIG_IGN)
        with ProcessPoolExecutor(max_workers=jobs, initializer=signal.signal, initargs=silent) as pool:
            yield lambda command: pool.submit(finished, command)

    def environment(self, wanted: dict[str, str]) -> dict[str, str]:
        """As ``Engine`` has it."""
        return wanted
