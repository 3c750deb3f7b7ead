"""``metarun control RUN``: the return after K transitions, by the model of a finished run."""

from pathlib import Path

import pytest
import torch

from metarun.applied.trained import trained
from metarun.commands.control import model_after
from tests.running import metarun, read

TINY = [
    *[
        "device=cpu",
        "execution=vmapped",
        "steps=2",
        "meta_batch_size=2",
        "base_learner.hidden=[8]",
        "evaluation.every=2",
    ],
    *["evaluation.num_val_tasks=2", "evaluation.num_tasks=2", "task=cart_pole", "task.control_steps=4"],
    "logger=none",
    *["task.planner.horizon=3", "task.planner.population=8", "task.planner.num_elites=2"],
]


def finished(folder: Path, *words: str) -> Path:
    outcome = metarun(*TINY, *words, f"run_dir={folder}")
    assert outcome.code == 0, outcome.text
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return finished(tmp_path_factory.mktemp("runs") / "run", "meta_learner=r2d2")


def test_it_prints_a_table_and_writes_returns_and_a_picture_the_same_each_time(run):
    others = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    results = []
    for _ in range(2):
        outcome = metarun("control", str(run), "--shots", "2,0", "--tasks", "3")
        assert outcome.code == 0, outcome.text
        (written,) = (run / "evaluations").glob("control_*.json")
        assert f"results: {written}" in outcome.out and written.with_suffix(".png").is_file()
        results.append(read(written))
    names = ["random actions", "0 transitions", "2 transitions", "true dynamics (oracle)"]
    assert list(results[0]["return"]) == names
    assert all(name in outcome.out for name in names)
    assert results[0]["return"] == results[1]["return"]
    assert results[0]["return"]["true dynamics (oracle)"] == {"mean": 4.0, "ci95": 0.0, "n": 3}  # nothing falls so soon
    assert results[0]["protocol"]["split"] == "test"
    assert all(path.read_bytes() == content for path, content in others.items())


@pytest.mark.parametrize("learner", ["maml", "anil", "cnp", "anp", "r2d2", "fine_tune"])
def test_the_model_after_k_transitions_is_the_adapted_learner_and_after_none_finite(learner, tmp_path):
    again = trained(finished(tmp_path / "run", f"meta_learner={learner}"), ["task.num_shots=3"], "best", [])
    task, subject = again.experiment.task, again.experiment.subject(again.theta, "test", 2, again.execution)
    episodes = task.sample("test", range(2))
    state, action = torch.zeros(2, 4, 4).double(), torch.ones(2, 4, 1).double()
    follow = model_after(subject, task, episodes, 3)(state, action)
    for b in range(2):
        one = [type(batch)(batch.x[b], batch.y[b]) for batch in episodes[:2]]
        phi = again.experiment.test_learner.adapt(again.theta, one[0])
        outputs = again.experiment.test_learner.predict(phi, task.encoding.inputs(state[b], action[b]).float()).double()
        torch.testing.assert_close(follow[b], task.encoding.advance(state[b], outputs), rtol=1e-5, atol=1e-5)
    assert torch.isfinite(model_after(subject, task, episodes, 0)(state, action)).all()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--shots", "1;2"], r"--shots is '1;2'; write whole numbers with commas"),
        (["--shots", "1,²"], r"--shots is '1,²'; write whole numbers with commas"),
        (["--tasks", "1"], r"--tasks is 1; an interval needs 2 or more"),
        (["--checkpoint", "first"], r"--checkpoint is 'first'; use best or last"),
        (["task.planner.horizont=3"], r"horizont is not a setting; did you mean task.planner.horizon"),
    ],
)
def test_a_wrong_word_ends_with_exit_code_2_and_the_rule(run, words, message):
    outcome = metarun("control", str(run), *words)
    assert outcome.code == 2
    assert message in outcome.text


def test_a_run_on_something_else_than_a_system_is_refused(tmp_path):
    small = [word for word in TINY if not word.startswith("task")]
    assert metarun(*small, "task=sinusoid", f"run_dir={tmp_path / 'run'}").code == 0
    outcome = metarun("control", str(tmp_path / "run"))
    assert outcome.code == 2 and "was trained on Sinusoid; control needs" in outcome.text
    assert metarun("control", str(tmp_path / "nothing")).code == 2
