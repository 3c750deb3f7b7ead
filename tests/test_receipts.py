"""A claim has a receipt, or a card (test_cards.py), which grows old with its code."""

import importlib.util
import json
import math
import re
import runpy
import sys
from pathlib import Path

import pytest

from metarun.reproduce import dependence

ROOT = Path(__file__).resolve().parent.parent


def script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


receipt, matrix, language, control = map(script, ("receipt", "matrix", "language", "control"))
own_data = script("own_data")


def test_every_receipt_names_its_command_and_commit_and_no_path_of_a_machine():
    paths = list((ROOT / "docs" / "receipts").glob("*.json"))
    assert paths
    for path in paths:
        content = json.loads(path.read_text())
        for kept in [content] if "command" in content else content.values():  # one run, or those of a matrix
            assert kept["command"].startswith("metarun ") or kept["command"].startswith("python ")
            assert re.fullmatch(r"[0-9a-f]{40}", kept["commit"])
        assert not re.search(r'"/(?!\()|=/|~/', path.read_text())  # "/(": a pattern


def test_a_receipt_of_a_run_that_was_continued_has_the_command_of_all_its_steps():
    history = [
        {"overrides": ["experiment=maml_sinusoid", "steps=100", "run_dir=a"]},
        {"overrides": ["resume=a", "steps=300"]},
        {"overrides": ["resume=a"]},
    ]
    assert receipt.command_of(history) == "metarun experiment=maml_sinusoid steps=300"


def test_the_pages_show_the_matrices_that_the_receipts_give():
    pages = [path.read_text() for path in (ROOT / "docs").rglob("*.md")]
    marked = [text for text in pages if "<!-- matrix: " in text]
    assert len(marked) > 5
    assert all(matrix.with_tables(text) == text for text in marked)
    assert matrix.with_tables(marked[0].replace("| ms a step |", "| a step |")) == marked[0]


def test_every_learner_of_a_matrix_ran_under_its_budget():
    for path in (ROOT / "docs" / "receipts").glob("matrix_*.json"):
        protocols = [row["results"]["protocol"] for row in json.loads(path.read_text()).values()]
        for protocol in protocols:  # how training episodes divide their examples is the learner's own affair
            for key in ("train_num_shots", "train_num_queries"):
                protocol["task"].pop(key)
        for key in ("task", "data", "manifest", "num_tasks", "seed"):
            assert len({json.dumps(protocol[key]) for protocol in protocols}) == 1


def test_the_page_of_language_shows_its_receipts_and_every_cell_is_its_own_command():
    text = language.PAGE.read_text()
    assert language.with_tables(text) == text
    cells = language.cells()
    assert len({tuple(overrides) for overrides in cells.values()}) == len(cells) == 48
    for name, kept in json.loads(language.KEPT.read_text()).items():
        if not dependence.is_outdated(kept):  # the page says which ones are older than the code and its defaults
            assert kept["command"] == " ".join(["metarun", *cells[name]])


def test_the_page_of_own_data_shows_its_receipt_and_every_row_is_its_own_command():
    text, kept = own_data.PAGE.read_text(), json.loads(own_data.KEPT.read_text())
    assert own_data.with_table(text) == text
    commands = own_data.commands()
    assert kept.keys() == commands.keys()
    for name, row in kept.items():
        assert row["command"] == " ".join(["metarun", *commands[name][1]])


def test_no_row_of_own_data_is_below_its_baseline_without_saying_so():
    for name, row in json.loads(own_data.KEPT.read_text()).items():
        scores = row["results"]
        baseline = scores.get("test/frozen_accuracy") or scores["test/baseline_accuracy"]
        interval = math.hypot(scores["test/accuracy"]["ci95"], baseline["ci95"])
        lost = scores["test/accuracy"]["mean"] < baseline["mean"] - interval
        assert not lost or row["said"].startswith("training did not help"), name


def test_what_a_run_says_of_its_training_is_kept_however_sure_it_is_of_it():
    said = ["training did not help: the best checkpoint is the start", "training may not have helped: it is better"]
    assert own_data.OF_TRAINING.findall("\n".join(["training had other episodes", *said])) == said


def test_the_page_of_control_shows_the_tables_that_the_receipts_give():
    text = control.PAGE.read_text()
    assert "<!-- control: returns -->" in text
    assert control.with_tables(text) == text


# ---- receipts grow old ----

SHOWN = {  # what on a page shows a receipt
    r"receipts/(\w+)\.json": "{}",
    r"<!-- matrix: (?!runs )(\w+)": "matrix_{}",
    r"(?<=<!-- matrix: runs of )([\w ]+)(?= -->)": "{}",
    r"<!-- (language): ": "{}",
    r"figures/(control_\w+)\.png": "{}",
    r"<!-- (classifier|unseen) -->": "tables_benchmark",
    r"<!-- (regressor) -->": "tables_benchmark_regression",
}


@pytest.mark.parametrize("page", [page for page in receipt.PAGES if page != receipt.README], ids=lambda page: page.stem)
def test_a_page_says_how_old_the_receipts_are_that_it_shows(page):
    text = page.read_text()
    body = receipt.AGES.sub("", text)
    found = [(form, names) for pattern, form in SHOWN.items() for names in re.findall(pattern, body)]
    shown = {form.format(name) for form, names in found for name in names.split()}
    named = {name for mark in receipt.AGES.finditer(text) for name in mark["names"].split()}
    assert shown <= named
    assert receipt.with_ages(text, page) == text, "run: python scripts/receipt.py --tables"


SOURCE = '''"""A module."""

# a comment
import metarun.core


def half(x: float) -> float:
    """Half of x."""
    return x / 2  # of a "string" # and more


NAME = f"{half(1)!r:>8} # none"
'''


def test_comments_docstrings_and_layout_are_not_what_a_run_depends_on():
    other = SOURCE.replace("# a comment\n", "").replace('"""Half of x."""', "r'''Another\n    one.'''\n")
    other = other.replace('"""A module."""', '"""Ein Modul: \u00e4."""').replace("x / 2  # of", "x /   2  # or")
    assert dependence.essence(other) == dependence.essence(SOURCE)
    assert "#none" in dependence.essence(SOURCE) and "comment" not in dependence.essence(SOURCE)
    assert dependence.essence(SOURCE.replace("x / 2", "x / 3")) != dependence.essence(SOURCE)


def test_a_run_depends_on_its_task_learner_network_and_loop_and_on_no_others():
    config = dependence.composed(("experiment=protonet_omniglot_5w1s",))
    modules = {target.rpartition(".")[0] for target in dependence.targets(config) if target.startswith("metarun.")}
    reached = dependence.reached({*dependence.START, *modules}, None)
    for used in (
        "training/runner",
        "execution/update",
        "execution/execution",
        "evaluation/scoring",
        "trees",
        "counter",
    ):
        assert f"metarun/{used}.py" in reached
    for used in ("meta_learners/protonet", "models/conv4", "models/exact/layers", "tasks/omniglot"):
        assert f"metarun/{used}.py" in reached
    for unused in (
        "commands/main",
        "output/report",
        "meta_learners/maml",
        "models/mlp",
        "tasks/sinusoid",
        "control/pendulum",
    ):
        assert f"metarun/{unused}.py" not in reached


@pytest.fixture
def edited(monkeypatch):
    """A function that changes how the source of a module reads today."""
    plain, changes = dependence.text_of, {}
    monkeypatch.setattr(dependence, "text_of", lambda path, commit: changes.get(path) or plain(path, commit))
    return changes.__setitem__


RUN = "metarun experiment=maml_sinusoid"
SCRIPT = "python scripts/tables.py DIR   # RUNS: experiment=maml_sinusoid meta_learner=maml,anil"


@pytest.mark.parametrize(("command", "module", "expires"), [
    (RUN, "execution/update", True), (RUN, "meta_learners/maml", True), (RUN, "tasks/sinusoid", True),
    (RUN, "output/report", False), (RUN, "models/conv4", False),
    (SCRIPT, "meta_learners/anil", True), (SCRIPT, "meta_learners/tnp", False),
])  # fmt: skip
def test_a_receipt_is_outdated_once_code_has_changed_that_its_run_depends_on(command, module, expires, edited):
    kept = {"command": command, "depends_on": dependence.today(command)}
    assert not dependence.is_outdated(kept)
    path = f"metarun/{module}.py"
    edited(path, dependence.text_of(path, None) + "\nNEW = 1\n")
    assert dependence.is_outdated(kept) == expires


@pytest.mark.parametrize(
    ("script", "part", "expires"),
    [("benchmark", "benchmark_works", True), ("benchmark", "benchmark_loading", False), ("tables", "published", False)],
)
def test_a_receipt_of_a_script_depends_on_all_its_files_that_measure(script, part, expires, edited):
    command = f"python scripts/{script}.py   # RUNS: experiment=maml_sinusoid"
    kept = {"command": command, "depends_on": dependence.today(command)}
    path = f"scripts/{part}.py"
    edited(path, dependence.text_of(path, None) + "\nNEW = 1\n")
    assert dependence.is_outdated(kept) == expires


def test_a_receipt_is_outdated_once_its_command_means_another_configuration_or_none():
    command = "metarun experiment=maml_sinusoid"
    now = dependence.today(command)
    assert dependence.is_outdated({"command": f"{command} optimizer.lr=0.5", "depends_on": now})
    assert dependence.is_outdated({"command": "metarun experiment=gone", "depends_on": now})
    assert dependence.is_outdated({"command": command})
    elsewhere = f"{command} device=cpu log_every=7 run_dir=x"
    assert not dependence.is_outdated({"command": elsewhere, "depends_on": now})


def test_outdated_receipts_are_listed(monkeypatch, capsys):
    monkeypatch.setattr(receipt, "age_of", lambda name: receipt.OLD if name == "tables" else "")
    monkeypatch.setattr(sys, "argv", ["receipt.py", "--outdated"])
    receipt.main()
    assert capsys.readouterr().out == "tables: older than the code\n"


# ---- what the scripts write, and when ----


@pytest.mark.parametrize("name", ["matrix", "language", "control"])
def test_help_is_help_and_neither_runs_nor_writes_anything(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    codes = []
    for word in ("--help", "--halp"):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", word])
        with pytest.raises(SystemExit) as exit_:
            runpy.run_path(str(ROOT / "scripts" / f"{name}.py"), run_name="__main__")
        codes.append(exit_.value.code)
    asked = capsys.readouterr().out
    assert codes == [0, 2] and "usage:" in asked and "--publish" in asked
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
