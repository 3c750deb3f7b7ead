"""Arrays prepared once on disk: uint8 [num_rows, ...], class after class, beside an index of classes and their sizes.

Images are rows of pixels; texts, and what is made of them, are rows of one byte.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from types import MappingProxyType
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np

from metarun.errors import DataError, MissingDataError

try:
    import fcntl
except ImportError:  # Windows: the rename below is still atomic; two first runs at once may both prepare
    fcntl = None  # type: ignore[assignment]

FORMAT = 1  # of the prepared folder; raise it when what is written changes, and older folders are prepared again
ROWS = "images.npy"  # whatever the rows are: another name would prepare all that there is again
ClassRows = Iterator[tuple[str, np.ndarray]]  # class name, its rows uint8 [n, ...]
SIGN_OF_LIFE = 10.0  # seconds between two messages of how far a preparation is
logger = logging.getLogger(__name__)


class Prepared(NamedTuple):
    """Rows uint8 [num_rows, ...], memory-mapped and read-only: class after class, ``counts[c]`` of class c.

    ``facts``: what else was found out when the rows were read.
    """

    rows: np.ndarray
    names: tuple[str, ...]
    counts: np.ndarray
    sha256: str
    facts: Mapping[str, Any] = MappingProxyType({})

    def verified(self) -> "Prepared":
        """The same arrays, all read again; raises DataError unless the bytes are those that were prepared."""
        digest = hashlib.sha256()
        for start in range(0, len(self.rows), 1024):
            digest.update(self.rows[start : start + 1024].tobytes())
        if digest.hexdigest() != self.sha256:
            folder = Path(str(self.rows.filename)).parent  # type: ignore[attr-defined]
            raise DataError(
                f"{folder} has changed since it was prepared: its content has sha256 {digest.hexdigest()}, its index says "
                f"{self.sha256}. Delete the folder; it is prepared again from the files it was made of."
            )
        return self


def load_prepared(folder: Path, row_shape: tuple[int, ...]) -> Prepared:
    """The arrays in ``folder``. Checks the sizes against the index and not the content, so it costs no reading."""
    if not folder.exists():
        raise MissingDataError(f"{folder} does not exist.")
    try:
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        if index["format"] != FORMAT:
            raise DataError(f"{folder} has format {index['format']}, this version of metarun reads {FORMAT}.")
        rows = np.lib.format.open_memmap(folder / ROWS, mode="r")
        names, counts = zip(*index["classes"], strict=True)
        found = (rows.dtype, rows.shape, (folder / ROWS).stat().st_size)
        expected = (np.dtype(np.uint8), (sum(counts), *row_shape), rows.offset + rows.size)
        if found != expected:
            raise DataError(f"{folder}/{ROWS} has dtype, shape and bytes {found}, its index demands {expected}.")
        return Prepared(
            rows, names, np.array(counts, dtype=np.int64), str(index["sha256"]), dict(index.get("facts", {}))
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder} is damaged: {error}") from error


@dataclass(frozen=True)
class Source:
    """Arrays to be kept prepared in ``folder``, and what ``read`` makes them of.

    ``missing`` says what ``read`` needs and cannot get, and where to get it; it is empty where nothing is missing.
    ``facts`` are asked for once ``read`` has ended, and are kept with the rows.
    """

    folder: Path
    row_shape: tuple[int, ...]
    read: Callable[[], ClassRows]
    missing: Callable[[], str] = str  # str() is empty
    facts: Callable[[], dict[str, Any]] = dict

    def state(self) -> Literal["ready", "raw files found", "absent"]:
        """State of the arrays: ready to be used, or to be prepared at the first use, or not even that."""
        try:
            load_prepared(self.folder, self.row_shape)
        except (MissingDataError, DataError):
            return "absent" if self.missing() else "raw files found"
        return "ready"

    def prepared(self) -> Prepared:
        """The prepared arrays; on first use, or when they are damaged, written from ``read()``.

        Any number of processes may call this at once: one prepares, the others wait for it. Whatever happens, no folder
        is left half prepared. Raises MissingDataError and DataError.
        """
        try:
            return load_prepared(self.folder, self.row_shape)
        except MissingDataError:
            self._require()
        except DataError as damage:
            if missing := self.missing():
                raise DataError(f"{damage} It cannot be prepared again: {missing}") from damage
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            with exclusive(self.folder.parent / f".{self.folder.name}.lock"):
                return self._prepare()
        except MissingDataError:
            raise
        except OSError as error:
            raise DataError(
                f"could not write the prepared images {self.folder}: {error}. Free some space there, make the folder "
                "writable, or name another one with data_root (or METARUN_DATA)."
            ) from error

    def _require(self) -> None:
        if missing := self.missing():
            raise MissingDataError(missing)

    def _prepare(self) -> Prepared:
        try:
            return load_prepared(self.folder, self.row_shape)  # another process finished while this one waited
        except (MissingDataError, DataError) as reason:
            logger.info("Preparing %s, once (%s)", self.folder, reason)
        self._require()  # again: whoever held the lock may have taken its time
        partial = self.folder.with_name(f".{self.folder.name}.{os.getpid()}.partial")
        if fcntl is not None:  # we hold the lock, so these belong to processes that were killed
            for stale in self.folder.parent.glob(f".{self.folder.name}.*.partial"):
                shutil.rmtree(stale)
        try:
            partial.mkdir()
            _write(partial, self.row_shape, self.read(), self.facts)
            if self.folder.exists():
                shutil.rmtree(self.folder)
            partial.rename(self.folder)
            _sync_folder(self.folder.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return load_prepared(self.folder, self.row_shape)


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the lock file ``path``, waiting for whoever does. The system frees it when its holder ends or dies."""
    with open(path, "ab") as file:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _write(folder: Path, row_shape: tuple[int, ...], classes: ClassRows, facts: Callable[[], dict[str, Any]]) -> None:
    counts: list[tuple[str, int]] = []
    digest, told = hashlib.sha256(), monotonic()
    with open(folder / ROWS, "wb") as file:
        _write_header(file, (0, *row_shape))  # numpy pads the header, so that the first axis may grow in place
        start = file.tell()
        for name, rows in classes:
            assert rows.dtype == np.uint8 and rows.shape[1:] == row_shape, (name, rows.dtype, rows.shape)
            content = rows.tobytes()
            file.write(content)
            digest.update(content)
            counts.append((name, len(rows)))
            if monotonic() > told + SIGN_OF_LIFE:
                logger.info("Prepared so far: classes %d, examples %d", len(counts), sum(n for _, n in counts))
                told = monotonic()
        file.seek(0)
        _write_header(file, (sum(n for _, n in counts), *row_shape))
        assert file.tell() == start, "the npy header changed its length"
        _sync(file)
    index = {"format": FORMAT, "sha256": digest.hexdigest(), "classes": counts, "facts": facts()}
    with open(folder / "index.json", "wb") as file:
        file.write(json.dumps(index, indent=1).encode())
        _sync(file)
    _sync_folder(folder)


def _write_header(file: BinaryIO, shape: tuple[int, ...]) -> None:
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.uint8)), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":  # elsewhere a folder cannot be opened
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
