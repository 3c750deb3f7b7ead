"""The line of progress on a terminal, and log.txt."""

import os
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

from metarun.execution.choice import Choice
from metarun.output.sink import Sink

PLAIN_LINE_SECONDS = 10.0


def plain(values: dict[str, Any]) -> str:
    """Names and values as one line of text, with four significant digits."""
    return "  ".join(f"{name} {value:.4g}" for name, value in values.items())


def table_console(width: int) -> Console:
    """A console for tables, as wide as the terminal or ``width``; brackets and colons in what it prints are only that."""
    return Console(width=None if sys.stdout.isatty() else width, markup=False, emoji=False)


class Ticker(Sink):
    """Progress in the terminal: a live line with rate, remaining time and validation ``score``; plain lines elsewhere.

    The plain lines also go, with the time, to the file ``log``.
    """

    def __init__(self, total: int, start: int, score: str = "", log: Path = Path(os.devnull)) -> None:
        self.console = Console(stderr=True)
        self.log = log.open("a", buffering=1)
        self.live = self.console.is_terminal
        self.total, self.start, self.score, self.began = total, start, score, time.monotonic()
        self.last_line = self.began
        self.validated = ""
        if self.live:
            whole = Column(no_wrap=True)  # rich would shorten the numbers before the words
            count, left = MofNCompleteColumn(table_column=whole), TimeRemainingColumn(table_column=whole)
            bar = BarColumn(bar_width=24 if self.console.width >= 110 else 8, table_column=whole)
            texts = [
                TextColumn(text, markup=False)
                for text in ("step", "{task.fields[rate]}", "left", "{task.fields[note]}")
            ]
            self.bar = Progress(texts[0], count, bar, texts[1], left, *texts[2:], console=self.console)
            self.room = (
                self.console.width
                - 2 * len(str(total))
                - (bar.bar_width or 0)
                - len("step / 1.23e+03/s 0:00:00 left     ")
            )
            self.task = self.bar.add_task("", total=total, completed=start, rate="", note="")
            self.bar.start()

    def execution(self, choice: Choice) -> None:
        """Say what was measured to choose it, and why."""
        name, timings = choice.execution.describe(), choice.milliseconds
        rows = [f"{other} {ms:.3g} ms" for other, ms in timings.items()]
        if len(timings) > 1 and (gain := max(timings.values()) / timings[name]) > 1.05:
            rows.insert(0, f"{gain:{'.1f' if gain < 10 else '.0f'}}x faster than the slowest")
        if rows or choice.notes:
            self.say(f"execution: {name} ({'; '.join([', '.join(rows)] * bool(rows) + choice.notes)})")

    def training(self, step: int, values: dict[str, float]) -> None:
        """Show the step and its metrics; plain lines come at most every PLAIN_LINE_SECONDS."""
        now = time.monotonic()
        rate = (step - self.start) / max(now - self.began, 1e-9)
        metrics = {name: value for name, value in values.items() if name != "train/lr"}
        score = {name: value for name, value in metrics.items() if name != "train/query_loss"}
        shown = (
            score if metrics.get("train/query_loss") in score.values() else metrics
        )  # in regression the loss is the score
        note = plain({name.removeprefix("train/"): value for name, value in shown.items()})
        if self.live:
            text = f"{self.validated}  {note}".strip()[: max(0, self.room)]
            self.bar.update(self.task, completed=step, rate=f"{rate:.3g}/s", note=text)
        if now - self.last_line >= PLAIN_LINE_SECONDS:
            self.last_line = now
            left = (self.total - step) / max(rate, 1e-9)
            line = f"step {step}/{self.total}  {rate:.3g}/s  {left:.0f} s left  {note}  {self.validated}".rstrip()
            self.note(line) if self.live else self.say(line)

    def validation(self, step: int, values: dict[str, float]) -> None:
        """Keep the score, which the next lines show."""
        self.validated = plain({self.score: values[self.score]})

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
