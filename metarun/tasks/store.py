"""Arrays prepared once on disk: uint8 [num_images, ...], class after class, beside an index of classes and their sizes."""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from metarun import modes
from metarun.errors import DataError, MissingDataError
from metarun.modes import set_var

try:
    import fcntl
except ImportError:  # Windows: the rename below is still atomic; two first runs at once may both prepare
    fcntl = None  # type: ignore[assignment]

FORMAT = 1  # of the prepared folder; raise it when what is written changes, and older folders are prepared again
ClassImages = Iterator[tuple[str, np.ndarray]]  # class name, its images uint8 [n, ...]
logger = logging.getLogger(__name__)


class ImageSet(NamedTuple):
    """``images``: memory-mapped, read-only, uint8 [num_images, ...]; class after class, ``counts[c]`` of class c."""

    images: np.ndarray
    names: tuple[str, ...]
    counts: np.ndarray
    sha256: str


def load_prepared(folder: Path, image_shape: tuple[int, ...]) -> ImageSet:
    """The image set in ``folder``. Checks the sizes against the index and not the content, so it costs no reading."""
    if not folder.exists():
        raise MissingDataError(f"{folder} does not exist.")
    try:
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        if index["format"] != FORMAT:
            raise DataError(f"{folder} has format {index['format']}, this version of metarun reads {FORMAT}.")
        images = np.lib.format.open_memmap(folder / "images.npy", mode="r")
        names, counts = zip(*index["classes"], strict=True)
        found = (images.dtype, images.shape, (folder / "images.npy").stat().st_size)
        expected = (np.dtype(np.uint8), (sum(counts), *image_shape), images.offset + images.size)
        if found != expected:
            raise DataError(f"{folder}/images.npy has dtype, shape and bytes {found}, its index demands {expected}.")
        return ImageSet(images, names, np.array(counts, dtype=np.int64), str(index["sha256"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder} is damaged: {error}") from error


def verify(image_set: ImageSet) -> None:
    """Read all of it again; raises DataError unless the bytes are those that were prepared."""
    digest = hashlib.sha256()
    for start in range(0, len(image_set.images), 1024):
        digest.update(image_set.images[start : start + 1024].tobytes())
    if digest.hexdigest() != image_set.sha256:
        folder = Path(str(image_set.images.filename)).parent  # type: ignore[attr-defined]
        raise DataError(
            f"{folder} has changed since it was prepared: its content has sha256 {digest.hexdigest()}, its index says "
            f"{image_set.sha256}. Delete the folder; it is prepared again from the files it was made of."
        )


class Found(Exception):
    """What ``prepared`` came upon while ``looking``."""

    def __init__(self, state: str, folder: Path) -> None:
        self.state, self.folder = state, folder


def looking() -> AbstractContextManager[None]:
    """Inside, ``prepared`` prepares nothing: it raises Found, or MissingDataError where there is nothing to prepare from."""
    return set_var(modes.looking, True)


def _look(folder: Path, image_shape: tuple[int, ...], require: Callable[[], None]) -> Found:
    try:
        load_prepared(folder, image_shape)
        return Found("ready", folder)
    except (MissingDataError, DataError):
        require()
        return Found("raw files found", folder)


def prepared(
    folder: Path, image_shape: tuple[int, ...], require: Callable[[], None], read: Callable[[], ClassImages]
) -> ImageSet:
    """The image set in ``folder``; on first use, or when it is damaged, written from ``read()``.

    ``require`` raises MissingDataError when ``read`` has nothing to read. Any number of processes may call this at
    once: one prepares, the others wait for it. Whatever happens, no folder is left half prepared.
    """
    if modes.looking.get():
        raise _look(folder, image_shape, require)
    try:
        return load_prepared(folder, image_shape)
    except MissingDataError:
        require()
    except DataError as damage:
        try:
            require()
        except MissingDataError as missing:
            raise DataError(f"{damage} It cannot be prepared again: {missing}") from missing
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with exclusive(folder.parent / f".{folder.name}.lock"):
            return _prepare(folder, image_shape, read)
    except MissingDataError:
        raise
    except OSError as error:
        raise DataError(
            f"could not write the prepared images {folder}: {error}. Free some space there, make the folder writable, "
            "or name another one with data_root (or METARUN_DATA)."
        ) from error


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the lock file ``path``, waiting for whoever does. The system frees it when its holder ends or dies."""
    with open(path, "ab") as file:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _prepare(folder: Path, image_shape: tuple[int, ...], read: Callable[[], ClassImages]) -> ImageSet:
    try:
        return load_prepared(folder, image_shape)  # another process finished while this one waited for the lock
    except (MissingDataError, DataError) as reason:
        logger.info("Preparing %s, once (%s)", folder, reason)
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    if fcntl is not None:  # we hold the lock, so these belong to processes that were killed
        for stale in folder.parent.glob(f".{folder.name}.*.partial"):
            shutil.rmtree(stale)
    try:
        partial.mkdir()
        _write(partial, image_shape, read())
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
        _sync_folder(folder.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return load_prepared(folder, image_shape)


def _write(folder: Path, image_shape: tuple[int, ...], classes: ClassImages) -> None:
    counts: list[tuple[str, int]] = []
    digest = hashlib.sha256()
    with open(folder / "images.npy", "wb") as file:
        _write_header(file, (0, *image_shape))  # numpy pads the header, so that the first axis may grow in place
        start = file.tell()
        for name, images in classes:
            assert images.dtype == np.uint8 and images.shape[1:] == image_shape, (name, images.dtype, images.shape)
            content = images.tobytes()
            file.write(content)
            digest.update(content)
            counts.append((name, len(images)))
        file.seek(0)
        _write_header(file, (sum(n for _, n in counts), *image_shape))
        assert file.tell() == start, "the npy header changed its length"
        _sync(file)
    index = {"format": FORMAT, "sha256": digest.hexdigest(), "classes": counts}
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
