"""What a search varies: overrides in Hydra's grammar, as parameters that an optimiser samples."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from metarun.annotations import conforms
from metarun.config.overrides import given_twice, refuse_sweeps_without_end, written
from metarun.config.schema import Config, EvaluationConfig
from metarun.config.targets import locate, types_of
from metarun.errors import ConfigError, did_you_mean
from metarun.sweep.grammar import understood, values
from metarun.sweep.identity import NO_EFFECT

LOG_RATIO = 10  # between the ends of an interval, from which on it is searched by its logarithm
DIGITS = 6  # of a value, so that folders have names that can be read
SCALES = ("log", "linear")  # tags
TYPED = {"": Config, "evaluation": EvaluationConfig}
NO_CHOICE = dict.fromkeys(NO_EFFECT, "it has no effect on the scores")
NO_CHOICE |= {"seed": "the best seed is luck; the winner runs over fresh ones, seeds=N"}


@dataclass(frozen=True)
class Choice:
    """One of some values, which have no order."""

    key: str
    options: tuple[str, ...]  # as they stand in an override

    def sampled(self, trial: Any) -> str:
        """The value of a trial of Optuna's, as it stands in an override."""
        return trial.suggest_categorical(self.key, self.options)

    def ends(self) -> tuple[str, ...]:
        """The values at which it is checked that runs can begin."""
        return self.options

    def __str__(self) -> str:
        return f"one of {', '.join(self.options)}"


@dataclass(frozen=True)
class Numbers:
    """A number from ``low`` to ``high``, in steps of ``step`` where that is not 0."""

    key: str
    low: float
    high: float
    step: float = 0.0
    whole: bool = False
    log: bool = False

    def sampled(self, trial: Any) -> str:
        """The value of a trial of Optuna's, as it stands in an override."""
        if self.whole:
            low, high, step = int(self.low), int(self.high), int(self.step) or 1
            return str(trial.suggest_int(self.key, low, high, step=step, log=self.log))
        return _text(trial.suggest_float(self.key, self.low, self.high, step=self.step or None, log=self.log))

    def ends(self) -> tuple[str, ...]:
        """The values at which it is checked that runs can begin."""
        second = [self.low + self.step] if self.low + self.step < self.high else []  # the first that may be a fraction
        ends = dict.fromkeys([self.low, *(second if self.step else []), self.high])
        return tuple(str(int(end)) if self.whole else _text(end) for end in ends)

    def __str__(self) -> str:
        low, high = self.ends()[0], self.ends()[-1]
        steps = f" in steps of {self.step:g}" if self.step else ""
        return f"{'whole numbers ' if self.whole else ''}from {low} to {high}{steps}{', by its logarithm' * self.log}"


Parameter = Choice | Numbers


def _text(value: float) -> str:
    return f"{value:.{DIGITS}g}"


def divided(words: Sequence[str], config_dirs: Sequence[Path]) -> tuple[list[Override], list[str]]:
    """The overrides that a search varies, and the texts of those that all trials share. Raises ConfigError."""
    overrides = [understood(text, config_dirs) for text in words]
    if problems := given_twice(overrides):
        raise ConfigError(problems)
    varied = [override for override in overrides if override.is_sweep_override()]
    for override in varied:
        refuse_sweeps_without_end([override])
    if not varied:
        raise ConfigError(["nothing varies: give a setting several values, optimizer.lr=interval(1e-4,1e-2), say."])
    if problems := [problem for override in varied if (problem := _no_choice(override) or _no_effect(override))]:
        raise ConfigError(problems)
    return varied, [written(override) for override in overrides if override not in varied]


def _no_choice(override: Override) -> str:
    """Why a search cannot decide about a setting; empty where it can."""
    key = override.key_or_group
    why = NO_CHOICE.get(key.split(".", maxsplit=1)[0], "")
    if key.split(".")[0] == "evaluation" and key != "evaluation.inner_steps":
        why = "trials are compared by their scores, so all are scored alike"
    return f"{written(override)}: {why}. Give it one value." if why else ""


def _no_effect(override: Override) -> str:
    """What is wrong with the tags and the order that Hydra's grammar gives values; empty where nothing is."""
    value: Any = override.value()
    scales = sorted(value.tags) if isinstance(value, IntervalSweep) else []
    if strange := sorted(value.tags - {*SCALES}):
        close = did_you_mean(strange[0], SCALES)
        return (
            f"{written(override)}: a search knows no tag {strange[0]!r}; write tag(log,...) or tag(linear,...){close}"
        )
    if value.tags and len(scales) != 1:
        why = "an interval has one scale" if scales else "scales are of intervals, and these values have none"
        return f"{written(override)}: {why}. Leave out {'one of the tags' if scales else 'the tag'}."
    if getattr(value, "shuffle", False):
        return f"{written(override)}: a search chooses in its own order. Leave out shuffle(...)."
    return ""


def first_options(varied: Sequence[Override]) -> list[str]:
    """A value of each override that names its values; intervals are left out."""
    return [values(override)[0] for override in varied if not isinstance(override.value(), IntervalSweep)]


def parameters(varied: Sequence[Override], cfg: DictConfig) -> list[Parameter]:
    """What ``varied`` spans; intervals of settings that are whole numbers by the classes of ``cfg`` have whole numbers."""
    found = [_parameter(override, cfg) for override in varied]
    if all(len(parameter.ends()) == 1 for parameter in found):
        raise ConfigError([f"nothing varies: {' '.join(map(written, varied))} has one value. Give a setting several."])
    return found


def _parameter(override: Override, cfg: DictConfig) -> Parameter:
    key, value = override.get_key_element(), override.value()
    if isinstance(value, IntervalSweep):
        return _interval(override, value, _is_whole(override.key_or_group, cfg))
    if isinstance(value, RangeSweep) and value.step > 0:
        numbers = [*value.range()]  # some, or it would have been refused
        whole = all(isinstance(number, int) for number in numbers)
        return Numbers(key, numbers[0], numbers[-1], value.step, whole)
    return Choice(key, tuple(dict.fromkeys(text.partition("=")[2] for text in values(override))))


def _is_whole(key: str, cfg: DictConfig) -> bool:
    """Whether a setting is a whole number: by its type, or where it has none by its value."""
    parent, _, name = key.rpartition(".")
    kind = _types(OmegaConf.select(cfg, parent) if parent else cfg, parent).get(name, Any)
    if kind is not Any and conforms(1, kind):
        return not conforms(0.5, kind)
    usual = OmegaConf.select(cfg, key)
    return isinstance(usual, int) and not isinstance(usual, bool)


def _types(node: Any, key: str) -> dict[str, Any]:
    """The types of the settings of a node."""
    if key in TYPED:
        return get_type_hints(TYPED[key])
    try:
        return types_of(locate(node["_target_"]))
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        OmegaConfBaseException,
    ):  # no class, or told where it is built
        return {}


def _interval(override: Override, value: IntervalSweep, of_whole: bool) -> Numbers:
    low, high = value.start, value.end
    if low is None or high is None or not -math.inf < low < high < math.inf:
        raise ConfigError([f"{written(override)}: write interval(LOW,HIGH) with finite numbers, the lower one first."])
    if "log" in value.tags and low <= 0:
        raise ConfigError([f"{written(override)}: by its logarithm, the ends of an interval must be above 0."])
    log = "log" in value.tags or ("linear" not in value.tags and low > 0 and high / low >= LOG_RATIO)
    whole = low == int(low) and high == int(high) and (of_whole or isinstance(low, int))
    return Numbers(override.get_key_element(), low, high, whole=whole, log=log)
