"""The campaign of wrong inputs, in its short form: a sample of values, command lines and damaged files."""

import os
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Literal, Optional

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "campaign.py"


@pytest.mark.skipif(
    not hasattr(os, "fork") or not Path("/proc/self/statm").exists(), reason="it watches Linux processes"
)
def test_a_sample_of_wrong_inputs_is_answered_as_the_documentation_says(tmp_path):
    command = [sys.executable, str(SCRIPT), "--short", "--verbose"]
    environment = {
        **os.environ,
        "PYTHONPATH": str(SCRIPT.parents[1]),
        "OMP_NUM_THREADS": "1",
        "METARUN_DATA": str(tmp_path),
        "TMPDIR": str(tmp_path),
    }
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " inputs, 0 faults, " in done.stdout


@pytest.mark.parametrize("said", [Literal["a"] | None, Optional[int], "int | None"])  # noqa: UP045 (an older spelling)
def test_null_is_no_nonsense_where_the_annotation_has_a_place_for_it(said, monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    from wrong_values import Setting

    def nonsense(annotation: object) -> set[str]:
        cases = Setting("task.setting", "int", str(annotation), [()]).cases(0, Random(0))
        return {case.argv[0].partition("=")[2] for case in cases if case.what == "int nonsense"}

    assert nonsense(int) - nonsense(said) == {"null"}
