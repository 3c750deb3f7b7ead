"""What follows a meta-gradient: clipping and the optimizer's step, in place, or as a function of tensors for a graph."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from metarun.errors import MetarunError
from metarun.execution.failures import memory_errors
from metarun.trees import by_dtype, detach

MULTIPLE = "multiple"  # the option of a group that steps at so many times its learning rate; at 0 it stays as it is
NO_CONSTANT = ("params", "lr", MULTIPLE)


class Update:
    """``clip``, if there is one, then ``optimizer.step``, on the leaves of theta; ``begins`` is called before."""

    def __init__(
        self,
        leaves: list[Tensor],
        optimizer: Optimizer,
        clip: Callable[[list[Tensor]], object] | None,
        begins: Callable[[], None] = lambda: None,
    ) -> None:
        self.leaves, self.optimizer, self.clip, self.begins = leaves, optimizer, clip, begins
        constant = ({k: v for k, v in group.items() if k not in NO_CONSTANT} for group in optimizer.param_groups)
        self.options = list(constant)
        self.rates: tuple[list[float], list[Tensor]] = [], []

    def __call__(self, gradient: list[Tensor]) -> None:
        """Take a step along ``gradient``, in place. Raises MetarunError where there is no memory for it."""
        self.begins()
        self._clipped(self.leaves, _own(self.leaves, gradient, copy=self.clip is not None))
        try:
            with memory_errors(), multiplied(self.optimizer):
                self.optimizer.step()
        except torch.OutOfMemoryError as error:  # nobody may take this step again, for some leaves may have moved
            raise MetarunError(
                f"there is no memory for a step of the optimizer ({type(self.optimizer).__name__}). Choose one that "
                "remembers less (optimizer=sgd), a smaller base_learner, or dtype=float32."
            ) from error

    @cached_property
    def traceable(self) -> bool:
        """Whether a graph can hold the optimizer's step: it has a form that reads no values, torch calls it differentiable,
        and remembers nothing on another device, where a recording would leave it as it was."""
        if "differentiable" not in self.optimizer.defaults:
            return False
        return all(tensor.device == self.leaves[0].device for tensor in self.stand_in.memory())

    def as_made(self) -> bool:
        """Whether no scheduler has changed what a graph takes for constant: all options but the learning rates."""
        groups = zip(self.optimizer.param_groups, self.options, strict=True)
        return all(group[name] == value for group, options in groups for name, value in options.items())

    def _clipped(self, leaves: list[Tensor], gradient: list[Tensor]) -> None:
        self._give(leaves, gradient)
        if self.clip:
            self.clip(leaves)

    def _give(self, leaves: list[Tensor], gradient: list[Tensor]) -> None:
        """Give ``leaves`` their gradients, and none to those that stay as they are: it would take part in a clipped norm."""
        still = {id(p) for group in self.optimizer.param_groups if group.get(MULTIPLE) == 0 for p in group["params"]}
        for p, g, mine in zip(leaves, gradient, self.leaves, strict=True):
            p.grad = None if id(mine) in still else g

    @cached_property
    def names(self) -> list[list[str]]:
        """What the optimizer remembers of each leaf."""
        return self.stand_in.names

    def begun(self) -> bool:
        """Whether the optimizer has its memory; its first step makes it."""
        return not any(self.names) or bool(self.memory())

    def inputs(self) -> list[list[Tensor]]:
        """Leaves, memory and learning rates for ``functional``. The optimizer must have begun, rates been followed."""
        return [self.leaves, self.memory(), self.rates[1]]

    def follow_rates(self) -> None:
        """Bring the tensors of the learning rates up to date, in place: a recorded step reads them where they are."""
        rates = [float(rate) for rate in rates_of(self.optimizer)]
        if not self.rates[1]:
            like = self.leaves[0]
            self.rates = rates, [torch.tensor(rate, dtype=like.dtype, device=like.device) for rate in rates]
        elif self.rates[0] != rates:  # seldom: on a GPU each is a transfer
            for tensor, rate in zip(self.rates[1], rates, strict=True):
                tensor.fill_(rate)
            self.rates = rates, self.rates[1]

    @cached_property
    def stand_in(self) -> "Update":
        """The same update of a copy of the leaves, begun: for measuring what a step takes without taking one."""
        leaves = [torch.zeros_like(leaf, requires_grad=False) for leaf in self.leaves]
        self._give(leaves, [torch.zeros_like(leaf) for leaf in leaves])
        twin = self._twin(leaves, rates_of(self.optimizer))
        twin.step()
        for leaf, mine in zip(leaves, self.leaves, strict=True):
            leaf.copy_(mine.detach())
        other = Update(leaves, twin, self.clip)
        other.names = [tensors(twin.state[leaf]) for leaf in leaves]
        return other

    @contextmanager
    def undone(self) -> Iterator[None]:
        """Leaves and memory are afterwards what they were."""
        held = [*(leaf.detach() for leaf in self.leaves), *self.memory()]
        kept = [tensor.clone() for tensor in held]
        try:
            yield
        finally:
            for tensor, was in zip(held, kept, strict=True):
                tensor.copy_(was)

    def functional(
        self, leaves: list[Tensor], memory: list[Tensor], rates: list[Tensor], gradient: list[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """New leaves and memory, to float rounding those of ``__call__``; a function of its arguments alone."""
        leaves = [leaf.detach().clone() for leaf in leaves]
        self._clipped(leaves, [g.clone() for g in gradient])
        rates = [rate.detach().requires_grad_() for rate in rates]  # else SGD reads their values
        twin = self._twin(leaves, rates, differentiable=True, foreach=False, fused=False)
        remembered = iter(memory)
        for p, names in zip(leaves, self.names, strict=True):
            twin.state[p] = {name: next(remembered).clone() for name in names}
        twin.step()
        return detach((leaves, memory_of(twin, leaves)))

    @torch.no_grad()
    def take(self, leaves: list[Tensor], memory: list[Tensor]) -> None:
        """Let what ``functional`` returned be theta and the optimizer's memory."""
        self.begins()
        for mine, given in by_dtype([*self.leaves, *self.memory()], [*leaves, *memory]):
            torch._foreach_copy_(mine, given)
        self.optimizer._opt_called = True  # type: ignore[attr-defined]  # or its scheduler warns that no step was taken

    def memory(self) -> list[Tensor]:
        """The tensors that the optimizer remembers, in the order of ``memory_of``."""
        return memory_of(self.optimizer, self.leaves)

    def _twin(self, leaves: list[Tensor], rates: list[Any], **options: Any) -> Optimizer:
        """An optimizer like this one, of ``leaves``, without memory."""
        mine = dict(zip(map(id, self.leaves), leaves, strict=True))
        groups = [
            {**group, **options, "lr": rate, "params": [mine[id(p)] for p in group["params"]]}
            for group, rate in zip(self.optimizer.param_groups, rates, strict=True)
        ]
        return type(self.optimizer)(groups)  # type: ignore[call-arg]


def rates_of(optimizer: Optimizer) -> list[Any]:
    """The learning rates by which the groups of ``optimizer`` step: multiples of the scheduled ones."""
    return [group["lr"] * group.get(MULTIPLE, 1) for group in optimizer.param_groups]


@contextmanager
def multiplied(optimizer: Optimizer) -> Iterator[None]:
    """A context in which the groups have the learning rates by which they step; then those of the schedule again."""
    groups, scheduled = optimizer.param_groups, [group["lr"] for group in optimizer.param_groups]
    for group, rate in zip(groups, rates_of(optimizer), strict=True):
        group["lr"] = rate
    try:
        yield
    finally:
        for group, rate in zip(groups, scheduled, strict=True):
            group["lr"] = rate


def dense(p: Tensor) -> Tensor:
    """``p`` itself, or a copy of it where its elements overlap or have gaps: then nothing like it can have its strides."""
    return p if torch.empty_like(p).stride() == p.stride() else p.detach().contiguous()


def _own(leaves: list[Tensor], gradient: list[Tensor], copy: bool) -> list[Tensor]:
    """The gradient in the layout of the leaves, each tensor with memory of its own; with ``copy`` not that of ``gradient``.

    Clipping and optimizers change gradients in place, and would change one twice that two leaves share. And torch's fused
    kernels of Adam, AdamW, SGD and Adagrad take elements in the order of memory: on a CPU they step along another gradient
    without a word where its strides are not the parameter's (seen in torch 2.9.0 and 2.14.1), on a GPU they refuse
    (pytorch issue 106951).
    """
    taken: set[int] = set()
    mine = []
    for p, g in zip(leaves, gradient, strict=True):
        memory = g.untyped_storage().data_ptr()
        if g.stride() != p.stride():
            g = torch.empty_like(p, requires_grad=False).copy_(g)  # noqa: PLW2901
        elif copy or memory in taken:
            g = g.clone()  # noqa: PLW2901
        taken.add(memory)
        mine.append(g)
    return mine


def memory_of(optimizer: Optimizer, leaves: list[Tensor]) -> list[Tensor]:
    """The tensors that ``optimizer`` remembers of the leaves, leaf by leaf, in the order of their names."""
    states = [optimizer.state.get(leaf, {}) for leaf in leaves]
    return [state[name] for state in states for name in tensors(state)]


def tensors(state: dict[str, Any]) -> list[str]:
    """The names of the tensors in an optimizer's state of one leaf, sorted."""
    return sorted(name for name, value in state.items() if isinstance(value, Tensor))
