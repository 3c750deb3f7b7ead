"""What a run tells: metrics.jsonl (the truth), TensorBoard (the view) and the terminal (the progress)."""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column
from torch import Tensor

PLAIN_LINE_SECONDS = 10.0


def plain(values: dict[str, Any]) -> str:
    """Names and values as one line of text, with four significant digits."""
    return "  ".join(f"{name} {value:.4g}" for name, value in values.items())


class MetricsFile:
    """One JSON object a line, flushed line by line.

    A resumed run first drops the lines after its checkpoint and those of a test, which it will write again.
    """

    def __init__(self, path: Path, resume_step: int) -> None:
        kept = []
        if path.is_file():
            for line in path.read_text().splitlines():
                try:
                    row = json.loads(line)
                    if row["step"] <= resume_step and not any(name.startswith("test/") for name in row):
                        kept.append(line + "\n")
                except (ValueError, KeyError, TypeError):
                    continue  # the last line of a killed run can be cut short
            temporary = path.with_suffix(".tmp")
            temporary.write_text("".join(kept))
            os.replace(temporary, path)
        self.file: TextIO = path.open("a", buffering=1)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Append a line with the step and the values."""
        self.file.write(json.dumps({"step": step, **values}) + "\n")

    def close(self) -> None:
        """Close the file; nothing can be written afterwards."""
        self.file.close()


class Board:
    """TensorBoard events in the run folder itself, so that a run's name in TensorBoard is its folder's."""

    def __init__(self, folder: Path, resume_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # TensorBoard reads a run's files in the order of the second in their names
        seconds = [int(path.name.split(".")[3]) for path in folder.glob("events.out.tfevents.*")]
        time.sleep(min(1.0, max(0.0, max(seconds, default=0) + 1 - time.time())))
        self.writer = SummaryWriter(str(folder), purge_step=resume_step + 1 if resume_step else 0)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Add the values at ``step``, each to the curve of its name."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def config(self, text: str, headline: dict[str, Any]) -> None:
        """The config as text, and the start of an HParams session in this run's own file (no sub-run)."""
        from torch.utils.tensorboard.summary import hparams

        self.writer.add_text("config", f"```yaml\n{text}\n```")
        # torch would store a boolean as 0 or 1
        words = {name: str(value).lower() if isinstance(value, bool) else value for name, value in headline.items()}
        _, start, _ = hparams(words, {})
        self._add(start)

    def ended(self, completed: bool) -> None:
        """The end of the HParams session, with its outcome."""
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

    def images(self, name: str, grid: Tensor, step: int) -> None:
        """Add the picture ``grid`` [channels, height, width] under ``name``."""
        self.writer.add_image(name, grid, step)

    def figure(self, name: str, picture: Any, step: int) -> None:
        """Add a figure of matplotlib under ``name``."""
        self.writer.add_figure(name, picture, step)

    def flush(self) -> None:
        """Write what is still in memory to the disk."""
        self.writer.flush()

    def close(self) -> None:
        """Write what is still in memory, and close the file."""
        self.writer.close()


class Ticker:
    """Progress in the terminal: a live line with rate, remaining time and validation score; plain lines elsewhere.

    The plain lines also go, with the time, to the file ``log``.
    """

    def __init__(self, total: int, start: int, log: Path = Path(os.devnull)) -> None:
        self.console = Console(stderr=True)
        self.log = log.open("a", buffering=1)
        self.live = self.console.is_terminal
        self.total, self.start, self.began = total, start, time.monotonic()
        self.last_line = self.began
        self.validation = ""
        if self.live:
            whole = Column(no_wrap=True)  # rich would shorten the numbers before the words
            count, left = MofNCompleteColumn(table_column=whole), TimeRemainingColumn(table_column=whole)
            bar = BarColumn(bar_width=24 if self.console.width >= 110 else 8, table_column=whole)
            texts = [TextColumn(text) for text in ("step", "{task.fields[rate]}", "left", "{task.fields[note]}")]
            self.bar = Progress(texts[0], count, bar, texts[1], left, *texts[2:], console=self.console)
            self.room = (
                self.console.width
                - 2 * len(str(total))
                - (bar.bar_width or 0)
                - len("step / 1.23e+03/s 0:00:00 left     ")
            )
            self.task = self.bar.add_task("", total=total, completed=start, rate="", note="")
            self.bar.start()

    def tick(self, step: int, train: dict[str, float]) -> None:
        """Show the step and its metrics; plain lines come at most every PLAIN_LINE_SECONDS."""
        now = time.monotonic()
        rate = (step - self.start) / max(now - self.began, 1e-9)
        score = {name: value for name, value in train.items() if name != "train/query_loss"}
        shown = score if train.get("train/query_loss") in score.values() else train  # regression: the loss is the score
        note = plain({name.removeprefix("train/"): value for name, value in shown.items()})
        if self.live:
            text = f"{self.validation}  {note}".strip()[: max(0, self.room)]
            self.bar.update(self.task, completed=step, rate=f"{rate:.3g}/s", note=text)
        if now - self.last_line >= PLAIN_LINE_SECONDS:
            self.last_line = now
            left = (self.total - step) / max(rate, 1e-9)
            line = f"step {step}/{self.total}  {rate:.3g}/s  {left:.0f} s left  {note}  {self.validation}".rstrip()
            self.note(line) if self.live else self.say(line)

    def validated(self, scores: dict[str, float]) -> None:
        """Keep the validation scores, which the next lines show."""
        self.validation = plain(scores)

    def note(self, line: str) -> None:
        """To the log file alone."""
        self.log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {line}\n")

    def say(self, line: str) -> None:
        """Print a line in the terminal, and write it to the log file."""
        self.note(line)
        if self.live:
            self.bar.console.print(line, highlight=False)
        else:
            print(line, file=sys.stderr, flush=True)

    def stop(self) -> None:
        """End the live line, so that others can print."""
        if self.live:
            self.bar.stop()

    def close(self) -> None:
        """End the live line, and close the log file."""
        self.stop()
        self.log.close()


class Means:
    """Running means of scalars, kept on their device until they are read."""

    def __init__(self, sums: dict[str, Tensor] | None = None, count: int = 0) -> None:
        self.sums = dict(sums or {})
        self.count = count

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps; ``Means(**state)`` goes on from there."""
        return {"sums": self.sums, "count": self.count}

    def add(self, values: dict[str, Tensor]) -> None:
        """Count one more step, with these values."""
        for name, value in values.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.count += 1

    def read(self) -> dict[str, float]:
        """The means so far."""
        return self._read()()

    def take(self) -> Callable[[], dict[str, float]]:
        """The means since the last call, by a function that waits for them and for nothing computed later."""
        read = self._read()
        self.sums, self.count = {}, 0
        return read

    def _read(self) -> Callable[[], dict[str, float]]:
        if not self.sums:
            return dict
        names, means = list(self.sums), torch.stack([total / self.count for total in self.sums.values()])
        there = means.to("cpu", non_blocking=means.is_cuda)
        copied = torch.cuda.Event() if means.is_cuda else None
        if copied:
            copied.record()

        def read() -> dict[str, float]:
            if copied:
                copied.synchronize()
            return dict(zip(names, there.tolist(), strict=True))

        return read
