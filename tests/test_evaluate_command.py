"""``metarun evaluate RUN``: the final test again, as it was or under other conditions, and nothing else touched."""

import shutil
from pathlib import Path

import pytest
import torch

from metarun.applied.trained import trained
from metarun.core import frozen
from metarun.execution.execution import Looped
from tests.composing import OUTSIDE as FOLDER
from tests.composing import outsider
from tests.running import OUTSIDE, metarun, metrics, read, scores

BUDGET = [
    *["device=cpu", "steps=4", "meta_batch_size=2", "base_learner.hidden=[8]", "evaluation.every=2"],
    *["evaluation.num_val_tasks=4", "evaluation.num_tasks=6", "logger=none"],
]
RUNS = {
    "maml": ["meta_learner=maml", "meta_learner.inner_steps=2", "evaluation.inner_steps=4"],
    "protonet": [OUTSIDE, "task=prototypes", "meta_learner=protonet"],
    "running norms": [OUTSIDE, "task=prototypes", "meta_learner=protonet", "base_learner.batch_norm=running"],
}
FLAGS = {name: [text for text in words if text.startswith("--")] for name, words in RUNS.items()}

UNDEFINED = """
from metarun.evaluation.scoring import Evaluator

class Recall(Evaluator):
    def scores(self, subject, phi, episode):
        return {"recall": episode.query.y.new_full((), float("nan"))}
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> dict[str, Path]:
    runs = {name: tmp_path_factory.mktemp("runs") / "run" for name in RUNS}
    for name, words in RUNS.items():
        outcome = metarun(*words, *BUDGET, f"run_dir={runs[name]}")
        assert outcome.code == 0, outcome.text
    return runs


@pytest.fixture
def run_of(finished, tmp_path):
    """A copy of a finished run, by its name."""
    return lambda name: Path(shutil.copytree(finished[name], tmp_path / "run"))


def contents(run: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.parent.name != "evaluations"}


def evaluation(name: str, run: Path, *words: str) -> dict:
    """What ``metarun evaluate`` wrote; every other file must be as it was."""
    before, there = contents(run), set((run / "evaluations").glob("*.json"))
    outcome = metarun("evaluate", str(run), *FLAGS[name], *words)
    assert outcome.code == 0, outcome.text
    assert contents(run) == before
    (written,) = set((run / "evaluations").glob("*.json")) - there
    assert f"results: {written}" in outcome.out
    return read(written)


@pytest.mark.parametrize("name", RUNS)
def test_without_overrides_the_scores_and_the_episodes_are_those_of_the_run(name, run_of):
    run = run_of(name)
    again = evaluation(name, run)
    assert {key: value for key, value in again.items() if key.startswith("test/")} == scores(run)
    assert again["protocol"]["manifest"] == read(run / "results.json")["protocol"]["manifest"]
    assert again["complexity"]["parameters"] == read(run / "results.json")["complexity"]["parameters"]


def test_more_adaptation_steps_extend_the_curve_and_leave_its_beginning(run_of):
    run = run_of("maml")
    longer = evaluation("maml", run, "evaluation.inner_steps=7")
    for k in range(5):
        assert longer[f"test/mse_step_{k}"] == scores(run)[f"test/mse_step_{k}"]
    assert longer["test/mse"] == longer["test/mse_step_7"]
    assert longer["protocol"]["inner_steps"] == 7


def test_other_shots_are_other_episodes_of_the_same_parameters(run_of):
    run = run_of("maml")
    more = evaluation("maml", run, "task.num_shots=20")
    assert more["protocol"]["task"]["num_shots"] == 20
    assert more["protocol"]["manifest"] != read(run / "results.json")["protocol"]["manifest"]
    assert more["test/mse_step_4"] != scores(run)["test/mse_step_4"]


def test_a_prototypical_network_is_tested_with_other_ways(run_of):
    more = evaluation("protonet", run_of("protonet"), "task.num_ways=7")
    assert more["protocol"]["task"]["num_ways"] == 7
    assert 0 <= more["test/accuracy"]["mean"] <= 1


@pytest.mark.parametrize("others", [["seed=1"], ["seed=1", "task.num_ways=4"]])
def test_other_episodes_leave_frozen_layers_as_theta_was_trained_beside_them(others, tmp_path):
    run, tiny = tmp_path / "run", ["steps=2", "evaluation.num_val_tasks=2", "evaluation.num_tasks=2", "logger=none"]
    made = metarun(OUTSIDE, "task=prototypes", "meta_learner=protonet", "base_learner=frozen", *tiny, f"run_dir={run}")
    assert made.code == 0, made.text
    with outsider():
        own, other = (trained(run, words, "best", [FOLDER]) for words in ([], others))
    kept, asked = (frozen(one.experiment.learner.base_learner)["body.kept.weight"] for one in (own, other))
    assert torch.equal(asked, kept)
    assert asked.shape == (5, 256)
    assert other.experiment.seed == 1
    assert not torch.equal(*(one.experiment.task.sample("test", [0]).query.x[:, :6] for one in (own, other)))


@pytest.mark.data
def test_training_tasks_are_scored_with_the_ways_that_they_have(data_root, tmp_path):
    words = ["task=omniglot", f"data_root={data_root}", "meta_learner=protonet", "task.train_num_ways=8"]
    assert metarun(*words, *BUDGET, f"run_dir={tmp_path / 'run'}").code == 0
    train = evaluation("maml", tmp_path / "run", "--split", "train")
    assert train["train/accuracy"]["n"] == 6


def test_other_episodes_another_split_and_another_checkpoint_are_files_of_their_own(run_of):
    run = run_of("maml")
    assert evaluation("maml", run, "evaluation.num_tasks=9")["test/mse"]["n"] == 9
    val = evaluation("maml", run, "--split", "val")
    assert val["protocol"]["split"] == "val" and "val/mse" in val and "test/mse" not in val
    assert evaluation("maml", run, "--checkpoint", "last")["protocol"]["checkpoint"] == "last"
    assert len(list((run / "evaluations").glob("*.json"))) == 3


def test_a_long_curve_is_condensed_on_the_screen_and_whole_in_the_file(run_of):
    run = run_of("maml")
    outcome = metarun("evaluate", str(run), "evaluation.inner_steps=50")
    assert outcome.code == 0
    assert "test/mse_step_50" in outcome.out and "test/mse_step_37" not in outcome.out
    (written,) = (run / "evaluations").glob("*.json")
    assert sum(key.startswith("test/mse_step_") for key in read(written)) == 51


def test_another_execution_is_used_and_another_precision_fits(run_of, monkeypatch):
    run, asked = run_of("maml"), []
    single = evaluation("maml", run)
    monkeypatch.setattr(Looped, "map", lambda *args, used=Looped.map: asked.append(args) or used(*args))
    evaluation("maml", run, "evaluation.num_tasks=4", "execution=looped")
    assert len(asked) > 8  # the time of an adaptation takes 8 anyway
    double = evaluation("maml", run, "dtype=float64")
    assert double["test/mse"]["mean"] == pytest.approx(single["test/mse"]["mean"], rel=1e-4)


LARGEST = """
from dataclasses import dataclass, replace

from metarun.evaluation.scoring import Evaluator, evaluate


@dataclass(frozen=True)
class Largest(Evaluator):
    factor: float

    def scores(self, subject, phi, episode):
        return {"largest": self.factor * (subject.learner.predict(phi, episode.query.x) - episode.query.y).abs().max()}

    def estimates(self, subject):
        zero = {name: 0 * leaf for name, leaf in subject.theta.items()}
        return {"from_zero": evaluate(replace(subject, theta=zero))["mse"]}
"""


def test_an_evaluator_is_a_file_and_a_node_in_a_run_and_in_its_evaluation(tmp_path):
    folder, run = tmp_path / "mine", tmp_path / "run"
    (folder / "evaluator").mkdir(parents=True)
    (folder / "mine.py").write_text(LARGEST)
    (folder / "evaluator" / "largest.yaml").write_text("{_target_: mine.Largest, factor: 1.0}")
    words = [f"--config-dir={folder}", *RUNS["maml"], *BUDGET, f"run_dir={run}"]
    outcome = metarun(*words, "+evaluator@evaluation.evaluator.largest=largest")
    assert outcome.code == 0, outcome.text
    once = scores(run)
    assert once["test/largest"] == once["test/largest_step_4"] and once["test/largest"]["mean"] > 0
    assert once["test/from_zero"]["n"] == 6
    assert ["from_zero" in str(row) for row in metrics(run) if "val/largest" in row] == 3 * [False]
    node = "+evaluation.evaluator.twice={_target_: mine.Largest, factor: 2.0}"
    outcome = metarun("evaluate", str(run), f"--config-dir={folder}", node)
    assert outcome.code == 0, outcome.text
    (written,) = (run / "evaluations").glob("*.json")
    assert read(written)["test/largest"]["mean"] == pytest.approx(2 * once["test/largest"]["mean"])


def test_a_further_score_that_is_undefined_is_told_as_null(run_of, tmp_path):
    (tmp_path / "undefined.py").write_text(UNDEFINED)
    run = run_of("maml")
    node = "+evaluation.evaluator.recall={_target_: undefined.Recall}"
    outcome = metarun("evaluate", str(run), f"--config-dir={tmp_path}", node)
    assert outcome.code == 0, outcome.text
    (found,) = (run / "evaluations").glob("*.json")
    assert read(found)["test/recall"]["mean"] is None
    assert read(found)["test/mse"] == read(run / "results.json")["test/mse"]


MISTAKES = {
    "something else than an evaluator": (
        ["+evaluation.evaluator.mine._target_=metarun.execution.Looped"],
        "evaluation.evaluator.mine._target_: 'metarun.execution.Looped' is not something that a config may call. "
        "Here it must be a class derived from Evaluator.",
    ),
    "an unknown key": (["task.num_shotz=3"], "task.num_shotz is not a setting; did you mean task.num_shots?"),
    "an unknown key at the root": (["stepz=3"], "stepz is not a setting"),
    "a key that only training has": (["steps=3"], "for another steps train another run"),
    "a key of the optimizer": (["optimizer.lr=3"], "for another optimizer train another run"),
    "another network than theta has": (["base_learner.hidden=[3]"], "do not fit"),
    "a wrong type": (["task.num_shots=abc"], "must be int"),
    "a wrong type of the schema": (["evaluation.num_tasks=abc"], "evaluation.num_tasks=abc: must be a whole number."),
    "a wrong split": (["--split=holdout"], "--split is 'holdout'"),
    "a wrong checkpoint": (["--checkpoint=first"], "--checkpoint is 'first'"),
    "several values": (["task.num_shots=1,2"], "write KEY=VALUE with one value"),
    "inputs that do not fit": ([OUTSIDE, "task=prototypes"], "do not fit"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_answered_with_exit_code_2_and_writes_nothing(mistake, finished):
    words, message = MISTAKES[mistake]
    outcome = metarun("evaluate", str(finished["maml"]), *words)
    assert outcome.code == 2, outcome.text
    assert message in outcome.err
    assert "Traceback" not in outcome.text
    assert not (finished["maml"] / "evaluations").exists()


def test_mistakes_are_in_one_list(finished):
    outcome = metarun("evaluate", str(finished["maml"]), "stepz=3", "task.foo=1", "evaluation.num_tasks=x")
    assert "3 problems" in outcome.err
