"""``launcher=joblib``: processes of this machine, which joblib's pool (loky) begins."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from metarun.sweep.launchers.engine import Engine, Submit, finished


@dataclass(frozen=True)
class Joblib(Engine):
    """A pool of ``jobs`` processes, each of which waits for a run at a time."""

    package: ClassVar[str] = "joblib"

    @contextmanager
    def submitting(self, jobs: int, folder: Path) -> Iterator[Submit]:
        """As ``Engine`` has it. Ctrl-C is the sweep's alone, which passes it on. A pool that has lost a process takes no
        more: then there is a new one."""
        from joblib.externals.loky import get_reusable_executor

        def pool() -> Any:
            return get_reusable_executor(jobs, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN))

        try:
            yield lambda command: pool().submit(finished, command)
        finally:
            pool().shutdown()

    def environment(self, wanted: dict[str, str]) -> dict[str, str]:
        return wanted
