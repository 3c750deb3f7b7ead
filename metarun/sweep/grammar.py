"""From the overrides of a sweep, in Hydra's grammar, to those of each run."""

import re
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, IntervalSweep, Override
from hydra.errors import HydraException
from omegaconf import OmegaConf

from metarun.config.explain import explained, option_names
from metarun.config.names import names_as_text
from metarun.config.overrides import refuse_sweeps_without_end, written
from metarun.errors import ConfigError


def combinations(overrides: list[str], config_dirs: Sequence[Path] = ()) -> list[list[str]]:
    """The overrides of each run, in the order of their first mention, each combination once. Raises ConfigError."""
    spanned = [understood(text, config_dirs) for text in overrides]
    refuse_sweeps_without_end(spanned)
    jobs = product(*(values(override) for override in spanned))
    return [list(job) for job in dict.fromkeys(jobs)]


def varying(jobs: list[list[str]]) -> list[list[str]]:
    """The overrides of each job that not all share; all of them where there is only one."""
    if len(jobs) == 1:
        return jobs
    shared = set.intersection(*map(set, jobs))
    return [[text for text in overrides if text not in shared] for overrides in jobs]


def understood(text: str, config_dirs: Sequence[Path]) -> Override:
    """An override, with names in the place of glob(...). Raises ConfigError."""
    return _parsed(_without_glob(text, config_dirs))


def values(override: Override) -> list[str]:
    """The override with each value that it spans."""
    value = override.value()
    if isinstance(value, IntervalSweep):
        rule = "a sweep takes those that you name, by a comma, choice(...) or range(...)"
        other = "metarun search chooses within an interval"
        raise ConfigError([f"{written(override)}: an interval has values without end; {rule}; {other}."])
    if not override.is_sweep_override():
        return [written(override)]
    return [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]


def _without_glob(text: str, config_dirs: Sequence[Path]) -> str:
    """``text`` with the options that glob(...) matches in its place."""
    override = _parsed(text)
    glob = override.value()
    if not isinstance(glob, Glob):
        return text
    group = "task" if override.key_or_group == "evaluation.task" else override.key_or_group
    if not (names := option_names(group, list(config_dirs))):
        raise ConfigError([f"{text}: glob(...) chooses among the options of a group, and {group} is none."])
    if not (matching := glob.filter(names)):
        raise ConfigError([f"{text}: it matches none of {', '.join(names)}."])
    return f"{override.get_key_element()}=choice({','.join(matching)})"


def _parsed(text: str) -> Override:
    try:
        return OverridesParser.create().parse_override(names_as_text(text))
    except (HydraException, AssertionError) as error:
        if re.search(r"\binterval\(", text):
            raise ConfigError([f"{text}: write interval(LOW,HIGH) with two numbers, the lower one first."]) from None
        raise ConfigError([explained(text, error, OmegaConf.create({}), [])]) from None
