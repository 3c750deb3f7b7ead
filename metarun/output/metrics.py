"""What a run tells: metrics.jsonl, the truth, and the means of its training steps."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import torch
from torch import Tensor

from metarun.files import flush, write_atomically
from metarun.output.kept import json_lines
from metarun.output.sink import Sink


def written(path: Path) -> Iterator[tuple[int, dict[str, float]]]:
    """The lines of a metrics.jsonl: step, and values by name. Those that are damaged are left out."""
    for row in json_lines(path):  # the last line of a killed run can be cut short
        if "step" in row:
            yield row["step"], {name: value for name, value in row.items() if name != "step"}


class MetricsFile(Sink):
    """metrics.jsonl: one JSON object a line, flushed line by line.

    A resumed run first drops the lines after its checkpoint and those of a test, which it will write again; from step 0
    it begins anew.
    """

    def __init__(self, path: Path, resume_step: int) -> None:
        kept = []
        if path.is_file():
            for line in path.read_text(errors="replace").splitlines():
                try:
                    row = json.loads(line)
                    if row["step"] <= resume_step > 0 and not any(name.startswith("test/") for name in row):
                        kept.append(line + "\n")
                except (ValueError, KeyError, TypeError, RecursionError):
                    continue  # the last line of a killed run can be cut short
            write_atomically(path, "".join(kept).encode())
        self.file: TextIO = path.open("a", buffering=1)

    def write(self, step: int, values: dict[str, float]) -> None:
        self.file.write(json.dumps({"step": step, **values}) + "\n")

    def saving(self) -> None:
        flush(self.file.fileno())  # as the checkpoint is: a machine that fails must not keep that one alone

    def ended(self, state: str) -> None:
        self.file.close()


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


class Log(NamedTuple):
    """A line of the training log that is still to be written: of which step, and with which means since the last."""

    step: int
    lr: float
    means: Callable[[], dict[str, float]]
