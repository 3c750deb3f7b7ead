"""The settings of evaluation tasks: what they take over from the training task, and which have no effect on them."""

import inspect
from collections import defaultdict
from collections.abc import Collection, Mapping
from copy import deepcopy
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf

from metarun.config.choices import option_of
from metarun.config.targets import locate

PLACE = "evaluation.task."
NOTHING = (None, 0, "none")  # false, too


def named(value: Any) -> dict[str, Any]:
    """The options of ``evaluation.task=VALUE`` by the names of their nodes: of NAME, [A, B] or {a: A}."""
    if isinstance(value, dict):
        return value
    each = [] if value is None else value if isinstance(value, list) else [value]
    return {str(option).replace("/", "_"): option for option in each}


def with_training_settings(cfg: DictConfig, overrides: list[Override]) -> DictConfig:
    """``cfg``, composed of ``overrides``, where evaluation tasks have taken over what they take of the training task."""
    training = OmegaConf.to_container(cfg.task) if OmegaConf.is_dict(cfg.get("task")) else None
    return inheriting(cfg, training, option_trained_on(overrides, training), overrides)


def option_trained_on(overrides: list[Override], node: Any) -> str:
    """The option of the group ``task`` that ``overrides`` choose, or else that of which the training task's ``node`` is."""
    chosen = [override.value() for override in overrides if override.key_or_group == "task" and not override.package]
    return str(chosen[-1]) if chosen else option_of("task", node)


def inheriting(cfg: DictConfig, training: Any, option: str, overrides: list[Override]) -> DictConfig:
    """``cfg``, where each evaluation task that ``overrides`` choose of the ``option`` trained on has the settings of
    ``training``, the training task's node: all but those of training alone, and those that ``overrides`` give it."""
    nodes, settings = _nodes(cfg), given(overrides)
    for name, chosen in _chosen(overrides).items():
        if chosen != option or name not in nodes or not isinstance(training, dict):
            continue
        own, node = nodes[name], deepcopy(training)
        for path in [*of_training(own), *settings.get(name, {})]:
            _keep(node, own, path)
        cfg.evaluation.task[name] = node
    return cfg


def without_effect(cfg: DictConfig, overrides: list[Override]) -> list[str]:
    """What is wrong with those that set how a task of ``evaluation.task`` draws its training episodes.

    Overrides alone: an option's own values serve as well where the same option is trained on.
    """
    nodes = _nodes(cfg)
    return [
        f"{PLACE}{name}.{path} has no effect: only training draws such episodes; leave it out."
        for name, settings in given(overrides).items()
        for path, value in settings.items()
        if path.partition(".")[0] in of_training(nodes.get(name)) and value not in NOTHING
    ]


def of_training(node: Any) -> Collection[str]:
    """The settings of a task's ``node`` that its training episodes alone follow, as its class declares them."""
    from metarun.core import TaskDistribution  # with torch: only where a task elsewhere is named

    try:
        target: Any = locate(node["_target_"], TaskDistribution)
    except (ValueError, KeyError, TypeError, AttributeError):  # which is told where it is built
        target = TaskDistribution
    made = target if inspect.isclass(target) else inspect.signature(target).return_annotation
    return getattr(made, "of_training", TaskDistribution.of_training)


def given(overrides: list[Override]) -> dict[str, dict[str, Any]]:
    """The settings that ``overrides`` give an evaluation task, by its name: their paths inside its node, and values."""
    found: dict[str, dict[str, Any]] = defaultdict(dict)
    for override in overrides:
        name, _, path = _inside(override).partition(".")
        value = override.value() if name else None
        if path:
            found[name][path] = value
        elif isinstance(value, dict):
            found[name] |= value
    return found


def keys_of_tasks(overrides: list[Override]) -> set[str]:
    """The settings that ``overrides`` give the training task or evaluation tasks, by their whole keys."""
    elsewhere = {f"{PLACE}{name}.{path}" for name, settings in given(overrides).items() for path in settings}
    return elsewhere | {override.key_or_group for override in overrides}


def _chosen(overrides: list[Override]) -> dict[str, Any]:
    """The options that overrides choose for evaluation tasks, by the names of these."""
    found: dict[str, Any] = {}
    for override in overrides:
        if override.key_or_group == "evaluation.task" and not override.is_sweep_override():
            found |= named(override.value())
        elif override.key_or_group == "task" and (name := _inside(override)):
            found[name] = override.value()
    return found


def _inside(override: Override) -> str:
    """Where an override belongs below ``evaluation.task``; empty where elsewhere."""
    place = override.package or override.key_or_group
    return place.removeprefix(PLACE) if place.startswith(PLACE) else ""


def _nodes(cfg: DictConfig) -> dict[str, Any]:
    nodes = OmegaConf.select(cfg, "evaluation.task") if cfg else None
    return OmegaConf.to_container(nodes) if OmegaConf.is_dict(nodes) else {}  # type: ignore[return-value]


def _keep(node: dict[str, Any], own: Mapping[str, Any], path: str) -> None:
    """Give ``node`` the value at ``path`` in ``own``, where that has one."""
    first, _, rest = path.partition(".")
    if rest and isinstance(own.get(first), dict) and isinstance(node.get(first), dict):
        _keep(node[first], own[first], rest)
    elif first in own:
        node[first] = own[first]
