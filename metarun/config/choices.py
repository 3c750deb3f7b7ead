"""Which option of a group a part of a kept configuration is, found by its target or, of a user's own, by an override."""

import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import yaml

from metarun.config.help import ORDER, options
from metarun.paths import config_dir

TARGET = re.compile(r"^_target_:\s*(\S+)", re.MULTILINE)


def option_of(group: str, node: Any, overrides: Sequence[str] = ()) -> str:
    """The option of ``group`` that ``node`` was made from, one of the user's own by its name in the run's ``overrides``.

    Where neither metarun nor the overrides have its name, it is that of its class.
    """
    if not isinstance(node, Mapping) or not isinstance(target := node.get("_target_"), str):
        return ""
    by_target = _options_by_target(group)
    said = [text.partition("=")[2] for text in overrides if text.lstrip("+").startswith(f"{group}=")]
    if said and not any(said[-1] in names for names in by_target.values()):
        return said[-1]
    known = by_target.get(target, [])
    if len(known) > 1:  # one class serves several options, as the mechanical systems
        return min(known, key=lambda option: _differences(_node(group, option), node))
    return known[0] if known else target.rpartition(".")[2].lower()


def options_of(config: Mapping[str, Any]) -> list[str]:
    """The overrides GROUP=NAME that choose the options of a kept configuration, where metarun has them."""
    found = {group: option_of(group, config.get(group)) for group in ORDER}
    return [f"{group}={name}" for group, name in found.items() if name and name in options(group)]


@cache
def _options_by_target(group: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for option in options(group):
        if match := TARGET.search((config_dir() / group / f"{option}.yaml").read_text()):
            found.setdefault(match[1], []).append(option)
    return found


@cache
def _node(group: str, option: str) -> dict[str, Any]:
    return yaml.safe_load((config_dir() / group / f"{option}.yaml").read_text())


def _differences(option: Any, node: Any) -> int:
    """How many of the option's values the node does not have."""
    if isinstance(option, Mapping):
        inside: Mapping[Any, Any] = node if isinstance(node, Mapping) else {}
        return sum(_differences(value, inside.get(key)) for key, value in option.items() if key != "defaults")
    return option != node
