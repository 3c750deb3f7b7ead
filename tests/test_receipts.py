"""A claim has a receipt: the README's table is what the receipts say."""

import importlib.util
import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


receipt, matrix, language, control = map(script, ("receipt", "matrix", "language", "control"))


def test_the_readme_shows_the_table_that_the_receipts_give():
    text = (ROOT / "README.md").read_text()
    assert receipt.with_table(text) == text


def test_every_receipt_names_its_command_and_commit_and_no_path_of_a_machine():
    paths = list((ROOT / "docs" / "receipts").glob("*.json"))
    assert paths
    for path in paths:
        content = json.loads(path.read_text())
        for kept in [content] if "command" in content else content.values():  # one run, or those of a matrix
            assert kept["command"].startswith("metarun ") or kept["command"].startswith("python ")
            assert re.fullmatch(r"[0-9a-f]{40}", kept["commit"])
        assert not re.search(r'"/|=/|~/', path.read_text())


def test_the_pages_show_the_matrices_that_the_receipts_give():
    pages = [path.read_text() for path in (ROOT / "docs").rglob("*.md")]
    marks = [mark for text in pages for mark in matrix.MARKED.finditer(text)]
    assert marks
    assert all(matrix._filled(mark) == mark[0] for mark in marks)


def test_every_learner_of_a_matrix_ran_under_its_budget():
    for path in (ROOT / "docs" / "receipts").glob("matrix_*.json"):
        protocols = [row["results"]["protocol"] for row in json.loads(path.read_text()).values()]
        for protocol in protocols:  # how training episodes divide their examples is the learner's own affair
            for key in ("train_num_shots", "train_num_queries"):
                protocol["task"].pop(key)
        for key in ("task", "data", "manifest", "num_tasks", "seed"):
            assert len({json.dumps(protocol[key]) for protocol in protocols}) == 1


def test_the_page_of_language_shows_what_its_receipts_give_and_every_cell_is_a_command_of_its_own():
    text = language.PAGE.read_text()
    assert language.with_tables(text) == text
    cells = language.cells()
    assert len({tuple(overrides) for overrides in cells.values()}) == len(cells) == 40
    for name, kept in json.loads(language.KEPT.read_text()).items():
        assert kept["command"] == " ".join(["metarun", *cells[name]])


def test_the_page_of_control_shows_the_tables_that_the_receipts_give():
    text = control.PAGE.read_text()
    assert control.MARKED.search(text)
    assert control.filled(text) == text
