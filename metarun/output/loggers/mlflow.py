"""MLflow: a run in a database of the run folder, which ``mlflow ui`` shows; or on a server."""

import logging
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import yaml
from torch import Tensor

from metarun.config.checks import flat
from metarun.output.loggers.kept import kept_id, picture
from metarun.output.sink import Sink

STATUS = {"completed": "FINISHED", "interrupted": "KILLED"}  # of states; others have failed
AT_ONCE = 100  # parameters or numbers in one call: of parameters a server takes no more


class MLflow(Sink):
    """A run of the ``experiment``, with its configuration, curves, pictures and test scores.

    A resumed run goes on with the same one, and leaves out the points that it has already.
    """

    package = "mlflow"

    def __init__(self, folder: Path, experiment: str, tracking_uri: str | None) -> None:
        from mlflow import MlflowClient

        logging.getLogger("mlflow").setLevel(logging.WARNING)  # or it tells of each table that it makes
        artifacts = None
        if tracking_uri is None:
            place = folder / "mlflow"
            place.mkdir(exist_ok=True)
            tracking_uri, artifacts = f"sqlite:///{quote(str(place / 'mlflow.db'))}", (place / "artifacts").as_uri()
        self.client = MlflowClient(tracking_uri=tracking_uri)

        def new_run() -> str:
            known = self.client.get_experiment_by_name(experiment)
            where = known.experiment_id if known else self.client.create_experiment(experiment, artifacts)
            return self.client.create_run(where, run_name=folder.name).info.run_id

        self.run = kept_id(folder, "mlflow", new_run)
        self.there = {
            (name, point.step)
            for name in self.client.get_run(self.run).data.metrics
            for point in self.client.get_metric_history(self.run, name)
        }
        self.client.update_run(self.run, status="RUNNING")

    def begun(self, config: str, headline: dict[str, Any]) -> None:
        from mlflow.entities import Param

        known = self.client.get_run(self.run).data.params  # of a run that was stopped before its first checkpoint
        settings = {_name(key): str(value) for key, value in flat(yaml.safe_load(config)).items()}
        for some in _parts([Param(key, value[:500]) for key, value in settings.items() if key not in known]):
            self.client.log_batch(self.run, params=some)
        self.client.log_text(self.run, config, "config.yaml")

    def write(self, step: int, values: dict[str, float]) -> None:
        from mlflow.entities import Metric

        now = round(1000 * time.time())
        named = {_name(name): value for name, value in values.items()}
        new = [Metric(name, value, now, step) for name, value in named.items() if (name, step) not in self.there]
        for some in _parts(new):
            self.client.log_batch(self.run, metrics=some)

    def image(self, name: str, grid: Tensor, step: int) -> None:
        self.client.log_image(self.run, picture(grid), f"{name}.png")

    def figure(self, name: str, figure: Any, step: int) -> None:
        self.client.log_figure(self.run, figure, f"{name}.png")

    def ended(self, state: str) -> None:
        self.client.set_terminated(self.run, STATUS.get(state, "FAILED"))


def _name(text: str) -> str:
    """A name of metarun's with the letters alone that MLflow takes."""
    return re.sub(r"[^\w./: -]", "_", text, flags=re.ASCII)


def _parts(things: list[Any]) -> Iterator[list[Any]]:
    return (things[start : start + AT_ONCE] for start in range(0, len(things), AT_ONCE))
