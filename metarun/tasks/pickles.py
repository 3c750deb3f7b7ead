"""Pickles of numpy arrays, read without running what a pickle may ask for."""

import pickle
from pathlib import Path
from typing import IO, Any

import numpy as np

# What numpy writes into a pickle, under the names of numpy 1 and 2 (the former in every public data set).
CORE = "numpy._core" if np.lib.NumpyVersion(np.__version__) >= "2.0.0" else "numpy.core"
ADMITTED = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    *((f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
    ("_codecs", "encode"),  # bytes, in what Python 3 wrote for Python 2
}


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ADMITTED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, but only numpy arrays are read")
        return super().find_class(module.replace("numpy._core", CORE).replace("numpy.core", CORE), name)


def load_pickle(path: Path) -> Any:
    """The content of a file, by ``load_arrays``."""
    with open(path, "rb") as file:
        return load_arrays(file)


def load_arrays(file: IO[bytes]) -> Any:
    """The dictionaries, lists, strings, numbers and arrays of a pickle; text of Python 2 comes as bytes.

    Raises ValueError when it holds anything else, or is damaged.
    """
    try:
        return _ArraysOnly(file, encoding="bytes").load()
    except Exception as error:  # a damaged pickle can raise anything
        raise ValueError(f"its pickle cannot be read: {error}") from error
