"""What torch raises where it cannot go on, as errors that say what it is."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import torch

from metarun.errors import MetarunError

EXHAUSTED = ("can't allocate memory", "bad_alloc", "could not create a primitive", "can't start new thread")


@contextmanager
def memory_errors() -> Iterator[None]:
    """Inside, what torch raises where a CPU's memory is exhausted is a torch.OutOfMemoryError too, as on a GPU."""
    failure = ""
    try:
        yield
    except MemoryError as error:
        failure = str(error) or "no memory"
    except RuntimeError as error:
        if not any(words in str(error) for words in EXHAUSTED):
            raise
        failure = str(error)
    if failure:  # out here, where nothing holds the frames of the first error and their tensors any more
        raise torch.OutOfMemoryError(failure)


def refuse_memory(settings: str, reason: str, again: str) -> NoReturn:
    """Raise MetarunError for a run that has saved its steps and cannot go on here."""
    raise MetarunError(
        f"out of memory, with {settings} too: {reason}.\n"
        f"The steps until now are saved: {again} goes on where there is more memory.\n"
        "To need less, take a smaller base_learner, fewer meta_learner.inner_steps, fewer inputs in an episode, or "
        "dtype=float32."
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
