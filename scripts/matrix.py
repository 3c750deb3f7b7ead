"""A result table of one sweep over meta-learners.

    python scripts/matrix.py SWEEP_DIR                   prints the table of its runs
    python scripts/matrix.py SWEEP_DIR NAME --publish    writes their receipts into docs/receipts/matrix_NAME.json, beside
                                                         those of other learners and in place of older ones, and the
                                                         tables in docs/ that name it
    ... --of task=gp_rbf                                 only of the runs that were begun with this override
    python scripts/matrix.py --publish                   writes the tables in docs/ anew from the receipts

The sweep is one such as

    metarun -m experiment=matrix/omniglot_5w1s meta_learner=maml,protonet,... sweep_dir=DIR jobs=2
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from published import markdown
from receipt import RECEIPTS, receipt

DOCS = RECEIPTS.parent
MARKED = re.compile(r"(?P<begin><!-- matrix: (?P<name>\w+)(?: of (?P<learners>[\w ]+))? -->).*?<!-- end -->", re.S)
LIKELIHOOD = "test/negative_log_likelihood"
PLACES = [
    *((f"_step_{k}", f"step {k}") for k in (0, 1, 3, 10)),
    *((f"_shots_{k}", f"{k} shots") for k in (1, 5, 10, 40)),
]


def width(score: dict[str, Any]) -> float:
    """Half of the interval on other episodes, of other sizes where these vary."""
    return float(score.get("ci95_over_sizes") or score["ci95"])


def collect(sweep: Path, of: str = "") -> dict[str, Any]:
    """The receipt of every completed run of a sweep, by meta-learner; says which runs are left out. ``of``: an override."""
    folders = sorted({path.parent for path in (*sweep.glob("*/config.yaml"), *sweep.glob("*/results.json"))})
    begun = [run for run in folders if not of or of in overrides(run)]
    runs = [run for run in begun if (run / "results.json").is_file()]
    if not runs:
        sys.exit(f"{sweep} holds no completed runs{f' of {of}' if of else ''}.")
    print("".join(f"left out, not completed: {run.name}\n" for run in begun if run not in runs), end="")
    kept: dict[str, Any] = {}
    for run in runs:
        learner = next(text.split("=")[1] for text in overrides(run) if text.startswith("meta_learner="))
        if learner in kept:
            sys.exit(f"{sweep} holds several runs of {learner}: add --of KEY=VALUE, an override that one of them has.")
        kept[learner] = receipt(run)
    return kept


def overrides(run: Path) -> list[str]:
    return json.loads((run / "run.json").read_text())["history"][0]["overrides"]


def table(kept: dict[str, Any]) -> str:
    """The best first; scores of classification in percent."""
    score = "accuracy" if "test/accuracy" in next(iter(kept.values()))["results"] else "mse"
    sign, factor = (-1, 100) if score == "accuracy" else (1, 1)

    def mean(results: dict[str, Any], key: str) -> str:
        row = results.get(f"test/{score}{key}")
        if row and row["mean"] is None:
            return "not finite"
        return f"{factor * row['mean']:.{1 if factor > 1 else 3}f}" if row else ""

    rows = sorted(kept.items(), key=lambda item: sign * item[1]["results"][f"test/{score}"]["mean"])
    places = [place for place in PLACES if any(f"test/{score}{place[0]}" in row["results"] for _, row in rows)]
    likely = sum(LIKELIHOOD in row["results"] for _, row in rows) > 1
    heads = ["meta-learner", f"{score}, 95% CI", *["negative log-likelihood"] * likely, *(head for _, head in places)]
    heads += ["ms a step", "adaptation, ms", "peak MB", "parameters"]
    lines = []
    for name, row in rows:
        results = row["results"]
        ci95, cost = factor * width(results[f"test/{score}"]), results["complexity"]
        cells = [name, f"{mean(results, '')} +- {ci95:.{1 if factor > 1 else 3}f}"]
        if likely:
            told = results.get(LIKELIHOOD)
            cells.append(f"{told['mean']:.3f} +- {width(told):.3f}" if told else "")
        cells += [mean(results, key) for key, _ in places]
        cells += [f"{cost['step_ms']:.3g}", f"{cost['adaptation_ms']:.3g}", f"{cost['peak_memory_mb']:.0f}"]
        lines.append([*cells, f"{cost['parameters']:.0f}"])
    return markdown(heads, lines)


def write_tables() -> None:
    """Every table in docs, after `<!-- matrix: NAME -->`, `<!-- matrix: NAME of LEARNER ... -->` or, of receipts of one run
    each, `<!-- matrix: runs of RECEIPT ... -->`, up to `<!-- end -->`."""
    for page in sorted(DOCS.rglob("*.md")):
        page.write_text(MARKED.sub(_filled, page.read_text()))


def _filled(mark: re.Match[str]) -> str:
    path, wanted = RECEIPTS / f"matrix_{mark['name']}.json", (mark["learners"] or "").split()
    if mark["name"] == "runs":
        files = {name: RECEIPTS / f"{name}.json" for name in wanted}
        kept = {name: json.loads(file.read_text()) for name, file in files.items() if file.is_file()}
    elif path.is_file():
        kept = json.loads(path.read_text())
    else:
        return mark[0]
    rows = {name: row for name, row in kept.items() if name in (wanted or kept)}
    return f"{mark['begin']}\n{table(rows) if rows else 'Not measured yet.'}\n<!-- end -->"


def publish(sweep: Path, name: str, of: str) -> None:
    path = RECEIPTS / f"matrix_{name}.json"
    earlier = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(earlier | collect(sweep, of), indent=1) + "\n")
    print(path)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep", metavar="SWEEP_DIR", nargs="?", type=Path, help="the sweep_dir of the runs")
    parser.add_argument("name", metavar="NAME", nargs="?", help="of the receipts, and of the tables in docs/")
    parser.add_argument("--of", metavar="KEY=VALUE", default="", help="an override that the runs were begun with")
    parser.add_argument("--publish", action="store_true", help="write into docs/, instead of printing")
    args = parser.parse_args(argv)
    if not args.publish:
        if args.sweep is None or args.name:
            parser.error("give SWEEP_DIR alone to see its table, or add NAME and --publish to write it into docs/.")
        print(table(collect(args.sweep, args.of)))
        return
    if args.sweep and not args.name:
        parser.error("--publish needs a NAME beside SWEEP_DIR.")
    if args.sweep:
        publish(args.sweep, args.name, args.of)
    write_tables()


if __name__ == "__main__":
    main()
