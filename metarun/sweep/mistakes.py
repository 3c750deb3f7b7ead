"""What is wrong with the jobs of a sweep or a search: each mistake once, with the jobs that it concerns."""

import re
from collections import defaultdict
from collections.abc import Collection, Sequence

from metarun.errors import ConfigError, listed

UNKNOWN = re.compile(r"(\S+) is not a setting[;.]")
OPTION = re.compile(r"[\w/]+=.+")  # GROUP=NAME decides on the keys that there are


class Mistakes:
    """The mistakes of jobs, which are known by their names and the overrides that tell them from each other."""

    def __init__(self) -> None:
        self.varying: dict[str, Sequence[str]] = {}  # overrides by the name of the job, of all jobs
        self.found: dict[str, list[str]] = defaultdict(list)  # the names of jobs by problem

    def add(self, name: str, varying: Sequence[str], problems: Sequence[str] = ()) -> None:
        """Note a job and what is wrong with it."""
        self.varying[name] = varying
        for problem in problems:
            self.found[problem].append(name)

    def refuse(self) -> None:
        """Raise ConfigError with all of them, if there are any."""
        if self.found:
            raise ConfigError([*dict.fromkeys(self._told(*each) for each in self.found.items())])

    def _told(self, problem: str, names: list[str]) -> str:
        """A mistake with the jobs that it concerns where it does not concern all."""
        if len(names) == len(self.varying):
            return problem
        key = match[1] if (match := UNKNOWN.match(problem)) else ""
        lacking, having = self._options(
            {n for text, of in self.found.items() if text.startswith(f"{key} ") for n in of}
        )
        if key and having:
            fix = "Leave it out, or give those without it a command of their own."
            return f"{key} is a setting of {having}, but not of {lacking}. {fix}"
        return f"{problem} (in {listed(names, most=3)})"

    def _options(self, names: Collection[str]) -> tuple[str, str]:
        """The options that all jobs called ``names`` have and no other has, and those of the others; else nothing."""
        of: dict[str, tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))
        for name, overrides in self.varying.items():
            for text in filter(OPTION.fullmatch, overrides):
                of[text.partition("=")[0]][name not in names].append(text)
        apart = [pair for pair in of.values() if pair[0] and pair[1] and not {*pair[0]} & {*pair[1]}]
        return tuple(listed([*dict.fromkeys(texts)]) for texts in apart[0]) if apart else ("", "")  # type: ignore[return-value]
