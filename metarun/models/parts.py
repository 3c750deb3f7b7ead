"""Base learners made of a ``body`` (features) and a ``head`` (outputs), for the learners that treat them apart."""

from collections.abc import Sequence

import torch
from torch import nn

from metarun.core import frozen, trainable


def body_of(net: nn.Module) -> nn.Module:
    """Feature extractor of ``net``; raises ValueError where it has none."""
    return part_of(net, "body")


def head_of(net: nn.Module) -> nn.Module:
    """Output layer of ``net``; raises ValueError where it has none."""
    return part_of(net, "head")


def part_of(net: nn.Module, name: str) -> nn.Module:
    """Child ``name`` of ``net``; raises ValueError where it has none."""
    parts = dict(net.named_children())
    if name not in parts:
        raise ValueError(
            f"this meta-learner needs a base learner with a part named {name!r}; {type(net).__name__} has "
            f"{', '.join(parts) or 'no parts'}. Assign self.body and self.head in its __init__."
        )
    return parts[name]


def check_learned(net: nn.Module, name: str) -> None:
    """Raise ValueError where the body of ``net`` has nothing to train, for a learner ``name`` that learns nothing else."""
    if not trainable(body_of(net)):
        lacks = "has frozen parameters alone" if frozen(body_of(net)) else "has no parameters"
        raise ValueError(
            f"{name} learns the body of the base learner alone, but that of {type(net).__name__} {lacks}: there is nothing "
            "to train. Choose another base learner (base_learner=mlp), or a learner with a head (maml, r2d2)."
        )


def adapted_part(net: nn.Module, name: str) -> nn.Module:
    """The child ``name`` of ``net``, which inner loops move; raises ValueError where there is none, or it is frozen."""
    part = part_of(net, name)
    if frozen(part) and not trainable(part):
        raise ValueError(
            f"this meta-learner adapts the {name} of the base learner alone, but every parameter of that of "
            f"{type(net).__name__} is frozen (requires_grad=False). Leave one of them as it is, or adapt another part."
        )
    return part


def check_tokens(num_tokens: int | None, name: str) -> int:
    """Return ``num_tokens``, for a base learner ``name`` that reads words.

    Raises ValueError where it is None: then the inputs are numbers.
    """
    if num_tokens is None:
        raise ValueError(
            f"base_learner {name} reads words, but the task's inputs are numbers. Choose task/features=tokens (a text "
            "task), or base_learner=mlp."
        )
    return num_tokens


def num_features(net: nn.Module, input_shape: Sequence[int]) -> int:
    """Number D of features that the body of ``net`` gives: [S, D] for inputs [S, *input_shape]."""
    like = next(net.parameters())
    with torch.no_grad():
        return body_of(net)(like.new_zeros(2, *input_shape)).shape[1]


def check_images(input_shape: Sequence[int], name: str, smallest: int) -> None:
    """Raise ValueError unless base learner ``name`` gets images [C, H, W] of ``smallest`` pixels a side or more."""
    if len(input_shape) != 3 or min(input_shape[1:]) < smallest:
        raise ValueError(
            f"base_learner {name} needs images [channels, height, width] of {smallest} pixels or more, but the task's "
            f"inputs have shape {list(input_shape)}. Choose base_learner=mlp."
        )
