"""``python -m metarun.sweep.worker FILE``: what joblib, submitit or Ray runs for a job of a sweep, wherever that is.

FILE describes the job (see ``metarun.sweep.launchers.engine``). This starts it, passes on the signals that the parent of the
sweep leaves beside FILE, stops it when that parent or the engine's process has died, and prints how it ended.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

from metarun.output.lock import busy
from metarun.process import ending_with

POLL_SECONDS = 0.2
LOOK_SECONDS = 1.0  # between two looks whether the parent lives


def main(description: Path) -> None:
    """Run the job and print its process and exit code as JSON."""
    for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2"):
        signal.signal(getattr(signal, name), _leave_it_to_the_job)
    above = os.getppid()
    if signals := signals_in(description.with_suffix(".told")):  # while it waited in the engine's queue
        print(json.dumps({"pid": 0, "code": 128 + signals[0]}))
        return
    process = started(json.loads(description.read_text()))
    description.with_suffix(".pid").write_text(str(process.pid))
    told, wanted, looked = 0, True, time.monotonic()
    while process.poll() is None:
        signals = signals_in(description.with_suffix(".told"))
        for number in signals[told:]:
            process.send_signal(number)
        told = len(signals)
        if wanted and (os.getppid() != above or time.monotonic() - looked > LOOK_SECONDS):
            looked = time.monotonic()
            wanted = os.getppid() == above and busy(description.parent)
            if not wanted and not told:
                process.send_signal(signal.SIGTERM)
        time.sleep(POLL_SECONDS)
    print(json.dumps({"pid": process.pid, "code": process.returncode}))


def started(job: dict[str, object]) -> "subprocess.Popen[bytes]":
    """The process of a job, which ends by SIGTERM when this one is killed."""
    environment, arguments = job["environment"], job["arguments"]
    assert isinstance(environment, dict) and isinstance(arguments, list)
    with open(str(job["output"]), "ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "metarun", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            cwd=str(job["folder"]),
            preexec_fn=ending_with(os.getpid()),  # noqa: PLW1509 (one thread)
        )


def signals_in(path: Path) -> list[int]:
    """The signals that a file holds, a whole line each."""
    try:
        return [int(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    except OSError:
        return []


def _leave_it_to_the_job(number: int, frame: FrameType | None) -> None:
    """A signal for all processes of a job, as Slurm sends it, reaches the run itself: told twice it would end at once."""


if __name__ == "__main__":
    main(Path(sys.argv[1]))
