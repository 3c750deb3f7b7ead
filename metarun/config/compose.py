"""From the command line to a configuration, by Hydra, with every mistake reported at once."""

import re
from dataclasses import fields
from functools import cache
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

from metarun.config.elsewhere import named, with_training_settings, without_effect
from metarun.config.explain import explained, no_such_option, option_names, said
from metarun.config.names import names_as_text
from metarun.config.overrides import misread, of_hydra, override_problems, without_names
from metarun.config.schema import Config
from metarun.config.yaml_files import refuse_bombs
from metarun.errors import ConfigError, shortened
from metarun.paths import config_dir

# Hydra refuses a group override that is not a name with a bare ValueError, and an empty one with an AssertionError.
REFUSALS = (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError, OSError, RecursionError, AssertionError)
ALWAYS = (
    "seed",
    "steps",
    "task",
    "base_learner",
    "meta_learner",
    "optimizer",
    "scheduler",
)  # in every run's config.yaml
LOGGER_ONCE = {
    "tensorboard": {"_target_": "metarun.output.loggers.tensorboard.TensorBoard"}
}  # of every run, before there were others


@cache
def register_schema() -> None:
    """Make ``Config`` known to Hydra by the name ``schema``."""
    ConfigStore.instance().store(name="schema", node=Config)


def composed(overrides: list[str], extra_config_dirs: list[Path]) -> DictConfig:
    """The configuration for ``overrides``. Raises ConfigError naming everything that is wrong with them."""
    register_schema()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(config_dir()), version_base="1.3", job_name="metarun"):
        prefix = hydra_arguments(extra_config_dirs)
        problems = override_problems(readable(overrides))
        if problems:  # what is told already would be told again, and Hydra would stumble over lists of what is no name
            overrides = [text for text in overrides if not any(map(_is_told, readable([text])))]
        overrides, found = with_evaluation_tasks(overrides, extra_config_dirs)
        problems += found
        try:
            cfg = compose("config", prefix + overrides)
        except REFUSALS:
            cfg, found = _piecewise(prefix, overrides, extra_config_dirs)
            problems += found
    if cfg:
        read = readable(overrides)
        problems += without_effect(cfg, read)
        cfg = with_training_settings(cfg, read)
    if problems:
        from metarun.config.build import check  # imports torch: only when there is something to tell

        problems += check(cfg) if cfg else []
    problems += [f"{field.name} is needed; ~{field.name} cannot take it away." for field in _missing(cfg)]
    if problems:
        raise ConfigError(problems)
    return cfg


def _is_told(override: Override) -> bool:
    """Whether ``override_problems`` say all that is wrong with an override."""
    return of_hydra(override) or bool(without_names([override]))


def show(cfg: DictConfig, package: str | None, resolve: bool) -> None:
    """Print a configuration, or a part of it, as Hydra does."""
    shown = OmegaConf.select(cfg, package) if package else cfg
    if not OmegaConf.is_config(shown):
        print("null" if shown is None else shown)
        return
    print(f"# @package {package}\n" if package else "", OmegaConf.to_yaml(shown, resolve=resolve), sep="", end="")


def with_evaluation_tasks(overrides: list[str], folders: list[Path]) -> tuple[list[str], list[str]]:
    """The overrides with evaluation.task=NAME, [A, B] or {a: A} written as Hydra's placement of options of the group
    ``task``, +task@evaluation.task.NAME=NAME; and what is wrong with the names."""
    written: list[str] = []
    problems: list[str] = []
    for text in overrides:
        if text.partition("=")[0] != "evaluation.task" or parsed(text).is_sweep_override():
            written.append(names_as_text(text))
            continue
        chosen = named(parsed(text).value())
        known = option_names("task", folders)
        problems += [f"evaluation.{no_such_option('task', str(v), folders)}" for v in chosen.values() if v not in known]
        written += [f"+task@evaluation.task.{name}={v}" for name, v in chosen.items() if v in known]
    return written, problems


def _missing(cfg: DictConfig) -> list[Any]:
    return [field for field in fields(Config) if cfg and field.name not in cfg]


def _piecewise(prefix: list[str], overrides: list[str], folders: list[Path]) -> tuple[DictConfig, list[str]]:
    """Add one override after the other (groups first: they decide which keys exist); what is accepted, and the rest's
    problems."""
    accepted, problems = list(prefix), []
    try:
        cfg = compose("config", accepted)
    except REFUSALS as error:
        return OmegaConf.create({}), [f"the configuration files do not fit: {' '.join(said(error))}."]
    groups = {str(key) for key in cfg if OmegaConf.is_dict(cfg[key]) or key == "experiment"}
    for override in sorted(overrides, key=lambda text: text.split("=")[0].lstrip("+~") not in groups):
        try:
            cfg = compose("config", [*accepted, override])
            accepted.append(override)
        except REFUSALS as error:
            problems.append(explained(override, error, cfg, folders))
    return cfg, problems


def assigned(key: str, value: Any) -> str:
    """``key=value`` as a command line takes it, whatever letters, commas or quotes are in the value."""
    text = str(value)
    plain = re.fullmatch(r"[\w./+@%-]+", text, re.ASCII)
    return f"{key}={text}" if plain else f"{key}={quoted(text)}"


def quoted(text: str) -> str:
    """``text`` in quotes, as Hydra's grammar reads it: a backslash counts only before a quote, and there it is doubled."""
    inside = re.sub(r"(\\*)'", r"\1\1\'", text)
    return "'" + re.sub(r"(\\+)$", r"\1\1", inside) + "'"


def parsed(override: str) -> Override:
    """An override in Hydra's grammar; raises ConfigError where it is none."""
    try:
        return OverridesParser.create().parse_override(names_as_text(override))
    except REFUSALS as error:
        raise ConfigError([explained(override, error, OmegaConf.create({}), [])]) from None


def readable(overrides: list[str]) -> list[Override]:
    """Those of the overrides that are in Hydra's grammar, each by itself."""
    found = []
    for text in overrides:
        try:
            found.append(OverridesParser.create().parse_override(names_as_text(text)))
        except REFUSALS:
            continue
    return found


def override_key(override: str) -> str:
    """The key that an override sets; raises ConfigError where it cannot be parsed."""
    return parsed(override).key_or_group


def nobody_chose(overrides: list[str], input_shape: tuple[int, ...]) -> list[str]:
    """A line where images are read by the MLP that a run has by default, for it scores badly on them."""
    chosen = {override_key(text).partition(".")[0] for text in overrides if text != "experiment=smoke"}
    if len(input_shape) != 3 or chosen & {"base_learner", "experiment"}:
        return []
    return ["base_learner: an MLP reads the images, because none was chosen; base_learner=conv4 is made for images"]


def read_config(path: Path) -> DictConfig:
    """The configuration of an earlier run, typed as when it was composed."""
    try:
        content = path.read_bytes()
        refuse_bombs(content)
        kept = yaml.safe_load(content)  # only to see which keys are there: OmegaConf would fill in the others
        if not isinstance(kept, dict) or (missing := [key for key in ALWAYS if key not in kept]):
            raise ValueError(f"it lacks {', '.join(missing)}" if isinstance(kept, dict) else "it holds no settings")
        # what a run keeps is resolved; this would read the environment of who continues it
        if re.search(rb"(?<!\\)\$\{", content):
            raise ValueError("it holds an interpolation, ${...}, which no run writes")
        cfg = OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.load(path))
        cfg.logger = kept.get("logger", LOGGER_ONCE)
    except (OmegaConfBaseException, yaml.YAMLError, OSError, ValueError, TypeError, RecursionError) as error:
        reason = " ".join(str(error).split()) if isinstance(error, yaml.YAMLError) else said(error)[-1]
        raise ConfigError([f"{path} cannot be read: {shortened(reason, 300)}. Without it the run is lost."]) from None
    assert isinstance(cfg, DictConfig)
    OmegaConf.set_struct(cfg, True)
    return cfg


def kept_text(cfg: DictConfig) -> str:
    """The text of a run's config.yaml, resolved: a ``${`` in a name is escaped there, as it is on a command line."""
    return OmegaConf.to_yaml(escaped(OmegaConf.to_container(cfg, resolve=True)))


def escaped(value: Any) -> Any:
    """``value`` with each ``${`` in its texts escaped, as config.yaml has it."""
    if isinstance(value, dict):
        return {key: escaped(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [escaped(inner) for inner in value]
    return value.replace("${", r"\${") if isinstance(value, str) else value


def with_value(cfg: DictConfig, override: str) -> DictConfig:
    """``cfg`` with the one value that ``override`` sets; raises ConfigError if it has no such key or another type."""
    key, change = override.partition("=")[0], parsed(override)
    if change.is_sweep_override() or change.is_add() or change.is_delete():
        raise ConfigError([f"{override}: write KEY=VALUE with one value of a setting that the run has."])
    if problem := misread(change):
        raise ConfigError([problem])
    cfg = cfg.copy()
    try:
        OmegaConf.update(cfg, key, change.value(), merge=True)
    except OmegaConfBaseException as error:
        raise ConfigError([explained(override, error, cfg, [])]) from None
    return cfg


def hydra_arguments(folders: list[Path]) -> list[str]:
    """The extra config folders, as an override for Hydra's own entry point."""
    places = ",".join(quoted(f"file://{folder}") for folder in folders)
    return [f"hydra.searchpath=[{places}]"] if folders else []
