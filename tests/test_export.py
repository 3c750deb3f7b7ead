"""``metarun export RUN``: weights, a program without metarun that predicts as metarun does, and a model card."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import metarun as package
from metarun.trees import leaf_names, slice_tasks, tree_leaves
from tests.applying import drawings, run, sentence, table
from tests.running import in_python, metarun, read

SHAPES = ("circle", "square", "zigzag")


def examples(kind: str, folder: Path) -> tuple[Path, Path]:
    """The files of a support and a query for a run of this kind."""
    if kind in ("hashed", "tokens"):
        rows = [{"text": sentence(c, i), "label": f"intent{c}"} for c in (6, 7) for i in range(3)]
        (folder / "s.jsonl").write_text("\n".join(map(json.dumps, rows)))
        (folder / "q.txt").write_text("\n".join(sentence(c, i) for c in (6, 7) for i in range(10, 15)))
        return folder / "s.jsonl", folder / "q.txt"
    if kind == "table":
        return table(folder / "s.csv", ["new"], 6), table(folder / "q.csv", ["new"], 9)
    if kind == "sinusoid":
        x = np.linspace(-5, 5, 8)[:, None]
        np.savez(folder / "s.npz", x=x, y=np.sin(x))
        np.savez(folder / "q.npz", x=x + 0.1)
        return folder / "s.npz", folder / "q.npz"
    for c, name in enumerate(SHAPES):
        drawings(folder / "support" / name, c + 2, range(20, 23), size=31)
        drawings(folder / "query", c + 2, range(30 + 2 * c, 32 + 2 * c), size=31)
    return folder / "support", folder / "query"


def exported(kind: str, folder: Path, *words: str) -> str:
    outcome = metarun("export", str(run(kind)), f"--to={folder}", *words)
    assert outcome.code == 0, outcome.text
    return outcome.out


@pytest.mark.parametrize("kind", ["protonet", "running norms", "maml", "tokens", "hashed", "table", "sinusoid"])
def test_the_command_python_and_the_exported_program_predict_alike(kind, tmp_path):
    support, query = examples(kind, tmp_path)
    folder, table_of = tmp_path / "exported", tmp_path / "out.csv"
    exported(kind, folder, f"--support={support}", f"--query={query}")
    arrays = {name: torch.from_numpy(values) for name, values in np.load(folder / "episode.npz").items()}
    program = torch.export.load(folder / "program.pt2").module()
    outputs = program(arrays["support_x"], arrays["support_y"], arrays["query_x"])[0].detach().double().numpy()

    metarun("predict", str(run(kind)), f"--support={support}", f"--query={query}", f"--out={table_of}")
    with table_of.open() as file:
        rows = list(csv.DictReader(file))
    prefix = ("p_",) if kind not in ("table", "sinusoid") else ("predicted_",)
    by_command = np.array([[float(v) for name, v in row.items() if name.startswith(prefix)] for row in rows])

    model = package.load(run(kind))
    given, asked = model.reader.read(support, labelled=True), model.reader.read(query, labelled=False)
    adapted = model.adapted_to(given.x, given.labels)
    in_python = adapted.probabilities(asked.x) if model.classifies else adapted.moments(asked.x)[0]
    if not model.classifies:  # the program speaks in the units of the training
        outputs = model.reader.in_own_units(outputs, None)[0]
    assert np.allclose(by_command, in_python, rtol=1e-5, atol=1e-6)
    assert np.allclose(outputs, in_python, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["protonet", "maml", "sinusoid"])
def test_the_program_adapts_to_other_examples_than_those_that_it_was_made_of(kind, tmp_path):
    exported(kind, tmp_path / "exported")
    program, model = torch.export.load(tmp_path / "exported" / "program.pt2").module(), package.load(run(kind))
    support, query = slice_tasks(model.run.experiment.task.sample("test", range(2)), 1)[:2]
    order = torch.arange(len(support.y)).flip(0)  # other labels at each place, too
    x, y = support.x[order], support.y[order]
    adapted = model.adapted_to(x, y.numpy())
    expected = adapted.probabilities(query.x) if model.classifies else adapted.moments(query.x)[0]
    assert np.allclose(program(x, y, query.x)[0].detach().numpy(), expected, rtol=1e-4, atol=1e-5)


def test_the_weights_are_theta_and_phi_by_name(tmp_path):
    load_file = pytest.importorskip("safetensors.torch").load_file
    support, _ = examples("maml", tmp_path)
    exported("maml", tmp_path / "exported", f"--support={support}")
    model = package.load(run("maml"))
    theta = load_file(tmp_path / "exported" / "theta.safetensors")
    assert sorted(theta) == sorted(leaf_names(model.run.theta))
    for name, leaf in zip(leaf_names(model.run.theta), tree_leaves(model.run.theta), strict=True):
        assert torch.equal(theta[name], leaf)
    given = model.reader.read(support, labelled=True)
    phi = load_file(tmp_path / "exported" / "phi.safetensors")
    adapted = model.adapted_to(given.x, given.labels).phi
    for name, leaf in zip(leaf_names(adapted), tree_leaves(adapted), strict=True):
        assert torch.allclose(phi[name], leaf)


def test_without_safetensors_the_weights_are_a_file_of_torch(tmp_path, monkeypatch):
    import metarun.commands.export as command

    monkeypatch.setattr(command, "find_spec", lambda name: None)
    assert "pip install 'metarun[export]'" in exported("sinusoid", tmp_path / "exported")
    theta = torch.load(tmp_path / "exported" / "theta.pt", weights_only=True)
    assert sorted(theta) == sorted(leaf_names(package.load(run("sinusoid")).run.theta))


WITHOUT_METARUN = """
import sys
sys.modules["metarun"] = None
for number, words in enumerate((["more.npz"], ["episode.npz"], [])):
    print("----\\n" * bool(number), end="")
    sys.argv[1:] = words
    exec(open("example.py").read(), {"__name__": "__main__"})
"""


def test_the_example_runs_without_metarun_on_any_number_of_queries(tmp_path):
    support, query = examples("protonet", tmp_path)
    folder = tmp_path / "exported"
    exported("protonet", folder, f"--support={support}", f"--query={query}")
    text = (folder / "example.py").read_text()
    assert "import metarun" not in text and len(text.splitlines()) < 30
    arrays = dict(np.load(folder / "episode.npz"))
    np.savez(folder / "more.npz", **{**arrays, "query_x": np.concatenate([arrays["query_x"]] * 2)[:-1]})
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_METARUN], cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert [len(part.splitlines()) for part in done.stdout.split("----\n")] == [11, 6, 6]


def test_a_program_whose_norms_look_at_all_queries_takes_only_as_many_and_says_so(tmp_path):
    support, query = examples("running norms", tmp_path)
    words = [f"--support={support}", f"--query={query}", "base_learner.batch_norm=transductive"]
    said = exported("running norms", tmp_path / "exported", *words)
    assert "each prediction depends on all queries" in said
    assert "each prediction depends on all queries" in (tmp_path / "exported" / "README.md").read_text()
    arrays = dict(np.load(tmp_path / "exported" / "episode.npz"))
    np.savez(tmp_path / "exported" / "fewer.npz", **{**arrays, "query_x": arrays["query_x"][:-1]})
    for file, code in (("episode.npz", 0), ("fewer.npz", 1)):
        done = subprocess.run(
            [sys.executable, "example.py", file], cwd=tmp_path / "exported", capture_output=True, text=True, check=False
        )
        assert done.returncode == code, done.stderr
    assert "so give 6" in done.stderr


def test_the_model_card_has_the_scores_with_their_intervals_and_the_protocol(tmp_path):
    exported("protonet", tmp_path / "exported")
    card, results = (tmp_path / "exported" / "README.md").read_text(), read(run("protonet") / "results.json")
    head = yaml.safe_load(card.split("---")[1])
    (result,) = head["model-index"][0]["results"]
    metric = {metric["type"]: metric for metric in result["metrics"]}["accuracy"]
    assert metric["value"] == results["test/accuracy"]["mean"]
    assert metric["args"]["ci95"] == results["test/accuracy"]["ci95"] and metric["args"]["num_ways"] == 3
    assert results["protocol"]["manifest"] in card
    assert all(f"`{file.name}`" in card for file in (tmp_path / "exported").iterdir() if file.name != "README.md")


def test_scores_that_are_no_numbers_are_left_out_of_the_card(tmp_path):
    copy = Path(shutil.copytree(run("protonet"), tmp_path / "run"))
    odd = {"test/foo": {"mean": None, "ci95": None, "n": 5}, "test/bar": 5, "test/accuracy": {"mean": 0.5}}
    odd |= {"test/huge": {"mean": int("9" * 400), "ci95": 1, "n": 5}, "protocol": 5}
    (copy / "results.json").write_text(json.dumps(read(copy / "results.json") | odd))
    outcome = metarun("export", str(copy), f"--to={tmp_path / 'exported'}")
    assert outcome.code == 0, outcome.text
    card = (tmp_path / "exported" / "README.md").read_text()
    assert "| accuracy | 0.5000 | unknown | unknown |" in card and "huge" not in card and "foo" not in card
    yaml.safe_load(card.split("---")[1])


def test_no_exported_text_names_a_folder_of_this_machine(tmp_path):
    exported("table", tmp_path / "exported")
    config = yaml.safe_load((run("table") / "config.yaml").read_text())
    path = Path(config["task"]["path"])
    assert path.is_absolute()
    for name in ("README.md", "config.yaml"):
        text = (tmp_path / "exported" / name).read_text()
        assert path.name in text and str(path.parent) not in text and str(tmp_path) not in text
    kept = yaml.safe_load((tmp_path / "exported" / "config.yaml").read_text())
    assert kept["task"].pop("path") == path.name and kept["meta_learner"] == config["meta_learner"]
    del config["task"]["path"]
    assert kept["task"] == config["task"]


def test_a_model_that_cannot_be_traced_is_exported_without_a_program(tmp_path, monkeypatch):
    from metarun.applied import exporting

    def fails(*arguments):
        raise RuntimeError("an operation that no graph holds")

    monkeypatch.setattr(exporting, "traced", fails)
    said = exported("maml", tmp_path / "exported")
    assert "no program.pt2 and no example.py: torch.export cannot follow MAML: an operation that no graph holds" in said
    assert (tmp_path / "exported" / "theta.safetensors").is_file()
    assert not (tmp_path / "exported" / "program.pt2").exists()


def test_a_program_that_gives_other_outputs_is_not_written(tmp_path, monkeypatch):
    from metarun.applied import exporting

    right = exporting.traced
    monkeypatch.setattr(
        exporting, "traced", lambda fn, *rest: right(lambda *a: tuple(out + 1e-3 for out in fn(*a)), *rest)
    )
    assert "gives other outputs than metarun, by 0.001" in exported("maml", tmp_path / "exported")


def test_an_export_that_a_signal_stops_leaves_nothing(tmp_path, monkeypatch):
    def stopped(*_):
        os.kill(os.getpid(), signal.SIGTERM)
        in_python()

    monkeypatch.setattr("metarun.applied.exporting.traced", stopped)
    monkeypatch.chdir(tmp_path)
    outcome = metarun("export", str(run("maml")), f"--to={tmp_path / 'new'}")
    assert (outcome.code, outcome.err) == (143, "metarun: interrupted by signal 15\n")
    assert [path.name for path in tmp_path.iterdir()] == ["here"]  # by which ``in_python`` says that it computes


def test_a_wrong_place_or_support_is_refused_and_leaves_nothing(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    empty = tmp_path / "empty"
    empty.mkdir()
    for to, words, said in (
        ("full", [], "that is there already"),
        ("new", [f"--query={empty}"], "--query goes with --support"),
        ("new", [f"--support={empty}"], "holds no images"),
    ):
        outcome = metarun("export", str(run("maml")), f"--to={tmp_path / to}", *words)
        assert outcome.code == 2 and said in outcome.err, outcome.text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "full"]
