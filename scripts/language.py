"""Few-shot intents with every encoder.

    python scripts/language.py DIR [WORD ...]     runs the cells whose names hold all of the words (clinc150 maml 1s, say)
                                                  below DIR, one after the other in this process; complete ones are kept
    python scripts/language.py DIR --tables       prints the tables of the complete cells below DIR
    python scripts/language.py [DIR] --publish    puts their receipts into docs/receipts/language.json, and the tables of
                                                  all receipts there into docs/language.md

A cell is named DATA-ENCODER-LEARNER-SHOTS. Each is one command, which its receipt gives.
"""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from published import (
    complete,
    filled,
    markdown,
    percent,
    place_of_runs,
    read_receipts,
    run_to_its_end,
    write_receipts,
)
from receipt import RECEIPTS, receipt

KEPT = RECEIPTS / "language.json"
PAGE = RECEIPTS.parent / "language.md"
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
    return {name: receipt(place / name) for name in complete(place, cells())}


def keep(place: Path) -> None:
    """Put the receipts of the complete cells below ``place`` beside, or over, those that are kept."""
    write_receipts(KEPT, dict(sorted((read_receipts(KEPT) | collect(place)).items())))


def table(data: str, kept: dict[str, Any]) -> str:
    """A row an encoder: its frozen features, then each learner."""

    def score(encoder: str, learner: str, shots: int, key: str) -> str:
        row = kept.get(f"{data}-{encoder}-{learner}-{shots}s")
        return percent(row["results"][key]) if row else "owed"

    rows = []
    for encoder, (title, _, _) in ENCODERS.items():
        if encoder in FROZEN:
            frozen = [score(encoder, "protonet", shots, "test/frozen_accuracy") for shots in SHOTS]
            rows.append([FROZEN[encoder], "centroid, no training", *frozen])
        for learner in LEARNERS:
            rows.append([title, learner, *(score(encoder, learner, shots, "test/accuracy") for shots in SHOTS)])
    return markdown(("encoder", "learner", "1 shot", "5 shots"), rows)


def with_tables(text: str) -> str:
    kept = read_receipts(KEPT)
    return filled(text, "language", lambda data: table(data, kept))


def tables(place: Path) -> str:
    kept = collect(place)
    return "\n\n".join(f"{data}\n\n{table(data, kept)}" for data in DATA)


def main(argv: list[str] | None = None) -> None:
    args = place_of_runs(argv, __doc__, "cells", keep, PAGE, with_tables, tables)
    if args is None:
        return
    for name, overrides in cells().items():
        if set(args.words) <= set(name.split("-")):
            run_to_its_end(args.place / name, overrides)


if __name__ == "__main__":
    main()
