"""The campaign of wrong inputs, in its short form: a sample of values, command lines and damaged files."""

import os
import subprocess
import sys
from pathlib import Path

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
    }
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " inputs, 0 faults, " in done.stdout
