"""Wrong values: every key of every composition of the configuration, and values that do not belong there."""

import inspect
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from small_runs import SMALL, OwnData
from wrong_input import ANY, REFUSED, Case, answer

LONG = "x" * 5000
SMALLER = {  # where a composition has the key
    "base_learner.channels": "4",
    "task.train_num_ways": "null",
    "meta_learner.inner_steps": "1",
    "meta_learner.unroll": "1",
    "base_learner.depth": "10",
    "base_learner.width": "1",
}
SAMPLE = (  # of the compositions, for the short form
    *("experiment=maml_sinusoid", "experiment=protonet_text", "optimizer=adamw", "scheduler=cosine"),
    *("task=csv_regression", "task=image_folder", "meta_learner=imaml", "base_learner=conv4"),
)
FITTING = (  # what tasks need that the default learner cannot be trained on
    ("meta_learner=learned_optimizer", "base_learner=linear"),
    ("base_learner=embedding_bag", "meta_learner=protonet"),
    ("base_learner=conv4", "meta_learner=protonet"),
)
GROUPS = ("experiment", "task", "base_learner", "meta_learner", "optimizer", "scheduler", "execution")
SIGNED = ("x_range",)  # what may be below zero
# By kind of setting: what stands after the equals sign, and whether it is nonsense there for sure.
STRANGERS = ("''", "abc", "[]", "{}", "{a: 1}", LONG, "'é漢😀'", "'\"'", "'\\''", "[[1]]", "'[red]x[/nope]'")
NOT_FINITE = ("nan", "inf", "-inf")
NUMBERS = (*NOT_FINITE, "-1", "1e300", "-1e300")
LARGE = "10000000000000000000000000"  # beyond every integer, and not beyond every length of a gradient
NONSENSE = {
    "float": (*NUMBERS, *STRANGERS, "true", "[0.1]", "'0.1'", "null", "-0.5"),
    "int": (*NUMBERS, LARGE, *STRANGERS, "true", "[1]", "3.5", "null", "-5", "1e3"),
    "bool": ("abc", "''", "[]", "{}", "nan", "null", "'é漢😀'", "[true]", LONG),
    "choice": (*STRANGERS, "5", "nan", "true", "-1", "null"),
    "text": ("[]", "{}", "5", "nan", "true", "[a]", "null"),
    "numbers": ("abc", "5", "[nan]", "[abc]", "{a: 1}", "true", "[10000000000000000000000000]", "['50']", "''", LONG,
                "[1e300]", "[[1]]", "[null]", "null", "[true]"),
    "list": ("abc", "5", "{a: 1}", "true", "nan", "''", LONG, "[nan]", "[[a]]", "[{a: b}]"),
    "mapping": ("abc", "5", "true", "nan", "''", LONG, "[nan]", "{train: nan}"),
    "target": ("null", "5", "[]", "''", "abc", "os.system", "torch.load", LONG, "metarun", ".", "'a..b'", "{a: 1}", "'é漢'",
               "metarun.meta_learners.maml.grad", "torch.nn.Module"),
    "group": ("5", "[]", "''", LONG, "nan", "'é漢😀'", "../config", "/etc/passwd", "'${seed}'", "{_target_: 5}",
              "abc"),
}  # fmt: skip
# What may or may not be right; it must be taken or refused, and nothing else.
DOUBTFUL = {
    "float": ("0", "'${seed}'", "1e-300", "2000000000", LARGE),
    "int": ("0", "'${seed}'", "2000000000", "1"),
    "bool": ("1", "'true'", "'${tf32}'", "false", "true"),
    "choice": ("'${dtype}'", "'${seed}'"),
    "text": ("''", "abc", LONG, "'é漢😀'", "'${seed}'", "'\"'", "/dev/null", "'[red]x[/nope]'", "/", "."),
    "numbers": ("[]", "'${seed}'", "[0]", "[-1]", "[1,1]", "[2,1]", "[2000000000]"),
    "list": ("[]", "[a]", "[a,a]", "'${seed}'", "[-1]"),
    "mapping": (
        "{}",
        "{a: 1}",
        "{train: 1, val: 1, test: 0}",
        "{train: [a], val: [a], test: [a]}",
        "[1,1,1]",
        "[0,0,0]",
    ),
    "target": ("metarun.meta_learners.maml.MAML", "'${seed}'"),
    "group": ("null", "{}"),
}
ENDLESS = {"steps": ("2000000000",)}  # right, and longer than one waits


@dataclass
class Setting:
    """A setting of one class or of the root, and the compositions that have it."""

    key: str
    kind: str
    said: str  # its annotation
    compositions: list[tuple[str, ...]] = field(default_factory=list)

    def cases(self, turn: int, pick: random.Random) -> Iterator[Case]:
        """A wrong value after the other, in an order that is ``pick``'s; the compositions take turns."""
        values = [(text, True) for text in NONSENSE[self.kind] if not self._allows(text)]
        values += [(text, False) for text in DOUBTFUL[self.kind] if text not in ENDLESS.get(self.key, ())]
        values += [(text, False) for text in NONSENSE[self.kind] if self._allows(text)]
        pick.shuffle(values)
        for number, (text, nonsense) in enumerate(values):
            base = self.compositions[(turn + number) % len(self.compositions)]
            others = [given for given in base if given.partition("=")[0].lstrip("+") != self.key]
            yield Case(
                "values",
                f"{self.kind} {'nonsense' if nonsense else 'doubtful'}",
                (*others, f"{self.key}={text}", *(["run_dir=run"] if self.key != "run_dir" else [])),
                REFUSED if nonsense else frozenset({0, 2, 3}),
                self.key.rpartition(".")[2] if nonsense else "",
            )

    def _allows(self, text: str) -> bool:
        """Whether the annotation has a place for what is nonsense for most settings of the kind."""
        if text == "'0.1'" and "." not in self.key:  # the schema of the root reads it as a number
            return True
        if text.startswith("-") and self.key.rpartition(".")[2] in SIGNED:
            return True
        if (
            "." not in self.key and self.kind == "text" and text in ("5", "nan", "true")
        ):  # a text of the root may be unquoted
            return True
        if text == "5" and self.kind == "numbers" and self.said.startswith(("int |", "float |")):  # one for all
            return True
        if text == "null":  # Python writes "Literal[...] | None" as Optional
            return "None" in self.said or "Optional" in self.said
        word = {"true": "bool", "[]": "Sequence", "[1]": "Sequence[int]", "{a: 1}": "Mapping"}.get(text)
        return word is not None and word in self.said


def compositions(data: OwnData, place: Path, short: bool) -> list[tuple[str, ...]]:
    """Overrides for every experiment and every option of every group, on a task with which it runs, and small."""
    from metarun.config.help import options

    names = SAMPLE if short else tuple(f"{group}={name}" for group in GROUPS for name in options(group))
    return [_on_some_task(name, data, place / name.replace("/", "-")) for name in names]


def _on_some_task(choice: str, data: OwnData, place: Path) -> tuple[str, ...]:
    """The composition on the first of our tasks with which it runs; on none, as it stands: its data are not here."""
    group, _, name = choice.partition("=")
    first = (f"experiment=[{name},smoke]" if group == "experiment" and name != "smoke" else choice,)
    tasks = data.tasks.values() if group not in ("task", "experiment") else [data.files_of(choice)]
    tried = [small((*task, *first)) for task in tasks]
    if group == "task":
        tried += [small((*first, *data.files_of(choice), *more)) for more in FITTING]
    for number, overrides in enumerate(tried):
        if answer(Case("", "", (*overrides, "run_dir=run"), ANY), place / str(number)).code == 0:
            return overrides
    return tried[0]


def small(overrides: tuple[str, ...]) -> tuple[str, ...]:
    """The overrides with a budget of a second or so."""
    from metarun.config.compose import composed

    cfg = composed(list(overrides), [])
    given = {text.partition("=")[0] for text in overrides}
    smaller = [
        f"{key}={value}"
        for key, value in SMALLER.items()
        if OmegaConf.select(cfg, key) is not None and key not in given
    ]
    return (*overrides, *(text for text in (*SMALL, "steps=1") if text.partition("=")[0] not in given), *smaller)


def settings(compositions: list[tuple[str, ...]]) -> list[Setting]:
    """Every setting of every class that the compositions name, and of the root."""
    from metarun.config.compose import composed

    found: dict[tuple[str, str], Setting] = {}
    for overrides in compositions:
        cfg = OmegaConf.to_container(composed(list(overrides), []), resolve=False)
        for owner, setting in _leaves(cfg, "", "root", None):
            found.setdefault((owner, setting.key), setting).compositions.append(overrides)
    return list(found.values())


def _leaves(node: Any, prefix: str, owner: str, target: Any) -> Iterator[tuple[str, Setting]]:
    """The settings below a node, each with the class that has it."""
    parameters = inspect.signature(target).parameters if target else {}
    for name, value in node.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and "_target_" in value:
            from metarun.config.targets import locate

            if prefix in ("", "task."):
                yield "group", Setting(key, "group", "")
            yield from _leaves(value, f"{key}.", value["_target_"], locate(value["_target_"]))
        elif name == "evaluation":
            yield from _leaves(value, "evaluation.", "evaluation", None)
        elif name not in ("_partial_", "defaults", "hydra"):
            said = parameters[name].annotation if name in parameters else _of_the_schema(key)
            yield owner, Setting(key, _kind(name, value, str(said)), str(said))


def _of_the_schema(key: str) -> Any:
    from metarun.config.schema import Config, EvaluationConfig

    owner = EvaluationConfig if key.startswith("evaluation.") else Config
    return inspect.get_annotations(owner).get(key.rpartition(".")[2], "")


def _kind(name: str, value: Any, said: str) -> str:  # noqa: PLR0911 (one line a kind)
    """What kind of value belongs there: by the annotation, and by the value that is there."""
    if name == "_target_":
        return "target"
    if "Literal" in said and not isinstance(value, (list, dict)):
        return "int" if "[int" in said else "choice"  # Union[int, Literal["auto"]]
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, dict):
        return "mapping"
    if isinstance(value, (list, tuple)):
        return "numbers" if all(isinstance(v, (int, float)) for v in value) else "list"
    for word, kind in (("Sequence", "list"), ("tuple", "numbers"), ("int", "int"), ("float", "float"), ("str", "text")):
        if word in said:
            return kind
    return {int: "int", float: "float"}.get(type(value), "text")


def cases(number: int, seed: int, found: list[Setting]) -> list[Case]:
    """``number`` wrong values, as many of each setting as there are."""
    pick = random.Random(seed)
    order = found[:]
    pick.shuffle(order)
    queues = [setting.cases(turn, pick) for turn, setting in enumerate(order)]
    chosen: list[Case] = []
    while queues and len(chosen) < number:
        left = []
        for queue in queues:
            case = next(queue, None)
            if case is not None:
                chosen.append(case)
                left.append(queue)
        queues = left
    return chosen[:number]
