"""``launcher=NAME launcher.KEY=VALUE``: which way the jobs of a sweep are run, in metarun's words and in Hydra's."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from metarun.config.compose import with_value
from metarun.config.explain import option_names
from metarun.config.targets import locate, problems_of_call
from metarun.errors import ConfigError, did_you_mean, shortened
from metarun.paths import config_dir
from metarun.sweep.way import Way

GROUP = "launcher"
HYDRAS = {  # launchers of Hydra's, and what does the same here
    "basic": ["launcher=local"],
    "joblib": ["launcher=joblib"],
    "submitit_local": ["launcher=submitit"],
    "submitit_slurm": ["launcher=submitit", "launcher.cluster=slurm"],
    "ray": ["launcher=ray"],
}
SETTINGS = {  # theirs, and ours
    "n_jobs": "jobs",
    "array_parallelism": "jobs",
    "timeout_min": "launcher.options.timeout_min",
    "ray.init.address": "launcher.address",
    "ray.remote.num_cpus": "launcher.cpus",
    "ray.remote.num_gpus": "launcher.gpus",
    **{
        name: f"+launcher.options.{name}"
        for name in ("gpus_per_node", "cpus_per_task", "mem_gb", "nodes", "tasks_per_node", "name")
    },
    **{
        name: f"+launcher.options.slurm_{name}"
        for name in ("partition", "account", "qos", "constraint", "exclude", "comment")
    },
}


def is_of_the_launcher(text: str) -> bool:
    """Whether an argument chooses the launcher, or sets one of its values."""
    return text.lstrip("+~").startswith((f"{GROUP}=", f"{GROUP}."))


def in_our_words(arguments: Sequence[str]) -> list[str]:
    """The arguments, with metarun's launcher in the place of Hydra's. Raises ConfigError for what has no counterpart."""
    words, problems = [], []
    for text in arguments:
        key, _, value = text.lstrip("+").partition("=")
        setting = key.removeprefix("hydra.launcher.")
        if key == "hydra/launcher" and value in HYDRAS:
            words += HYDRAS[value]
        elif key == "hydra/launcher":
            problems.append(f"{text}: metarun starts its runs itself; write launcher=NAME: {', '.join(options([]))}.")
        elif setting == key:
            words.append(text)
        elif setting in SETTINGS:
            words.append(f"{SETTINGS[setting]}={value}")
        else:
            problems.append(
                f"{text}: metarun's launchers have no such setting{did_you_mean(setting, SETTINGS)}; theirs are launcher."
                "KEY=VALUE, jobs=N, retries=N and timeout=T (docs/cluster.md)."
            )
    if problems:
        raise ConfigError(problems)
    return words


def chosen(words: Sequence[str], folders: Sequence[Path]) -> Way:
    """The way that ``words`` choose, launcher=local where they name none. Raises ConfigError with what is wrong."""
    if odd := [text for text in words if re.match(rf"~|\+{GROUP}=", text)]:
        raise ConfigError([f"{text}: write {GROUP}=NAME, or {GROUP}.KEY=VALUE to set a value of it." for text in odd])
    name = next((text.partition("=")[2] for text in words if text.startswith(f"{GROUP}=")), "local")
    cfg = OmegaConf.create({GROUP: _node(name, folders)})
    OmegaConf.set_struct(cfg, True)
    for text in words:
        if not text.startswith(f"{GROUP}="):
            cfg = _with_value(cfg, text, name)
    node: Any = OmegaConf.to_container(cfg[GROUP], resolve=True)
    arguments = {key: value for key, value in node.items() if key != "_target_"}
    try:
        target = locate(str(node.get("_target_")), Way)
    except ValueError as error:
        raise ConfigError([f"{GROUP}._target_: {error}"]) from None
    if problems := problems_of_call(target, arguments, (), GROUP):
        raise ConfigError(problems)
    return target(**arguments)


def options(folders: Sequence[Path]) -> list[str]:
    """The launchers that there are."""
    return option_names(GROUP, list(folders))


def _node(name: str, folders: Sequence[Path]) -> DictConfig:
    """The values of an option: those of a folder of the user's own, else metarun's."""
    places = [folder / GROUP / f"{name}.yaml" for folder in (*folders, config_dir())]
    path = next((path for path in places if re.fullmatch(r"[\w.-]+", name) and path.is_file()), None)
    if path is None:
        known = options(folders)
        raise ConfigError([f"{GROUP}={shortened(name)}: there is no such launcher{did_you_mean(name, known)}; "
                           f"there are {', '.join(known)}."])  # fmt: skip
    try:
        node = OmegaConf.load(path)
    except (yaml.YAMLError, OSError, ValueError) as error:
        raise ConfigError([f"{path} cannot be read: {shortened(' '.join(str(error).split()), 300)}."]) from None
    if not isinstance(node, DictConfig) or "_target_" not in node:
        raise ConfigError([f"{path}: a launcher is a mapping with a _target_ (docs/cluster.md)."])
    return node


def _with_value(cfg: DictConfig, text: str, name: str) -> DictConfig:
    """``cfg`` with a value changed, or with ``+`` added. Raises ConfigError for what ``launcher=NAME`` does not have."""
    key = text.lstrip("+").partition("=")[0].split(".")[1]
    if key not in (known := [str(setting) for setting in cfg[GROUP] if setting != "_target_"]):
        has = f"it has {', '.join(known)}" if known else "it has none; choose another by launcher=NAME"
        raise ConfigError([f"{text}: {GROUP}={name} has no setting {key!r}{did_you_mean(key, known)}; {has}."])
    if not text.startswith("+"):
        return with_value(cfg, text)
    opened = cfg.copy()
    OmegaConf.set_struct(opened, False)
    changed = with_value(opened, text.lstrip("+"))
    OmegaConf.set_struct(changed, True)
    return changed
