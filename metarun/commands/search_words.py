"""The words after ``metarun search``: its folder, its own settings, and what its runs are."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from metarun.commands.sweep import limits_of, whole
from metarun.errors import did_you_mean, wrong_command
from metarun.output.folder import place_of_runs
from metarun.search.study import PRUNERS, SAMPLERS
from metarun.sweep.chosen import is_of_the_launcher
from metarun.sweep.drain import Limits
from metarun.sweep.slots import Slots

OWN = {  # settings of the search itself, and what they are where nobody sets them
    **{"trials": "", "sampler": "tpe", "sampler_seed": "0", "pruner": "median", "seeds": "3"},
    **{"jobs": "1", "retries": "0", "timeout": ""},
}


@dataclass(frozen=True)
class Asked:
    """What the command line asks for."""

    folder: Path
    words: list[str]  # overrides of the trials
    trials: int
    sampler: str
    sampler_seed: int
    pruner: str
    seeds: int
    slots: Slots
    limits: Limits


def understood(words: Sequence[str]) -> Asked:
    """The words of the command line. Raises ConfigError."""
    if not words or ("=" in words[0] and not Path(words[0]).is_dir()):
        raise wrong_command("name the folder of the search first: metarun search DIR trials=50 'KEY=interval(A,B)' ...")
    own = {name: text for name, _, text in (word.partition("=") for word in words[1:]) if name in OWN}
    rest = [word for word in words[1:] if word.partition("=")[0] not in OWN]
    twice = [name for name in own if sum(word.startswith(f"{name}=") for word in words[1:]) > 1]
    problems = [f"{name} is given more than once; keep one of them." for name in twice]
    problems += [
        f"{word}: the folder stands first, and each trial goes on in its own."
        for word in rest
        if word.partition("=")[0] in ("sweep_dir", "run_dir", "resume")
    ]
    problems += [
        f"{word}: a search starts its trials itself, on this machine; leave it out, jobs=N runs N at a time."
        for word in rest
        if is_of_the_launcher(word) or word.startswith("hydra/launcher=")
    ]
    for name, names in (("sampler", SAMPLERS), ("pruner", PRUNERS)):
        if name in own and own[name] not in names:
            problems.append(f"{name}={own[name]}: use {', '.join(names)}{did_you_mean(own[name], names)}")
    if "trials" not in own:
        problems.append("say how many trials there shall be in all: trials=50.")
    if problems:
        raise wrong_command(*problems)
    said = OWN | own
    return Asked(
        folder=place_of_runs(words[0], "DIR"),
        words=rest,
        trials=whole("trials", said["trials"], 1),
        sampler=said["sampler"],
        sampler_seed=whole("sampler_seed", said["sampler_seed"], 0),
        pruner=said["pruner"],
        seeds=whole("seeds", said["seeds"], 0),
        slots=Slots(whole("jobs", said["jobs"], 1)),
        limits=limits_of(own),
    )
