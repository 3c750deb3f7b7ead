"""Labels that a caller gives in memory: as an array, and as classes by name."""

from typing import Any

import numpy as np

from metarun.errors import DataError
from metarun.tasks.reading import absent, as_array
from metarun.tasks.splits import seen


def array_of(y: Any) -> np.ndarray:
    """Labels as an array, which makes texts of numbers where there are both: of those each stays what it is."""
    mixed = isinstance(y, (list, tuple)) and len({isinstance(label, str) for label in y}) > 1
    return as_array(y, "labels", dtype=object if mixed else None)


def classes_of(y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The classes in ascending order, and the place of each label [n] among them."""
    if y.ndim != 1:
        raise DataError(f"the labels have shape {list(y.shape)}, but each example has one class: [n].")
    blank = [label == b"" or (isinstance(label, str) and not seen(label)) for label in y.tolist()]
    gone = [i for i, label in enumerate(y.tolist()) if blank[i] or absent(label)]
    if gone:
        raise DataError(f"example {gone[0]} has no label ({len(gone)} have none), but each needs one.")
    try:
        classes, labels = np.unique(y, return_inverse=True)
    except TypeError as error:
        kinds = "of several kinds, or of one without an order"
        raise DataError(f"the labels are {kinds} ({error}); give texts, or numbers, alone.") from error
    if len(classes) < 2:
        raise DataError(
            f"all examples are of the class {classes[0]!s}, and with one class every answer is right: give two."
        )
    return classes, labels
