"""Weights & Biases: a run of its own in RUN/wandb, which ``wandb sync`` sends; or sent at once."""

import shutil
import uuid
from pathlib import Path
from typing import Any, Literal

import yaml

from metarun.output.loggers.kept import LogsToARun, kept_id


class WandB(LogsToARun):
    """A run of the ``project``, with its configuration, curves, pictures and test scores.

    What lies offline cannot be continued: a resumed run is told anew, by the same id, in the place of the old files. Online
    the service keeps one point a step, so that what a resumed run tells again is there once.
    """

    package = "wandb"

    def __init__(self, folder: Path, project: str, group: str | None, mode: Literal["offline", "online"]) -> None:
        import wandb

        self.anew = mode == "offline"
        if self.anew:
            for old in (folder / "wandb").glob("offline-run-*"):
                shutil.rmtree(old)
        self.run = wandb.init(
            project=project,
            group=group,
            mode=mode,
            dir=str(folder),
            name=folder.name,
            id=kept_id(folder, "wandb", lambda: uuid.uuid4().hex[:8]),
            resume=None if self.anew else "allow",
            settings=wandb.Settings(silent=True, console="off"),  # what is printed is metarun's
        )

    def begun(self, config: str, headline: dict[str, Any]) -> None:
        self.run.config.update(yaml.safe_load(config), allow_val_change=True)

    def ended(self, state: str) -> None:
        self.run.finish(exit_code=0 if state == "completed" else 1)
