"""Matrix products in bfloat16, for networks that ask for them."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def in_bfloat16(wanted: bool, like: Tensor) -> AbstractContextManager[object]:
    """A context in which float32 matrix products and linear layers on the device of ``like`` compute in bfloat16.

    It is torch.autocast: weights stay as they are, norms and softmax keep float32. Not ``wanted``: nothing changes.
    """
    if not wanted:
        return nullcontext()
    # the cache of cast weights would outlive an optimizer's step, which changes them in place
    return torch.autocast(like.device.type, torch.bfloat16, cache_enabled=False)


def check_bfloat16(wanted: bool, like: Tensor) -> None:
    """Raise ValueError where bfloat16 would have no effect: torch.autocast leaves float64 alone."""
    if wanted and like.dtype == torch.float64:
        raise ValueError(
            "meta_learner.bfloat16=true has no effect with dtype=float64; set it to false, or dtype=float32."
        )
