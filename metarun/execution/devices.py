"""The processes of one run on several devices, and what they tell each other."""

import hashlib
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from metarun.core import Params
from metarun.errors import MetarunError
from metarun.execution.decorated import GraphFailed
from metarun.execution.failures import memory_errors
from metarun.trees import tree_flatten, tree_leaves, tree_unflatten

T = TypeVar("T")
DRAWS = (
    "the learner draws numbers from torch's generator, and each process would draw others than one alone. "
    "Use devices=1, or draw from metarun.counter by seed and step, as metarun's dropout does."
)
WELL, NO_GRAPH, NO_MEMORY, DREW = range(4)  # how a process fared with its part of a step; the worst is what all do


class PeerLost(MetarunError):
    """Another process of the run has gone."""


class Devices:
    """The processes of a run, one for each device, of which this is number ``rank``; alone there is nobody to ask.

    All of them call the methods in the same order, for each call waits for the others. ``exact``: the sum of shares has
    the bits that a process alone would give it. ``device``: where this one computes.
    """

    def __init__(self, rank: int, count: int, exact: bool, device: torch.device) -> None:
        self.rank, self.count, self.exact, self.device = rank, count, exact, device

    def own(self, parts: list[slice]) -> list[slice]:
        """Those of the chunks of a step that this process computes."""
        number = len(parts) // self.count
        return parts[self.rank * number : (self.rank + 1) * number]

    def agreed(self, number: int) -> int:
        """The largest of the numbers that the processes give."""
        if self.count == 1:
            return number
        largest = torch.tensor(number)
        with _connected():
            dist.all_reduce(largest, dist.ReduceOp.MAX)
        return int(largest)

    def from_first(self, value: Callable[[], T]) -> T:
        """``value()`` of the first process, the only one that calls it; tensors come to the device of each."""
        if self.count == 1:
            return value()
        mine = value() if self.rank == 0 else None
        told = [packed(mine) if self.rank == 0 else b""]
        with _connected():
            dist.broadcast_object_list(told, src=0)
        return mine if mine is not None else unpacked(told[0], self.device)

    def gathered(self, value: T) -> list[T]:
        """The values of all processes, in their order."""
        told = [b""] * self.count
        with _connected():
            dist.all_gather_object(told, packed(value))
        return [unpacked(content, self.device) for content in told]

    def refuse_difference(self, theta: Params, step: int) -> None:
        """Raise MetarunError where the processes do not have the same theta."""
        if self.count == 1:
            return
        digest = hashlib.sha256()
        for leaf in tree_leaves(theta):
            digest.update(leaf.detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
        if len(set(self.gathered(digest.hexdigest()))) > 1:
            raise MetarunError(
                f"the processes have different parameters at step {step}, so their devices do not compute alike. Use "
                "devices of one kind, with one version of torch, or devices=1; the last checkpoint is of a step before."
            )

    def together(self, compute: Callable[[], T]) -> T:
        """``compute()``; where one process finds no memory, or cannot make a graph, all raise that. Raises MetarunError
        where it draws from torch's generator, as which no other number of processes would draw."""
        before, state, said, found = drawn(self.device), WELL, "on another device", None
        try:
            with memory_errors():
                found = compute()
        except torch.OutOfMemoryError as error:
            state, said = NO_MEMORY, str(error)
        except GraphFailed as error:
            state, said = NO_GRAPH, str(error)
        drew = state == WELL and drawn(self.device) != before
        worst = self.agreed(DREW if drew else state)
        if worst == NO_MEMORY:
            raise torch.OutOfMemoryError(said)
        if worst == NO_GRAPH:
            raise GraphFailed("with devices", RuntimeError(said))
        if worst == DREW:
            raise MetarunError(DRAWS)
        return found  # type: ignore[return-value]

    def total(self, shares: list[Any]) -> Any:
        """The sum of the trees that the processes have, in the order of the processes and of their lists."""
        structure, rows = tree_flatten(shares[0])[1], [tree_leaves(share) for share in shares]
        sums: dict[int, Tensor] = {}
        for dtype in dict.fromkeys(leaf.dtype for leaf in rows[0]):
            places = [i for i, leaf in enumerate(rows[0]) if leaf.dtype == dtype]
            vectors = torch.stack([torch.cat([row[i].flatten() for i in places]) for row in rows])  # [chunks, n]
            parts = self._sum(vectors).split([rows[0][i].numel() for i in places])
            sums |= {i: part.view(rows[0][i].shape) for i, part in zip(places, parts, strict=True)}
        return tree_unflatten([sums[i] for i in range(len(sums))], structure)

    def _sum(self, vectors: Tensor) -> Tensor:
        """The sum [n] of the rows [chunks, n] of all processes."""
        if not self.exact:
            total = _in_order(vectors)
            with _connected():
                dist.all_reduce(total)
            return total
        every = [torch.empty_like(vectors) for _ in range(self.count)]
        with _connected():
            dist.all_gather(every, vectors)
        return _in_order(torch.cat(every))


ALONE = Devices(0, 1, exact=True, device=torch.device("cpu"))


def packed(value: Any) -> bytes:
    """``value`` as another process can read it with ``unpacked``."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def unpacked(content: bytes, device: torch.device) -> Any:
    """What ``packed`` was given, with tensors on ``device``. The processes of a run trust each other."""
    return torch.load(io.BytesIO(content), map_location=device, weights_only=False)


def _in_order(rows: Tensor) -> Tensor:
    total = rows[0]
    for row in rows[1:]:
        total = total + row
    return total


def drawn(device: torch.device) -> tuple[bytes, int]:
    """What changes when numbers are drawn from torch's generators; of a GPU's without waiting for it."""
    offset = torch.cuda.default_generators[torch.cuda.current_device()].get_offset() if device.type == "cuda" else 0
    return torch.get_rng_state().numpy().tobytes(), offset


@contextmanager
def _connected() -> Iterator[None]:
    """Inside, what torch raises where another process does not answer any more is PeerLost."""
    try:
        yield
    except RuntimeError as error:
        reason = next(iter(str(error).splitlines()), "")
        raise PeerLost(f"another process of this run has ended ({reason[:200]})") from error
