"""A claim has a receipt: the README's table is what the receipts say."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

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


# ---- what the scripts write, and when ----


@pytest.mark.parametrize("name", ["matrix", "language", "control"])
def test_help_is_help_and_neither_runs_nor_writes_anything(name, tmp_path):
    command = [sys.executable, ROOT / "scripts" / f"{name}.py"]
    asked = subprocess.run([*command, "--help"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert asked.returncode == 0 and "usage:" in asked.stdout and "--publish" in asked.stdout
    wrong = subprocess.run([*command, "--halp"], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert wrong.returncode == 2
    assert not list(tmp_path.iterdir())


def run_of(folder, learner):
    folder.mkdir(parents=True)
    (folder / "results.json").write_text("{}")
    (folder / "run.json").write_text(json.dumps({"history": [{"overrides": [f"meta_learner={learner}"]}]}))


def test_a_matrix_is_printed_and_written_into_docs_only_to_publish(tmp_path, monkeypatch, capsys):
    kept = json.loads((ROOT / "docs" / "receipts" / "matrix_sinusoid.json").read_text())["maml"]
    run_of(tmp_path / "sweep" / "0", "maml")
    docs = tmp_path / "docs"
    docs.mkdir()
    page = "<!-- matrix: mine -->\n<!-- end -->"
    (docs / "page.md").write_text(page)
    for name, value in {"RECEIPTS": docs, "DOCS": docs, "receipt": lambda run: kept}.items():
        monkeypatch.setattr(matrix, name, value)
    matrix.main([str(tmp_path / "sweep")])
    assert "| maml | " in capsys.readouterr().out
    assert [path.name for path in docs.iterdir()] == ["page.md"] and (docs / "page.md").read_text() == page
    matrix.main([str(tmp_path / "sweep"), "mine", "--publish"])
    assert json.loads((docs / "matrix_mine.json").read_text()) == {"maml": kept}
    assert "| maml | " in (docs / "page.md").read_text()


@pytest.mark.parametrize(("module", "cell", "words"), [
    (control, "pendulum/maml", []), (language, "clinc150-hashed-maml-1s", ["--tables"]),
])  # fmt: skip
def test_tables_of_new_runs_are_printed_and_written_into_docs_only_to_publish(
    module, cell, words, tmp_path, monkeypatch, capsys
):
    name = "control_pendulum" if module is control else "language"
    kept = json.loads((ROOT / "docs" / "receipts" / f"{name}.json").read_text())[cell.split("/")[-1]]
    run_of(tmp_path / "runs" / cell, "maml")
    page, receipts = tmp_path / "page.md", tmp_path / f"{name}.json"
    page.write_text("<!-- control: model_mse -->\n<!-- end -->")
    for attribute, value in {"PAGE": page, "RECEIPTS": tmp_path, "KEPT": receipts, "receipt": lambda run: kept}.items():
        monkeypatch.setattr(module, attribute, value, raising=False)
    module.main([str(tmp_path / "runs"), *words])
    assert "maml" in capsys.readouterr().out.lower()
    assert not receipts.exists()
    module.main([str(tmp_path / "runs"), "--publish"])
    assert list(json.loads(receipts.read_text())) == [cell.split("/")[-1]]
