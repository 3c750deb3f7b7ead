"""Examples that are the same as others."""

import hashlib
from collections.abc import Hashable, Sequence

from torch import Tensor

from metarun.errors import DataError, listed


def keys_of(x: Tensor) -> list[bytes]:
    """A digest of each of the inputs x [n, ...], equal for equal ones."""
    return [hashlib.blake2b(one.tobytes(), digest_size=16).digest() for one in x.detach().cpu().numpy()]


def refuse_two_classes(path: object, items: Sequence[str], keys: Sequence[Hashable], labels: Sequence[str]) -> None:
    """Raise DataError where one example, by its key, is of two classes."""
    first: dict[Hashable, tuple[str, str]] = {}
    pairs = zip(keys, zip(items, labels, strict=True), strict=True)
    twins = [(one, other) for key, one in pairs if (other := first.setdefault(key, one))[1] != one[1]]
    if twins:
        said = [f"{item} ({label}) = {other} ({of})" for (item, label), (other, of) in twins]
        what = "example is of two classes" if len(twins) == 1 else "examples are of two classes each"
        raise DataError(f"{path}: {len(twins)} {what}: {listed(said)}. Delete each from the class that it is not of.")
