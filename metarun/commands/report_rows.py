"""The rows of a report: runs that agree in some keys, those of them that count, and what became of the others."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from metarun.commands.runs import NO_VALUE, note, refuse_unknown, value_of
from metarun.errors import wrong_command
from metarun.output.kept import number
from metarun.output.ledger import Run
from metarun.output.paired import half_width_of_mean, of_others, of_strata, of_values
from metarun.output.scored import Key, Scored, mean_of, over_others, strata
from metarun.output.tables import Score, text_of

CHOSEN = ("task", "base_learner", "meta_learner", "optimizer", "scheduler")  # groups that make rows of a report
# settings that decide no score, or are the seed
WITHOUT_WEIGHT = (
    *("seed", "run_dir", "resume", "data_root", "log_every", "checkpoint_minutes", "profile", "device", "devices"),
    *("exact", "logger", "execution"),
)


@dataclass(frozen=True)
class Row:
    """What a report takes as one: runs that differ in their seeds alone, or in what nobody asked about."""

    name: str
    counted: dict[Any, Scored] = field(default_factory=dict)  # by seed: those that have the score
    others: list[Scored] = field(default_factory=list)

    @property
    def runs(self) -> list[Run]:
        """All of them."""
        return [scored.run for scored in (*self.counted.values(), *self.others)]

    def scores(self, name: str) -> list[Score]:
        """The score ``name`` of each run that counts, where it has one."""
        return [score for scored in self.counted.values() if (score := scored.run.scores.get(name))]

    def over_seeds(self, name: str) -> Score | None:
        """The mean over seeds; its interval is Student's t over the means of the seeds."""
        means = [score.mean for score in self.scores(name)]
        return of_values(means).score if means else None

    def over_episodes(self, name: str) -> Score | None:
        """The same mean; its interval is for these trained runs on other episodes, as ``metarun compare`` gives it; of runs
        without the scores of single episodes it is made of theirs."""
        scores, each = self.scores(name), self._of_episodes(name)
        if scores and len(each) == len(scores) and all(map(_agree, scores, each)):
            return of_strata(strata(each)).score
        manifests = {scored.protocol.get("manifest") for scored in self.counted.values()}
        return _together(scores, alike=len(manifests) == 1 and None not in manifests) if scores else None

    def _of_episodes(self, name: str) -> list[dict[Key, float]]:
        """The score of each episode, of each run that counts."""
        return [scored.scores(name.removeprefix("test/")) for scored in self.counted.values()]

    def over_others(self, name: str, kind: str) -> Score | None:
        """The same mean; its interval is over other ``kind`` than those of the test, as ``metarun compare`` gives it; of
        runs without the scores of single episodes it is the mean of theirs, for all seeds are tested on the same ones."""
        runs, each = list(self.counted.values()), self._of_episodes(name)
        if each and all(each) and (others := over_others(runs, each)) and others.kind == kind:
            return of_others(fmean(map(mean_of, each)), others).score
        told = [scored.run.results.get(name) or {} for scored in self.counted.values()]
        widths = [number(result.get(f"ci95_over_{kind}")) for result in told]
        known = [width for width in widths if width is not None]
        if not told or len(known) < len(told):
            return None
        return Score(fmean(result["mean"] for result in told), fmean(known), told[0].get(f"num_{kind}"))

    def missing(self, seeds: Sequence[Any], score: str) -> dict[Any, str]:
        """Of these seeds those that do not count, each with what became of it."""
        states = {scored.run.seed: scored.run.state.replace("completed", f"no {score}") for scored in self.others}
        return {seed: states.get(seed, "no run") for seed in seeds if seed not in self.counted}


def _agree(score: Score, episodes: Mapping[Key, float]) -> bool:
    """Whether these are the episodes that the score is the mean of, and none is lost."""
    return bool(episodes) and math.isclose(mean_of(episodes), score.mean, rel_tol=1e-6, abs_tol=1e-12)


def _together(scores: Sequence[Score], alike: bool) -> Score:
    """``alike``: the scores are of the same episodes, which more of them do not make more."""
    widths = [score.ci95 for score in scores if score.ci95 is not None]
    half = half_width_of_mean(widths, alike) if len(widths) == len(scores) else None
    number = (max if alike else sum)(score.n or 0 for score in scores)
    return Score(fmean(score.mean for score in scores), half, number or None)


def decides(key: str) -> bool:
    """Whether a setting can change a score, and is not the seed."""
    return key.split(".", maxsplit=1)[0] not in WITHOUT_WEIGHT and not key.endswith(".download")


def settings_of(run: Run) -> dict[str, str]:
    """The settings that can change a score, as texts."""
    return {key: text_of(value) or "null" for key, value in run.settings.items() if decides(key)}


def keys_of(runs: Sequence[Run], by: str) -> list[str]:
    """The keys of ``by``, or else the groups of which the runs have several options, and every setting in which runs of the
    same options differ. Raises ConfigError for a key that no run has."""
    if by:
        keys = by.split(",")
        refuse_unknown(keys, runs, "--by ")
        return keys
    groups = [group for group in CHOSEN if len({run.option(group) for run in runs if run.config}) > 1]
    alike: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for run in runs:
        if run.settings:
            alike.setdefault(tuple(map(run.option, CHOSEN)), []).append(settings_of(run))
    further = dict.fromkeys(key for settings in alike.values() for key in unlike(settings))
    return [*(groups or ["meta_learner"]), *further]


def unlike(settings: Sequence[dict[str, str]]) -> Iterator[str]:
    """The keys whose values are not the same in all of them."""
    for key in dict.fromkeys(key for each in settings for key in each):
        if len({each.get(key) for each in settings}) > 1:
            yield key


def rows_of(runs: Sequence[Scored], keys: Sequence[str], score: str, notes: list[str]) -> list[Row]:
    """The rows, in the order of the runs; what is left out for good is noted. Raises ConfigError where two runs of a row
    have one seed and differ in their settings."""
    rows: dict[str, Row] = {}
    for scored in runs:
        if not scored.run.config:
            notes.append(
                f"{scored.name} is in no group, for its configuration is lost: {'; '.join(scored.run.damaged)}"
            )
            continue
        name = name_of(scored.run, keys)
        row = rows.setdefault(name, Row(name))
        if f"test/{score}" not in scored.run.scores:
            row.others.append(scored)
            continue
        earlier = row.counted.get(scored.run.seed)
        if earlier and settings_of(earlier.run) != settings_of(scored.run):
            differ = ", ".join(unlike([settings_of(earlier.run), settings_of(scored.run)]))
            twice = f"{earlier.name} and {scored.name} are both of seed {scored.run.seed} and differ in {differ}"
            raise wrong_command(f"--by {','.join(keys)}: {twice}. Add that to --by, or a filter KEY=VALUE.")
        if earlier:
            notes.append(f"{earlier.name} is left out: {scored.name} is the same again, and later")
        row.counted[scored.run.seed] = scored
    return list(rows.values())


def name_of(run: Run, keys: Sequence[str]) -> str:
    """What a run has of the keys: options by their names alone, settings with the last part of their key."""
    found = [(key, value) for key in keys if (value := value_of(run, key)) is not NO_VALUE]
    return " ".join(text_of(v) if run.option(k) else f"{k.rpartition('.')[2]}={text_of(v)}" for k, v in found) or "all"


def why_left_out(scored: Scored, score: str) -> str:
    """Why a run has no part in the means."""
    run = scored.run
    reason = note(run)
    if run.state == "completed" and not reason:
        own = run.score_name
        reason = f"it has no {score}" + (f"; its score is {own}: --score {own}" if own not in ("", score) else "")
    at = f" at step {run.status['step']} of {run.status.get('steps')}" if "step" in run.status else ""
    return f"{run.state}{at if run.state != 'completed' else ''}{': ' + reason if reason else ''}"
