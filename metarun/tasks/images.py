"""What the image data sets share: arrays prepared once on disk, episodes drawn over classes, gathering on the device.

A data set is one uint8 array [num_images, ...], class after class, beside an index of its classes and their sizes.

N ways, K shots, Q queries, B episodes
"""

import hashlib
import json
import logging
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from metarun.core import Batch, Draw, TaskDistribution
from metarun.counter import without_replacement
from metarun.modes import holding
from metarun.output.figures import class_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

try:
    import fcntl
except ImportError:  # Windows: the rename below is still atomic; two first runs at once may both prepare
    fcntl = None  # type: ignore[assignment]

FORMAT = 1  # of the prepared folder; raise it when what is written changes, and older folders are prepared again
ClassImages = Iterator[tuple[str, np.ndarray]]  # class name, its images uint8 [n, ...]

logger = logging.getLogger(__name__)


class DataError(ValueError):
    """A data file is not what it should be, or cannot be written."""


class MissingDataError(FileNotFoundError):
    """A data file is not there, and may not be downloaded."""


# ---------------------------------------------------------------------------------------------------- prepared arrays


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


_looking = ContextVar("looking", default=False)


def looking() -> AbstractContextManager[None]:
    """Inside, ``prepared`` prepares nothing: it raises Found, or MissingDataError where there is nothing to prepare from."""
    return holding(_looking, True)


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
    if _looking.get():
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


# ----------------------------------------------------------------------------------------------------------- episodes


class EpisodeSize(NamedTuple):
    """N, K and Q: classes in an episode, support and query images of each."""

    num_ways: int
    num_shots: int
    num_queries: int

    def for_training(self, num_ways: int | None, num_shots: int | None, num_queries: int | None) -> "EpisodeSize":
        """This size with what is not None replaced."""
        chosen = zip(self, (num_ways, num_shots, num_queries), strict=True)
        return EpisodeSize(*(mine if theirs is None else theirs for mine, theirs in chosen))


class Classes(Protocol):
    """A data set in which example follows example, class after class: ``counts[c]`` of class c."""

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the classes."""
        ...

    @property
    def counts(self) -> np.ndarray:
        """How many examples each class has [C]."""
        ...


@dataclass(frozen=True)
class ClassPool:
    """The classes of a split: class c owns the images first[c], ..., first[c] + count[c] - 1."""

    names: tuple[str, ...]
    first: np.ndarray  # [C]
    count: np.ndarray  # [C]

    @staticmethod
    def of(data: "Classes", members: list[bool]) -> "ClassPool":
        """The classes c of ``data`` with members[c], in its order."""
        chosen = np.flatnonzero(members)
        first = np.cumsum(data.counts) - data.counts
        return ClassPool(tuple(data.names[c] for c in chosen), first[chosen], data.counts[chosen])

    def repeated(self, times: int) -> "ClassPool":
        """Every class ``times`` times, as classes of their own: c becomes times * c, ..., times * c + times - 1."""
        names = tuple(name for name in self.names for _ in range(times))
        return ClassPool(names, np.repeat(self.first, times), np.repeat(self.count, times))


def episode_sizes(test: EpisodeSize, *training: int | None) -> dict[str, EpisodeSize]:
    """The sizes of the splits: ``test``, and for "train" with what of ``training`` (N, K, Q) is not None."""
    train = test.for_training(*training)
    check_positive(test, "task.")
    check_positive(train, "task.train_")
    return {"train": train, "val": test, "test": test}


def check_episode_sizes(sizes: dict[str, EpisodeSize], pools: dict[str, ClassPool]) -> None:
    """Raise ValueError unless the pool of every split can fill episodes of its size."""
    for split, pool in pools.items():
        check_episode_size(sizes[split], pool, split, "task." if sizes[split] == sizes["test"] else "task.train_")


class Counts(Protocol):
    """A named tuple of whole numbers."""

    def _asdict(self) -> dict[str, Any]: ...


def check_positive(size: Counts, prefix: str) -> None:
    """Raise ValueError unless all of ``size`` is; ``prefix`` and the field make the configuration key."""
    for key, value in size._asdict().items():
        if value < 1:
            raise ValueError(f"{prefix}{key} is {value}, but an episode needs at least 1. Set it to 1 or more.")


def check_episode_size(size: EpisodeSize, pool: ClassPool, split: str, prefix: str) -> None:
    """Raise ValueError unless ``pool`` can fill episodes of ``size``; ``prefix`` and the field make the key."""
    if size.num_ways < 2:
        raise ValueError(
            f"{prefix}num_ways is {size.num_ways}, but with one class every answer is right. Set it to 2 or more."
        )
    have = len(pool.names)
    if size.num_ways > have:
        raise ValueError(
            f"{prefix}num_ways is {size.num_ways}, but the split {split!r} has only {_counted(have, 'class', 'classes')}. "
            f"{_lower(f'{prefix}num_ways', have, f'the split {split!r} needs more classes')}"
        )
    need, smallest = size.num_shots + size.num_queries, int(np.argmin(pool.count))
    have = int(pool.count[smallest])
    if need > have:
        raise ValueError(
            f"{prefix}num_shots + {prefix}num_queries is {need}, but the class {pool.names[smallest]!r} of the split "
            f"{split!r} has only {_counted(have, 'example', 'examples')}. "
            f"{_lower('their sum', have, 'the class needs more examples')}"
        )


def _counted(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _lower(what: str, most: int, otherwise: str) -> str:
    """The fix: ``what`` at most ``most``, or ``otherwise`` where that is below the 2 that every episode takes."""
    return f"Lower {what} to at most {most}." if most >= 2 else f"An episode takes 2 or more: {otherwise}."


def draw_images(u: np.ndarray, pool: ClassPool, size: EpisodeSize) -> Draw:
    """The choices that the uniforms u [B, N + N * (K + Q)] make: classes [B, N], support [B, N, K], query [B, N, Q].

    ``classes`` are places in ``pool``. Column n has the label n: draws are ordered, so every assignment of labels is
    equally likely. ``support`` and ``query`` are image numbers, drawn together without replacement, hence disjoint.
    """
    ways, shots, queries = size
    classes = without_replacement(u[:, :ways], len(pool.names))  # [B, N]
    ranks = without_replacement(u[:, ways:].reshape(-1, ways, shots + queries), pool.count[classes])
    images = ranks + pool.first[classes][..., None]  # [B, N, K + Q]
    return {"classes": classes, "support": images[..., :shots], "query": images[..., shots:]}


class Pixels(ABC):
    """Images by number, as bytes on the run's device."""

    @abstractmethod
    def take(self, images: np.ndarray) -> Tensor:
        """The images [R], in this order: uint8 [R, channels, height, width]."""


@dataclass(frozen=True)
class OnDevice(Pixels):
    """All of them, uint8 [num_images, channels, height, width]."""

    pixels: Tensor

    def take(self, images: np.ndarray) -> Tensor:
        return self.pixels[torch.from_numpy(images).to(self.pixels.device)]


@dataclass(frozen=True)
class Mapped(Pixels):
    """Read from the memory-mapped array when they are asked for, in the order of the file; they need not fit in memory."""

    images: np.ndarray
    device: torch.device

    def take(self, images: np.ndarray) -> Tensor:
        on_gpu = self.device.type == "cuda"
        rows = torch.empty(len(images), *self.images.shape[1:], dtype=torch.uint8, pin_memory=on_gpu)
        order = np.argsort(images)
        rows.numpy()[order] = self.images[images[order]]
        return rows.to(self.device, non_blocking=on_gpu)


def pixels_on(device: torch.device, images: np.ndarray) -> Pixels:
    """The images [num_images, channels, height, width] for ``device``.

    A CPU reads them from the file, whose pages the system caches and all processes share. A GPU holds them all if they
    take up at most a quarter of its free memory.
    """
    fits = device.type == "cuda" and images.nbytes <= torch.cuda.mem_get_info(device)[0] / 4
    return OnDevice(torch.from_numpy(np.array(images)).to(device)) if fits else Mapped(images, device)


def gather(pixels: Pixels, images: np.ndarray, quarter_turns: np.ndarray) -> Tensor:
    """The images [R]; row r turned counter-clockwise by quarter_turns[r] x 90 degrees."""
    rows = pixels.take(images)
    for turns in range(1, 4):  # turning bytes by group is 4x faster than gathering them by a pixel table
        where = torch.from_numpy(np.flatnonzero(quarter_turns == turns)).to(rows.device)
        if len(where):
            rows[where] = rows[where].rot90(turns, (-2, -1))
    return rows


def class_major_batch(pixels: Pixels, images: np.ndarray, quarter_turns: np.ndarray, dtype: torch.dtype) -> Batch:
    """x [B, N * K, ...] in [0, 1] and y [B, N * K] of images [B, N, K], class n turned by quarter_turns [B, N].

    Class-major: the K examples of class 0 come first, then those of class 1.
    """
    tasks, ways, shots = images.shape
    rows = gather(pixels, images.reshape(-1), np.repeat(quarter_turns.reshape(-1), shots))
    x = rows.reshape(tasks, ways * shots, *rows.shape[1:]).to(dtype).div_(255)
    return Batch(x, class_major_labels(images, rows.device))


def class_major_labels(examples: np.ndarray, device: torch.device) -> Tensor:
    """y [B, N * K] of the examples [B, N, K]: 0 for the first K of an episode, 1 for the next, and so on."""
    tasks, ways, shots = examples.shape
    return torch.arange(ways, device=device).repeat_interleave(shots).repeat(tasks, 1)


def show_classes(task: TaskDistribution, split: str, indices: Sequence[int], names: Sequence[str]) -> "Figure":
    """Those episodes, with the names of their classes: ``names`` by the number that a draw's ``classes`` give."""
    draw = task.draw(split, indices)
    titles = [f"{split} episode {index}" for index in indices]
    return class_figure(task.episodes(draw), titles, [[names[c] for c in classes] for classes in draw["classes"]])
