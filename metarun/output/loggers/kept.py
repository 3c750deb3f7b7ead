"""What loggers share: what they keep in the run folder to go on with, and how services take numbers and pictures."""

import importlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from metarun.files import read_json, write_json
from metarun.output.sink import Sink


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


class LogsToARun(Sink):
    """A logger whose ``package`` has a run that takes numbers and the package's images by ``log``."""

    run: Any

    def write(self, step: int, values: dict[str, float]) -> None:
        self.run.log(values, step=step)

    def image(self, name: str, grid: Tensor, step: int) -> None:
        self._picture(name, picture(grid), step)

    def figure(self, name: str, figure: Any, step: int) -> None:
        self._picture(name, picture_of_figure(figure), step)

    def _picture(self, name: str, shown: Image.Image, step: int) -> None:
        self.run.log({name: importlib.import_module(self.package).Image(shown)}, step=step)


def picture(grid: Tensor) -> Image.Image:
    """The picture of a tensor [channels, height, width] with values from 0 to 1."""
    pixels = (grid.float().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def picture_of_figure(figure: Any) -> Image.Image:
    """The picture of a figure of matplotlib."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=150)
    return Image.open(file)
