"""The line of progress on a terminal, and log.txt."""

import os
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, ProgressColumn, Task
from rich.text import Text

from metarun.execution.choice import Choice
from metarun.output.sink import Sink

PLAIN_LINE_SECONDS = 10.0
BAR = 16  # columns of the bar
FOREVER = 1e8  # seconds, three years: a time left that nobody reads


def plain(values: dict[str, Any]) -> str:
    """Names and values as one line of text, with four significant digits."""
    return "  ".join(f"{name} {value:.4g}" for name, value in values.items())


class LiveLine(ProgressColumn):
    """The fields of a task in one line of at most ``width`` columns: fields go as a whole, and no number is cut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def render(self, task: Task) -> Text:
        """The fields that fit, as they stand: brackets and colons are only that."""
        done, f = int(task.completed), task.fields
        filled = round(BAR * done / max(1, task.total or 0))
        left = f"{timedelta(seconds=round(f['left']))} left" if 0 < f["left"] < FOREVER else ""
        parts = [
            (1, f["busy"]),
            (3, f"step {done}/{task.total:.0f}"),
            (7, "\u2501" * filled + "\u2500" * (BAR - filled)),
        ]
        parts += [(6, f["rate"]), (4, left), (0, f["validated"]), (5, f["note"]), (2, f["score"])]
        return Text(fitted(parts, self.width), no_wrap=True)


def fitted(parts: Sequence[tuple[int, str]], width: int) -> str:
    """The texts in their order, without as many of the highest ranks as it takes to fit into ``width`` columns."""
    kept = [part for part in parts if part[1]]
    while kept and len(line := "  ".join(text for _, text in kept)) > width:
        kept.remove(max(kept))
    return line if kept else ""


class Ticker(Sink):
    """Progress in the terminal: a live line with rate, remaining time and validation ``score``; plain lines elsewhere.

    The plain lines also go, with the time, to the file ``log``.
    """

    def __init__(self, total: int, start: int, score: str = "", log: Path = Path(os.devnull)) -> None:
        self.console = Console(stderr=True)
        self.log = log.open("a", buffering=1)
        self.live = self.console.is_terminal
        self.total, self.start, self.score, self.began = total, start, score, time.monotonic()
        self.step, self.last_line = start, self.began
        self.validated = ""
        if self.live:
            self.bar = Progress(LiveLine(self.console.width - 1), console=self.console)
            nothing: dict[str, Any] = {"rate": "", "left": 0.0, "busy": "", "validated": "", "note": "", "score": ""}
            self.task = self.bar.add_task("", total=total, completed=start, **nothing)
            self.bar.start()

    def busy(self, what: str) -> None:
        """Show what is done instead of steps until the next of them, and say it where that takes long."""
        if self.live:
            self.bar.update(self.task, busy=what)
        elif what == "compiling":
            self.say("compiling, which may take a minute or two (not with execution.compile=false)")

    def execution(self, choice: Choice) -> None:
        """Say what was measured to choose it, and why. The rate counts from here on."""
        self.began, self.start = time.monotonic(), self.step
        self.busy("")
        name = choice.execution.describe()
        rows = [f"{other} {ms:.3g} ms" for other, ms in choice.milliseconds.items()]
        if rows or choice.notes:
            self.say(f"execution: {name} ({'; '.join([', '.join(rows)] * bool(rows) + choice.notes)})")

    def training(self, step: int, values: dict[str, float]) -> None:
        """Show the step and its metrics; plain lines come at most every PLAIN_LINE_SECONDS."""
        now = time.monotonic()
        rate = (step - self.start) / max(now - self.began, 1e-9)
        metrics = {name: value for name, value in values.items() if name != "train/lr"}
        score = {name: value for name, value in metrics.items() if name != "train/query_loss"}
        same = metrics.get("train/query_loss") in score.values()  # in regression the loss is the score
        shown = score if same else metrics
        named = {name.removeprefix("train/"): value for name, value in shown.items()}
        left = (self.total - step) / max(rate, 1e-9)
        self.step = step
        if self.live:
            own = self.score.removeprefix("val/")
            accuracy = plain({name: value for name, value in named.items() if name == own})
            others = plain({name: value for name, value in named.items() if name != own})
            fields: dict[str, Any] = {"validated": self.validated, "score": accuracy, "note": others, "busy": ""}
            self.bar.update(self.task, completed=step, left=left, rate=f"{rate:.3g}/s", **fields)
        if now - self.last_line >= PLAIN_LINE_SECONDS:
            self.last_line = now
            done = f"step {step}/{self.total}  {rate:.3g}/s  {left:.0f} s left"
            line = f"{done}  {plain(named)}  {self.validated}".rstrip()
            self.note(line) if self.live else self.say(line)

    def validation(self, step: int, values: dict[str, float]) -> None:
        """Keep the score, which the next lines show. The rate counts from the end of the first."""
        self.validated = plain({self.score: values[self.score]})
        if step == self.start:
            self.began = time.monotonic()
        if self.live:
            self.bar.update(self.task, validated=self.validated, busy="")

    def note(self, line: str) -> None:
        """Write a line to the log file alone."""
        self.log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {line}\n")

    def say(self, line: str) -> None:
        """Print a line in the terminal, and write it to the log file."""
        self.note(line)
        if self.live:
            self.bar.console.print(line, highlight=False, markup=False, emoji=False)
        else:
            print(line, file=sys.stderr, flush=True)

    def ended(self, state: str) -> None:
        """End the live line, so that others can print, and close the log file."""
        if self.live:
            self.bar.stop()
        self.log.close()
