"""``metarun runs``: the runs in a folder, as a table."""

import os
import sys
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

from metarun.errors import did_you_mean, listed, shortened, wrong_command
from metarun.output.kept import number
from metarun.output.ledger import Run, runs_in
from metarun.output.tables import Score, Table, refuse_other_formats, show
from metarun.paths import usable

AGES = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"))
SHOWN = ("run", "state", "age", "learner", "task", "seed", "metric", "score", "step")
FOR_PROGRAMS = (*SHOWN[:2], "started", "updated", *SHOWN[3:], "steps", "base_learner", "path")
SAME = {"meta_learner": "learner"}  # two names of one thing
NO_VALUE = object()
QUOTES = ('"', "'")
NO_QUOTES = str.maketrans("", "", "".join(QUOTES))


class Filter(NamedTuple):
    """``key=value``, or one of several values: ``seed=0,1``."""

    key: str
    values: list[str]


def list_runs(words: list[str], sort: str, chosen: str) -> None:
    """Print the runs below the folder in ``words`` that pass its filters, in the order of the key ``sort``."""
    refuse_other_formats(chosen)
    root, filters = understood(words)
    runs = runs_in(root)
    key = sort.removeprefix("-")
    refuse_unknown([key] if key else [], runs)
    kept = passing(runs, filters)
    if key:
        kept = in_order(kept, key, descending=sort.startswith("-"))
    further = [k for k in dict.fromkeys([*(f.key for f in filters), key]) if k and SAME.get(k, k) not in FOR_PROGRAMS]
    show(table_of(kept, root, further, chosen), chosen)
    if not kept:
        print(none_passes(runs, filters, root), file=sys.stderr)


def passing(runs: Sequence[Run], filters: Sequence[Filter]) -> list[Run]:
    """The runs that pass all filters. Raises ConfigError for a filter by a key that no run has."""
    refuse_unknown([f.key for f in filters], runs)
    return [run for run in runs if all(passes(run, f) for f in filters)]


def none_passes(runs: Sequence[Run], filters: Sequence[Filter], root: Path | str) -> str:
    """What to say where no run in a folder passes the filters."""
    there = "".join(_values_there(f.key, runs) for f in filters if not any(passes(run, f) for run in runs))
    return f"none of the {len(runs)} runs in {root} passes the filter{there}"


def _values_there(key: str, runs: Sequence[Run]) -> str:
    """What the runs have by the name of a filter that none of them passes."""
    found = dict.fromkeys(_letters(value) for run in runs if (value := value_of(run, key)) is not NO_VALUE)
    return f"; {key} is {listed([shortened(text, 60) for text in found])} there"


def understood(words: list[str]) -> tuple[Path, list[Filter]]:
    """The folder (runs, where none is named) and the filters among ``words``."""
    filters, places = filters_in(words)
    if len(places) > 1:
        raise wrong_command(f"one folder at a time: {listed(places)}. A filter is KEY=VALUE.")
    return usable(places[0] if places else "runs", "DIR"), filters


def filters_in(words: list[str]) -> tuple[list[Filter], list[str]]:
    """The filters among ``words``, and the rest, which are folders."""
    places = [word for word in words if "=" not in word or os.path.isdir(word)]
    given = [word.partition("=") for word in words if word not in places]
    filters = [Filter(key, _alternatives(value)) for key, _, value in given]
    if problems := [_unclosed(each.key, each.values[-1]) for each in filters if not _whole(each.values[-1])]:
        raise wrong_command(*problems)
    return filters, places


def _unclosed(key: str, value: str) -> str:
    """What to say of a filter's value whose quote or brackets begin it and do not end it: the rest of the word is in it."""
    end = {"[": "]", "{": "}"}.get(value[0], value[0])
    return f"{key}={value}: it begins with {value[0]}, and must end with {end}; or leave the {value[0]} out."


def _alternatives(text: str) -> list[str]:
    """The values between the commas of ``text``; those inside of a value's brackets or quotes belong to it."""
    found = [""]
    for i, piece in enumerate(text.split(",")):
        if i and _whole(found[-1]):
            found.append(piece)
        else:
            found[-1] += "," * bool(i) + piece
    return found


def _whole(text: str) -> bool:
    """Whether the quote, or the brackets, with which a value begins are closed in it."""
    if text.startswith(QUOTES):
        return _quoted(text)
    opened, closed = (sum(map(text.count, signs)) for signs in ("[{", "]}"))
    return not text.startswith(("[", "{")) or opened <= closed


def _quoted(text: str) -> bool:
    return len(text) > 1 and text.startswith(QUOTES) and text.endswith(text[0])


def value_of(run: Run, key: str) -> Any:
    """What a run has by the name ``key``: a column, a setting, a group's option, a score or an override; else NO_VALUE."""
    own = {
        "run": run.path.name,
        "path": str(run.path),
        "state": run.state,
        "age": None if run.started is None else -run.started,
        "started": run.started,
        "updated": run.updated,
        "learner": run.learner,
        "metric": run.score_name,
        "score": run.score.mean if run.score else run.best_validation,
        "step": run.status.get("step"),
    }
    if key in own:
        return own[key]
    if name := run.option(key):
        return name
    if key in run.settings:
        return run.settings[key]
    if score := run.scores.get(key) or run.scores.get(f"test/{key}"):
        return score.mean
    if key in run.status:
        return run.status[key]
    said = [text.partition("=")[2] for text in run.overrides if text.lstrip("+~").startswith(f"{key}=")]
    return said[-1] if said else NO_VALUE


def passes(run: Run, wanted: Filter) -> bool:
    """Whether the run has one of the values."""
    value = value_of(run, wanted.key)
    of_option = wanted.key in ("learner", "task") or bool(run.option(wanted.key))
    return value is not NO_VALUE and any(_same(value, text, of_option) for text in wanted.values)


def _same(value: Any, text: str, of_option: bool) -> bool:
    """Whether ``text`` writes ``value``; the name of an option may be that of its class: ProtoMAML is proto_maml."""
    if _quoted(text):
        return str(value) == text[1:-1]
    try:
        if number(value) == float(text):
            return True
    except ValueError:
        pass
    if text.startswith(("[", "{")):
        return _letters(value) == "".join(text.lower().translate(NO_QUOTES).split())
    ours, theirs = _letters(value), text.lower().strip()
    return ours == theirs or (of_option and ours.replace("_", "") == theirs.replace("_", ""))


def _letters(value: Any) -> str:
    """A value as a command line has it, in small letters; a list without blanks and quotes."""
    if isinstance(value, (list, dict)):
        return "".join(str(value).replace("None", "null").lower().translate(NO_QUOTES).split())
    return str(value).lower().strip() if value is not None else "null"


def in_order(runs: list[Run], key: str, descending: bool) -> list[Run]:
    """Sorted by a value, numbers before words; those without one are last."""

    def rank(run: Run) -> tuple[bool, Any]:
        value = value_of(run, key)
        numeric = isinstance(value, (int, float))
        return not numeric, value if numeric else str(value)

    absent = [run for run in runs if value_of(run, key) in (NO_VALUE, None)]
    there = [run for run in runs if value_of(run, key) not in (NO_VALUE, None)]
    return sorted(there, key=rank, reverse=descending) + absent


def refuse_unknown(keys: Sequence[str], runs: Sequence[Run], option: str = "") -> None:
    """Raise ConfigError for keys that no run has; ``option``: how the words of the command begin that name them."""
    known = dict.fromkeys([*FOR_PROGRAMS, *(key for run in runs for key in (*run.settings, *run.config, *run.scores))])
    problems = [
        f"{option}{key or 'an empty key'}: no run has this{did_you_mean(key, known) or '.'} Keys are columns, settings "
        "(task.num_shots) and scores."
        for key in keys
        if key not in known and all(value_of(run, key) is NO_VALUE for run in runs)
    ]
    if problems:
        raise wrong_command(*problems)


def table_of(runs: Sequence[Run], root: Path, further: Sequence[str], chosen: str) -> Table:
    """The runs, a row each; for people with ages, for programs with times and paths."""
    columns = [*(SHOWN if chosen in ("table", "md", "latex") else FOR_PROGRAMS), *further]
    rows = [row_of(run, root, further) for run in runs]
    if any(row["note"] for row in rows):
        columns.append("note")
    return Table(columns, [[row[column] for column in columns] for row in rows])


def row_of(run: Run, root: Path, further: Sequence[str]) -> dict[str, Any]:
    """The cells of a run, by the names of their columns."""
    step, steps = run.status.get("step"), run.status.get("steps")
    validated = Score(run.best_validation) if run.best_validation is not None else None
    metric = f"test/{run.score_name}" if run.score else f"best val/{run.score_name}" if validated else None
    row: dict[str, Any] = {key: None if (value := value_of(run, key)) is NO_VALUE else value for key in further}
    return row | {
        "run": os.path.relpath(run.path, root) if run.path != root else run.path.name,
        "path": str(run.path),
        "state": run.state,
        "age": age(run.started),
        "started": _told(run.started),
        "updated": _told(run.updated),
        "learner": run.learner,
        "task": run.task,
        "base_learner": run.option("base_learner"),
        "seed": run.seed,
        "metric": metric,
        "score": run.score or validated,
        "step": step if steps in (None, step) else f"{step}/{steps}",
        "steps": steps,
        "note": note(run),
    }


def note(run: Run) -> str:
    """Why a run has no score, in a line: its error, and what of it cannot be read."""
    error = str(run.status.get("error") or "").strip()
    last = error.splitlines()[-1 if error.startswith("Traceback") else 0] if error else ""
    return "; ".join([*([last] if last else []), *run.damaged])


def age(moment: float | None) -> str | None:
    """The time since ``moment`` in its largest unit: 3 h, say."""
    if moment is None:
        return None
    seconds = max(0.0, time.time() - moment)
    size, unit = next(((size, unit) for size, unit in AGES if seconds >= size), AGES[-1])
    return f"{seconds / size:.0f} {unit}"


def _told(moment: float | None) -> str | None:
    return None if moment is None else datetime.fromtimestamp(moment, tz=timezone.utc).isoformat(timespec="seconds")
