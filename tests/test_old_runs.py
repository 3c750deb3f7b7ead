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


@pytest.mark.parametrize("name", ["Auto", "Looped", "Vmapped"])
def test_the_executions_of_saved_configs_are_found_where_they_were(name):
    assert locate(f"metarun.execution.{name}", Execution).__name__ == name
