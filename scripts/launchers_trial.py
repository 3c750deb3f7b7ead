"""The same sweep of four runs by each launcher that is installed here: results, signals and a parent that is killed.

python scripts/launchers_trial.py DIR [--launchers joblib submitit ray ray-cluster]

Each launcher runs four runs, with a config folder of one's own beside metarun's, and its results are compared, bit by bit,
with those of launcher=local. Then the sweep is begun again elsewhere, its process is killed (-9), and the runs have to end
with a checkpoint; the same command goes on to the same results. For ray-cluster Ray is started by itself, and
found by its address. Exit code 0 where all of this holds. Linux alone.
"""

import argparse
import importlib.util
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from sweep_trial import BUDGET, jobs_of, left_by

PORT = 26379  # of the Ray that is started by itself
LAUNCHERS = {
    "joblib": ["launcher=joblib"],
    "submitit": ["launcher=submitit"],
    "ray": ["launcher=ray"],
    "ray-cluster": ["launcher=ray", "launcher.address=auto"],
}


def command(folder: Path, sweep: Path, words: list[str]) -> list[str]:
    """The command of the sweep of four runs; its task stands in a config folder beside it."""
    own = folder / "own" / "task"
    own.mkdir(parents=True, exist_ok=True)
    (own / "mine.yaml").write_text("defaults: [sinusoid]\n")
    texts = [*BUDGET, "evaluation.every=50", "task=mine", "steps=300"]
    texts += ["seed=0,1", "meta_learner=maml,reptile", "jobs=2", f"sweep_dir={sweep}"]
    return [sys.executable, "-m", "metarun", "-m", f"--config-dir={own.parent}", *texts, *words]


def killed(words: list[str], sweep: Path) -> str:
    """Kill the sweep's process when two of its runs train; what is wrong with what then happens."""
    with (sweep.parent / f"{sweep.name}.txt").open("ab") as output:
        parent = subprocess.Popen(words, stdout=output, stderr=output, start_new_session=True)
    end = time.monotonic() + 180
    while sum(bool(path.read_text()) for path in sweep.glob("*/metrics.jsonl")) < 2:
        if parent.poll() is not None or time.monotonic() > end:
            return "no two runs began"
        time.sleep(0.1)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    end = time.monotonic() + 30
    while jobs_of(sweep) and time.monotonic() < end:
        time.sleep(0.1)
    return f"left over: {left}" if (left := jobs_of(sweep)) else ""


def problems(name: str, folder: Path, expected: dict[str, object]) -> list[str]:
    """What does not hold of a launcher."""
    found, whole, rough = [], folder / name, folder / f"{name}-killed"
    began = time.monotonic()
    done = subprocess.run(command(folder, whole, LAUNCHERS[name]), capture_output=True, text=True, check=False)
    seconds = time.monotonic() - began
    if done.returncode or "4 of 4 runs completed" not in done.stdout or left_by(whole) != expected:
        found.append(f"exit code {done.returncode}, or other results\n{done.stdout}{done.stderr}")
    if wrong := killed(command(folder, rough, LAUNCHERS[name]), rough):
        found.append(f"killed: {wrong}")
    again = subprocess.run(command(folder, rough, LAUNCHERS[name]), capture_output=True, text=True, check=False)
    if again.returncode or left_by(rough) != expected:
        found.append(
            f"killed, then again: exit code {again.returncode}, or other results\n{again.stdout}{again.stderr}"
        )
    print(f"{name}: {'; '.join(found) or f'as launcher=local, {seconds:.0f} s'}", flush=True)
    return found


@contextmanager
def cluster(name: str) -> Iterator[None]:
    """A Ray that runs by itself, where the launcher needs one."""
    ray = str(Path(sys.executable).with_name("ray"))
    if name == "ray-cluster":
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}  # Ray's, and its clients'
        begin = ["start", "--head", f"--port={PORT}", "--node-ip-address=127.0.0.1", "--num-cpus=2"]
        subprocess.run([ray, *begin, "--include-dashboard=false"], check=True, capture_output=True)
    try:
        yield
    finally:
        if name == "ray-cluster":
            subprocess.run([ray, "stop", "--force"], check=False, capture_output=True)


def main() -> int:
    """Run the trial; exit code 1 where something does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--launchers", nargs="+", choices=LAUNCHERS, default=list(LAUNCHERS))
    given = parser.parse_args()
    folder = given.folder.resolve()
    folder.mkdir(parents=True)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    subprocess.run(command(folder, folder / "local", []), check=True, capture_output=True)
    expected, bad = left_by(folder / "local"), False
    for name in given.launchers:
        if importlib.util.find_spec(package := name.partition("-")[0]) is None:
            print(f"{name}: left out, {package} is not installed")
            continue
        with cluster(name):
            bad = bool(problems(name, folder, expected)) or bad
    print("NOT KEPT" if bad else "kept")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
