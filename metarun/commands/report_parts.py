"""What a report shows of its rows: curves, score against shots, cost, learning speed, differences, runs and alarms."""

from collections.abc import Callable, Iterator, Sequence
from statistics import fmean
from typing import Any

from metarun.commands.report_rows import Row, settings_of, unlike
from metarun.commands.runs import note
from metarun.output.kept import mapping, number
from metarun.output.ledger import Run, score_of, scores_in
from metarun.output.lines import Line
from metarun.output.paired import of_values
from metarun.output.scored import Scored
from metarun.output.tables import Score, Table, text_of

COSTS = {
    "parameters": "parameters of theta",
    "step_flops": "training step, MFLOPs",
    "adaptation_flops": "adaptation, MFLOPs",
    "prediction_flops": "prediction, MFLOPs",
    "step_ms": "training step, ms",
    "adaptation_ms": "adaptation, ms",
    "peak_memory_mb": "peak memory, MB",
}
SHOTS, NESTED = "task.num_shots", "_shots_"
HARMLESS = ("execution", "device", "data_root", "evaluation.num_tasks")  # in an evaluation for a curve over shots
MADE_WITH = ("metarun", "commit", "torch", "host", "cpus", "gpu")


def over(curves: Sequence[dict[float, Score]]) -> dict[float, Score]:
    """The mean curve of several seeds at the points that all have, with Student's t over seeds; a single one as it is."""
    if len(curves) == 1:
        return curves[0]
    shared = [x for x in curves[0] if all(x in curve for curve in curves)] if curves else []
    return {x: of_values([curve[x].mean for curve in curves]).score for x in shared}


def adaptation(rows: Sequence[Row], score: str) -> Iterator[Line]:
    """The score after each adaptation step, of the rows whose learners take steps."""
    for row in rows:
        told = [scored.run.curve(f"test/{score}") for scored in row.counted.values()]
        curves = [{float(step): value for step, value in enumerate(each)} for each in told if len(each) > 1]
        if points := over(curves):
            yield Line(row.name, points)


def learning(rows: Sequence[Row], score: str) -> Iterator[Line]:
    """The validation score by training step: the mean of the runs that count, and each run, also those that do not."""
    for row in rows:
        curves = {run.path: run.validations(score) for run in row.runs}
        counted = [curve for scored in row.counted.values() if (curve := curves[scored.run.path])]
        thin = [{step: value.mean for step, value in curve.items()} for curve in curves.values() if curve]
        if thin:
            yield Line(row.name, over(counted), thin)


def shots(rows: Sequence[Row], score: str, keys: Sequence[str]) -> Iterator[Line]:
    """The score against the shots of the test: of each row that was tested with several, and of rows that were trained
    with several."""
    for row in rows:
        curves = [dict(sorted(_shots_of(scored, score))) for scored in row.counted.values()]
        if len(points := over(curves)) > 1:
            yield Line(row.name, points)
    if SHOTS in keys:
        together: dict[str, dict[float, Score]] = {}
        for row in rows:
            said = next((number(run.settings.get(SHOTS)) for run in row.runs), None)
            if said is not None and (mean := row.over_seeds(f"test/{score}")):
                name = " ".join(word for word in row.name.split() if not word.startswith("num_shots="))
                together.setdefault(name, {})[said] = mean
        yield from (
            Line(f"{name}, trained with these", dict(sorted(p.items()))) for name, p in together.items() if len(p) > 1
        )


def shots_needed(lines: Sequence[Line]) -> Table:
    """The fewest of the measured shots at which a curve has made 90% of its way from the fewest to the most."""
    cells = []
    for line in lines:
        places = sorted(line.points)
        means = [line.points[place].mean for place in places]
        gain = means[-1] - means[0]
        enough = [place for place, mean in zip(places, means, strict=True) if gain and (mean - means[0]) / gain >= 0.9]
        cells.append([line.name, ", ".join(f"{place:g}" for place in places), min(enough, default=None)])
    return Table(["group", "shots measured", "shots to 90% of the gain"], cells)


def _shots_of(scored: Scored, score: str) -> Iterator[tuple[float, Score]]:
    """Shots and score of a curve by evaluation.shots; else of the final test and of evaluations that changed the shots
    alone."""
    name, run = f"test/{score}", scored.run
    contents = [run.results, *(each for each in run.evaluations().values() if _of_other_shots(each))]
    for content in contents:
        if nested := {key: mean for key, mean in scores_in(content).items() if key.startswith(name + NESTED)}:
            yield from ((int(key.removeprefix(name + NESTED)), mean) for key, mean in nested.items())
            return
    for content in contents:
        said = mapping(content.get("protocol")).get("task")
        count = number(said.get("num_shots") if isinstance(said, dict) else run.settings.get(SHOTS))
        mean = scores_in(content).get(name)
        if count is not None and mean:
            yield count, mean


def _of_other_shots(evaluation: dict[str, Any]) -> bool:
    """Whether an evaluation of the best checkpoint changed nothing but the shots."""
    said = evaluation.get("overrides")
    kept = [str(text) for text in said if not str(text).startswith(HARMLESS)] if isinstance(said, list) else []
    changed = [text.partition("=")[0] for text in kept]
    return (
        changed in ([SHOTS], ["evaluation.shots"]) and mapping(evaluation.get("protocol")).get("checkpoint") == "best"
    )


def points_table(lines: Sequence[Line], x: str, title: str) -> Table:
    """The numbers of a drawing, a row for each x."""
    places = sorted({place for line in lines for place in line.points})
    rows = [[place, *(line.points.get(place) for line in lines)] for place in places]
    return Table([x, *(line.name for line in lines)], rows, title)


def cost(rows: Sequence[Row]) -> Table:
    """The mean over seeds of what a row's runs cost; columns that none tells are left out."""
    found = {key: [_mean(row, lambda run, key=key: _cost_of(run, key)) for row in rows] for key in COSTS}  # type: ignore[misc]
    known = {key: values for key, values in found.items() if any(value is not None for value in values)}
    names = [row.name for row in rows]
    cells = list(zip(names, *known.values(), strict=True)) if known else []
    return Table(["group", *(COSTS[key] for key in known)], cells)


def _cost_of(run: Run, key: str) -> float | None:
    value = mapping(run.results.get("complexity")).get(key)
    score = score_of(value)
    cost = score.mean if score else number(value)
    return cost / 1e6 if cost is not None and key.endswith("_flops") else cost


def _mean(row: Row, value_of: Callable[[Run], float | None]) -> float | None:
    values = [value for scored in row.counted.values() if (value := value_of(scored.run)) is not None]
    same = len(set(values)) == 1
    return values[0] if same else fmean(values) if values else None


def speed(rows: Sequence[Row], score: str) -> Table:
    """How soon the adaptation curve is where it ends, over seeds."""
    cells = []
    for row in rows:
        told = [mapping(scored.run.results.get("learning_speed")) for scored in row.counted.values()]
        if own := [speed for each in told if isinstance(speed := each.get(score), dict)]:
            means = [[s.mean for each in own if (s := score_of(each.get(key)))] for key in ("area", "change")]
            steps = ", ".join("never" if (s := each.get("steps_to_90_percent")) is None else str(s) for each in own)
            cells.append([row.name, *(of_values(values).score if values else None for values in means), steps])
    columns = ["group", "mean height over seeds", "change over seeds", "steps to 90% of it, by seed"]
    return Table(columns, cells)


def differences(rows: Sequence[Row]) -> Table:
    """The settings, data, code and machines that are not the same in all rows; several values where a row has several."""
    told = [[_conditions(run) for run in row.runs] for row in rows]
    keys = unlike([each for row in told for each in row])
    cells = [[key, *(", ".join(dict.fromkeys(each.get(key, "-") for each in row)) for row in told)] for key in keys]
    return Table(["setting", *(row.name for row in rows)], cells)


def _conditions(run: Run) -> dict[str, str]:
    made = {"data": run.facts.get("data"), **run.code, **run.machine}
    known = {key: text_of(made[key]) for key in ("data", *MADE_WITH) if made.get(key) not in (None, "")}
    return {**(settings_of(run) if run.settings else {}), **known}


def unequal(rows: Sequence[Row], keys: Sequence[str]) -> Iterator[str]:
    """In what the rows differ that they are not named by, and what one row mixes: lines that a reader must know."""
    named = (*keys, *(f"{key}." for key in keys))
    told = [[_conditions(run) for run in row.runs] for row in rows]
    across = [key for key in unlike([each for row in told for each in row]) if not key.startswith(named)]
    if across:
        yield f"runs differ in more than {', '.join(keys)}: {', '.join(across)} (see what differs)"
    for row, each in zip(rows, told, strict=True):
        if mixed := [key for key in unlike(each) if key not in MADE_WITH]:
            yield f"{row.name} mixes runs of different {', '.join(mixed)}: its mean is over these too"


def all_runs(rows: Sequence[Row], score: str) -> Table:
    """Every run with its state, whether it counts or not."""
    columns = ["run", "group", "seed", "state", "step", f"test {score}", f"best validation {score}", "note"]
    cells = []
    for row in rows:
        for scored in (*row.counted.values(), *row.others):
            run = scored.run
            best = number(run.status.get(f"best_val/{score}"))
            seen = [value.mean for value in run.validations(score).values()] if best is None else []
            shown = Score(best) if best is not None else None
            if seen:
                shown = Score((max if scored.higher(score) else min)(seen))
            step = run.status.get("step")
            own = [run.seed, run.state, step, run.scores.get(f"test/{score}"), shown, note(run)]
            cells.append([scored.name, row.name, *own])
    return Table(columns, cells)


def alarms(rows: Sequence[Row]) -> Table:
    """The signs of a run that went wrong, as it told them."""
    cells: list[list[Any]] = [
        [scored.name, row.name, alarm["step"], alarm["text"]]
        for row in rows
        for scored in (*row.counted.values(), *row.others)
        for alarm in scored.run.alarms()
    ]
    return Table(["run", "group", "step", "alarm"], cells)
