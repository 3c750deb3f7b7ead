"""What a run keeps of the execution that it chose."""

import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_type_hints

import torch

from metarun.annotations import conforms
from metarun.config.ranges import range_problems
from metarun.errors import MetarunError
from metarun.execution.compiled import Compiled
from metarun.execution.cuda_graph import CudaGraphed
from metarun.execution.execution import Eager, Execution, Looped, Vmapped
from metarun.execution.sharded import Sharded
from metarun.files import read_json, write_json

KINDS: dict[str, type[Execution]] = {kind.__name__: kind for kind in (Looped, Vmapped, Compiled, CudaGraphed)}
# What stood in the files of earlier versions, such as vmapped_8_matmul_compiled_step; two of their convolutions are gone.
OLD_NAME = re.compile(
    r"(?:looped|vmapped(?:_([1-9]\d*))?)(?:_(matmul)|_slices|_triton)?(_recomputed)?(?:_(compiled|recorded)(_step)?)?"
)


@dataclass
class Choice:
    """The execution that a run uses, the milliseconds a meta-gradient of each candidate took, why, and torch's threads."""

    execution: Execution
    milliseconds: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    threads: int = field(default_factory=torch.get_num_threads)

    def write(self, path: Path) -> None:
        """Keep the choice for ``read``; "chosen" is its name among the milliseconds."""
        facts = {"chosen": self.execution.describe(), "execution": _plain(self.execution), "threads": self.threads}
        write_json(path, {**facts, "milliseconds": self.milliseconds, "notes": self.notes})

    @classmethod
    def read(cls, path: Path, like: Eager) -> "Choice":
        """The execution and the threads that were written to ``path``; those of ``like`` without a file.

        Files of earlier versions say no more than a name: the other settings are then those of ``like``. Raises
        MetarunError for a damaged file.
        """
        if not path.is_file():
            return cls(like, threads=like.num_threads)
        try:
            facts = read_json(path)
            stored, threads = facts.get("execution"), facts["threads"]
            if not _may_be("threads", threads, int) or threads < 1:
                raise ValueError(f"threads is {threads!r}")
            execution = _named(facts["chosen"], like) if stored is None else _execution(stored)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise MetarunError(
                f"{path} is damaged. Remove it: the run measures again which execution is fastest."
            ) from error
        return cls(execution, threads=threads)


def _plain(value: Any) -> Any:
    """``value`` for JSON: of an execution its kind and, by name, the fields that make it equal to another."""
    if isinstance(value, Sharded):
        value = value.inner  # a run can go on with another number of devices
    if not isinstance(value, Execution):
        return value
    settings = {setting.name: _plain(getattr(value, setting.name)) for setting in fields(value) if setting.compare}  # type: ignore[arg-type]
    return {"kind": type(value).__name__, **settings}


def _execution(content: dict[str, Any]) -> Execution:
    """The execution of which ``_plain`` made ``content``; raises ValueError, KeyError or TypeError where it is damaged."""
    kind = KINDS[content["kind"]]
    hints = get_type_hints(kind)
    values = {name: _execution(v) if name == "inner" else v for name, v in content.items() if name != "kind"}
    if wrong := [name for name, value in values.items() if not _may_be(name, value, hints[name])]:
        raise ValueError(f"not what they may be: {', '.join(wrong)}")
    return kind(**values)


def _may_be(name: str, value: Any, kind: Any) -> bool:
    """Whether a configuration could have this value for the setting ``name``, which is a ``kind``."""
    return conforms(value, kind) and not any(range_problems(name, value))


def _named(name: str, like: Eager) -> Execution:
    """The execution that an earlier version called ``name``; raises ValueError or TypeError for another name."""
    if not (match := OLD_NAME.fullmatch(name)):
        raise ValueError(name)
    chunk, convolution, recomputed, graph, whole = match.groups()
    if chunk and not _may_be("chunk", int(chunk), int):
        raise ValueError(name)
    shared = {setting.name: getattr(like, setting.name) for setting in fields(Eager)} | {"compile": False}
    if convolution:
        shared["convolution"] = convolution
    if recomputed:
        shared["inner_memory"] = "recomputed"
    eager = Looped(**shared) if name.startswith("looped") else Vmapped(int(chunk) if chunk else None, **shared)
    execution = Compiled(eager, whole=bool(whole)) if graph == "compiled" else eager
    return CudaGraphed(execution) if graph and like.cuda_graph else execution
