"""The command line: what --help costs and says, and what a mistake is answered with."""

import errno
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from metarun import __version__
from metarun.commands.job import may_change
from metarun.commands.main import main
from metarun.commands.streams import lasting
from metarun.config.help import ORDER, options
from metarun.paths import config_dir
from tests.running import OUTSIDE, TINY, environment, metarun, process, state, untouched_process

IMAGES = [OUTSIDE, "task=prototypes"]
LAYER = [  # of torch's own, for the base learner
    *("base_learner=linear", "~base_learner.init_std", "base_learner._target_=torch.nn.Linear"),
    "+base_learner.out_features=1",
]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Commands begin in an empty folder, so that they cannot write into the checkout."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert metarun(*TINY, f"run_dir={folder}").code == 0
    return folder


MAY_CHANGE = ("steps", "device", "devices", "data_root", "task.download", "log_every", "checkpoint_minutes")


def test_help_imports_neither_torch_nor_hydra_and_takes_a_moment(tmp_path):
    script = (
        "import sys\nfrom metarun.commands.main import main\ntry:\n    main(['--help'])\nexcept SystemExit as end:\n"
        "    heavy = {'torch', 'hydra', 'omegaconf', 'numpy', 'typer', 'rich'} & set(sys.modules)\n"
        "    sys.exit(f'imported {heavy}' if heavy or end.code else 0)\n"
    )
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - start < 2  # 0.1 s on an idle machine


def test_help_names_all_options_of_all_groups_and_three_examples_and_fits_a_terminal():
    outcome = metarun("--help")
    assert outcome.code == 0
    assert {path.parent.name for path in config_dir().glob("*/*.yaml")} == {
        *ORDER,
        "per_learner",  # for experiments to choose
        "launcher",  # of sweeps
    }
    for group in ORDER:
        for name in options(group):
            assert re.search(rf"\b{name}\b", outcome.out), (group, name)
    examples = outcome.out.split("Examples:")[1].split("\n\n")[0]
    assert len(re.findall(r"^  metarun\b", examples, re.MULTILINE)) == 3
    assert all(word in outcome.out for word in ("jobs=", "sweep_dir=", "--config-dir", "resume=", "metarun evaluate"))
    assert max(map(len, outcome.out.splitlines())) <= 120


@pytest.mark.parametrize("columns", [60, 80, 100, 120])
def test_help_fits_every_terminal_and_breaks_no_name(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    text = metarun("--help").out
    assert max(map(len, text.splitlines())) <= columns
    words = set(re.split(r"[\s,]+", text))
    assert {name for group in ORDER for name in options(group)} <= words
    names = [line for line in text.split("  experiment")[1].split("\n  task/")[0].splitlines() if line]
    assert all(line.endswith(",") for line in names[:-1])


def test_python_dash_m_metarun_is_metarun(tmp_path):
    assert process("--version", cwd=tmp_path) == (0, f"metarun {__version__}\n", "")


def test_version_is_the_package_s():
    assert metarun("--version") == (0, f"metarun {__version__}\n", "")


def test_cfg_job_shows_every_value_and_starts_nothing(tmp_path):
    outcome = process("--cfg", "job", "task.num_shots=7", cwd=tmp_path)
    assert outcome.code == 0, outcome.err
    assert "num_shots: 7" in outcome.out and "meta_batch_size:" in outcome.out
    assert not list(tmp_path.iterdir())


# What is typed, and what the answer must say. All of them end with exit code 2 and without a traceback.
OPTIMIZER = ["~optimizer.betas", "~optimizer.fused"]  # settings of Adam
SCHEDULER = ["~scheduler.factor", "~scheduler.total_iters"]
ONE_CYCLE = ["scheduler._target_=torch.optim.lr_scheduler.OneCycleLR"]
MISTAKES = {
    "an unknown key": (["stepz=3"], "stepz is not a setting; did you mean steps?"),
    "a setting of torch's that no file has": (["optimizer.eps=1"], "is added by a plus sign: +optimizer.eps=1"),
    "a list with what is not plain": (["rates=[a~b]"], "quote what is not plain: \"rates=['...']\""),
    "an unknown key of a group": (["meta_learner.inner_lrr=3"], "did you mean meta_learner.inner_lr?"),
    "a group with a typo": (["meta_lerner=maml"], "meta_lerner is not a setting; did you mean meta_learner?"),
    "a letter that needs quotes": (["run_dir=jürgen"], "cannot be read as KEY=VALUE; quote what is not plain"),
    "a key without its group": (["inner_lr=3"], "inner_lr is not a setting; did you mean meta_learner.inner_lr?"),
    "a key added to the root": (["+foo=1"], "foo is not a setting"),
    "a key added to a group": (["+meta_learner.inner_lrr=1"], "is not a setting of MAML; did you mean 'inner_lr'"),
    "a key taken away": (["~seed"], "seed is needed"),
    "a value taken away": (["~clip_norm"], "; give another value instead, or null where it may be: clip_norm=VALUE."),
    "a group taken away": (["~task"], "~task: it takes away what every run has; choose another option instead: task=NAME"),
    "a word for a whole number": (["steps=abc"], "steps=abc: must be a whole number."),
    "a fraction for a whole number": (["steps=3.5"], "steps=3.5: must be a whole number."),
    "a power of ten for a whole number": (["steps=1e4"], "steps=1e4: must be a whole number; write steps=10000."),
    "a paper's spelling": (["meta_learner=MAML"], "did you mean 'maml'?"),
    "a key without a value": (["steps", "100"], "steps: cannot be read as KEY=VALUE; write steps=VALUE."),
    "a setting as an option": (["--steps=100"], "A setting has no dashes: steps=100"),
    "a setting of the learner before": (
        ["experiment=maml_sinusoid", "meta_learner=meta_sgd"],
        "Where an experiment sets it, ~meta_learner.inner_lr leaves it out.",
    ),
    "null for a number": (["steps=null"], "it needs a value, and null is none"),
    "a word for a number of a group": (["meta_learner.inner_lr=abc"], "'abc' (str), but must be float"),
    "a word for a choice of two": (["meta_learner.first_order=maybe"], "'maybe' (str), but must be true or false"),
    "an option as a value": (["base_learner.hidden=conv4"], "To choose the base_learner write base_learner=conv4"),
    "a value as an option": (["optimizer=0.01"], "adam, adamw, sgd. To change one of its values write optimizer.NAME=0.01"),
    "an option as a key": (["meta_learner.maml=true"], "to choose the meta_learner write meta_learner=maml"),
    "an unknown option": (["base_learner=conv5"], "there is no base_learner called 'conv5'; did you mean 'conv4'"),
    "an unknown option beside others' options": ([OUTSIDE, "task=prototype"], "did you mean 'prototypes'"),
    "a value that is not a choice": (["meta_learner.adapted=foo"], "must be 'all' or 'body' or 'head'"),
    "several values without -m": (["seed=1,2"], "several values are a sweep, metarun -m seed=1,2"),
    "no equals sign": (["foo"], "foo: cannot be read as KEY=VALUE"),
    "a command with a typo": (["evalute"], "did you mean 'evaluate'?"),
    "two equals signs": (["steps==3"], "steps==3: cannot be read as KEY=VALUE; quote"),
    "an option with a typo": (["--hepl"], "--hepl is no option; did you mean '--help'?"),
    "an option without its value": (["--config-dir"], "expected one argument"),
    "zero steps": (["steps=0"], "steps is 0, but must be 1 or more"),
    "a cosine over no steps": (["scheduler=cosine", "scheduler.T_max=0"], "scheduler.T_max=0, "),
    "a step size of zero": (["scheduler=step", "scheduler.step_size=0"], "scheduler: with scheduler.step_size=0, "),
    "a schedule that ends before the last step": (
        [
            *["scheduler._target_=torch.optim.lr_scheduler.OneCycleLR", "~scheduler.factor", "~scheduler.total_iters"],
            *["+scheduler.max_lr=0.01", "+scheduler.total_steps=4", "steps=6"],
        ],
        "scheduler.total_steps=4 it does not last for steps=6 (",
    ),
    "a seed of more bits": (["seed=9223372036854775808"], "seed is 9223372036854775808, but must be 9223372036854775807"),
    "a chunk of no tasks": (["execution=auto", "execution.chunk=0"], "execution.chunk is 0; use 1 or more"),
    "a chunk of less": (["execution=auto", "execution.chunk=-1"], "execution.chunk is -1; use 1 or more"),
    "a type": (["dtype=float16"], "dtype is 'float16', but must be float32 or float64"),
    "an unknown device": (["device=gpu"], "must be auto, cpu, cuda, cuda:N or mps"),
    "a second cpu": (["device=cpu:3"], "device is 'cpu:3', but torch has one cpu; use device=cpu"),
    "an absent device": (["device=cuda:99"], "torch finds no such device here; use device=cpu"),
    "both clips": (["clip_norm=1", "clip_value=1"], "clip_norm and clip_value are both set"),
    "a clip of zero": (["clip_norm=0"], "clip_norm is 0.0, but must be above 0"),
    "an interpolation to nowhere": (["data_root=${nowhere}"], "data_root: an interpolation cannot be resolved"),
    "a folder from nowhere": (["run_dir=${nowhere}"], "'nowhere' not found. Write \\${...} where the name itself holds"),
    "steps without effect": ([*IMAGES, "meta_learner=protonet", "evaluation.inner_steps=3"], "has no effect: ProtoNet"),
    "classes for a task without": (["meta_learner=protonet"], "the task Sinusoid has no classes"),
    "images for a task without": (["base_learner=conv4"], "needs images [channels, height, width]"),
    "a size that torch refuses": ([*LAYER, "+base_learner.in_features=-1"], "base_learner: Linear of torch refuses"),
    "a size below zero": ([*IMAGES, "base_learner=relation_conv", "base_learner.channels=-1"], "channels is -1, but must"),
    "no shots": (["task.num_shots=0"], "task.num_shots is 0, but an episode needs at least 1. Set it to 1 or more"),
    "a negative rate": (["optimizer.lr=-1"], "optimizer.lr is -1, but must be 0 or more"),
    "an optimizer's refusal": (
        ["optimizer=sgd", "optimizer.momentum=0", "optimizer.nesterov=true"],
        "optimizer: SGD of torch refuses optimizer.momentum=0, optimizer.nesterov=True (Nesterov momentum requires",
    ),
    "an optimizer's refusal of a pair": (
        [*OPTIMIZER, "optimizer._target_=torch.optim.Rprop", "+optimizer.etas=[2,1]"],
        "Rprop of torch refuses optimizer.etas=[2.0, 1.0] (Invalid eta values: 2.0, 1.0). Change what it names, or choose",
    ),
    "an optimizer that cannot step": (
        ["~optimizer.fused", "+optimizer.foreach=true", "+optimizer.differentiable=true"],
        "Adam cannot step by a gradient alone (optimizer.lr=0.001",
    ),
    "a scheduler's refusal": (["scheduler.factor=2"], "ConstantLR of torch refuses scheduler.factor=2 (Constant multip"),
    "a scheduler's refusal that names no setting": (
        ["scheduler=linear_decay", "scheduler.start_factor=2", "steps=9"],
        "refuses scheduler.start_factor=2, scheduler.end_factor=0.0, scheduler.total_iters=9 (Starting multip",
    ),
    "a scheduler that asks for a score": (
        [*SCHEDULER, "scheduler._target_=torch.optim.lr_scheduler.ReduceLROnPlateau"],
        "'metrics'). Choose another, such as cosine.",
    ),
    "a scheduler that speaks of others": (
        [*SCHEDULER, *ONE_CYCLE, "+scheduler.max_lr=[1,2]", "+scheduler.total_steps=9"],
        "scheduler: OneCycleLR of torch refuses scheduler.max_lr=[1, 2] (max_lr must have the same length",
    ),
    "missing data": (["task=omniglot", "data_root=nowhere"], "To download there: metarun ... task.download=true"),
    "a missing config folder": (["--config-dir=nowhere"], "--config-dir nowhere: there is no such folder"),
    "the shell as a target": (["task._target_=os.system"], "'os.system' is outside the modules that a config may name"),
    "an unpickler as a target": (["task._target_=torch.load"], "'torch.load' is outside"),
    "a downloader as a target": (["task._target_=torch.hub.load"], "'torch.hub.load' is outside"),
    "torch behind our module": (["task._target_=metarun.execution.torch.load"], "cannot import 'metarun.execution.torch'"),
    "what our module imported": (["task._target_=metarun.tasks.images.gather"], "is not something that a config may call"),
    "a method as a target": (["task._target_=pathlib.Path.unlink"], "'pathlib.Path.unlink' is outside"),
    "our own list of trust": (["task._target_=metarun.config.trust.trust"], "'metarun.config.trust.trust' is outside"),
    "a target with a typo": (["task._target_=metarun.tasks.sinusoid.Sinusoidd"], "did you mean 'Sinusoid'"),
    "resume=auto without a place": (["resume=auto"], "resume=auto continues what lies in run_dir; add run_dir=PATH"),
    "resume of nothing": (["resume=nowhere"], "there is no run (no config.yaml)"),
    "run_dir in a sweep": (["-m", "seed=1,2", "run_dir=x"], "run_dir=x cannot stand beside -m"),
    "half a job at a time": (["-m", "seed=1,2", "jobs=0.5"], "jobs=0.5: must be a whole number"),
    "a raised two of jobs": (["-m", "seed=1,2", "jobs=²"], "jobs=²: must be a whole number"),
    "a type in one job of a sweep": (["-m", "seed=1,2", "meta_learner.inner_lr=0.1,abc"], "'abc' (str), but must be float"),
    "evaluate without a run": (["evaluate"], "Missing argument"),
    "evaluate with an unknown option": (["evaluate", ".", "--foo"], "No such option: --foo"),
    "evaluate of nothing": (["evaluate", "nowhere"], "holds no run"),
}  # fmt: skip


def refused(outcome, *messages: str) -> None:
    assert outcome.code == 2, outcome.text
    assert outcome.out == ""
    assert "Traceback" not in outcome.err
    for message in messages:
        assert message in outcome.err


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_answered_with_the_rule_and_the_fix_and_exit_code_2(mistake, tmp_path):
    arguments, message = MISTAKES[mistake]
    refused(metarun(*arguments), message)
    assert not list(tmp_path.iterdir())


def test_whole_numbers_are_fractions_for_an_optimizer_that_takes_these(tmp_path):
    outcome = metarun(*TINY, "steps=1", "optimizer.betas=[0,0]", f"run_dir={tmp_path / 'run'}")
    assert outcome.code == 0, outcome.text


def test_every_mistake_is_in_one_list():
    outcome = metarun("task=prototype", "stepz=3", "clip_norm=-1", "optimizer.lr=x", "meta_learner.inner_lrr=1")
    refused(outcome, "5 problems", "prototype", "stepz", "clip_norm is -1.0", "optimizer.lr is 'x'", "inner_lrr")


def test_what_only_building_shows_is_in_one_list_too():
    outcome = metarun("steps=0", "task.num_shots=0", "optimizer.lr=-1", "execution=vmapped", "execution.chunk=0")
    refused(outcome, "4 problems", "steps is 0", "shots", "optimizer.lr is", "execution.chunk is 0")


@pytest.mark.parametrize(("sizes", "message"), [
    (["task.num_ways=500"], "task.num_ways is 500, but the split 'test' has only 423 classes. Lower task.num_ways to"),
    (
        ["task.num_shots=15", "task.num_queries=6"],
        "is 21, but the class 'Gurmukhi/character42' of the split 'test' has only 20 examples, and too few have 1622 others",
    ),
])  # fmt: skip
@pytest.mark.data
def test_more_ways_than_classes_and_more_images_than_a_class_has_are_refused(sizes, message, data_root):
    refused(metarun("task=omniglot", f"data_root={data_root}", *sizes), message)


def test_a_file_of_the_user_that_is_not_yaml_is_named(tmp_path):
    (tmp_path / "mine" / "task").mkdir(parents=True)
    (tmp_path / "mine" / "task" / "broken.yaml").write_text("_target_: [\nb: }\n")
    refused(
        metarun(f"--config-dir={tmp_path / 'mine'}", "task=broken"), "task=broken: the file is not YAML", "broken.yaml"
    )


def test_a_folder_that_holds_a_run_is_not_written_over(run):
    refused(metarun(*TINY, f"run_dir={run}"), "already holds a run. Continue it with resume=auto")


@pytest.mark.parametrize(("override", "message"), [
    ("seed=3", f"seed=3: a resumed run keeps its configuration; only {', '.join(MAY_CHANGE)} may change"),
    ("steps=abc", "steps=abc: must be a whole number"),
    ("steps=1,2", "several values are a sweep"),
    ("run_dir=x", "says already where the run is"),
])  # fmt: skip
def test_resume_refuses_what_would_make_it_another_run(run, override, message):
    refused(metarun(f"resume={run}", override), message)


def test_whether_data_may_be_fetched_may_change_wherever_a_run_reads_some():
    assert may_change("task.download") and may_change("evaluation.task.far.download")
    assert not may_change("evaluation.task.far.num_shots") and not may_change("task.num_shots")


def test_resume_auto_names_every_value_that_is_not_the_run_s(run):
    outcome = metarun(*TINY, f"run_dir={run}", "resume=auto", "seed=3", "meta_learner.inner_lr=0.5")
    refused(outcome, "2 problems", "seed was 0 in", "meta_learner.inner_lr was 0.01 in")


def test_words_of_a_sweep_or_a_command_in_the_wrong_place_say_where_they_belong():
    outcome = metarun("jobs=2", "seed=1", "evaluate")
    refused(outcome, "jobs=2: goes with a sweep: metarun -m jobs=2", "evaluate: the command comes first")


# ---- standard output and error that take nothing ----

FULL = Path("/dev/full")  # a device on which there is no room
needs_full = pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")


def code_of(*arguments: object) -> object:
    """The exit code of a command in this process, whose standard streams stay what the test made them."""
    with untouched_process(), pytest.raises(SystemExit) as end:
        main(list(map(str, arguments)))
    return end.value.code


@needs_full
def test_an_evaluation_is_kept_where_standard_output_has_no_room(run, tmp_path, monkeypatch, capsys):
    copy = shutil.copytree(run, tmp_path / "copy")
    monkeypatch.setattr("sys.stdout", FULL.open("w"))
    assert code_of("evaluate", copy, "evaluation.num_tasks=2") == 1
    assert len(list((copy / "evaluations").glob("*.json"))) == 1
    err = capsys.readouterr().err
    assert err == f"metarun: standard output took no more ({os.strerror(errno.ENOSPC)}); all else is done.\n"


@needs_full
def test_a_run_goes_on_where_standard_error_has_no_room(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stderr", FULL.open("w"))
    assert code_of(*TINY, f"run_dir={tmp_path / 'run'}") == 0
    assert state(tmp_path / "run") == "completed" and "run folder" in (tmp_path / "run" / "log.txt").read_text()


@pytest.mark.parametrize("command", [["runs", "RUN"], ["report", "RUN", "--out=OUT"], ["evaluate", "RUN"]])
def test_closed_standard_streams_keep_no_command_from_its_work(command, run, tmp_path, monkeypatch):
    copy = shutil.copytree(run, tmp_path / "copy")
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    assert code_of(*(word.replace("RUN", str(copy)).replace("OUT", str(tmp_path / "out")) for word in command)) == 0


def test_letters_that_a_stream_does_not_know_are_escaped_and_what_it_is_stays(tmp_path, monkeypatch):
    with (tmp_path / "file").open("w", encoding="ascii") as file, monkeypatch.context() as patch:
        patch.setattr("sys.stdout", file)
        with lasting("stdout") as refusal:
            print("5 ± 1", flush=True)
            assert refusal() is None and not sys.stdout.isatty() and sys.stdout.fileno() == file.fileno()
        assert sys.stdout is file
    assert (tmp_path / "file").read_text() == "5 \\xb1 1\n"


def test_whoever_closes_a_pipe_early_is_told_nothing(run, monkeypatch, capsys):
    reading, writing = os.pipe()
    os.close(reading)
    monkeypatch.setattr("sys.stdout", os.fdopen(writing, "w"))
    assert code_of("runs", run) == 1
    assert not capsys.readouterr().err
