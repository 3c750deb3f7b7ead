"""Sweeps as arrays of Slurm, without Slurm: sbatch, squeue, srun and scontrol are played by small scripts."""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from metarun.output import lock
from metarun.output.folder import RunFolder
from metarun.sweep.launchers import slurm
from metarun.sweep.launchers.slurm_script import Task, script
from tests.running import TINY, Outcome, metarun, read

pytestmark = pytest.mark.usefixtures("statuses_alone")
NOTE = 'echo "$(basename "$0") $*" >> "$(dirname "$0")/asked"\n'
PARTS = {
    "sbatch": 'echo "4711;cluster"\n',
    "squeue": 'cat "$(dirname "$0")/queue" 2> /dev/null || true\n',
    "scontrol": "exit 0\n",
    "srun": "exit 0\n",
}


class Cluster:
    """A folder of commands that stand in the place of Slurm's, and what they were asked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        for name, body in PARTS.items():
            self.plays(name, body)

    def plays(self, name: str, body: str) -> None:
        path = self.folder / name
        path.write_text(f"#!/bin/bash\n{NOTE}{body}")
        path.chmod(0o755)

    def asked(self, name: str) -> list[str]:
        path = self.folder / "asked"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line.partition(" ")[2] for line in lines if line.split()[0] == name]

    def queue(self, *places: int) -> None:
        """What is in the queue of the array."""
        (self.folder / "queue").write_text("".join(f"{place}\n" for place in places))


@pytest.fixture
def cluster(tmp_path, monkeypatch) -> Cluster:
    found = Cluster(tmp_path / "commands")
    monkeypatch.setenv("PATH", f"{found.folder}:{os.environ['PATH']}")
    return found


def submitted(sweep: Path, *words: str) -> Outcome:
    return metarun("-m", *TINY, "seed=0,1,2,3", "launcher=slurm", f"sweep_dir={sweep}", *words)


def runs_of(sweep: Path) -> list[str]:
    """The folders of the runs, in the order of the sweep."""
    return [row["folder"] for row in read(sweep / "sweep.json")["jobs"]]


# ---- what is submitted ----


def test_the_jobs_of_a_sweep_are_one_array_and_the_command_ends(tmp_path, cluster):
    sweep = tmp_path / "sweep"
    outcome = submitted(sweep, "jobs=2", "retries=3")
    assert outcome.code == 0, outcome.text
    assert "4711: 4 runs" in outcome.err and "metarun runs" in outcome.out
    assert cluster.asked("sbatch") == [f"--parsable {sweep / 'slurm' / '1.sh'}"]
    text = (sweep / "slurm" / "1.sh").read_text()
    for option in ("--requeue", "--open-mode=append", "--signal=USR1@120", "--array=0-3%2", "--ntasks=1"):
        assert f"#SBATCH {option}\n" in text
    array = read(sweep / "slurm" / "1.json")
    assert (array["job"], array["runs"]) == ("4711", runs_of(sweep)) and f"#SBATCH --job-name={array['name']}\n" in text


def test_the_settings_of_the_launcher_are_options_of_sbatch(tmp_path, cluster):
    words = ["launcher.partition=gpu", "launcher.account=us", "launcher.time=90m", "launcher.gpus=2", "launcher.cpus=4"]
    words += ["launcher.memory=8G", "launcher.options=['--constraint=a100']", "launcher.setup=['module load cuda']"]
    assert submitted(tmp_path / "sweep", *words).code == 0
    text = (tmp_path / "sweep" / "slurm" / "1.sh").read_text()
    options = ["partition=gpu", "account=us", "time=90", "gres=gpu:2", "cpus-per-task=4", "mem=8G", "constraint=a100"]
    assert all(f"#SBATCH --{option}\n" in text for option in options)
    assert "#SBATCH --array=0-3\n" in text  # all at a time, where jobs is not given
    assert "\nmodule load cuda\n" in text
    assert "srun --ntasks=1 --cpus-per-task=4" in text and "OMP_NUM_THREADS:-4" in text


def test_a_cluster_s_runs_get_no_share_of_the_cores_of_the_machine_that_submits(tmp_path, cluster, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("metarun.commands.sweep.can_fork", lambda: True)
    cluster.plays("sbatch", f'echo "${{OMP_NUM_THREADS-none}}" > {tmp_path / "threads"}; echo 4711\n')
    assert submitted(tmp_path / "sweep", "jobs=2", "launcher.cpus=8").code == 0
    assert (tmp_path / "threads").read_text() == "none\n"


def test_a_users_own_config_folder_can_hold_the_settings_of_a_cluster(tmp_path, cluster):
    (tmp_path / "own" / "launcher").mkdir(parents=True)
    text = (Path(__file__).parents[1] / "configs" / "launcher" / "slurm.yaml").read_text()
    (tmp_path / "own" / "launcher" / "here.yaml").write_text(text.replace("partition: null", "partition: ours"))
    words = [f"--config-dir={tmp_path / 'own'}", "launcher=here"]
    assert metarun("-m", *TINY, "seed=0,1", f"sweep_dir={tmp_path / 'sweep'}", *words).code == 0
    assert "#SBATCH --partition=ours\n" in (tmp_path / "sweep" / "slurm" / "1.sh").read_text()


def test_the_same_command_submits_what_is_not_done_not_queued_and_not_in_progress(tmp_path, cluster):
    sweep = tmp_path / "sweep"
    assert submitted(sweep).code == 0
    first, second, third, fourth = runs_of(sweep)
    cluster.queue(1)
    RunFolder(sweep / first).mark("completed")
    with RunFolder(sweep / third).claimed():
        outcome = submitted(sweep)
    assert outcome.code == 0 and "2 runs are in Slurm's queue, or in progress" in outcome.err
    assert read(sweep / "slurm" / "2.json")["runs"] == [fourth]
    assert second not in (sweep / "slurm" / "2.sh").read_text()


def test_a_run_whose_folder_cannot_be_used_is_left_out_and_told(tmp_path, cluster):
    sweep = tmp_path / "sweep"
    submitted(sweep)
    name, *others = runs_of(sweep)
    shutil.rmtree(sweep / name)
    (sweep / name).mkdir()
    (sweep / name / "checkpoints").touch()
    outcome = submitted(sweep)
    assert outcome.code == 1 and "seed=0: not submitted: cannot write to the run folder" in outcome.err
    assert read(sweep / "slurm" / "2.json")["runs"] == others


def test_a_sweep_whose_runs_are_all_queued_submits_nothing(tmp_path, cluster):
    sweep = tmp_path / "sweep"
    submitted(sweep)
    cluster.queue(0, 1, 2, 3)
    assert submitted(sweep).code == 0
    assert len(cluster.asked("sbatch")) == 1 and not (sweep / "slurm" / "2.sh").exists()


def test_a_sweep_that_is_done_prints_its_table_and_submits_nothing(tmp_path, cluster):
    sweep = tmp_path / "sweep"
    submitted(sweep)
    for name in runs_of(sweep):
        RunFolder(sweep / name).mark("completed")
    outcome = submitted(sweep)
    assert outcome.code == 0 and "4 of 4 runs completed" in outcome.out
    assert len(cluster.asked("sbatch")) == 1


@pytest.mark.parametrize("before", [False, True])
def test_a_command_that_waits_ends_with_the_table_when_the_arrays_have_ended(before, tmp_path, cluster, monkeypatch):
    monkeypatch.setattr(slurm, "WAIT_SECONDS", 0.01)
    if before:
        submitted(tmp_path / "sweep")
        cluster.queue(0, 1, 2, 3)
    # no answer at every second time, and else a run less
    cluster.plays(
        "squeue", f"cd {cluster.folder}; rm busy 2> /dev/null && exit 1; cat queue; sed -i 1d queue; touch busy\n"
    )
    cluster.queue(0, 1, 2, 3)
    outcome = submitted(tmp_path / "sweep", "launcher.wait=true")
    assert outcome.code == 1 and "0 of 4 runs completed" in outcome.out  # for nobody has run them
    assert len(cluster.asked("sbatch")) == 1 and (cluster.folder / "queue").read_text() == ""


def test_a_command_that_waits_says_when_slurm_has_long_told_nothing(tmp_path, cluster, monkeypatch):
    monkeypatch.setattr(slurm, "WAIT_SECONDS", 0.01)
    monkeypatch.setattr(slurm, "SILENT_SECONDS", 0.05)
    cluster.plays("squeue", "echo 'slurm_load_jobs error: Socket timed out' >&2; exit 1\n")
    outcome = submitted(tmp_path / "sweep", "launcher.wait=true")
    assert outcome.code == 1 and "Socket timed out" in outcome.err and "when Slurm answers" in outcome.err


def test_nothing_is_submitted_as_long_as_squeue_does_not_say_what_is_in_the_queue(tmp_path, cluster):
    submitted(tmp_path / "sweep")
    cluster.plays("squeue", "echo 'slurm_load_jobs error: Socket timed out' >&2; exit 1\n")
    outcome = submitted(tmp_path / "sweep")
    assert outcome.code == 1 and "Socket timed out" in outcome.err and "same command again" in outcome.err
    cluster.plays("squeue", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1\n")
    assert submitted(tmp_path / "sweep").code == 0
    assert len(cluster.asked("sbatch")) == 2


def test_the_cluster_that_has_an_array_is_asked_about_it(tmp_path, cluster):
    submitted(tmp_path / "sweep")
    submitted(tmp_path / "sweep")
    assert cluster.asked("squeue") == ["--noheader --array --jobs=4711 --clusters=cluster --format=%K"]


def test_an_array_whose_submission_was_not_answered_is_found_by_its_name(tmp_path, cluster):
    cluster.plays("sbatch", "echo 'Socket timed out' >&2; exit 1\n")
    assert submitted(tmp_path / "sweep", "launcher.options=['--clusters=ours']").code == 1
    cluster.queue(0, 1, 2, 3)
    outcome = submitted(tmp_path / "sweep")
    assert outcome.code == 0 and "4 runs are in Slurm's queue" in outcome.err
    name = read(tmp_path / "sweep" / "slurm" / "1.json")["name"]
    assert cluster.asked("squeue") == [f"--noheader --array --name={name} --clusters=ours --format=%K"]


def test_a_command_beside_one_that_submits_is_refused(tmp_path, cluster, monkeypatch):
    monkeypatch.setattr(lock, "PAUSE", 0.0)
    submitted(tmp_path / "sweep")
    with lock.alone(tmp_path / "sweep" / "slurm" / ".lock"):
        outcome = submitted(tmp_path / "sweep")
    assert outcome.code == 1 and "another command has held" in outcome.err
    assert len(cluster.asked("sbatch")) == 1


def test_a_mistake_in_a_job_is_told_before_anything_is_submitted(tmp_path, cluster):
    outcome = submitted(tmp_path / "sweep", "meta_learner.inner_lr=0.1,abc")
    assert outcome.code == 2 and "'abc'" in outcome.err
    assert cluster.asked("sbatch") == [] and not (tmp_path / "sweep").exists()


def test_without_sbatch_the_command_is_refused_with_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    outcome = submitted(tmp_path / "sweep")
    assert outcome.code == 2 and "launcher=slurm: there is no command sbatch here" in outcome.err
    assert not (tmp_path / "sweep").exists()


def test_what_sbatch_refuses_is_told_with_its_words_and_where_to_change_it(tmp_path, cluster):
    cluster.plays("sbatch", "echo 'error: invalid partition specified: gpu' >&2; exit 1\n")
    outcome = submitted(tmp_path / "sweep", "launcher.partition=gpu")
    assert outcome.code == 1
    assert "invalid partition" in outcome.err and "launcher.KEY=VALUE" in outcome.err


@pytest.mark.parametrize(("word", "said"), [
    ("launcher.time=soon", "launcher.time=soon: must be the time"),
    ("launcher.time=60", "longer than the 120 s"),
    ("launcher.cpus=0", "launcher.cpus=0: must be 1 or more"),
    ("launcher.gpus=x", "launcher.gpus is 'x'"),
    ("launcher.partitoin=gpu", "did you mean"),
    ("launcher.options=[hold]", "'hold' is no option of sbatch"),
    ("timeout=5m", "launcher.time=12h"),
])  # fmt: skip
def test_a_wrong_setting_of_slurm_is_refused_with_the_rule(word, said, tmp_path, cluster):
    outcome = submitted(tmp_path / "sweep", word)
    assert outcome.code == 2 and said in outcome.err, outcome.err
    assert not (tmp_path / "sweep").exists()


# ---- what the script does ----


def ended(cluster: Cluster, folder: Path, code: int, retries: int = 2, restarts: int = 0) -> int:
    """The exit code of the script when its run ends with ``code``."""
    folder.mkdir(exist_ok=True)
    cluster.plays("srun", f"exit {code}\n")
    return of_the_script(cluster, [Task(folder, ["seed=0", "base_learner.hidden=[8]"])], retries, restarts)


def of_the_script(cluster: Cluster, tasks: list[Task], retries: int = 2, restarts: int = 0, number: int = 0) -> int:
    path = cluster.folder.parent / "job.sh"
    path.write_text(script(["--requeue"], tasks, retries, 1, []))
    told = {"SLURM_ARRAY_JOB_ID": "4711", "SLURM_ARRAY_TASK_ID": str(number), "SLURM_RESTART_COUNT": str(restarts)}
    return subprocess.run(["bash", str(path)], env={**os.environ, **told}, check=False, timeout=60).returncode


def test_each_task_of_the_array_runs_the_command_of_its_own_run(tmp_path, cluster):
    tasks = [Task(tmp_path / name, [f"seed={i}", "data_root='a b'"]) for i, name in enumerate(("one", "two words"))]
    for task in tasks:
        task.folder.mkdir()
    assert of_the_script(cluster, tasks, number=1) == 0
    assert cluster.asked("srun") == [f"--ntasks=1 --cpus-per-task=1 {sys.executable} -m metarun seed=1 data_root='a b'"]
    (line,) = (tmp_path / "two words" / "output.txt").read_text().splitlines()
    assert shlex.split(line)[1:] == ["python", "-m", "metarun", "seed=1", "data_root='a b'"]
    assert of_the_script(cluster, tasks, number=7) == 2


@pytest.mark.parametrize("code", [143, 138, 129, 137])
def test_a_run_that_a_signal_ended_is_queued_again(code, tmp_path, cluster):
    assert ended(cluster, tmp_path / "run", code) == 0
    assert cluster.asked("scontrol") == ["requeue 4711_0"]


@pytest.mark.parametrize("code", [1, 2, 3])
def test_a_run_that_would_fail_again_is_not_queued_again(code, tmp_path, cluster):
    assert ended(cluster, tmp_path / "run", code) == code
    assert cluster.asked("scontrol") == []


@pytest.mark.parametrize("error", [
    "out of memory, with chunk=1 too: ...",
    'Traceback:\n  File "task.py", line 3, in draw\nnumpy._core._exceptions._ArrayMemoryError: no 8 GiB',
])  # fmt: skip
def test_a_run_that_found_no_memory_is_queued_again(error, tmp_path, cluster):
    RunFolder(tmp_path / "run").create()
    RunFolder(tmp_path / "run").mark("failed", error=error)
    assert ended(cluster, tmp_path / "run", 1) == 0
    assert cluster.asked("scontrol") == ["requeue 4711_0"]


def test_a_run_is_queued_again_only_as_often_as_retries_says(tmp_path, cluster):
    assert ended(cluster, tmp_path / "run", 143, retries=2, restarts=1) == 0
    assert ended(cluster, tmp_path / "run", 143, retries=2, restarts=2) == 143
    assert ended(cluster, tmp_path / "run", 143, retries=0) == 143
    assert len(cluster.asked("scontrol")) == 1


def test_a_job_that_slurm_itself_ends_is_not_queued_again_by_its_script(tmp_path, cluster):
    (tmp_path / "run").mkdir()
    cluster.plays("srun", "kill -TERM $PPID; sleep 0.2; exit 143\n")  # scancel: the script is signalled too
    assert of_the_script(cluster, [Task(tmp_path / "run", ["seed=0"])]) == 143
    assert cluster.asked("scontrol") == []


def test_a_whole_array_run_by_its_script_completes_the_sweep(tmp_path, cluster):
    sweep = tmp_path / "sweep"
    cluster.plays("srun", 'shift 2; exec "$@"\n')
    (tmp_path / "own" / "task").mkdir(parents=True)
    (tmp_path / "own" / "task" / "mine.yaml").write_text("defaults: [sinusoid]\n")
    words = [f"--config-dir={tmp_path / 'own'}", *TINY, "task=mine", "seed=0,1", "launcher=slurm", f"sweep_dir={sweep}"]
    assert metarun("-m", *words).code == 0
    told = {"SLURM_ARRAY_JOB_ID": "4711", "PYTHONPATH": str(Path(__file__).parents[1])}
    bash = ["bash", str(sweep / "slurm" / "1.sh")]
    for number in ("0", "1"):
        subprocess.run(bash, env={**os.environ, **told, "SLURM_ARRAY_TASK_ID": number}, check=True, timeout=300)
    again = metarun("-m", *words)
    assert again.code == 0 and "2 of 2 runs completed" in again.out
