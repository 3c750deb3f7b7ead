"""TensorBoard: the view of a run that every run has unless it chooses other loggers."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from metarun.output.sink import Sink


class TensorBoard(Sink):
    """TensorBoard events in the run folder itself, so that a run's name in TensorBoard is its folder's.

    The HParams page has columns for ``score`` at test and validation, and for the losses, in this order.
    """

    def __init__(self, folder: Path, resume_step: int, score: str = "") -> None:
        from torch.utils.tensorboard import SummaryWriter

        _wait_for_a_later_name(folder)
        self.writer = SummaryWriter(str(folder), purge_step=resume_step + 1 if resume_step else 0)
        names = [f"test/{score}", f"val/{score}", "val/query_loss", "train/query_loss"] if score else []
        self.columns = dict.fromkeys(names, 0.0)
        self.of_the_test: list[Callable[[], None]] = []  # told at the end: what is told cannot be taken back

    def begun(self, config: str, headline: dict[str, Any]) -> None:
        """Add the config as text, and start an HParams session in this run's own file (no sub-run)."""
        from torch.utils.tensorboard.summary import hparams

        self.writer.add_text("config", f"```yaml\n{config}\n```")
        # torch would store a boolean as 0 or 1
        words = {name: str(value).lower() if isinstance(value, bool) else value for name, value in headline.items()}
        # without an experiment TensorBoard looks up the metrics of a run by its folder's name, which --logdir RUN has not
        experiment, start, _ = hparams(words, self.columns)
        self._add(experiment)
        self._add(start)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Add each value to the curve of its name."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def saving(self) -> None:
        self.writer.flush()

    def test(self, step: int, values: dict[str, float]) -> None:
        """Tell the scores as one table, and as a curve only what the HParams page shows: each is a single point."""
        rows = "".join(f"| {name.removeprefix('test/')} | {value:.6g} |\n" for name, value in values.items())
        own = {name: value for name, value in values.items() if name in self.columns}
        self.of_the_test.append(partial(self.writer.add_text, "test", f"| score | mean |\n|---|---|\n{rows}", step))
        self.of_the_test.append(partial(self.write, step, own))

    def image(self, name: str, grid: Tensor, step: int) -> None:
        self.writer.add_image(name, grid, step)

    def figure(self, name: str, figure: Any, step: int) -> None:
        self.of_the_test.append(partial(self.writer.add_figure, name, figure, step))

    def ended(self, state: str) -> None:
        """Add the test, and the outcome unless the run will be continued, for TensorBoard keeps the first that it reads."""
        if state == "completed":
            for add in self.of_the_test:
                add()
        if state != "interrupted":
            self._outcome(state == "completed")
        self.writer.close()

    def _outcome(self, completed: bool) -> None:
        """End the HParams session."""
        from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2
        from torch.utils.tensorboard.summary import hparams

        _, _, end = hparams({}, {})
        status = api_pb2.Status.Value("STATUS_SUCCESS" if completed else "STATUS_FAILURE")
        session_end = plugin_data_pb2.SessionEndInfo(status=status, end_time_secs=time.time())
        data = plugin_data_pb2.HParamsPluginData(session_end_info=session_end, version=metadata.PLUGIN_DATA_VERSION)
        end.value[0].metadata.plugin_data.content = data.SerializeToString()
        self._add(end)

    def _add(self, summary: Any) -> None:
        assert self.writer.file_writer is not None  # None only after close()
        self.writer.file_writer.add_summary(summary)


def add_figures(folder: Path, figures: dict[str, Any], step: int) -> None:
    """Show figures of matplotlib beside what a run has told, in an event file of their own; nothing is purged."""
    from torch.utils.tensorboard import SummaryWriter

    _wait_for_a_later_name(folder)
    with SummaryWriter(str(folder)) as writer:
        for name, figure in figures.items():
            writer.add_figure(name, figure, step)


def _wait_for_a_later_name(folder: Path) -> None:
    """Wait until a new event file is read last: TensorBoard reads them in the order of the second in their names."""
    parts = [path.name.split(".")[3] for path in folder.glob("events.out.tfevents.*")]
    seconds = [int(part) for part in parts if part.isdecimal()]  # others are not TensorBoard's
    time.sleep(min(1.0, max(0.0, max(seconds, default=0) + 1 - time.time())))
