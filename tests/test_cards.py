"""Every figure of ours has a card or a receipt, and every page shows what these say."""

import json
import math
import re
from functools import cache
from pathlib import Path

import pytest

from metarun.commands.reproduce import of_card
from metarun.reproduce.card import evaluated_by
from metarun.reproduce.registry import targets
from tests.test_receipts import ROOT, script

cards, experiments = script("cards"), script("experiments")
FULL = 20  # cards of trainings at their full length, at the least


def test_every_page_table_and_header_is_what_the_cards_give():
    assert cards.old_pages() == [], "run: python scripts/cards.py --pages"


def test_there_are_cards_of_twenty_trainings_at_full_length():
    assert len(cards.cards()) >= FULL


@pytest.mark.parametrize("name", list(cards.cards()))
def test_a_card_is_of_a_whole_run_of_its_targets_command_and_tells_no_path(name):
    card, target = cards.cards()[name], targets()[name]
    assert card["id"] == name and card["command"].startswith(f"metarun reproduce {name}")
    for run in card["runs"]:
        cards.refuse_another_command(run, target)
        assert re.fullmatch(r"[0-9a-f]{40}", run["commit"]) and not run["dirty"]
        assert run["curve"][-1][0] == run["steps"]
    assert not re.search(r'"/(?!\()|=/|~/', json.dumps(card))


@pytest.mark.parametrize("name", list(cards.cards()))
def test_a_verdict_of_a_card_follows_from_its_numbers_and_the_registry(name):
    from metarun.reproduce.verdict import Measured, verdict

    card, target = cards.cards()[name], targets()[name]
    assert [figure["name"] for figure in card["figures"]] == [figure.name for figure in target.figures]
    for shown, figure in zip(card["figures"], target.figures, strict=True):
        ours = shown["ours"]
        assert shown["paper"] == {key: getattr(figure, key) for key in shown["paper"]}
        assert ours["step"] == figure.step and ours["evaluated_by"] == evaluated_by(target, figure.evaluate)
        measured = Measured(ours["mean"], ours["ci95"], ours["tasks"], ours["over_seeds"])
        assert shown["verdict"] == verdict(target, figure, measured)


@pytest.mark.parametrize("name", list(cards.cards()))
def test_no_number_of_a_card_was_changed_by_hand(name):
    cards.refuse_edited(cards.cards()[name], name)


def _of_ours(card, **values):
    card["figures"][0]["ours"] |= values


EDITS = {
    "ci95": lambda card: _of_ours(card, ci95=1.2),
    "mean": lambda card: _of_ours(card, mean=1.0),
    "over seeds": lambda card: _of_ours(card, over_seeds=0.5),
    "common": lambda card: card["common"][0].update(mean=97.0),
    "seconds": lambda card: card["runs"][0].update(seconds=60),
    "curve": lambda card: card["runs"][0]["curve"].pop(),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_a_card_that_somebody_edited_is_refused(edit):
    card = json.loads(json.dumps(cards.cards()["maml/sinusoid/5s"]))
    edit(card)
    with pytest.raises(SystemExit, match="was edited"):
        cards.refuse_edited(card, "card.json")
    card["digest"] = cards.digest(card)  # by somebody who knows how
    if card["figures"] != cards.cards()["maml/sinusoid/5s"]["figures"]:
        with pytest.raises(SystemExit, match="does not follow from its seeds"):
            cards.refuse_edited(card, "card.json")


# ---- what pages say of a card ----


def shown(name: str, **of_the_run) -> "cards.card_figures.Shown":
    """A card as pages show it, with facts of its runs changed."""
    card = cards.cards()[name]
    changed = card | {"runs": [run | of_the_run for run in card["runs"]]}
    return cards.card_figures.Shown(targets()[name], changed, False)


@pytest.mark.parametrize("name", list(cards.cards()))
def test_a_figure_that_nobody_read_in_its_source_is_marked_wherever_it_is_shown(name):
    one = shown(name)
    marks = {"quoted": "(quoted)", "unread": "(unread)"}
    for row, figure in zip(cards.card_figures.rows(one), one.target.figures, strict=True):
        mark = marks.get(figure.read, "")
        assert figure.value is None or (row.paper.endswith(mark) and ("(" in row.paper) == bool(mark))
        pages = [cards.card_pages.of_card(one), cards.card_boards.index([one]), cards.card_boards.header(one)]
        pages += [cards.card_boards.leaderboard(one.target.benchmark, [one], [])]
        assert all(row.paper in page for page in pages)
    printed = [row[3] or "" for row in of_card(one.target, one.card).rows]
    assert [text.partition(" (")[2].rstrip(")") for text in printed] == [
        figure.read if figure.value is not None and figure.read in marks else "" for figure in one.target.figures
    ]


def test_a_page_says_which_model_of_a_run_was_tested_where_its_card_knows():
    name = "cavia/sinusoid/context_2"
    said = "the model of step 1500, the best on validation tasks"
    assert said in cards.card_pages.of_card(shown(name, tested_step=1500))
    last = cards.card_pages.of_card(shown("maml/sinusoid/5s", tested_step=70000))
    assert "the model of step 70000, the last, as the paper's code does" in last
    before = shown(name)
    for run in before.card["runs"]:
        run.pop("tested_step", None)
    assert "the model of step" not in cards.card_pages.of_card(before)


def test_a_page_of_a_figure_of_no_paper_speaks_of_a_repository():
    page = cards.card_pages.of_card(shown("community/sinusoid/fomaml_5s"))
    assert "No paper: *a figure that a repository reports*." in page and "## Beside the repository" in page
    assert "paper's" not in page


# ---- figures on pages ----

FIGURE = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?) (?:\+-|±) (\d+(?:\.\d+)?(?:e-?\d+)?)")
# what a walk-through prints, and tables that a script writes and tests compare with its receipt
ELSEWHERE = re.compile(r"^```.*?^```|<!-- (?:tables|control: \w+|matrix: \w+) -->.*?<!-- end -->", re.S | re.M)


def pairs(node) -> set[tuple[float, float]]:
    """Every mean with its interval in a card, a receipt or the registry."""
    if isinstance(node, dict):
        own = {
            (abs(float(node[mean])), float(node[width]))
            for mean, width in (("mean", "ci95"), ("mean", "over_seeds"), ("value", "interval"))
            if isinstance(node.get(mean), (int, float)) and isinstance(node.get(width), (int, float))
        }
        wider = {
            (abs(float(node["mean"])), float(value))
            for key, value in node.items()
            if key.startswith("ci95_over") and isinstance(value, (int, float)) and node.get("mean") is not None
        }
        return own.union(wider, *map(pairs, node.values()))
    return set().union(*map(pairs, node)) if isinstance(node, list) else set()


@cache
def known(path: Path) -> tuple[set[tuple[float, float]], str]:
    """Means with their intervals of a card or a receipt, and its text, for some keep what a run said."""
    text = path.read_text()
    return pairs(json.loads(text)), text


@cache
def published() -> set[tuple[float, float]]:
    """Values with their intervals of the registry."""
    figures = [figure for target in targets().values() for figure in (*target.figures, *target.reruns)]
    return {(f.value, f.interval) for f in figures if f.value is not None and f.interval is not None}


KEPT = sorted([*(ROOT / "docs" / "results").glob("*/*.json"), *(ROOT / "docs" / "receipts").glob("*.json")])
LINK = re.compile(r"\]\(([^)\s]+)\.(?:md|json)\)")


def sources(page: Path, text: str) -> list[Path]:
    """The cards and receipts that a page's text links to, or names as its receipts."""
    linked = {(page.parent / link).resolve().with_suffix(".json") for link in LINK.findall(text)}
    named = {
        ROOT / "docs" / "receipts" / f"{n}.json" for m in re.findall(r"receipts: ([\w ]+) -->", text) for n in m.split()
    }
    return [path for path in KEPT if path in linked | named]


def shows(printed: tuple[str, str], mean: float, width: float) -> bool:
    """Whether a number and its interval are these, in the digits that are printed, as they are or in percent."""
    digits = [len(text.partition(".")[2]) for text in printed]
    return any(
        all(
            math.isclose(float(text), scale * value, abs_tol=0.5000001 * 10.0**-d)
            for text, value, d in zip(printed, (mean, width), digits, strict=True)
        )
        for scale in (1, 100)
    )


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_figure_with_its_interval_is_of_the_card_or_receipt_beside_it(page):
    text, without = ELSEWHERE.sub("", page.read_text()), []
    for block in filter(FIGURE.search, re.split(r"\n\n+|\n(?=\|)", text)):
        found = list(map(known, sources(page, block) or sources(page, text) or KEPT))
        values, said = set().union(published(), *(values for values, _ in found)), "".join(told for _, told in found)
        without += [
            m[0]
            for m in FIGURE.finditer(block)
            if m[0] not in said and not any(shows((m[1], m[2]), mean, width) for mean, width in values)
        ]
    assert without == [], f"{page.name} shows figures that no card, receipt or source in metarun/published has"


def test_a_preset_and_a_card_of_it_with_more_settings_name_each_other():
    (target,) = experiments.under_more_settings(experiments.experiment("protonet_clinc150_5w1s"))
    assert target.id == "protaugment/clinc150/protonet_5w1s"
    (line,) = [x for x in experiments.PAGE.read_text().splitlines() if x.startswith("| `protonet_clinc150_5w1s`")]
    page = target.card.with_suffix(".md").as_posix()
    assert f"with the settings of [{target.id}](results/{page})" in line
    assert "`metarun experiment=protonet_clinc150_5w1s` without more" in (cards.RESULTS / page).read_text()
    assert not experiments.under_more_settings(experiments.experiment("maml_sinusoid"))  # whose score is a card's
