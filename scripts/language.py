"""Few-shot intents with every encoder.

    python scripts/language.py DIR [WORD ...]     runs the cells whose names hold all of the words (clinc150 maml 1s, say)
                                                  below DIR, one after the other in this process; complete ones are kept
    python scripts/language.py DIR --tables       prints the tables of the complete cells below DIR
    python scripts/language.py [DIR] --publish    puts their receipts into docs/receipts/language.json, and the tables of
                                                  all receipts there into docs/language.md

A cell is named DATA-ENCODER-LEARNER-SHOTS. Each is one command, which its receipt gives.
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from published import markdown, run_to_its_end
from receipt import RECEIPTS, receipt

KEPT = RECEIPTS / "language.json"
PAGE = RECEIPTS.parent / "language.md"
MARKED = re.compile(r"<!-- language: (\w+) -->.*?<!-- end -->", re.S)
WORDS, BAG = "task/features=tokens", "base_learner=embedding_bag"
SLOWER, HEAD = "optimizer.lr=0.005", "~rates.head"  # a trained head
# What an encoder is, and the rates that each learner has with it, chosen on validation tasks of CLINC150, 1 shot.
ENCODERS: dict[str, tuple[str, list[str], dict[str, list[str]]]] = {
    "weighted": ("hashed n-grams, weighted", [], {"protonet": [], "maml": []}),
    "hashed": ("hashed n-grams, embedding bag", [BAG], {"protonet": [SLOWER], "maml": [SLOWER, HEAD]}),
    "mean": ("words, mean of trained vectors", [WORDS, BAG], {"protonet": [SLOWER], "maml": [SLOWER, HEAD]}),
    "cnn": (
        "words, CNN",
        [WORDS, "base_learner=text_cnn"],
        {"protonet": ["optimizer.lr=0.001"], "maml": ["meta_learner.inner_lr=1", SLOWER, HEAD]},
    ),
    "transformer": (
        "words, transformer",
        [WORDS, "base_learner=transformer"],
        {"protonet": ["optimizer.lr=0.0003"], "maml": ["meta_learner.inner_lr=0.1", "optimizer.lr=0.003", HEAD]},
    ),
    "minilm": (
        "MiniLM, residual correction (MAML: linear)",
        ["task/features=sentence"],
        {"protonet": ["base_learner=residual", "optimizer.lr=0.0003"], "maml": ["base_learner=linear", SLOWER, HEAD]},
    ),
}
FROZEN = {"hashed": "hashed n-grams, frozen", "mean": "words, frozen idf counts", "minilm": "MiniLM, frozen"}
LEARNERS, SHOTS, DATA = ("protonet", "maml"), (1, 5), ("clinc150", "banking77")


def cells() -> dict[str, list[str]]:
    """The overrides of every cell, by name."""
    found = {}
    for data in DATA:
        for encoder, (_, overrides, rates) in ENCODERS.items():
            for learner in LEARNERS:
                for shots in SHOTS:
                    texts = [f"experiment={learner}_clinc150_5w1s", f"task={data}", f"task.num_shots={shots}"]
                    fast = ["execution=vmapped", "execution.threads=1"]
                    found[f"{data}-{encoder}-{learner}-{shots}s"] = [*texts, *overrides, *rates[learner], *fast]
    return found


def collect(place: Path) -> dict[str, Any]:
    """The receipts of the complete cells below ``place``, by name."""
    found = {name: receipt(place / name) for name in cells() if (place / name / "results.json").is_file()}
    if not found:
        sys.exit(f"{place} holds no complete cells.")
    return found


def keep(place: Path) -> None:
    """Put the receipts of the complete cells below ``place`` beside, or over, those that are kept."""
    kept = json.loads(KEPT.read_text()) if KEPT.is_file() else {}
    kept |= collect(place)
    KEPT.write_text(json.dumps(dict(sorted(kept.items())), indent=1) + "\n")


def table(data: str, kept: dict[str, Any]) -> str:
    """A row an encoder: its frozen features, then each learner."""

    def score(encoder: str, learner: str, shots: int, key: str) -> str:
        row = kept.get(f"{data}-{encoder}-{learner}-{shots}s")
        return f"{100 * row['results'][key]['mean']:.1f} +- {100 * row['results'][key]['ci95']:.1f}" if row else "owed"

    rows = []
    for encoder, (title, _, _) in ENCODERS.items():
        if encoder in FROZEN:
            frozen = [score(encoder, "protonet", shots, "test/frozen_accuracy") for shots in SHOTS]
            rows.append([FROZEN[encoder], "centroid, no training", *frozen])
        for learner in LEARNERS:
            rows.append([title, learner, *(score(encoder, learner, shots, "test/accuracy") for shots in SHOTS)])
    return markdown(("encoder", "learner", "1 shot", "5 shots"), rows)


def with_tables(text: str) -> str:
    kept = json.loads(KEPT.read_text())
    return MARKED.sub(lambda m: f"<!-- language: {m[1]} -->\n{table(m[1], kept)}\n<!-- end -->", text)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("place", metavar="DIR", nargs="?", type=Path, help="the folder of the cells")
    parser.add_argument("words", metavar="WORD", nargs="*", help="run only the cells whose names hold all of them")
    parser.add_argument("--tables", action="store_true", help="run nothing, print the tables")
    parser.add_argument("--publish", action="store_true", help="run nothing, write receipts and tables into docs/")
    args = parser.parse_args(argv)
    if args.place is None and not args.publish:
        parser.error("give the DIR of the cells, or --publish to write the tables of the receipts into docs/.")
    if args.words and (args.tables or args.publish):
        parser.error("a WORD chooses what is run; --tables and --publish run nothing.")
    if args.publish:
        if args.place:
            keep(args.place)
        PAGE.write_text(with_tables(PAGE.read_text()))
    elif args.tables:
        print("\n\n".join(f"{data}\n\n{table(data, collect(args.place))}" for data in DATA))
    else:
        for name, overrides in cells().items():
            if set(args.words) <= set(name.split("-")):
                run_to_its_end(args.place / name, overrides)


if __name__ == "__main__":
    main()
