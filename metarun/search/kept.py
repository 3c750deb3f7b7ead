"""``search.json``: what a search is, its trials and its winner, for people and for programs; read without Optuna."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from metarun import __version__
from metarun.files import write_json
from metarun.output.kept import json_object, mapping, number

NAME = "search.json"
WINNER = "winner"  # the folder of the winner's runs, in that of the search


class Kept:
    """The file of a search, written whole with each new fact."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self.facts = json_object(self.path, [])

    def write(self, **facts: Any) -> None:
        """Write these facts beside those that are known."""
        self.facts = {"version": 1, "metarun": __version__, **self.facts, **facts}
        write_json(self.path, self.facts)


@dataclass(frozen=True)
class Found:
    """What a search has found so far, as far as its file can be read."""

    score: str
    higher: bool
    space: dict[str, str]  # what each parameter may be, in words
    trials: list[dict[str, Any]]
    importance: dict[str, float] = field(default_factory=dict)
    logarithmic: list[str] = field(default_factory=list)  # the parameters that are searched by their logarithm
    winner_runs: list[str] = field(default_factory=list)  # the names of their folders in that of the winner
    facts: dict[str, Any] = field(default_factory=dict)  # all that the file has

    @property
    def scored(self) -> list[dict[str, Any]]:
        """The trials that have a score, the best first."""
        rows = [
            row for row in self.trials if number(row.get("score")) is not None and isinstance(row.get("values"), dict)
        ]
        return sorted(rows, key=lambda row: -row["score"] if self.higher else row["score"])

    @property
    def best(self) -> int | None:
        """The place among ``scored`` of the best trial that went to its end."""
        return next((place for place, row in enumerate(self.scored) if row.get("state") == "completed"), None)

    @property
    def folders(self) -> set[str]:
        """The names of the folders of its trials."""
        return {str(row.get("folder")) for row in self.trials}

    @property
    def steps(self) -> tuple[int, int]:
        """The training steps that trials have made, and those that they would have made without being given up."""
        told = [row for row in self.trials if type(row.get("step")) is int and type(row.get("steps")) is int]
        known = {row.get("folder"): row for row in told}.values()  # trials of the same values share a run
        return sum(row["step"] for row in known), sum(row["steps"] for row in known)


def found(folder: Path) -> Found | None:
    """The search in a folder; None where there is none."""
    if not (folder / NAME).is_file():
        return None
    facts = json_object(folder / NAME, [])
    trials = facts.get("trials")
    rows = [row for row in trials if isinstance(row, dict)] if isinstance(trials, list) else []
    words = {str(key): str(text) for key, text in mapping(facts.get("space")).items()}
    shares = {key: share for key, share in mapping(facts.get("importance")).items() if number(share) is not None}
    names = {key: facts[key] if isinstance(facts.get(key), list) else [] for key in ("logarithmic", "winner_runs")}
    score, higher = str(facts.get("score") or "score"), facts.get("direction") != "minimize"
    return Found(score, higher, words, rows, shares, **names, facts=facts)
