"""The cards of docs/results, and all that is written from them.

    python scripts/cards.py CARD.json ...    takes cards in that `metarun reproduce` wrote, and writes the pages anew
    python scripts/cards.py --pages          writes the pages, README's table and the presets' headers anew
    python scripts/cards.py --check          exit code 1 where one of them is not what would be written
    python scripts/cards.py --outdated       lists the cards whose code or configuration has changed since
    python scripts/cards.py --same ID [STEPS]     trains and tests a card's command for a few steps with the code of its
                                             commit and with today's; equal bit by bit, the card stands for today's

It refuses a card of a shortened run, one whose code had uncommitted changes or is no commit's, and one that was edited.
"""

import json
import re
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import card_boards
import card_figures
import card_pages
import same

from metarun.files import write_json
from metarun.reproduce import dependence
from metarun.reproduce.card import digest, evaluated_by, judged
from metarun.reproduce.registry import Target, targets
from metarun.reproduce.verdict import Measured, measured, of_all

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results"
README = ROOT / "README.md"
BEGIN, END = "<!-- results: written by scripts/cards.py --pages -->", "<!-- end of results -->"
HEADER = re.compile(
    r"# metarun experiment=\S+.*\n(?:#.*\n)*?# last verified: .*\n|# metarun experiment=\S+.*\n# expect: .*\n(?!# last)"
)


def path_of(target: Target) -> Path:
    return RESULTS / target.card


@cache
def cards() -> dict[str, dict[str, Any]]:
    """Every card by its id."""
    return {t.id: json.loads(path_of(t).read_text()) for t in targets().values() if path_of(t).is_file()}


def refuse_another_command(run: dict[str, Any], known: Target) -> None:
    """Raise SystemExit unless a run of a card was of the target's settings, however its command wrote them."""
    own, whole = ([*words, f"seed={run['seed']}"] for words in (run["command"].split()[1:], known.words or ()))
    settings = [dependence.of_numbers(dependence.composed(tuple(dict.fromkeys(words)))) for words in (own, whole)]
    if settings[0] != settings[1]:
        sys.exit(f"seed {run['seed']} was {run['command']}, not metarun {' '.join(known.words or ())}.")


def refuse_edited(content: dict[str, Any], where: str) -> None:
    """Raise SystemExit where a number of a card is not the one that its digest is of, or does not follow from its seeds'."""
    if content.get("digest") != digest(content):
        sys.exit(
            f"{where} was edited: what it says was measured has another digest. Take it in again as it was written."
        )
    for figure in content["figures"]:
        ours = figure["ours"]
        each = [(row["mean"], row["ci95"], row["tasks"], str(row["episodes"])) for row in ours["seeds"]]
        if Measured.kept(ours) != measured(each):
            sys.exit(f"{where}: {figure['name']} of the card does not follow from its seeds.")


def take_in(path: Path) -> None:
    """Keep a card that ``metarun reproduce`` wrote; raises SystemExit where it proves nothing."""
    content = json.loads(path.read_text())
    known = targets().get(content.get("id"))
    if known is None or known.words is None:
        sys.exit(f"{path} is the card of no target of metarun/published.")
    refuse_edited(content, str(path))
    for run in content["runs"]:
        if run["dirty"] or not run["commit"] or not run["depends_on"]:
            sys.exit(
                f"{path}: seed {run['seed']} ran code that no one commit holds; run it again from a clean checkout."
            )
        refuse_another_command(run, known)
    path_of(known).parent.mkdir(parents=True, exist_ok=True)
    write_json(path_of(known), content)
    print(path_of(known))


@cache
def is_outdated(name: str) -> bool:
    """Whether the code or the configuration of one of a card's runs has changed since."""
    first_of_each = {json.dumps(run["depends_on"]["code"]): run for run in reversed(cards()[name]["runs"])}
    return any(map(dependence.is_outdated, first_of_each.values()))


def pages() -> dict[Path, str]:
    """Every page that is written from the cards, and its text."""
    shown = {name: card_figures.Shown(targets()[name], content, is_outdated(name)) for name, content in cards().items()}
    written = {path_of(one.target).with_suffix(".md"): card_pages.of_card(one) for one in shown.values()}
    for benchmark in sorted({one.target.benchmark for one in shown.values()}):
        those = [one for one in shown.values() if one.target.benchmark == benchmark]
        others = [t for t in targets().values() if t.benchmark == benchmark and t.id not in shown]
        written[RESULTS / f"{benchmark.replace('/', '_')}.md"] = card_boards.leaderboard(benchmark, those, others)
    written[RESULTS / "index.md"] = card_boards.index(list(shown.values()))
    before, rest = README.read_text().split(BEGIN)
    table = card_boards.table_of_readme(list(shown.values()))
    written[README] = f"{before}{BEGIN}\n{table}\n{END}{rest.split(END)[1]}"
    return written | dict(headers(shown.values()))


def headers(shown: Any) -> Iterator[tuple[Path, str]]:
    """The files of the experiments that a card is of, with a header that says what it says."""
    for one in shown:
        words = one.target.words
        if len(words) == 1 and one.target.command:
            path = ROOT / "configs" / "experiment" / f"{words[0].removeprefix('experiment=')}.yaml"
            found = HEADER.search(path.read_text())
            if found is None:
                sys.exit(f"{path}: its header has not the lines 'metarun experiment=', 'expect:' and 'last verified:'.")
            yield path, path.read_text().replace(found[0], card_boards.header(one), 1)


def judge_again() -> None:
    """Let what the cards say of the papers, and the verdicts, follow from their numbers by today's registry and rule.
    Raises SystemExit where a figure is of another step or evaluation than the registry asks for now."""
    for name, content in cards().items():
        refuse_edited(content, name)
        target, before, figures = targets()[name], json.dumps(content), []
        for shown, figure in zip(content["figures"], target.figures, strict=True):
            ours = shown["ours"]
            if (ours["step"], ours["evaluated_by"]) != (figure.step, evaluated_by(target, figure.evaluate)):
                sys.exit(
                    f"{name}: {figure.name} is measured in another way now; metarun reproduce {name}, and take it in."
                )
            figures.append(judged(target, figure, ours))
        content |= {"figures": figures, "verdict": of_all([figure["verdict"] for figure in figures])}
        if json.dumps(content) != before:
            write_json(path_of(target), content)


def write_all() -> None:
    judge_again()
    written = pages()
    for old in {*RESULTS.glob("*.md"), *RESULTS.glob("*/*.md")} - set(written):
        old.unlink()
    for path, text in written.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def old_pages() -> list[str]:
    """The pages that are not what would be written now, but for how old the cards are."""
    return [str(path) for path, text in pages().items() if not path.is_file() or path.read_text() != text]


def confirm(name: str, steps: int) -> None:
    """Let a card stand for today's code, if ``steps`` steps and a small test are bit by bit those of its commit's."""
    content = cards()[name]
    refuse_edited(content, name)
    for commit in dict.fromkeys(run["commit"] for run in content["runs"]):
        run = next(run for run in content["runs"] if run["commit"] == commit)
        if said := same.difference(run["command"], commit, steps, name):
            sys.exit(said)
    for run in content["runs"]:
        run.update(same.stamp(run["command"], steps))
    write_json(path_of(targets()[name]), content | {"digest": digest(content)})
    print(
        f"{name}: the same at {dependence.git('rev-parse', '--short', 'HEAD').strip()} for {steps} steps and their test"
    )


def main() -> None:
    words = sys.argv[1:]
    act: dict[str, Callable[[], Any]] = {
        "--pages": write_all,
        "--check": lambda: sys.exit(
            "\n".join([*old_pages(), "are old: python scripts/cards.py --pages"]) if old_pages() else 0
        ),
        "--outdated": lambda: print("\n".join(filter(is_outdated, cards())) or "every card is as new as its code"),
    }
    if len(words) == 1 and words[0] in act:
        act[words[0]]()
    elif words[:1] == ["--same"] and len(words) in (2, 3) and words[1] in cards():
        confirm(words[1], int(words[2]) if len(words) == 3 else 20)
    elif words and not words[0].startswith("-"):
        for word in words:
            take_in(Path(word))
        cards.cache_clear()
        write_all()
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
