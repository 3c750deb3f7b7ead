"""What torch raises where it cannot go on, as errors that say what it is."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from metarun.errors import TO_NEED_LESS, MetarunError, memory_refusal


@contextmanager
def memory_errors() -> Iterator[None]:
    """Inside, what torch raises where a CPU's memory is exhausted is a torch.OutOfMemoryError too, as on a GPU."""
    failure = ""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError) or not (failure := memory_refusal(error)):
            raise
    if failure:  # out here, where nothing holds the frames of the first error and their tensors any more
        raise torch.OutOfMemoryError(failure)


def out_of_memory(error: torch.OutOfMemoryError, settings: str, resuming: str) -> MetarunError:
    """What to tell where the smallest execution, of these ``settings``, is too large; ``resuming`` continues the run."""
    return MetarunError(
        f"out of memory, with {settings} too: {memory_refusal(error)}.\n"
        f"The steps until now are saved: {resuming} goes on where there is more memory.\n{TO_NEED_LESS}"
    )


@contextmanager
def missing_derivatives() -> Iterator[None]:
    """Inside, a derivative that torch does not have is a MetarunError that says how to do without."""
    try:
        yield
    except RuntimeError as error:
        if not (missing := re.search(r"derivative for aten::(\w+) is not implemented", str(error))):
            raise
        raise MetarunError(
            f"torch has no derivative of {missing[1]}, which this meta-gradient needs. Take a learner without second "
            "derivatives (meta_learner.first_order=true, where it has that setting) or another base_learner."
        ) from None
