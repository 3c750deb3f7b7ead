"""Small images for the tests of data sets, one colour each, so that an image can be told after any preparation."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from metarun.tasks.augmentation import NONE

SIZES = {"num_ways": 2, "num_shots": 1, "num_queries": 1}
SHARED = {"train_num_ways": None, "train_num_shots": None, "train_num_queries": None, "augmentation": NONE, "seed": 0}
PLACE = {"device": torch.device("cpu"), "dtype": torch.float64}


def arguments(root: Path, **changed) -> dict:
    """What every image task takes."""
    return {**SIZES, **SHARED, **PLACE, "data_root": str(root), **changed}


def colour(*key: object) -> tuple[int, int, int]:
    """A colour for each key."""
    return tuple(int(value) for value in np.random.default_rng([*"".join(map(str, key)).encode()]).integers(0, 256, 3))


def picture(path: Path, rgb: tuple[int, int, int], size: tuple[int, int] = (20, 30)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, rgb).save(path)


def png(rgb: tuple[int, int, int], size: tuple[int, int] = (20, 30)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, rgb).save(file, "PNG")
    return file.getvalue()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def page(path: Path) -> None:
    path.write_text("<html>404: Not Found</html>")


def empty(path: Path) -> None:
    path.write_bytes(b"")


DAMAGES: list[Callable[[Path], None]] = [cut, page, empty]


def left(root: Path) -> list[str]:
    """What preparing left behind, but for locks."""
    folder = root / "prepared"
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock")) if folder.exists() else []


def limit(cells: int) -> float:
    """About five standard deviations above the mean of a chi-square statistic with cells - 1 degrees of freedom."""
    return cells - 1 + 5 * np.sqrt(2 * (cells - 1))
