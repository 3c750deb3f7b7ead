"""``metarun search``: Optuna proposes values, bad trials are given up, the winner is tested over fresh seeds."""

import hashlib
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from metarun.commands.report_search import table_of
from metarun.commands.search_words import Asked, understood
from metarun.commands.sweep import fresh
from metarun.config.compose import override_key
from metarun.errors import ConfigError, MetarunError, listed
from metarun.output.lock import claim
from metarun.output.tables import show
from metarun.paths import as_shown
from metarun.search import space
from metarun.search.kept import WINNER, Found, Kept, found
from metarun.search.study import Rules, Study, refuse_missing
from metarun.sweep.drain import Drain, Launching
from metarun.sweep.mistakes import Mistakes

STOPPED = "search stopped; the same command continues it"
LOCK = ".search"  # a folder that is held by the one process that leads the search
ROWS = 10  # of the last table, the best trials


@dataclass(frozen=True)
class Begun:
    """A search whose runs can begin: what it varies, what its trials share, and what is the same in all of them."""

    space: list[space.Parameter]
    shared: list[str]  # the words of the command line that vary nothing
    of_trials: list[str]  # the same for trials, which make no final test
    planner: Any
    rules: Rules
    score: str
    config: Any  # of a trial
    # by which it is known: what varies, the settings of its trials, a hash of all its options, and the names of its data
    facts: dict[str, Any]
    common: Any


def search(words: list[str], config_dirs: list[Path], flags: list[str], dry: bool) -> int:
    """Search until there are as many trials as asked for, then run and test the winner; the exit code.

    ``flags`` stand before the overrides of each run; ``dry``: only check and say what would be searched.
    """
    asked = understood(words)
    refuse_missing(asked.sampler)
    begun = checked(asked, config_dirs)
    for parameter in begun.space:
        print(f"searches {parameter.key}: {parameter}", file=sys.stderr)
    better = "highest" if begun.rules.higher else "lowest"
    where = as_shown(asked.folder)
    print(f"{asked.trials} trials for the {better} val/{begun.score}: {where}", file=sys.stderr)
    if (before := found(asked.folder)) is not None:
        refuse_another(before.facts, begun.facts, asked.folder)
        print(f"{len(before.trials)} trials of earlier calls count", file=sys.stderr)
    if dry:
        return 0
    try:
        (asked.folder / LOCK).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MetarunError(f"cannot write to {where} ({error.strerror}). Choose another folder.") from error
    with claim(asked.folder / LOCK) as ours:
        if not ours:
            raise MetarunError(
                f"the search in {where} is led by another process. Wait for it; jobs=N runs N at a time."
            )
        launcher = fresh(asked.slots)
        try:
            return searched(asked, begun, config_dirs, Launching(asked.slots, launcher, flags))
        finally:
            launcher.close()


def checked(asked: Asked, config_dirs: Sequence[Path]) -> Begun:
    """The search, once runs at the ends of all intervals and with all choices have been built. Raises ConfigError."""
    varied, shared = space.divided(asked.words, config_dirs)
    from metarun.process import prepare

    prepare()
    from metarun.config.overrides import written
    from metarun.search.common import Common
    from metarun.search.lead import NO_TEST
    from metarun.sweep.plan import Planner, first_of

    options = [written(override) for override in varied if "." not in override.key_or_group]
    cfg = first_of([*shared, *space.first_options(varied)], options, config_dirs)
    found_space = space.parameters(varied, cfg)
    of_trials = [*(text for text in shared if override_key(text) != "evaluation.num_tasks"), NO_TEST]
    if asked.seeds and cfg.evaluation.num_tasks == 0:
        rule = f"the winner is tested over {asked.seeds} fresh seeds"
        raise ConfigError([f"evaluation.num_tasks is 0, but {rule}: set it to 600, say, or add seeds=0."])
    common = Common()
    planner = Planner(config_dirs, asked.folder, {*of_trials}, build=True, look=common)
    jobs = built(planner, of_trials, found_space)
    score, higher = common.objective()
    every, steps = min(job.config["evaluation"]["every"] for job in jobs), max(job.config["steps"] for job in jobs)
    rules = Rules(asked.sampler, asked.pruner, asked.sampler_seed, higher, every, steps)
    facts = known_by(found_space, jobs) | {"data": common.names()}
    return Begun(found_space, shared, of_trials, planner, rules, score, jobs[0].config, facts, common)


def known_by(parameters: Sequence[space.Parameter], jobs: Sequence[Any]) -> dict[str, Any]:
    """What a search is known by; ``jobs`` are those that were built of it."""
    from metarun.config.checks import flat
    from metarun.sweep.identity import NO_EFFECT

    settings = flat({key: value for key, value in jobs[0].config.items() if key not in NO_EFFECT})
    options = hashlib.sha256(" ".join(sorted(job.identity for job in jobs)).encode()).hexdigest()
    return {
        "space": {parameter.key: str(parameter) for parameter in parameters},
        "settings": json.loads(json.dumps(settings, default=str)),
        "options": options,
    }


def built(planner: Any, shared: list[str], parameters: Sequence[space.Parameter]) -> list[Any]:
    """A job for each end or choice of each parameter, the others being at their first. Raises ConfigError."""
    first = [f"{parameter.key}={parameter.ends()[0]}" for parameter in parameters]
    combinations = {tuple(first): "all values"}
    for place_, parameter in enumerate(parameters):
        for end in parameter.ends():
            text = f"{parameter.key}={end}"
            combinations.setdefault((*first[:place_], text, *first[place_ + 1 :]), text)
    jobs, mistakes = [], Mistakes()
    for values, name in combinations.items():
        try:
            jobs.append(planner.job([*shared, *values], list(values)))
        except ConfigError as error:
            mistakes.add(name, values, error.problems)
        else:
            mistakes.add(name, values)
    mistakes.refuse()
    return jobs


def searched(asked: Asked, begun: Begun, config_dirs: Sequence[Path], launching: Launching) -> int:
    """Run the trials that are not done, then the winner; the exit code."""
    from metarun.search.lead import Lead, Plan
    from metarun.sweep.record import recorded
    from metarun.sweep.view import View

    study, kept = Study(asked.folder, begun.rules), Kept(asked.folder)
    refuse_another(study.remembered(**begun.facts), begun.facts, asked.folder)
    for warning in recorded(asked.folder, [], config_dirs, kept=bool(study.trials)):
        print(f"metarun: {warning}", file=sys.stderr)
    direction = "maximize" if begun.rules.higher else "minimize"
    log = [parameter.key for parameter in begun.space if isinstance(parameter, space.Numbers) and parameter.log]
    kept.write(score=begun.score, direction=direction, logarithmic=log, **begun.facts)
    kept.write(sampler=asked.sampler, sampler_seed=asked.sampler_seed, pruner=asked.pruner)
    plan = Plan(begun.space, begun.of_trials, asked.trials, begun.score, begun.rules.higher, begun.common.of)
    with View(asked.trials) as view:
        lead = Lead(study, begun.planner, plan, kept, view)
        signum = Drain([], asked.folder, launching, asked.limits, view, lead).run()
    kept.write(importance=study.importance())
    if signum is not None:
        print(STOPPED, file=sys.stderr)
        return 128 + signum
    result = found(asked.folder)
    assert result is not None
    tell(result)
    best, unfinished = study.best(), [row for row in result.trials if row["state"] == "unfinished"]
    if unfinished or best is None:
        why = (
            f"{len(unfinished)} of {len(result.trials)} trials are not done" if unfinished else "no trial is completed"
        )
        print(f"{why}, so there is no winner yet; the same command goes on")
        return 1
    kept.write(winner=best.number)
    code = winner(best, asked, begun, config_dirs, launching, kept)
    print(f"report:      {shlex.join(['metarun', 'report', as_shown(asked.folder)])}")
    return code or int(any(row["state"] == "failed" for row in result.trials))


def refuse_another(then: dict[str, Any], now: dict[str, Any], folder: Path) -> None:
    """Raise ConfigError where the folder's search is known by other facts: its trials could not be compared."""
    changed = []
    for name in ("space", "settings"):
        after = now[name]
        before = told if isinstance(told := then.get(name), dict) else after
        keys = [key for key in {**before, **after} if before.get(key) != after.get(key)]
        changed += [f"{key} was {before.get(key, 'not set')} and is {after.get(key, 'not set')}" for key in keys]
    if not changed and then.get("options", now["options"]) != now["options"]:
        changed = ["a YAML file of its options was edited"]
    before, after = then.get("data"), now.get("data")
    if not changed and None not in (before, after) and before != after:
        began = f"the data have changed since the search in {as_shown(folder)} began"
        raise ConfigError([f"{began}: {before} then, {after} now. Restore them, or choose another folder."])
    if changed:
        raise ConfigError(
            [f"{as_shown(folder)} holds another search: {listed(changed, most=3)}. Choose another folder."]
        )


def tell(result: Found) -> None:
    """Print the best trials, how many there are of each state, and what giving up has saved."""
    trials = table_of(result)
    show(replace(trials, rows=trials.rows[:ROWS], title=f"the best of {len(result.trials)} trials"))
    made, planned = result.steps
    saved = f"; {made} of {planned} steps, {1 - made / planned:.0%} saved" if planned else ""
    states = [row["state"] for row in result.trials]
    print(", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states)) + saved)
    for row in result.trials:
        if row["state"] == "failed":
            print(f"trial {row['trial']} failed: {row['outcome']}")


def winner(best: Any, asked: Asked, begun: Begun, config_dirs: Sequence[Path], launching: Launching, kept: Kept) -> int:
    """Run the best trial's values over fresh seeds, with the final test; the exit code."""
    if not asked.seeds:
        return 0
    from metarun.sweep.plan import Planner
    from metarun.sweep.record import recorded
    from metarun.sweep.view import final_table
    from metarun.sweep.way import Sweep, drained

    seeds = range(begun.config["seed"] + 1, begun.config["seed"] + 1 + asked.seeds)
    values = best.user_attrs["overrides"]
    shared = [*(text for text in begun.shared if override_key(text) != "seed"), *values]
    folder = asked.folder / WINNER
    print(f"winner: trial {best.number}, {' '.join(values)}; seeds {', '.join(map(str, seeds))}", file=sys.stderr)
    planner = Planner(config_dirs, folder, {*shared}, build=True)
    jobs = [planner.job([*shared, f"seed={seed}"], [f"seed={seed}"]) for seed in seeds]
    for number, job in enumerate(jobs, start=1):
        job.number = number
    recorded(folder, jobs, config_dirs)
    kept.write(winner_runs=[job.folder.path.name for job in jobs])  # beside those of an earlier winner
    sweep = Sweep(jobs, folder, launching.flags, launching.slots, asked.limits, None)
    if (code := drained(sweep, launching.launcher, STOPPED)) is not None:
        return code
    completed = final_table(jobs, folder)
    name = f"test/{begun.score}"
    means = [score for job in jobs if isinstance(score := job.folder.read_status().get(name), float)]
    if means:
        from metarun.output.paired import of_values

        print(f"winner: {name} = {of_values(means).score.text()} over {len(means)} fresh seed{'s' * (len(means) > 1)}")
    return 0 if completed == len(jobs) else 1
