"""What a run keeps of the execution that it chose."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import torch

from metarun.errors import MetarunError
from metarun.execution.execution import Execution, Looped, Vmapped
from metarun.files import write_json
from metarun.modes import Convolution


@dataclass
class Choice:
    """What ``settle`` decided: the execution, the milliseconds a meta-gradient of each candidate took, and why."""

    execution: Execution
    milliseconds: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def write(self, path: Path) -> None:
        """Keep the choice, with torch's number of threads, for ``stored``."""
        facts = {"chosen": self.execution.describe(), "threads": torch.get_num_threads()}
        write_json(path, {**facts, "milliseconds": self.milliseconds, "notes": self.notes})


def stored(path: Path, like: Execution) -> Execution:
    """The execution that a choice written to ``path`` names, with its number of threads set; ``like`` without a file.

    Raises MetarunError for a damaged file.
    """
    if not path.is_file():
        return like
    try:
        facts = json.loads(path.read_text())
        threads, chosen = int(facts["threads"]), str(facts["chosen"])
    except (ValueError, KeyError, TypeError) as error:
        raise MetarunError(
            f"{path} is damaged. Remove it: the run measures again which execution is fastest."
        ) from error
    torch.set_num_threads(threads)
    return named(chosen, like)


def named(name: str, like: Execution) -> Execution:
    """The execution that ``describe`` called ``name``, with the other settings of ``like``."""
    kind, *rest = name.split("_")
    memory: Any = "recomputed" if "recomputed" in rest else like.inner_memory
    shared: dict[str, Any] = {"threads": like.threads, "inner_memory": memory, "cuda_graph": like.cuda_graph}
    shared["convolution"] = next((how for how in get_args(Convolution) if how in rest), like.convolution)
    if kind == "auto":
        return like
    chunk = next((int(word) for word in rest if word.isdigit()), None)
    execution = Looped(**shared) if kind == "looped" else Vmapped(chunk, **shared)
    if "compiled" in rest or "recorded" in rest:
        from metarun.execution.compiled import Compiled

        return Compiled(execution, whole="step" in rest, compiler="compiled" in rest)
    return execution
