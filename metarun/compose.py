"""From the command line to a configuration, by Hydra, with every mistake reported at once."""

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from metarun.errors import ConfigError
from metarun.paths import config_dir
from metarun.schema import Config
from metarun.targets import did_you_mean

# Hydra refuses a group override that is not a name with a bare ValueError.
REFUSALS = (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError)


def register_schema() -> None:
    ConfigStore.instance().store(name="schema", node=Config)


def composed(overrides: list[str], extra_config_dirs: list[Path]) -> DictConfig:
    """The configuration for ``overrides``. Raises ConfigError naming every override that cannot be taken."""
    register_schema()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config_dir()), version_base="1.3", job_name="metarun"):
        prefix = hydra_arguments(extra_config_dirs)
        try:
            cfg = compose("config", prefix + overrides)
        except REFUSALS:
            raise ConfigError(list(_problems(prefix, overrides))) from None
    return cfg


def _problems(prefix: list[str], overrides: list[str]) -> Iterator[str]:
    """Add one override after the other (groups first: they decide which keys exist) and say what is wrong with each."""
    accepted = list(prefix)
    try:
        cfg = compose("config", accepted)
    except REFUSALS as error:
        yield f"the configuration files cannot be read: {_root_cause(error)}"
        return
    groups = set(_groups(cfg))
    for override in sorted(overrides, key=lambda text: text.split("=")[0].lstrip("+~") not in groups):
        try:
            cfg = compose("config", [*accepted, override])
            accepted.append(override)
        except yaml.YAMLError as error:
            yield f"{override}: the file is not YAML: {error}"
        except (HydraException, OmegaConfBaseException, ValueError) as error:
            yield _explained(override, error, cfg)


def _root_cause(error: BaseException) -> str:
    """The innermost message: Hydra wraps what OmegaConf says, sometimes without saying it again."""
    while error.__cause__ is not None and not str(error).strip():
        error = error.__cause__
    return " ".join(str(error).split())


def _groups(cfg: DictConfig) -> Iterator[str]:
    return (str(key) for key in cfg if OmegaConf.is_dict(cfg[key]) or key == "experiment")


def _explained(override: str, error: Exception, cfg: DictConfig) -> str:
    """One line: the value, the rule and the fix."""
    key, _, value = override.partition("=")
    key = key.lstrip("+~")
    if isinstance(error, (MissingConfigException, ValueError)) or "Could not find" in str(error):
        options = _names_in(key)
        hint = did_you_mean(value, options)
        number = any(c.isdigit() for c in value) and not hint
        change = f" To change one of its values write {key}.NAME={value}." if number else ""
        return f"{override}: there is no {key} called {value!r}{hint}; there are {', '.join(options)}.{change}"
    if "is not in struct" in str(error) or ("Key" in str(error) and "not in" in str(error)):
        return unknown_key(key, value, cfg)
    if "mismatched input" in str(error) or "no viable alternative" in str(error) or "extraneous" in str(error):
        return f"{override}: cannot be read as key=value; check quotes, brackets and '=' in the value."
    reason = next((line for line in str(error).splitlines() if "could not be converted" in line), str(error).strip())
    return f"{override}: {reason.splitlines()[0]}" + ("" if reason.endswith(".") else ".")


def unknown_key(key: str, value: str, cfg: DictConfig) -> str:
    """What to say of a key that the configuration does not have."""
    known = [name for name in _keys(cfg) if "_target_" not in name and "_partial_" not in name]
    group = key.split(".", maxsplit=1)[0]
    if group in cfg and OmegaConf.is_dict(cfg[group]) and value in _names_in(group):
        return f"{key}={value}: to choose the {group} write {group}={value}."
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    siblings = [name for name in known if name.rpartition(".")[0] == key.rpartition(".")[0]]
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(siblings or known)}."
    return f"{key} is not a setting; {hint}"


def _names_in(group: str) -> list[str]:
    return sorted(path.stem for path in (config_dir() / group).glob("*.yaml"))


def _keys(node: Any, prefix: str = "") -> Iterator[str]:
    for key in node:
        name = f"{prefix}{key}"
        yield name
        if OmegaConf.is_dict(node) and OmegaConf.is_dict(node._get_node(key)) and node[key] is not None:
            yield from _keys(node[key], name + ".")


def override_key(override: str) -> str:
    """The key that an override sets; raises ConfigError where it cannot be parsed."""
    try:
        return OverridesParser.create().parse_override(override).key_or_group
    except HydraException as error:
        raise ConfigError([_explained(override, error, OmegaConf.create({}))]) from None


def hydra_arguments(folders: list[Path]) -> list[str]:
    """The extra config folders, as an override for Hydra's own entry point."""
    return [_search_path(folders)] if folders else []


def _search_path(folders: list[Path]) -> str:
    return f"hydra.searchpath=[{','.join(f'file://{folder}' for folder in folders)}]"
