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

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from published import command_line, filled, markdown, read_receipts, write_receipts
from receipt import RECEIPTS, receipt

DOCS = RECEIPTS.parent
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


def with_tables(text: str) -> str:
    """``text`` with a table after each `<!-- matrix: NAME -->`, `<!-- matrix: NAME of LEARNER ... -->` and, of receipts of
    one run each, `<!-- matrix: runs of RECEIPT ... -->`, up to `<!-- end -->`."""
    return filled(text, "matrix", marked)


def marked(words: str) -> str:
    """The table of such a mark."""
    name, _, wanted = words.partition(" of ")
    if name == "runs":
        kept = {run: row for run in wanted.split() if (row := read_receipts(RECEIPTS / f"{run}.json"))}
    else:
        kept = read_receipts(RECEIPTS / f"matrix_{name}.json")
    rows = {learner: row for learner, row in kept.items() if not wanted or learner in wanted.split()}
    return table(rows) if rows else "Not measured yet."


def main(argv: list[str] | None = None) -> None:
    parser = command_line(__doc__)
    parser.add_argument("sweep", metavar="SWEEP_DIR", nargs="?", type=Path, help="the sweep_dir of the runs")
    parser.add_argument("name", metavar="NAME", nargs="?", help="of the receipts, and of the tables in docs/")
    parser.add_argument("--of", metavar="KEY=VALUE", default="", help="an override that the runs were begun with")
    args = parser.parse_args(argv)
    if bool(args.name) != bool(args.sweep and args.publish) or not (args.sweep or args.publish):
        parser.error("give SWEEP_DIR alone to see its table, or add NAME and --publish to write it into docs/.")
    if not args.publish:
        print(table(collect(args.sweep, args.of)))
        return
    if args.sweep:
        path = RECEIPTS / f"matrix_{args.name}.json"
        write_receipts(path, read_receipts(path) | collect(args.sweep, args.of))
        print(path)
    for page in sorted(DOCS.rglob("*.md")):
        page.write_text(with_tables(page.read_text()))


if __name__ == "__main__":
    main()
