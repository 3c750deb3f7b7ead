"""A run that an earlier metarun left (commit 505e39d, when modules stood elsewhere) goes on, and is evaluated, as then."""

import shutil
from pathlib import Path

import pytest

from metarun.config.targets import locate
from metarun.execution.execution import Execution
from tests.running import checkpoint, metarun, read

RUN = Path(__file__).parent / "outside" / "runs" / "sinusoid"
AFTER_8 = 6.0015008925388775  # the test error that the earlier metarun had after two steps more


@pytest.fixture
def run(tmp_path) -> Path:
    return Path(shutil.copytree(RUN, tmp_path / "run"))


def test_it_is_evaluated_as_it_was_tested(run):
    outcome = metarun("evaluate", str(run))
    assert outcome.code == 0, outcome.text
    (found,) = (run / "evaluations").glob("*.json")
    assert read(found)["test/mse"]["mean"] == pytest.approx(read(run / "results.json")["test/mse"]["mean"], rel=1e-9)


def test_it_goes_on_to_where_the_earlier_metarun_went(run):
    outcome = metarun(f"resume={run}", "steps=8")
    assert outcome.code == 0, outcome.text
    assert checkpoint(run, "last")["step"] == 8
    assert read(run / "results.json")["test/mse"]["mean"] == pytest.approx(AFTER_8, rel=1e-9)


def test_its_own_command_goes_on_with_it_though_settings_have_been_added_since(run):
    told = ["device=cpu", "dtype=float64", "meta_batch_size=2", "log_every=2", "steps=8", "execution.threads=1"]
    told += ["base_learner.hidden=[8]", "task.num_queries=5", "task.train_num_shots=10", "task.train_num_queries=10"]
    told += ["evaluation.every=3", "evaluation.num_val_tasks=4", "evaluation.num_tasks=6"]
    outcome = metarun(*told, f"run_dir={run}", "resume=auto")
    assert outcome.code == 0, outcome.text
    assert read(run / "results.json")["test/mse"]["mean"] == pytest.approx(AFTER_8, rel=1e-9)


@pytest.mark.parametrize("name", ["Auto", "Looped", "Vmapped"])
def test_the_executions_of_saved_configs_are_found_where_they_were(name):
    assert locate(f"metarun.execution.{name}", Execution).__name__ == name
