"""The configurations of many jobs: composed once where jobs differ in values alone, and a value changed for each."""

import re
from collections.abc import Collection, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from metarun.config.compose import REFUSALS, composed, parsed
from metarun.config.names import names_as_text
from metarun.errors import ConfigError

ROOT = ["seed", "steps", "meta_batch_size", "dtype", "device", "clip_norm", "clip_value", "log_every"]
ROOT += ["run_dir", "data_root"]
VALUE = re.compile(rf"((?!hydra\.|evaluation\.task)\w+(\.\w+)+|{'|'.join(ROOT)})=.*", re.DOTALL)


class Composer:
    """Composes configurations, and remembers those that differ from others in values alone."""

    def __init__(self, config_dirs: Sequence[Path]) -> None:
        self.config_dirs = list(config_dirs)
        self.bases: dict[tuple[str, ...], DictConfig] = {}

    def __call__(self, overrides: list[str], shared: Collection[str]) -> DictConfig:
        """The configuration of ``overrides``, of which all jobs have ``shared``. Raises ConfigError with every mistake."""
        values = [text for text in overrides if text not in shared and VALUE.fullmatch(text)]
        twice = len({text.partition("=")[0].lstrip("+~") for text in overrides}) < len(overrides)  # which is refused
        if twice or any("evaluation.task" in text for text in overrides):  # these take values over from others
            return composed(overrides, self.config_dirs)
        others = tuple(text for text in overrides if text not in values)
        try:
            return _changed(self.base(others), values)
        except (ConfigError, *REFUSALS):  # which may be of values that stand in each other's way: told as of a run
            return composed(overrides, self.config_dirs)

    def base(self, overrides: tuple[str, ...]) -> DictConfig:
        """What these alone compose, once; not to be changed."""
        if overrides not in self.bases:
            self.bases[overrides] = composed(list(overrides), self.config_dirs)
        return self.bases[overrides]


def _changed(base: DictConfig, values: list[str]) -> DictConfig:
    cfg = base.copy()
    for text in values:
        key, value = _read(text)
        OmegaConf.update(cfg, key, value, merge=True)  # as Hydra does, and refused where the key is not there
    return cfg


@cache
def _read(text: str) -> tuple[str, Any]:
    override = parsed(names_as_text(text))
    return override.key_or_group, override.value()
