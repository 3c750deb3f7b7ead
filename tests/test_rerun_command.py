"""``metarun rerun``: the same run again, and what is said where its numbers are others."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from metarun.commands.rerun import beside, compared, report
from metarun.output.ledger import read
from tests.kept_runs import write
from tests.running import TINY, Outcome, metarun, metrics


@pytest.fixture(scope="module")
def twice(tmp_path_factory) -> tuple[Path, Outcome]:
    """A run, and what running it again said; the second lies beside it."""
    run = tmp_path_factory.mktemp("rerun") / "run"
    words = [*TINY, "execution=auto", "execution.compile=false", "seed=4", f"run_dir={run}"]
    assert metarun(*words).code == 0
    return run, metarun("rerun", run)


@pytest.fixture
def first(twice, tmp_path) -> Path:
    """A copy of the first run, to be changed."""
    return Path(shutil.copytree(twice[0], tmp_path / "run"))


def said(first: Path, twice, capsys) -> tuple[int, str]:
    code = report(read(first), read(beside_of(twice)))
    return code, capsys.readouterr().out


def beside_of(twice) -> Path:
    return twice[0].with_name("run-rerun")


def test_a_run_made_again_has_the_same_numbers_bit_by_bit(twice):
    run, outcome = twice
    assert outcome.code == 0, outcome.text
    assert "bit-equal: " in outcome.out and "numbers of log and test and theta are the same" in outcome.out
    assert metrics(beside_of(twice)) == metrics(run)
    assert read(beside_of(twice)).overrides == [text for text in read(run).overrides if not text.startswith("run_dir=")]


def test_it_uses_the_execution_that_was_chosen_the_first_time(twice):
    run, _ = twice
    assert read(run).machine["execution"] == read(beside_of(twice)).machine["execution"]
    assert (run / "execution.json").read_bytes() == (beside_of(twice) / "execution.json").read_bytes()


def test_a_further_run_gets_a_folder_of_its_own(twice):
    assert beside(twice[0]).name == "run-rerun2"


def test_every_number_that_is_another_is_said_with_what_else_differs(first, twice, capsys):
    lines = (first / "metrics.jsonl").read_text().splitlines()
    at = next(i for i, line in enumerate(lines) if "train/" in line)  # after the validation of the start
    row = json.loads(lines[at])
    name = next(name for name in row if name.startswith("train/"))
    lines[at] = json.dumps({**row, name: row[name] + 1e-12})
    (first / "metrics.jsonl").write_text("\n".join(lines))
    facts = json.loads((first / "run.json").read_text())
    write(first / "run.json", {**facts, "hardware": {**facts["hardware"], "torch": "2.9.0", "threads": 8}})
    code, text = said(first, twice, capsys)
    assert code == 1 and "not bit-equal: 1 of " in text and name in text
    assert f"machine torch: 2.9.0 then, {torch.__version__} now" in text and "setting" not in text
    assert compared(read(first), read(beside_of(twice))).unequal[0][:3] == (row["step"], name, row[name] + 1e-12)


def test_another_theta_is_not_bit_equal_though_every_number_is(first, twice, capsys):
    path = first / "checkpoints" / "best.pt"
    content = torch.load(path, weights_only=True)
    leaf = next(iter(content["theta"].values()))
    leaf.data.view(-1)[0] += 1e-3
    torch.save(content, path)
    code, text = said(first, twice, capsys)
    assert code == 1 and ", and theta is another" in text and "nothing else differs that is kept" in text
    assert compared(read(first), read(beside_of(twice))).theta is False


def test_a_killed_run_is_compared_as_far_as_it_got(first, twice, capsys):
    lines = (first / "metrics.jsonl").read_text().splitlines()
    (first / "metrics.jsonl").write_text("\n".join([*lines[:3], lines[3][:20]]))
    (first / "results.json").unlink()
    status = json.loads((first / "status.json").read_text())
    write(first / "status.json", {"state": "running", "updated": status["updated"], "step": 6, "steps": 12})
    code, text = said(first, twice, capsys)
    assert code == 0 and text.endswith("are the same, as far as the first run got: it is killed\n")
    (first / "metrics.jsonl").unlink()
    code, text = said(first, twice, capsys)
    assert code == 1 and "nothing to compare" in text


def test_a_number_that_only_one_of_two_whole_runs_has_is_another(first, twice):
    lines = (first / "metrics.jsonl").read_text().splitlines()
    (first / "metrics.jsonl").write_text("\n".join(lines[1:]))
    found = compared(read(first), read(beside_of(twice)))
    assert not found.same and all(before is None for _, _, before, _ in found.unequal)


def test_what_cannot_be_run_again_is_refused_with_the_fix(twice, first):
    (first / "config.yaml").write_text("- 1\n")
    for words, text in (
        (["nowhere"], "there is no folder"),
        ([first], f"{first / 'config.yaml'} cannot be read"),
        ([twice[0], f"--run-dir={twice[0]}"], "already holds a run. Choose another folder"),
    ):
        outcome = metarun("rerun", *words)
        assert outcome.code == 2 and text in outcome.err and "Traceback" not in outcome.text
