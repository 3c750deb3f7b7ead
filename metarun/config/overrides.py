"""Rules for what stands on the command line, whatever the settings are: once each, with an effect, and not without end."""

import math
import shlex
from collections import defaultdict
from typing import Any

from hydra.core.override_parser.types import ChoiceSweep, Override, RangeSweep

from metarun.config.help import ORDER
from metarun.errors import ConfigError
from metarun.process import started_together

MOST_RUNS = 10_000  # of a sweep
INSTEAD = {  # of Hydra's settings, by how they begin
    "hydra.run": "choose a run's folder by run_dir=PATH",
    "hydra.sweep.": "choose a sweep's folder by sweep_dir=PATH",
    "hydra.searchpath": "name a folder of your own by --config-dir DIR",
    "hydra/launcher": "it goes with a sweep: metarun -m hydra/launcher=NAME ...",
    "hydra/sweeper=optuna": "metarun search DIR trials=50 'KEY=interval(A,B)' ... searches by Optuna",
    "hydra/sweeper": "it goes with a sweep: metarun -m hydra/sweeper=NAME ...",
}
SWITCHES = ("exact", "tf32", "profile", "evaluation.fit_images")
NO_NAME: dict[str, Any] = dict.fromkeys(ORDER[:6], list) | {"per_learner": (list, dict), "experiment": dict}  # by group


def with_devices(overrides: list[str]) -> list[str]:
    """The overrides, with the number of processes that torchrun has started."""
    count, said = started_together(), [text for text in overrides if text.startswith("devices=")]
    if count == 1 or said == [f"devices={count}"]:
        return overrides
    if said:
        raise ConfigError([f"{said[0]}: torchrun has started {count} processes; leave out devices."])
    return [*overrides, f"devices={count}"]


def override_problems(overrides: list[Override]) -> list[str]:
    """What is wrong with overrides that Hydra can read: no names of options, given twice, without effect, or misread."""
    found = [*without_names(overrides), *given_twice(overrides), *without_effect_on_a_run(overrides)]
    return found + [problem for override in overrides if (problem := misread(override))]


def misread(override: Override) -> str:
    """What is wrong with a value that OmegaConf takes for another one: a number for true, {} for what is there already."""
    key, value = override.key_or_group, _one(override)
    if key in SWITCHES and isinstance(value, (int, float)) and value not in (0, 1):
        return f"{written(override)}: must be true or false."
    if key in (*ORDER, "rates") and value == {}:
        return f"{written(override)}: an empty mapping changes nothing, for values are added; leave it out."
    return ""


def without_names(overrides: list[Override]) -> list[str]:
    """The lists of options that hold something else than names, and lists and mappings for the name of one."""
    no_name = [override for override in overrides if isinstance(_one(override), NO_NAME.get(override.key_or_group, ()))]
    return [
        f"{written(override)}: must be the name of an option, {override.key_or_group}=NAME." for override in no_name
    ] + [
        f"{written(override)}: {strangers[0]!r} is no name of an option; write {override.key_or_group}=[NAME,NAME]."
        for override in overrides
        if (strangers := [name for name in names_of(override) if not isinstance(name, str)])
    ]


def _one(override: Override) -> Any:
    """The value of an override that sets one; None of a sweep."""
    return None if override.is_sweep_override() or override.is_delete() else override.value()


def names_of(override: Override) -> list[Any]:
    """What an override of a key that takes several options lists; nothing of other overrides."""
    value = override.value() if override.key_or_group in ("experiment", "evaluation.task", "logger") else None
    return value if isinstance(value, list) else []


def given_twice(overrides: list[Override]) -> list[str]:
    """The settings that more than one override sets, and lists of options that name one twice."""
    texts: dict[tuple[str, str | None], list[str]] = defaultdict(list)
    for override in overrides:
        texts[override.key_or_group, override.package].append(written(override))
    problems = [
        f"{key} is given more than once ({' '.join(map(shlex.quote, given))}); keep one of them."
        for (key, _), given in texts.items()
        if len(given) > 1
    ]
    for override in overrides:
        names = [name for name in names_of(override) if isinstance(name, str)]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            problems.append(f"{written(override)}: it names {', '.join(twice)} twice; once is enough.")
    return problems


def without_effect_on_a_run(overrides: list[Override]) -> list[str]:
    """The settings of Hydra's own: they are for programs that it starts, and it does not start metarun's runs."""
    return [
        f"{written(override)}: Hydra's own settings have no effect on a run; {_instead(written(override).lstrip('+~'))}."
        for override in overrides
        if of_hydra(override)
    ]


def of_hydra(override: Override) -> bool:
    """Whether an override sets something of Hydra's own."""
    return override.key_or_group == "hydra" or override.key_or_group.startswith(("hydra.", "hydra/"))


def _instead(key: str) -> str:
    return next((fix for beginning, fix in INSTEAD.items() if key.startswith(beginning)), "leave it out")


def written(override: Override) -> str:
    """The override as it was typed."""
    return override.input_line or override.key_or_group


def refuse_sweeps_without_end(overrides: list[Override]) -> None:
    """Raise ConfigError where a sweep spans no run, or more than anybody waits for; counted, for they may not fit."""
    runs = 1
    for override in overrides:
        if (number := _number_of_values(override)) == 0:
            raise ConfigError([f"{written(override)}: it spans no value, so there is nothing to run."])
        runs *= number
    if runs > MOST_RUNS:
        raise ConfigError([f"the sweep has {runs} runs, but must have {MOST_RUNS} or fewer; make several of it."])


def _number_of_values(override: Override) -> int:
    """How many values an override spans; 1 where it is no sweep, or of a kind that only Hydra can count."""
    values = override.value() if override.is_sweep_override() else None
    if isinstance(values, ChoiceSweep):
        return len(values.list)
    if not isinstance(values, RangeSweep):
        return 1
    start, stop, step = values.start, values.stop, values.step
    if start is None or stop is None or not step or not all(map(math.isfinite, (start, stop, step))):
        raise ConfigError(
            [f"{written(override)}: write range(START,STOP,STEP) with finite numbers and a step beside 0."]
        )
    return max(0, math.ceil((stop - start) / step))
