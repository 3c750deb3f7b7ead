"""What a logger keeps in the run folder to go on with, and pictures as services take them."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from metarun.files import read_json, write_json


def kept_id(folder: Path, service: str, make: Callable[[], str]) -> str:
    """The name that ``service`` knows this run by, of loggers.json; one that ``make`` gives, where there is none yet."""
    path = folder / "loggers.json"
    try:
        known = read_json(path) if path.is_file() else {}
    except ValueError:  # damaged: the service gets a new run
        known = {}
    if not isinstance(known.get(service), str):
        known[service] = make()
        write_json(path, known)
    return known[service]


def picture(grid: Tensor) -> Image.Image:
    """The picture of a tensor [channels, height, width] with values from 0 to 1."""
    pixels = (grid.float().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def picture_of_figure(figure: Any) -> Image.Image:
    """The picture of a figure of matplotlib."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=150)
    return Image.open(file)
