"""New examples that a user brings to a trained model, made what the examples of its training were to the networks.

A task distribution gives its own ``Reader``; where it has none, examples come as arrays in the model's shape.
"""

import lzma
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from metarun.core import TaskSpec
from metarun.errors import DataError, MissingDataError
from metarun.tasks.doubtful import notes_on_labels, warn_of
from metarun.tasks.repeated import keys_of, refuse_two_classes
from metarun.tasks.splits import composed

UNREADABLE = (
    *(OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, lzma.LZMAError),
    *(RuntimeError, MemoryError),  # of a zip with a password or an unknown method, and of a shape that was made up
)


class Examples(NamedTuple):
    """Examples of one task: a name for each, inputs x [n, ...] as the networks take them, and labels where there are any.

    ``labels`` are the names of classes [n], "" where there is none; or targets [n, outputs] in their own units, NaN where
    there is none. ``task`` is the task's name where the file says it, ``notes`` are what the user should know. ``keys`` are
    equal for examples that are the same: ``Reader.keys`` makes them of x where a reader gives no other.
    """

    items: Sequence[str]
    x: Tensor
    labels: np.ndarray
    notes: Sequence[str] = ()
    task: str = ""
    keys: Sequence[Hashable] = ()


class Reader(ABC):
    """Reads new examples for networks with inputs of ``spec``. What is wrong with them raises DataError."""

    takes = "a .npz file of arrays x and y"  # the files that ``read`` knows, in words
    on_arrays: Sequence[str] = ()  # what the user should know who gives arrays in place of files

    def __init__(self, spec: TaskSpec, device: torch.device, dtype: torch.dtype) -> None:
        self.spec, self.device, self.dtype = spec, device, dtype

    def inputs(self, examples: Any) -> Tensor:
        """Inputs x [n, ...] of examples that are in memory; what the user should know is a warning."""
        x, notes = self.noted(examples)
        warn_of(notes, stacklevel=4)
        return x

    @abstractmethod
    def noted(self, examples: Any) -> tuple[Tensor, Sequence[str]]:
        """Inputs x [n, ...] of examples that are in memory, and what the user should know of them."""

    @abstractmethod
    def examples(self, path: Path, labelled: bool) -> Examples:
        """The examples in a file or folder that is no .npz; ``labelled``: each needs a label."""

    def read(self, path: Path, labelled: bool) -> Examples:
        """The examples in ``path``; with ``labelled`` one without a label raises DataError, as a query may be, and so does
        one of two classes."""
        if not path.exists():
            raise MissingDataError(f"{path} does not exist. Name {self.takes}.")
        found = self._arrays(path, labelled) if path.suffix.lower() == ".npz" else self.examples(path, labelled)
        if not len(found.x):
            raise DataError(f"{path} holds no example.")
        found = found._replace(keys=found.keys or self.keys(found.x, found.items))
        if not labelled or self.spec.num_ways is None:
            return found
        refuse_two_classes(path, found.items, found.keys, found.labels.tolist())
        return found._replace(notes=[*found.notes, *(f"{path}: {note}" for note in notes_on_labels(found.labels))])

    def keys(self, x: Tensor, given: Any) -> Sequence[Hashable]:
        """A key of each of the inputs x [n, ...], made of examples that were ``given``; equal ones are the same example."""
        return keys_of(x)

    @property
    def output_names(self) -> list[str]:
        """A name for each number that is predicted, where there are no classes."""
        return ["y"] if self.spec.num_outputs == 1 else [f"y{i}" for i in range(self.spec.num_outputs)]

    def targets(self, values: np.ndarray) -> np.ndarray:
        """Targets [n, outputs] in the units in which the model learns them."""
        return values

    def in_own_units(self, mean: np.ndarray, deviation: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
        """Predictions [n, outputs], and their deviations where there are any, in the user's units."""
        return mean, deviation

    def _arrays(self, path: Path, labelled: bool) -> Examples:
        arrays = arrays_in(path, ("x", "y") if labelled else ("x",))
        x, notes = self.noted(arrays["x"])
        labels = self._labels_of(path, arrays.get("y"), len(x))
        notes = [*self.on_arrays, *(f"{path}: {note}" for note in notes)]
        return Examples([str(i) for i in range(len(x))], x, labels, notes, keys=self.keys(x, arrays["x"]))

    def _labels_of(self, path: Path, y: np.ndarray | None, count: int) -> np.ndarray:
        if y is None:
            return self.unlabelled(count)
        if y.ndim == 0 or len(y) != count:
            number = "one number" if y.ndim == 0 else f"{len(y)} labels"
            raise DataError(f"{path} has {count} examples in x and {number} in y; give one label for each.")
        if self.spec.num_ways is None:
            return columns_of(y, self.spec.num_outputs)
        if y.ndim != 1:
            raise DataError(f"{path}: y has shape {list(y.shape)}, but each example has one class: [n].")
        return names_in(path, y)

    def unlabelled(self, count: int) -> np.ndarray:
        """Labels of ``count`` examples that have none."""
        if self.spec.num_ways is not None:
            return np.full(count, "", dtype=object)
        return np.full((count, self.spec.num_outputs), np.nan)


class ArrayReader(Reader):
    """Takes arrays in the model's shape, and nothing else."""

    def keys(self, x: Tensor, given: Any) -> Sequence[Hashable]:
        """Those of equal images are equal; equal rows of numbers are no repeats: few values come again, in other classes
        too."""
        return keys_of(x) if len(self.spec.input_shape) == 3 else [object() for _ in x]

    def noted(self, examples: Any) -> tuple[Tensor, Sequence[str]]:
        return array_inputs(examples, self.spec, self.device, self.dtype), ()

    def examples(self, path: Path, labelled: bool) -> Examples:
        raise DataError(f"{path} cannot be read: this run was trained on generated data, so name {self.takes}.")


def array_inputs(array: Any, spec: TaskSpec, device: torch.device, dtype: torch.dtype) -> Tensor:
    """An array [n, *input_shape] as inputs: bytes, which are pixels, in [0, 1]; words as whole numbers below
    ``num_tokens``."""
    if isinstance(array, Mapping) or (isinstance(array, Sequence) and array and isinstance(array[0], (str, Path))):
        raise DataError(f"these examples are no array; give one of shape {['n', *spec.input_shape]}.")
    x = array.detach() if isinstance(array, Tensor) else torch.from_numpy(_numeric(array))
    if tuple(x.shape[1:]) != spec.input_shape or not len(x):
        rule = f"the model takes inputs of shape {list(spec.input_shape)}, one or more of them"
        images = " Image files (or PIL images) are cut and resized; arrays must have the model's shape."
        said = f"the array has shape {list(x.shape)}, but {rule}: [n, {', '.join(map(str, spec.input_shape))}]."
        raise DataError(said + (images if len(spec.input_shape) == 3 else ""))
    if spec.num_tokens is not None:
        if x.is_floating_point() or x.min() < 0 or x.max() >= spec.num_tokens:
            raise DataError(f"the inputs are words: whole numbers from 0 to {spec.num_tokens - 1}; or give sentences.")
        return x.to(device).long()
    if x.is_complex():
        raise DataError(f"the array holds {x.dtype}, but must hold real numbers.")
    if not torch.isfinite(x).all():
        raise DataError("the array holds numbers that are not finite; correct them, or leave these examples out.")
    if x.dtype == torch.uint8 and len(spec.input_shape) == 3:  # pixels
        return x.to(device).to(dtype).div_(255)
    x = x.to(device, dtype)
    if not torch.isfinite(x).all():
        raise DataError(f"the array holds numbers that are too large for the model, which computes in {dtype}.")
    return x


def arrays_in(path: Path, needed: Sequence[str], also: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """The arrays of a .npz file that are ``needed``, and x, y and ``also`` others where they are there. Raises DataError
    where one is not."""
    written = ", ".join(f"{name}={name}" for name in dict.fromkeys(["x", "y", *needed]))
    rule = f"Write it by numpy.savez(path, {written}), of numbers or texts; objects are never read."
    if path.is_dir() or not zipfile.is_zipfile(path):  # numpy takes anything else for a pickle
        raise DataError(f"{path} cannot be read as arrays: it is no .npz file, or not a whole one. {rule}")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: np.asarray(file[name]) for name in {"x", "y", *needed, *also} if name in file.files}
            held = ", ".join(file.files) or "nothing"
    except UNREADABLE as error:
        raise DataError(f"{path} cannot be read as arrays: {error}. {rule}") from error
    if missing := [name for name in needed if name not in arrays]:
        raise DataError(f"{path} lacks {' and '.join(missing)}; it holds {held}.")
    return arrays


def names_in(path: Path, y: np.ndarray) -> np.ndarray:
    """Names of classes y [n], "" where there is none. Whole numbers have no point: where an entry is missing, numpy has
    floats in their place."""
    if y.dtype.kind not in "biufSUM":
        raise DataError(f"{path}: y holds {y.dtype}, but a class is a text or a number.")
    try:
        y = np.char.decode(y, "utf-8") if y.dtype.kind == "S" else y
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: y holds bytes that are not UTF-8 ({error}). Write texts: y.astype(str).") from error
    whole = [y.dtype.kind == "f" and abs(v) < 2**53 and float(v).is_integer() for v in y]
    named = ["" if absent(v) else str(int(v)) if is_whole else str(v) for v, is_whole in zip(y, whole, strict=True)]
    return np.array([composed(name).strip() for name in named], dtype=object)


def _numeric(array: Any) -> np.ndarray:
    found = as_array(array, "examples")
    if found.ndim == 0 and found.dtype == object:
        raise DataError(f"the examples are {type(array).__name__}, but must be an array of numbers.")
    if found.dtype.kind not in "biuf":
        raise DataError(f"the array holds {found.dtype}, but must hold numbers.")
    native = np.dtype(np.float64) if found.dtype.itemsize > 8 else found.dtype.newbyteorder("=")
    return np.require(found.astype(native), requirements="C")


def as_array(values: Any, what: str, dtype: Any = None) -> np.ndarray:
    """An array of ``values``, whatever library made them. Raises DataError where they make none; ``what`` names them."""
    try:
        if isinstance(values, Tensor):
            tensor = values.detach().cpu()
            return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
        found = np.asarray(values, dtype=dtype)
    except (TypeError, ValueError, RuntimeError) as error:  # of other lengths; tensors with a gradient in a list
        reason = str(error).rstrip(".")
        raise DataError(f"the {what} make no array ({reason}); give each the same length, or shape.") from error
    if np.ma.is_masked(values):
        raise DataError(f"some of the {what} are masked; fill them in, or leave them out.")
    return found


def columns_of(values: Any, count: int) -> np.ndarray:
    """Numbers [n, count] of an array [n, count], or [n] where ``count`` is 1."""
    found = as_array(values, "targets")
    if found.dtype.kind in "cmMV":
        raise DataError(f"the targets must be numbers, but are {found.dtype}.")
    try:
        numbers = np.ascontiguousarray(found, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"the targets must be numbers: {error}.") from error
    if numbers.ndim == 1 and count == 1:
        numbers = numbers[:, None]
    if numbers.ndim != 2 or numbers.shape[1] != count:
        raise DataError(f"the targets have shape {list(numbers.shape)}, but the model predicts [n, {count}].")
    return numbers


def absent(value: Any) -> bool:
    """Whether a value says that there is none: None, NaN, or what numpy and pandas have for it."""
    nan = isinstance(value, (float, np.floating, np.datetime64)) and value != value  # noqa: PLR0124
    return value is None or bool(nan) or type(value).__name__ in ("NAType", "NaTType")
