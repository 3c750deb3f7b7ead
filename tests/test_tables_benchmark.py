"""scripts/tables_benchmark.py: its folds, and the table that it writes."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))
import tables_benchmark as script


def test_equal_means_share_their_rank():
    assert script.ranks([0.5, 0.9, 0.9, 0.1]) == [3, 1.5, 1.5, 4]


def test_the_table_has_every_set_the_best_in_bold_and_means_and_ranks_below():
    found = {"a": {"PFN": [0.8, 0.9], "kNN": [0.5, 0.6]}, "b": {"PFN": [0.2, 0.2], "kNN": [0.7, 0.8]}}
    lines = script.rendered(found).splitlines()
    assert lines[2:4] == ["| a | **0.850** | 0.550 |", "| b | 0.200 | **0.750** |"]
    assert lines[4:] == ["| *mean* | 0.525 | 0.650 |", "| *mean rank* | 1.50 | 1.50 |"]


def test_training_rows_are_cut_to_200_and_share_none_with_the_test_rows():
    y = np.repeat([0, 1, 2], [700, 250, 50])
    rows = script.folds(y, classifies=True)
    assert len(rows) == 15
    for train, test in rows:
        assert len(train) == 200 and not set(train) & set(test)
        assert np.bincount(y[train]).tolist() == [140, 50, 10]


@pytest.mark.parametrize("classifies", [True, False])
def test_the_500_test_rows_of_a_sorted_set_are_drawn_by_lot(classifies):
    y = np.repeat([0, 1], [2000, 4000])
    first, again = (script.folds(y, classifies) for _ in range(2))
    for (_, test), (_, same) in zip(first, again, strict=True):
        assert len(test) == len(set(test)) == 500 and (test == same).all()
        assert y[test].mean() == pytest.approx(2 / 3, abs=0.1)


def test_the_page_and_the_headers_of_the_presets_have_the_means_of_the_receipts():
    page = script.PAGE.read_text()
    assert script.with_tables(page) == page
    for preset, sets in {"pfn_tables": script.UNSEEN, "pfn_tables_regression": script.NUMBERS}.items():
        found = json.loads(script.KEPT["unseen" if preset == "pfn_tables" else "regressor"].read_text())["results"]
        own, forest = (
            np.mean([np.mean(found[name][learner]) for name in sets]) for learner in ("PFN", "random forest")
        )
        header = (script.RECEIPTS.parents[1] / "configs" / "experiment" / f"{preset}.yaml").read_text()
        assert f" {own:.3f} on {len(sets)} real tables" in header and f"random forest {forest:.3f};" in header


def test_a_page_without_receipts_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(script, "KEPT", dict.fromkeys(script.KEPT, tmp_path / "none.json"))
    page = "<!-- classifier -->\nold\n<!-- end -->\n"
    assert script.with_tables(page) == "<!-- classifier -->\nNot measured yet.\n<!-- end -->\n"
