"""What to say of an override that Hydra refuses: the value, the rule and the fix, in one line."""

import difflib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from metarun.config.help import COMMANDS, options
from metarun.errors import did_you_mean, shortened
from metarun.paths import config_dir


def said(error: BaseException | None) -> list[str]:
    """The first line of each message from Hydra's to the innermost, with what a colon at its end announces: the reason is
    often only in the last."""
    lines = []
    while error is not None:
        first, *more = str(error).strip().splitlines() or [type(error).__name__]
        lines.append(" ".join([first, *more[: first.endswith(":")]]).strip().rstrip("."))
        error = error.__cause__
    return lines


def unresolved(error: OmegaConfBaseException) -> str:
    """What to say of an interpolation, ${...}, that stands for nothing: it may be a part of a name."""
    reason = str(error).splitlines()[0].rstrip(".")
    fix = r"Write \${...} where the name itself holds these letters, in single quotes for the shell."
    return f"{error.full_key}: an interpolation cannot be resolved: {reason}. {fix}"


def explained(override: str, error: BaseException, cfg: DictConfig, folders: list[Path]) -> str:  # noqa: PLR0911
    """One line: the value, the rule and the fix."""
    key, separator, value = override.partition("=")
    lines, typed, value = said(error), shortened(override) or "''", shortened(value)
    if override.startswith("~") and key.strip("~") and not separator:
        return f"{typed}: it takes away what every run has; {_instead_of_nothing(key.strip('~'), cfg)}"
    if not separator or not key.strip("+~"):
        if key.strip("+~") and OmegaConf.select(cfg, key.strip("+~")) is not None:
            return f"{typed}: cannot be read as KEY=VALUE; write {typed}=VALUE."
        hint = did_you_mean(override, COMMANDS) or "; metarun --help says what there is."
        return f"{typed}: cannot be read as KEY=VALUE{hint}"
    if isinstance(error, yaml.YAMLError):
        return f"{typed}: the file is not YAML: {shortened(' '.join(str(error).split()), 300)}."
    if isinstance(error, RecursionError):
        return f"{typed}: its file is nested too deeply, or its defaults name each other in a circle."
    if isinstance(error, OSError) or "Could not find" in lines[0] or "Config group override must be" in lines[0]:
        told = wrong_default(key, error, folders)
        return f"{typed}: {told}" if told else no_such_option(key.lstrip("+~"), value, folders)
    if "raised while composing config" in lines[0]:
        return f"{typed}: in its file, {_inside(str(error), lines[0], cfg, folders)}"
    if any(sign in line for line in lines for sign in ("not in struct", "' not in '", "No match in the defaults list")):
        return unknown_key(key, value, cfg, folders)
    if any(
        sign in str(error)
        for sign in ("mismatched input", "no viable alternative", "extraneous input", "LexerNoViableAlt")
    ):
        quoted = {"[": "['...']", "{": "{NAME:['...']}"}.get(value[:1], "'...'")
        return f'{typed}: cannot be read as KEY=VALUE; quote what is not plain: "{key}={quoted}".'
    if "Ambiguous value" in lines[0] or "requires --multirun" in lines[0]:
        return _several_values(typed, key, value)
    if "Could not append" in lines[0]:
        return f"{typed}: there is a {key.lstrip('+')} already; leave out the '+' to change it."
    if "is not Optional" in lines[-1]:
        return f"{typed}: it needs a value, and null is none; leave it out for the default."
    return f"{typed}: {_of_another_kind(lines[-1], value, key)}."


def _several_values(typed: str, key: str, value: str) -> str:
    """What to say of values of a sweep where a run has one."""
    text = f"one text \"{key}='{value}'\""
    if value.startswith(("interval(", "tag(")):
        return f"{typed}: metarun search DIR trials=50 '{typed}' searches an interval; {text}."
    one_list = "" if "(" in value else f"one list is written {key}=[{value}], and "
    return f"{typed}: several values are a sweep, metarun -m {typed}; {one_list}{text}."


def _of_another_kind(line: str, value: str, key: str) -> str:
    """What a value must be that OmegaConf refuses by ``line`` for its kind; the line itself where it says else."""
    if kind := re.search(r"could not be converted to (Integer|Float|Boolean)|is not a valid (bool)", line):
        return f"must be {_in_words(kind[1] or kind[2], value, key)}"
    if kind := re.search(
        r"Cannot convert '\w+' to string|(?:Cannot \w+ \w+ (?:with|to)|is not a) (List|Dict)(?:Config|\[)", line
    ):
        here = {"List": f"a list, {key}=[A,B]", "Dict": f"a mapping, {key}={{NAME:VALUE}}"}.get(kind[1], "a text")
        return f"must be {here}"
    return shortened(line, 300)


def _in_words(kind: str, value: str, key: str) -> str:
    """The kind of value that ``key`` takes, and how ``value`` is written so where it can be."""
    if kind == "Integer" and re.fullmatch(r"\d+(\.\d*)?(e\d+)?", value) and float(value).is_integer():
        return f"a whole number; write {key}={int(float(value))}"
    return {"Integer": "a whole number", "Float": "a number"}.get(kind, "true or false")


def no_such_option(group: str, value: str, folders: list[Path]) -> str:
    """What to say of an option that a group does not have."""
    names, typed = option_names(group, folders), f"{group}={value}"
    if not names:
        return f"{group}={value}: {group} is not a group of the configuration."
    listed = [name.strip() for name in value.strip("[]").split(",")] if value.startswith("[") else []
    value = next((name for name in listed if name not in names), value)
    hint = did_you_mean(value, names)
    number = any(c.isdigit() for c in value) and not hint
    change = f" To change one of its values write {group}.NAME={value}." if number else ""
    return f"{typed}: there is no {group} called {value!r}{hint}; there are {', '.join(names)}.{change}"


def _instead_of_nothing(name: str, cfg: DictConfig) -> str:
    """What to write in the place of ``~name``."""
    if OmegaConf.is_dict(OmegaConf.select(cfg, name.replace("/", "."))):
        return f"choose another option instead: {name}=NAME."
    return f"give another value instead, or null where it may be: {name}=VALUE."


def _inside(error: str, line: str, cfg: DictConfig, folders: list[Path]) -> str:
    """What is wrong in a file that was found and does not fit, by the whole of Hydra's ``error`` and its first line."""
    wrong = re.search(r"full_key: (\S+)", error)
    if not wrong or not any(sign in line for sign in ("not in struct", "' not in '")):
        return f"{shortened(line, 300)}."
    if wrong[1] == "experiment":
        return "values have no place of their own; begin it with the line '# @package _global_'."
    return unknown_key(wrong[1], "", cfg, folders)


def wrong_default(key: str, error: BaseException, folders: list[Path]) -> str:
    """What to say of a chosen file whose defaults name an option that is not there; empty where ``key`` itself does."""
    found = re.match(r"In '(\S+)': Could not (?:find|load) '([^']+)'", str(error))
    chosen = key.lstrip("+~").partition("@")[0]
    if not found or (found[1] == "config" and found[2].rpartition("/")[0] in ("", chosen)):
        return ""
    group, _, option = found[2].rpartition("/")
    own = found[1].rpartition("/")[0]
    if group == chosen != own:  # a choice within a group, task/features, that the command line makes
        return ""
    if found[1] == "config":  # an override of the defaults is applied where they begin
        return f"in the defaults of its file, {no_such_option(group, option, folders)}"
    outer = group.removeprefix(f"{own}/")
    if outer != group and option in option_names(outer, folders):
        return f"in the defaults of {found[1]}.yaml, groups begin with a slash: write '- override /{outer}: {option}'."
    return f"in the defaults of {found[1]}.yaml, {no_such_option(outer, option, folders)}"


def no_such_part(part: str, cfg: DictConfig, folders: list[Path]) -> str:
    """What to say of a choice within a group, task/augmentation, where what is chosen of the group has no such part, or
    where the configuration of an earlier run has no choices any more."""
    group, _, name = part.rpartition("/")
    node = OmegaConf.select(cfg, part.replace("/", "."))
    if isinstance(node, DictConfig):
        keys = [f"{group}.{name}.{key}=VALUE" for key in map(str, node) if key not in ("_target_", "_partial_")]
        return f"an option of {part} is chosen when a run begins; here its values are changed one by one: {' '.join(keys)}."
    files = {path for root in (config_dir(), *folders) for path in (root / group).glob("*.yaml")}
    has = re.compile(rf"^ *- +{re.escape(name)}:", re.MULTILINE)
    having = sorted({path.stem for path in files if has.search(path.read_text(errors="replace"))})
    return (
        f"this {group} has no {name}; those that have are {', '.join(having)}. Leave it out, or write {group}=NAME too."
    )


def option_names(group: str, folders: list[Path]) -> list[str]:
    """The options of a group, metarun's own and those of the config folders."""
    return sorted({name for folder in (config_dir(), *folders) for name in options(group, folder)})


def unknown_key(key: str, value: str, cfg: DictConfig, folders: list[Path]) -> str:
    """What to say of a key that the configuration does not have."""
    part = key.lstrip("+~").partition("@")[0]
    if "/" in part and option_names(part, folders):
        return f"{key}={value}: {no_such_part(part, cfg, folders)}"
    group, _, name = key.rpartition(".")
    root = key.split(".", maxsplit=1)[0]
    for choice in (name, value):
        if root in cfg and choice in options(root):
            return f"{key}={value}: to choose the {root} write {root}={choice}."
    if OmegaConf.select(cfg, key) is not None:
        return f"{key}={value}: {key} takes no new keys in this way; write +{key}.NAME=VALUE for each."
    if root == "rates":
        return f"{key}={value}: there is no such part yet; write +{key}={value}."
    known = [text for text in keys_of(cfg) if "_target_" not in text and "_partial_" not in text]
    siblings = [text for text in known if text.rpartition(".")[0] == group]
    close = difflib.get_close_matches(key, [str(name) for name in cfg], n=1, cutoff=0.75) if not group else []
    close = close or difflib.get_close_matches(key, siblings, n=1, cutoff=0.6)
    close = close or [text for text in known if text.rpartition(".")[2] == name]  # the right name in another place
    close = close or difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    choices = siblings or [str(name) for name in cfg]
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(choices)}."
    node = OmegaConf.select(cfg, group) if group else None
    target = str(node.get("_target_", "")) if isinstance(node, DictConfig) else ""
    listed = not target or (bool(close) and target.startswith("metarun."))  # whose settings our files name, all of them
    added = "" if listed else f" Another setting of its class is added by a plus sign: +{key}={value or '...'}."
    return f"{key} is not a setting; {hint}{added}"


def keys_of(node: Any, prefix: str = "") -> Iterator[str]:
    """The dotted keys of every leaf of a configuration."""
    for key in node:
        name = f"{prefix}{key}"
        if OmegaConf.is_dict(node) and OmegaConf.is_dict(node._get_node(key)) and node[key] is not None:
            yield from keys_of(node[key], name + ".")
        else:
            yield name
