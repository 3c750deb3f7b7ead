"""trackio: a project in RUN/trackio, which ``trackio show`` opens."""

import io
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import Any

import yaml

from metarun.output.loggers.kept import LogsToARun

ELSEWHERE = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL")  # by which an environment chooses a server


class Trackio(LogsToARun):
    """A run of the ``project``, in a folder of this run. A resumed run writes it anew.

    trackio reads its folder's name once, when it is imported: a second run of the same process that wants another is
    refused.
    """

    package = "trackio"
    anew = True

    def __init__(self, folder: Path, project: str) -> None:
        place = folder / "trackio"
        shutil.rmtree(place, ignore_errors=True)
        os.environ["TRACKIO_DIR"] = str(place)
        import trackio

        if str(trackio.TRACKIO_DIR) != str(place):
            raise ValueError(f"this process writes to {trackio.TRACKIO_DIR} already; one with trackio holds one run.")
        self.project, self.name = project, folder.name

    def begun(self, config: str, headline: dict[str, Any]) -> None:
        import trackio

        with _silent():
            self.run = trackio.init(
                project=self.project,
                name=self.name,
                config=yaml.safe_load(config),
                embed=False,
                auto_log_cpu=False,
                auto_log_gpu=False,
            )

    def ended(self, state: str) -> None:
        import trackio

        with _silent():
            self.run.finish()
            with suppress(RuntimeError):  # of a thread that did not begin the run
                trackio.finish()  # or the process's end would, and print so


@contextmanager
def _silent() -> Iterator[None]:
    """Context in which trackio writes here, whatever the environment says, and prints nothing."""
    elsewhere = {name: os.environ.pop(name) for name in ELSEWHERE if name in os.environ}
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        os.environ.update(elsewhere)
