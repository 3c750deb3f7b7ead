"""YAML files are looked over before a loader follows them: a few lines of anchors can unfold into more than any memory."""

import re
from pathlib import Path

import yaml

from metarun.config.help import ORDER

DEEPEST = 50  # levels; loaders call themselves once a level
MOST_NODES = 100_000  # with every alias written out
PACKAGE = re.compile(rb"^#\s*@package\s+(?P<name>.*?)\s*$", re.MULTILINE)
GROUPS = (*ORDER, "per_learner")


def refuse_bombs(content: bytes) -> None:
    """Raise ValueError for YAML that is too deep or too large to be followed; YAMLError where it is no YAML."""
    sizes: dict[str, int] = {}  # of anchored nodes
    open_nodes: list[tuple[str | None, int]] = [(None, 0)]  # anchor, and the nodes inside so far
    for event in yaml.parse(content):
        if isinstance(event, (yaml.SequenceStartEvent, yaml.MappingStartEvent)):
            open_nodes.append((event.anchor, 1))
            if len(open_nodes) > DEEPEST:
                raise ValueError(f"it is nested more than {DEEPEST} levels deep")
            continue
        if isinstance(event, (yaml.SequenceEndEvent, yaml.MappingEndEvent)):
            anchor, size = open_nodes.pop()
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor not in sizes:
                raise ValueError(f"*{event.anchor} stands inside its own anchor, or before it")
            anchor, size = None, sizes[event.anchor]
        elif isinstance(event, yaml.ScalarEvent):
            anchor, size = event.anchor, 1
        else:
            continue
        if anchor is not None:
            sizes[anchor] = size
        around, inside = open_nodes[-1]
        open_nodes[-1] = (around, inside + size)
        if inside + size > MOST_NODES:
            raise ValueError(f"its aliases unfold into more than {MOST_NODES} values")


def group_file_problem(content: bytes) -> str | None:
    """What keeps a file from being an option of a group, where Hydra would not say it; None where Hydra can go on."""
    try:
        refuse_bombs(content)
        top = yaml.compose(content)
    except ValueError as error:
        return str(error)
    except yaml.YAMLError:  # Hydra says where
        return None
    if top is not None and not isinstance(top, yaml.MappingNode):
        return "it must hold settings, KEY: VALUE, at its top"
    keys = [key for key, _ in top.value] if top is not None else []
    wrong = next((key for key in keys if key.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge")), None)
    if wrong is not None:
        return f"the key in line {wrong.start_mark.line + 1} is no word; quote it"
    package = PACKAGE.search(content)
    if package and not re.fullmatch(rb"[\w.:]+", package["name"]):
        return f"@package {package['name'].decode(errors='replace')} names no place"
    return None


def folder_problems(folder: Path) -> list[str]:
    """What is wrong with the files of a config folder's groups."""
    paths = [path for group in GROUPS for path in sorted((folder / group).rglob("*.yaml")) if path.is_file()]
    found = ((path, group_file_problem(path.read_bytes())) for path in paths)
    return [f"{path}: {problem}." for path, problem in found if problem]
