"""Running out of memory, on a CPU as on a GPU."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

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
