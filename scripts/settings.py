"""Write docs/settings.md: every setting of every part, from configs, their comments, and the signatures of what they name.

python scripts/settings.py            writes the page anew
python scripts/settings.py --check    exit code 1 where the page is not what would be written
"""

import importlib
import re
import sys
import typing
from collections.abc import Iterator
from functools import cache, reduce
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf

from metarun.config.help import ORDER
from metarun.config.schema import Config, EvaluationConfig
from metarun.config.targets import readable_type, types_of

sys.path.insert(0, str(Path(__file__).parent))
from published import markdown, write_page

ROOT = Path(__file__).resolve().parent.parent
CONFIGS, PAGE = ROOT / "configs", ROOT / "docs" / "settings.md"
GROUPS = (*(group for group in ORDER if group != "experiment"), "launcher")
LINE = re.compile(r"""( *)([\w/]+): *((?:"[^"]*"|'[^']*'|[^#'"])*?) *(?:#+ *(.*))?""")
COMMENT = re.compile(r" *#+ *(.*)")
LEFT_OUT = ("_target_", "_partial_", "defaults", "hydra")
CODED = re.compile(r"_|\d|^lr$")
SOURCE = re.compile(  # a clause of a comment that says where the value is from
    r"[A-Z][\w'-]+(?:, [A-Z]\w+)*(?: et al\.| and [A-Z]\w+)? \d{4}\b|released|(?:the )?same\b(?! images| for)"
    r"|our choice|ours$"
    r"|(?:paper|the paper|the code)\b|appendix [A-Z]|\d+ epochs there|the design article|as MAML|\d\.\d$|the presets take"
)
MEANINGS = {  # of names that mean the same wherever they stand; a comment may say more
    "inner_lr": "size of an inner step",
    "inner_steps": "inner steps of a task",
    "first_order": "leave the second derivatives out",
    "num_context": "context parameters",
    "families": "kinds of curves, one drawn for each task",
    "clusters_per_class": "Gaussians of a class",
    "proximal": "weight of the pull to theta",
    "svm_bound": "bound of the dual's weights",
}
WITHOUT_COMMENT = {  # the same, for those whose files say nothing
    "train_num_shots": "of the training episodes; null: as at test",
    "train_num_queries": "of the training episodes; null: as at test",
    "num_shots": "K support points of a task",
    "num_queries": "query points of a task",
    "noise_std": "deviation of the noise in y",
    "x_range": "the inputs lie between",
    "scale": "deviation of a curve, drawn between for each task",
    "inputs": "how they are drawn",
    "num_points": "labelled points of a task",
    "num_classes": "classes of a task",
    "num_dims": "numbers of an input",
    "spread": "deviation of the means of the Gaussians",
    "test_tasks": "names of the test tasks; null: by lot",
    "test_share": "share of the tasks that are tested on",
    "split_seed": "of the lot",
    "rollout_steps": "steps of a motion",
    "control_steps": "steps that a planner drives a system for",
    "population": "sequences of actions that are tried",
    "num_elites": "the best of them, which the next ones are drawn around",
    "iterations": "rounds of drawing at each step",
    "mass2": "kg, of the outer link",
    "length2": "m, of the outer link",
    "reversible": "the motor may be wired either way round",
    "padding": "pixels on each side, of which a crop takes some",
    "flip": "probability of a mirror image",
    "brightness": "largest relative change",
    "contrast": "largest relative change",
    "saturation": "largest relative change",
    "layers": "number of blocks",
    "heads": "attention heads of a block",
    "length_scale": "of the smooth departure, at the start; learned",
    "noise_deviation": "of a measurement, at the start; learned",
    "num_layers": "layers of the LSTM",
    "cg_steps": "steps of conjugate gradient",
    "hold": "when phi is pulled to theta",
    "steps_per_epoch": "training steps of an epoch",
    "first_order_epochs": "epochs before second derivatives count",
    "initial_rate_low": "least rate at the start",
    "initial_rate_high": "largest rate at the start",
    "ridge_regulariser": "of the ridge head",
    "output_scale": "multiple of the LSTM's output that is a step",
    "init_std": "deviation of the weights at the start",
    "channels": "channels of a layer",
    "hidden": "units of each hidden layer",
    "hidden_size": "units of the LSTM",
    "batch_norm": "null: none",
    "activation": "between the layers",
    "init": "how weights begin",
    "lr": "step size",
    "betas": "decay of the means of gradients and of their squares",
    "fused": "one kernel for all parameters",
    "weight_decay": "pull of the weights to zero",
    "momentum": "share of the last step that is kept",
    "nesterov": "look ahead by the momentum",
    "factor": "multiple of lr",
    "total_iters": "steps until it ends",
    "T_max": "steps of the half wave",
    "eta_min": "lr at its end",
    "start_factor": "multiple of lr at the start",
    "end_factor": "multiple of lr at the end",
    "milestones": "steps at which lr changes",
    "gamma": "multiple of lr at each change",
    "step_size": "steps between two changes",
}
HEAD = """# Settings

Every setting that a run has: type, default, meaning, and where the default is from, if it is from a paper or its code. This
page is written by `python scripts/settings.py` from the files and comments in [configs](../configs) and from the
signatures of what they name; do not edit it. How to change them: [the command line](command_line.md). What presets change:
[experiments](experiments.md). The values of one run: `metarun --cfg job ...`.
An option that builds on another shows what it changes.
"""


class Setting(NamedTuple):
    """A setting's dotted name within its file, its default as it is written, and its comment."""

    name: str
    default: str
    comment: str


def settings(text: str) -> Iterator[Setting]:
    """The settings of a YAML file in their order; a comment goes on in lines that are nothing else."""
    kept: list[Setting] = []
    parents: list[tuple[int, str]] = []
    for line in text.splitlines():
        more, found = COMMENT.fullmatch(line), LINE.fullmatch(line)
        if more and kept:
            kept[-1] = kept[-1]._replace(comment=f"{kept[-1].comment} {more[1]}".strip())
        elif found:
            indent, key = len(found[1]), found[2]
            parents = [(depth, name) for depth, name in parents if depth < indent]
            kept.append(Setting(".".join([*(name for _, name in parents), key]), found[3], found[4] or ""))
            parents.append((indent, key))
    inside = {name.rpartition(".")[0] for name, _, _ in kept}
    return (
        s for s in kept if s.name.split(".")[0] not in LEFT_OUT and "_target_" not in s.name and s.name not in inside
    )


def table(prefix: str, path: Path) -> str:
    """The settings of a YAML file as a table; a line that says so where it has none."""
    content, rows = content_of(path), []
    for name, default, comment in settings(path.read_text()):
        meaning, source = meaning_and_source(name, comment)
        cells = (f"`{prefix}{name}`", type_of(content, name), f"`{default or 'null'}`", meaning, source)
        rows.append([*map(readable, cells)])
    return markdown(("setting", "type", "default", "meaning", "source"), rows) if rows else "No settings."


def meaning_and_source(name: str, comment: str) -> tuple[str, str]:
    """What a comment says of the setting, and what it says of where the value is from."""
    clauses = [clause.strip() for clause in re.split(r"; (?![^(]*\))", comment) if clause.strip()]
    sources = [clause for clause in clauses if SOURCE.match(clause)]
    key, said = name.rpartition(".")[2], [clause for clause in clauses if clause not in sources]
    known = MEANINGS.get(key) or (None if said else WITHOUT_COMMENT.get(key))
    return "; ".join([*([known] if known else []), *said]), "; ".join(sources)


def content_of(path: Path) -> Any:
    """A file's values, and below them those of the options that it builds on."""
    content: Any = OmegaConf.to_container(OmegaConf.load(path))
    below = [entry for entry in content.get("defaults", []) if isinstance(entry, str) and entry != "_self_"]
    beside = [other for name in below if (other := path.with_name(f"{name}.yaml")).is_file()]
    return reduce(lambda kept, other: {**content_of(other), **kept}, beside, content)


def type_of(content: Any, name: str) -> str:
    """The type of a setting in words: of the argument that it is, of the root's schema, or else of its value."""
    inner, _, key = name.rpartition(".")
    node = reduce(lambda below, part: below[part], inner.split(".") if inner else [], content)
    types = types_of(named(node["_target_"])) if "_target_" in node else schema()
    return readable_type(types[key]) if key in types else type(node[key]).__name__


@cache
def schema() -> dict[str, Any]:
    """The types of what stands at the root and in the group ``evaluation``."""
    return {**typing.get_type_hints(EvaluationConfig), **typing.get_type_hints(Config)}


def named(target: str) -> Any:
    """What a ``_target_`` names."""
    module, _, name = target.rpartition(".")
    return getattr(importlib.import_module(module), name)


def readable(comment: str) -> str:
    """A comment as a cell of a table shows it: outside code, braces and underscores at the edge of a word are themselves."""
    parts = re.split(r"(`[^`]*`)", comment.replace("|", "\\|"))
    plain = (
        re.sub(r"([{}]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))", r"\\\1", part.replace("<", "&lt;")) for part in parts[::2]
    )
    return "".join(text for pair in zip_longest(plain, parts[1::2], fillvalue="") for text in pair)


def options(group: str) -> Iterator[tuple[str, str, Path]]:
    """Each option of a group: the word that chooses it, how its settings' names begin, its file."""
    folder = CONFIGS / group
    for path in sorted(folder.rglob("*.yaml"), key=lambda path: (len(path.parts), path)):
        option = path.relative_to(folder).with_suffix("").as_posix()
        inner, _, name = option.rpartition("/")
        key = f"{group}.{inner}." if inner else f"{group}."
        yield f"{group}/{inner}={name}" if inner else f"{group}={name}", key, path


def by_name() -> Iterator[str]:
    """A heading for each name that is no word of prose, so that a search for it leads here first; below it, its places."""
    places: dict[str, dict[str, list[str]]] = {}
    every = [("every run", "", CONFIGS / "config.yaml"), *(option for group in GROUPS for option in options(group))]
    for chosen, prefix, path in every:
        link = f"[{chosen}](#{re.sub(r'[^a-z0-9_-]', '', chosen.replace(' ', '-'))})"
        for setting in settings(path.read_text()):
            known = places.setdefault(setting.name.rpartition(".")[2], {})
            known.setdefault(f"`{prefix}{setting.name}` is `{setting.default or 'null'}`", []).append(link)
    for name in sorted(name for name in places if CODED.search(name)):
        yield f"### `{name}`\n\n" + "".join(f"- {said}: {', '.join(links)}\n" for said, links in places[name].items())


def page() -> str:
    """The whole page: the root, then each option of each group, then the names."""
    parts = [HEAD, "## Every run\n", table("", CONFIGS / "config.yaml")]
    for group in GROUPS:
        found = list(options(group))
        parts += [f"\n## {group}\n"] if found else []
        for chosen, key, path in found:
            parts += [f"### `{chosen}`\n", table(key, path) + "\n"]
    parts += ["\n## By name\n\nWhere a setting of this name stands, and its default there.\n", *by_name()]
    return "\n".join(parts).rstrip("\n") + "\n"


if __name__ == "__main__":
    write_page(__doc__, PAGE, page)
