"""From the command line to a configuration, by Hydra, with every mistake reported at once."""

import difflib
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from metarun.config.help import COMMANDS, options
from metarun.config.names import names_as_text
from metarun.config.schema import Config
from metarun.errors import ConfigError, did_you_mean
from metarun.paths import config_dir

# Hydra refuses a group override that is not a name with a bare ValueError.
REFUSALS = (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError)
# settings of an evaluation task that only its training episodes, which nobody draws, would follow
OF_TRAINING = re.compile(
    r"\+*(?:task/augmentation@)?"
    r"(?P<key>evaluation\.task\.[^.=]+\.(?:train_num_(?:ways|shots|queries)|augmentation(?:\.\w+)?))=(?P<value>.*)"
)
NOTHING = ("null", "none", "false", "0", "0.0")


def register_schema() -> None:
    """Make ``Config`` known to Hydra by the name ``schema``."""
    ConfigStore.instance().store(name="schema", node=Config)


def composed(overrides: list[str], extra_config_dirs: list[Path]) -> DictConfig:
    """The configuration for ``overrides``. Raises ConfigError naming everything that is wrong with them."""
    register_schema()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config_dir()), version_base="1.3", job_name="metarun"):
        prefix = hydra_arguments(extra_config_dirs)
        problems = without_effect(overrides)
        overrides, found = with_evaluation_tasks(overrides, extra_config_dirs)
        problems += found
        try:
            cfg = compose("config", prefix + overrides)
        except REFUSALS:
            cfg, found = _piecewise(prefix, overrides, extra_config_dirs)
            problems += found
    if problems:
        from metarun.config.build import check  # imports torch: only when there is something to tell

        problems += check(cfg) if cfg else []
    problems += [f"{field.name} is needed; ~{field.name} cannot take it away." for field in _missing(cfg)]
    if problems:
        raise ConfigError(problems)
    return cfg


def with_evaluation_tasks(overrides: list[str], folders: list[Path]) -> tuple[list[str], list[str]]:
    """The overrides with evaluation.task=NAME, [A, B] or {a: A} written as Hydra's placement of options of the group
    ``task``, +task@evaluation.task.NAME=NAME; and what is wrong with the names."""
    written: list[str] = []
    problems: list[str] = []
    for text in overrides:
        if text.partition("=")[0] != "evaluation.task" or parsed(text).is_sweep_override():
            written.append(names_as_text(text))
            continue
        value = parsed(text).value()
        chosen = value if isinstance(value, dict) else {str(v).replace("/", "_"): v for v in _listed(value)}
        known = _options("task", folders)
        problems += [
            f"evaluation.{_no_such_option('task', str(v), folders)}" for v in chosen.values() if v not in known
        ]
        written += [f"+task@evaluation.task.{name}={v}" for name, v in chosen.items() if v in known]
    return written, problems


def without_effect(overrides: list[str]) -> list[str]:
    """What is wrong with those that set how a task of ``evaluation.task`` draws its training episodes.

    Overrides alone: an option's own values serve as well where the same option is trained on.
    """
    found = [match for match in map(OF_TRAINING.fullmatch, overrides) if match]
    return [
        f"{match['key']} has no effect: only training draws such episodes; leave it out."
        for match in found
        if match["value"].lower() not in NOTHING
    ]


def _listed(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]


def _missing(cfg: DictConfig) -> list[Any]:
    return [field for field in fields(Config) if cfg and field.name not in cfg]


def _piecewise(prefix: list[str], overrides: list[str], folders: list[Path]) -> tuple[DictConfig, list[str]]:
    """Add one override after the other (groups first: they decide which keys exist); what is accepted, and the rest's
    problems."""
    accepted, problems = list(prefix), []
    try:
        cfg = compose("config", accepted)
    except REFUSALS as error:
        return OmegaConf.create({}), [f"the configuration files do not fit: {' '.join(_said(error))}."]
    groups = {str(key) for key in cfg if OmegaConf.is_dict(cfg[key]) or key == "experiment"}
    for override in sorted(overrides, key=lambda text: text.split("=")[0].lstrip("+~") not in groups):
        try:
            cfg = compose("config", [*accepted, override])
            accepted.append(override)
        except REFUSALS as error:
            problems.append(_explained(override, error, cfg, folders))
    return cfg, problems


def assigned(key: str, value: Any) -> str:
    """``key=value`` as a command line takes it, whatever letters, commas or quotes are in the value."""
    text = str(value)
    if re.fullmatch(r"[\w./~+@%-]+", text, re.ASCII):
        return f"{key}={text}"
    return "{}='{}'".format(key, text.replace("'", "\\'"))


def _said(error: BaseException | None) -> list[str]:
    """The first line of each message from Hydra's to the innermost: the reason is often only in the last."""
    lines = []
    while error is not None:
        lines.append((str(error).strip().splitlines() or [type(error).__name__])[0].strip().rstrip("."))
        error = error.__cause__
    return lines


def _explained(override: str, error: BaseException, cfg: DictConfig, folders: list[Path]) -> str:  # noqa: PLR0911
    """One line: the value, the rule and the fix."""
    key, separator, value = override.partition("=")
    said = _said(error)
    if not separator:
        hint = did_you_mean(override, COMMANDS) or "."
        return f"{override}: cannot be read as KEY=VALUE{hint}"
    if isinstance(error, yaml.YAMLError):
        return f"{override}: the file is not YAML: {' '.join(str(error).split())}."
    if "Could not find" in said[0] or "Config group override must be" in said[0]:
        return _no_such_option(key.lstrip("+~"), value, folders)
    if any("not in struct" in line or "' not in '" in line for line in said):
        return unknown_key(key, value, cfg)
    if any(
        sign in str(error)
        for sign in ("mismatched input", "no viable alternative", "extraneous input", "LexerNoViableAlt")
    ):
        return f"{override}: cannot be read as KEY=VALUE; quote what is not plain: \"{key}='...'\"."
    if "Ambiguous value" in said[0]:
        return f"{override}: several values are a sweep, metarun -m {override}; one list is written {key}=[{value}]."
    if "Could not append" in said[0]:
        return f"{override}: there is a {key.lstrip('+')} already; leave out the '+' to change it."
    return f"{override}: {said[-1]}."


def _no_such_option(group: str, value: str, folders: list[Path]) -> str:
    names = _options(group, folders)
    if not names:
        return f"{group}={value}: {group} is not a group of the configuration."
    hint = did_you_mean(value, names)
    number = any(c.isdigit() for c in value) and not hint
    change = f" To change one of its values write {group}.NAME={value}." if number else ""
    return f"{group}={value}: there is no {group} called {value!r}{hint}; there are {', '.join(names)}.{change}"


def _options(group: str, folders: list[Path]) -> list[str]:
    return sorted({name for folder in (config_dir(), *folders) for name in options(group, folder)})


def unknown_key(key: str, value: str, cfg: DictConfig) -> str:
    """What to say of a key that the configuration does not have."""
    group, _, name = key.rpartition(".")
    root = key.split(".", maxsplit=1)[0]
    for choice in (name, value):
        if root in cfg and choice in options(root):
            return f"{key}={value}: to choose the {root} write {root}={choice}."
    known = [text for text in _keys(cfg) if "_target_" not in text and "_partial_" not in text]
    siblings = [text for text in known if text.rpartition(".")[0] == group]
    close = difflib.get_close_matches(key, [str(name) for name in cfg], n=1, cutoff=0.75) if not group else []
    close = close or difflib.get_close_matches(key, siblings, n=1, cutoff=0.6)
    close = close or [text for text in known if text.rpartition(".")[2] == name]  # the right name in another place
    close = close or difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    choices = siblings or [str(name) for name in cfg]
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(choices)}."
    return f"{key} is not a setting; {hint}"


def _keys(node: Any, prefix: str = "") -> Iterator[str]:
    for key in node:
        name = f"{prefix}{key}"
        if OmegaConf.is_dict(node) and OmegaConf.is_dict(node._get_node(key)) and node[key] is not None:
            yield from _keys(node[key], name + ".")
        else:
            yield name


def parsed(override: str) -> Override:
    """An override in Hydra's grammar; raises ConfigError where it is none."""
    try:
        return OverridesParser.create().parse_override(override)
    except HydraException as error:
        raise ConfigError([_explained(override, error, OmegaConf.create({}), [])]) from None


def override_key(override: str) -> str:
    """The key that an override sets; raises ConfigError where it cannot be parsed."""
    return parsed(override).key_or_group


def read_config(path: Path) -> DictConfig:
    """The configuration of an earlier run, typed as when it was composed."""
    try:
        cfg = OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.load(path))
    except (OmegaConfBaseException, yaml.YAMLError, OSError) as error:
        raise ConfigError([f"{path} cannot be read: {_said(error)[-1]}."]) from None
    assert isinstance(cfg, DictConfig)
    OmegaConf.set_struct(cfg, True)
    return cfg


def with_value(cfg: DictConfig, override: str) -> DictConfig:
    """``cfg`` with the one value that ``override`` sets; raises ConfigError if it has no such key or another type."""
    key, change = override.partition("=")[0], parsed(names_as_text(override))
    if change.is_sweep_override() or change.is_add() or change.is_delete():
        raise ConfigError([f"{override}: write KEY=VALUE with one value of a setting that the run has."])
    cfg = cfg.copy()
    try:
        OmegaConf.update(cfg, key, change.value(), merge=True)
    except OmegaConfBaseException as error:
        raise ConfigError([_explained(override, error, cfg, [])]) from None
    return cfg


def hydra_arguments(folders: list[Path]) -> list[str]:
    """The extra config folders, as an override for Hydra's own entry point."""
    return [f"hydra.searchpath=[{','.join(f'file://{folder}' for folder in folders)}]"] if folders else []
