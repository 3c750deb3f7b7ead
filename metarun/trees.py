"""Functions on pytrees of tensors (theta, phi, episodes). The one place that imports torch's private pytree module."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten
from torch.utils._pytree import tree_leaves_with_path as paths

__all__ = [
    "by_dtype",
    "detach",
    "leaf_names",
    "num_elements",
    "ravel",
    "select",
    "slice_tasks",
    "stack",
    "tree_flatten",
    "tree_leaves",
]
__all__ += ["frozen", "parameters_of", "surrogate", "trainable", "tree_map", "tree_unflatten", "under", "zip_map"]


def zip_map(fn: Callable[..., Tensor], *trees: Any) -> Any:
    """Apply ``fn`` to corresponding leaves of trees of one structure; raises ValueError where their numbers differ."""
    leaves, spec = tree_flatten(trees[0])
    return tree_unflatten([fn(*row) for row in zip(leaves, *map(tree_leaves, trees[1:]), strict=True)], spec)


def by_dtype(*lists: list[Tensor]) -> Iterable[tuple[list[Tensor], ...]]:
    """Group lists of corresponding tensors by the dtype of the first list's: torch's operations on lists are one kernel
    only for one dtype.
    """
    groups: dict[torch.dtype, tuple[list[Tensor], ...]] = {}
    for row in zip(*lists, strict=True):
        for group, tensor in zip(groups.setdefault(row[0].dtype, tuple([] for _ in row)), row, strict=True):
            group.append(tensor)
    return groups.values()


def detach(tree: Any) -> Any:
    """Return the same tree, its leaves cut off from autograd."""
    return tree_map(torch.Tensor.detach, tree)


def stack(trees: list[Any]) -> Any:
    """Stack trees of one structure along a new leading axis."""
    return zip_map(lambda *leaves: torch.stack(leaves), *trees)


def slice_tasks(tree: Any, where: slice | int) -> Any:
    """Take the tasks ``where`` of a tree whose leaves lead with the task axis [B, ...]."""
    return tree_map(lambda leaf: leaf[where], tree)


def leaf_names(tree: Any) -> list[str]:
    """Name each leaf by the path to it, keys joined by dots, in the order of ``tree_leaves``."""
    return [".".join(str(getattr(key, "key", getattr(key, "idx", key))) for key in path) for path, _ in paths(tree)]


def num_elements(tree: Any) -> int:
    """Count the elements of all leaves together."""
    return sum(leaf.numel() for leaf in tree_leaves(tree))


def surrogate(theta: Any, gradient: Any) -> Tensor:
    """Make a scalar whose gradient with respect to ``theta`` equals ``gradient``; its value means nothing."""
    pairs = zip(tree_leaves(theta), tree_leaves(gradient), strict=True)
    return sum((p * g.detach()).sum() for p, g in pairs)


def ravel(tree: Any) -> tuple[Tensor, Callable[[Tensor], Any]]:
    """Join the elements of a tree in one vector [n]; return it, and the function that makes such a tree of a vector."""
    leaves, spec = tree_flatten(tree)
    shapes, sizes = [leaf.shape for leaf in leaves], [leaf.numel() for leaf in leaves]

    def unravel(vector: Tensor) -> Any:
        return tree_unflatten([p.view(shape) for p, shape in zip(vector.split(sizes), shapes, strict=True)], spec)

    return torch.cat([leaf.flatten() for leaf in leaves]), unravel


def select(params: dict[str, Tensor], wanted: Callable[[str], bool]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Split named parameters into (those whose name is wanted, the others)."""
    chosen = {name: p for name, p in params.items() if wanted(name)}
    return chosen, {name: p for name, p in params.items() if name not in chosen}


def under(params: dict[str, Tensor], child: str) -> dict[str, Tensor]:
    """Parameters of one child module, named as the child itself names them."""
    return {name[len(child) + 1 :]: p for name, p in params.items() if name.startswith(child + ".")}


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """The module's parameters that ask for a gradient, by name: those that theta holds and inner loops move."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def frozen(module: nn.Module) -> dict[str, nn.Parameter]:
    """The module's other parameters, by name: no part of theta, they stay in the module as they are."""
    return {name: p for name, p in module.named_parameters() if not p.requires_grad}


def parameters_of(module: nn.Module) -> dict[str, Tensor]:
    """Copies of the module's ``trainable`` parameters, by name."""
    return {name: p.detach().clone() for name, p in trainable(module).items()}
