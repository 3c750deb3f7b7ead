"""The line of progress on a terminal, and log.txt."""

import os
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

PLAIN_LINE_SECONDS = 10.0


def plain(values: dict[str, Any]) -> str:
    """Names and values as one line of text, with four significant digits."""
    return "  ".join(f"{name} {value:.4g}" for name, value in values.items())


def table_console(width: int) -> Console:
    """A console for tables, as wide as the terminal or ``width``; brackets and colons in what it prints are only that."""
    return Console(width=None if sys.stdout.isatty() else width, markup=False, emoji=False)


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
            self.bar.console.print(line, highlight=False, markup=False, emoji=False)
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
