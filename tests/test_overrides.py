"""What is wrong with a command line whatever its settings are: twice, without effect, without end, or no file's name."""

import pytest
import yaml
from omegaconf import OmegaConf

from metarun.config.compose import composed, readable, with_value
from metarun.config.overrides import MOST_RUNS, refuse_sweeps_without_end
from metarun.errors import ConfigError
from metarun.output.tables import table_console
from metarun.output.terminal import Ticker
from tests.composing import compose, experiment, last_of_each
from tests.running import metarun

LONG = "x" * 300
NOBODYS = "~nosuchuser/x"
LOOP = "LOOP/x"  # in a link to itself


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Commands begin in an empty folder."""
    monkeypatch.chdir(tmp_path)


# What is typed, and what the answer must say. All of them end with exit code 2, without a traceback, and leave nothing.
MISTAKES = {
    "an empty run_dir": (["run_dir="], "run_dir is empty; name a folder"),
    "an empty resume": (["resume=''"], "resume is empty; name a folder"),
    "a name too long for a file": ([f"run_dir={LONG}"], "no file or folder can have this name (File name too long)"),
    "a name too long for an option": (["task=" + "x" * 5000], "there is no task called 'xxx"),
    "a group that is no text": (["task='${seed}'"], "task='${seed}': Error resolving interpolation"),
    "a number in a list of options": (["logger=[0,0]"], "logger=[0,0]: 0 is no name of an option; write logger=[NAME"),
    "a list in a list of options": (["experiment=[[smoke]]"], "experiment=[[smoke]]: ['smoke'] is no name of an option"),
    "a mapping for a mapping": (["rates={a:b}"], "rates takes no new keys in this way; write +rates.NAME=VALUE"),
    "a part without a plus": (["rates.head=10"], "write +rates.head=10"),
    "a number for a switch": (["profile=5"], "profile=5: must be true or false"),
    "an empty group": (["meta_learner={}"], "meta_learner={}: an empty mapping changes nothing, for values are added"),
    "a list for an option": (["task=[sinusoid]"], "task=[sinusoid]: must be the name of an option, task=NAME"),
    "a mapping for a preset": (["experiment={a:1}"], "experiment={a:1}: must be the name of an option, experiment=NAME"),
    "a number for a mapping": (["rates=3"], "rates=3: must be a mapping, rates={NAME:VALUE}"),
    "a choice without a sweep": (["seed=choice(1,2)"], "several values are a sweep, metarun -m seed=choice(1,2); one text"),
    "an interval without a search": (["optimizer.lr=interval(0,1)"], "metarun search DIR trials=50 'optimizer.lr=inter"),
    "a list for a text": (["device=[cpu]"], "device=[cpu]: must be a text"),
    "a number for a list": (["evaluation.shots=5"], "evaluation.shots=5: must be a list, evaluation.shots=[A,B]"),
    "a mapping for a list": (["task.frequency={a:1}"], "task.frequency={a:1}: must be a list, task.frequency=[A,B]"),
    "more jobs than runs": (["-m", "seed=1,2", "jobs=1000000000"], "whole number of 1 or more and 10000 or less, the runs"),
    "jobs beyond all digits": (["-m", "seed=1,2", "jobs=" + "9" * 5000], "1 or more and 10000 or less"),
    "a time without end": (["-m", "seed=1,2", "timeout=" + "9" * 400], "must be the time that an attempt may take"),
    "seeds without end": (["reproduce", "maml/sinusoid/5s", "--seeds=1000000000"], "must be 1 or more, and 10000 or less"),
    "a search elsewhere": (["search", "s", "trials=2", "seed=1,2", "launcher=slurm"], "launcher=slurm: a search starts its"),
    "a mapping without values": (["-m", "task={a,b}"], "task={a,b}: cannot be read as KEY=VALUE; quote what is not plain"),
    "a sweep without a key": (["-m", "=3"], "cannot be read as KEY=VALUE"),
    "shares of sine waves": (["-m", "evaluation=data_efficiency"], "Sinusoid draws its training tasks without end"),
    "a sweep to be shown": (["-m", "seed=1,2", "--cfg=job"], "it shows a single run; --dry lists the runs of a sweep"),
    "an override without a key": (["+=3"], "cannot be read as KEY=VALUE"),
    "a folder of Hydra's": (["hydra.run.dir=x"], "have no effect on a run; choose a run's folder by run_dir=PATH"),
    "a job of Hydra's": (["hydra.job.chdir=true"], "Hydra's own settings have no effect on a run"),
    "a launcher without a sweep": (["hydra/launcher=basic"], "it goes with a sweep: metarun -m hydra/launcher=NAME"),
    "a search path": (["hydra.searchpath=[file:///x]"], "name a folder of your own by --config-dir DIR"),
    "an option twice": (["experiment=[smoke,smoke]"], "it names smoke twice"),
    "an option nobody has among others": (["experiment=[foo,smoke]"], "there is no experiment called 'foo'"),
    "an override as a package": (["--allow", "steps=60"], "--allow steps=60: that is no name of a package"),
    "no package": (["--allow="], "that is no name of a package"),
    "no config folder": (["--config-dir="], "there is no such folder"),
    "a config folder too long": ([f"--config-dir={LONG}"], "there is no such folder"),
    "resolving alone": (["--resolve"], "--resolve and --package go with --cfg"),
    "a package alone": (["--package", "task"], "--resolve and --package go with --cfg"),
    "a package that is not there": (["--cfg", "job", "--package", "foo"], "the configuration has no such part"),
    "no kind of configuration": (["--cfg", "foo"], "invalid choice: 'foo'"),
    "a word beside --cfg": (["--cfg", "job", "foo"], "foo: cannot be read as KEY=VALUE"),
    "an interpolation beside --cfg": (["--cfg", "job", "--resolve", "rates='${nowhere}'"], "'nowhere' not found"),
    "a word beside Hydra's help": (["--hydra-help", "foo"], "--hydra-help stands alone; leave out foo"),
    "two things to show": (["--cfg", "job", "--info", "all"], "exclude each other"),
    "a completion of nothing": (["--shell-completion"], "takes install=SHELL or uninstall=SHELL"),
    "a completion for no shell": (["-sc", "install=x"], "SHELL is bash, fish or zsh"),
    "a sweep of nothing": (["-m", "steps=range(0)"], "steps=range(0): it spans no value"),
    "a sweep without end": (["-m", "seed=range(1,1000000000)"], "the sweep has 999999999 runs"),
    "a product without end": (["-m", "seed=range(1,1000)", "steps=range(1,1000)"], "the sweep has 998001 runs"),
    "a sweep that stands still": (["-m", "steps=range(0,10,0)"], "with finite numbers and a step beside 0"),
    "an empty sweep_dir": (["-m", "seed=1,2", "sweep_dir="], "sweep_dir is empty"),
    "a sweep_dir too long": (["-m", "seed=1,2", f"sweep_dir={LONG}"], "sweep_dir=xxx"),
    "a number of one job": (["-m", "meta_learner.inner_lr=0.1,nan"], "meta_learner.inner_lr is nan"),
    "evaluate of a name too long": (["evaluate", LONG], "no file or folder can have this name"),
    "a picture over a folder": (["data", "show", "sinusoid", "--out=/"], "that is a folder; name a file in it"),
    "an episode beyond 64 bits": (["data", "show", "sinusoid", "--episode=99999999999999999999"], "--episode is 9999"),
    "a part of no sine wave": (["task/augmentation=none"], "task/augmentation=none: this task has no augmentation; those"),
    "a part of no drawing": (["task=omniglot", "task/augmentation=standard"], "those that have are cifar_fs, cub, fc100"),
    "a part of no picture": (["task=cifar_fs", "task/features=tokens"], "those that have are banking77, clinc150, text_"),
    "an interpolation of data": (["data", "show", "sinusoid", "data_root=${nowhere}"], "cannot be resolved"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_answered_in_a_line_with_exit_code_2_and_leaves_nothing(mistake, tmp_path):
    arguments, message = MISTAKES[mistake]
    outcome = metarun(*arguments)
    assert outcome.code == 2, outcome.text
    assert "Traceback" not in outcome.text and outcome.out == ""
    assert message in outcome.err
    assert max(map(len, outcome.err.splitlines())) < 3000
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("word", ["hydra/sweeper=", "hydra/launcher=nothing", "hydra/job_logging=", "hydra.run.dir=x"])
def test_a_setting_of_hydra_s_is_answered_once(word):
    outcome = metarun(word, "steps=1")
    assert outcome.code == 2 and "1 problem" in outcome.err and word in outcome.err, outcome.err


PLACES = [
    ["runs", "PATH"],
    ["tensorboard", "PATH"],
    ["compare", ".", "PATH"],
    ["report", "PATH"],
    ["report", ".", "--out=PATH"],
    ["doctor", "--data-root=PATH"],
    ["data", "list", "data_root='PATH'"],
    ["task=sinusoid", "data_root='PATH'"],
    ["export", "RUN", "--to=PATH"],
    ["reproduce", "maml/sinusoid/5s", "--to=PATH"],
    *(["predict", "RUN", f"--{option}=PATH"] for option in ("support", "query", "tasks", "out", "save-phi")),
]


@pytest.mark.parametrize("command", PLACES, ids=[" ".join(words[:3]) for words in PLACES])
@pytest.mark.parametrize("path", [NOBODYS, "x" * 5000, LOOP], ids=["nobody's", "long", "loop"])
def test_a_path_that_nothing_can_have_is_refused_by_every_command(command, path, tmp_path):
    (tmp_path / "LOOP").symlink_to(tmp_path / "LOOP")
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("meta_learner: {}\n")
    (run / "status.json").write_text("{}")
    outcome = metarun(*[word.replace("PATH", path) for word in command], as_given=True)
    assert outcome.code == 2 and "Traceback" not in outcome.text, outcome.text
    assert "no file or folder can have this name" in outcome.err
    assert {place.name for place in tmp_path.iterdir()} == {"LOOP", "run"}


def test_an_empty_data_root_of_the_environment_is_one_that_is_not_set(monkeypatch):
    monkeypatch.setenv("METARUN_DATA", " ")
    outcome = metarun("--cfg", "job", "--resolve", as_given=True)
    assert outcome.code == 0 and "data_root: ~/.cache/metarun" in outcome.out, outcome.text


def test_a_data_root_of_the_environment_is_refused_as_one_that_is_typed(monkeypatch):
    monkeypatch.setenv("METARUN_DATA", NOBODYS)
    outcome = metarun("data", "list", as_given=True)
    assert outcome.code == 2 and "data_root (METARUN_DATA)" in outcome.err, outcome.text


@pytest.mark.parametrize("command", [
    ["steps=3", "steps=4"],
    ["task=sinusoid", "task=harmonics"],
    ["experiment=smoke", "experiment=maml_sinusoid"],
    ["evaluation.task=sinusoid", "evaluation.task=harmonics"],
    ["+rates.head=3", "+rates.head=4"],
    ["run_dir=a", "run_dir=b"],
    ["-m", "seed=1,2", "seed=3"],
    ["-m", "seed=1,2", "jobs=1", "jobs=2"],
    ["evaluate", "RUN", "task.num_shots=3", "task.num_shots=4"],
])  # fmt: skip
def test_a_setting_that_is_given_twice_is_refused_with_both_values(command, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    config = metarun("--cfg", "job", "--resolve").out
    (run / "config.yaml").write_text(config)
    outcome = metarun(*[text.replace("RUN", str(run)) for text in command], as_given=True)
    assert outcome.code == 2, outcome.text
    (key,) = {text.split("=")[0].lstrip("+") for text in command[-2:]}
    assert f"{key} is given more than once ({command[-2]} {command[-1]}); keep one of them." in outcome.err


def test_a_part_of_an_earlier_run_is_changed_by_its_values_and_the_answer_says_so():
    cfg = compose("task=cifar_fs")
    with pytest.raises(ConfigError, match=r"changed one by one: task\.augmentation\.padding=VALUE task\.aug"):
        with_value(cfg, "task/augmentation=standard")


@pytest.mark.parametrize("wrong", ["task.augmentation.padding=-1", "task.augmentation.flip=high"])
def test_a_refused_part_of_a_group_is_one_problem_and_not_two(wrong):
    with pytest.raises(ConfigError) as raised:
        experiment("task=cifar_fs", wrong)
    (problem,) = raised.value.problems
    assert wrong.partition("=")[0] in problem


def test_tests_may_say_a_setting_again_for_the_last_counts():
    assert last_of_each("--config-dir=a", "--config-dir=b", "steps=3", "seed=1", "steps=4") == [
        *("--config-dir=a", "--config-dir=b", "steps=4", "seed=1"),
    ]


def test_a_sweep_may_have_as_many_runs_as_anybody_waits_for():
    refuse_sweeps_without_end(readable([f"seed=range({MOST_RUNS // 2})", "task=sinusoid,harmonics", "steps=3"]))
    with pytest.raises(ConfigError, match=f"the sweep has {MOST_RUNS + 2} runs"):
        refuse_sweeps_without_end(readable([f"seed=range({MOST_RUNS // 2 + 1})", "task=sinusoid,harmonics"]))


def test_the_configuration_that_is_shown_is_the_one_that_would_run():
    words = ["task=linear_regression", "task.num_dims=7", "evaluation.task=linear_regression"]
    shown = yaml.safe_load(metarun("--cfg", "job", *words).out)
    assert shown["evaluation"]["task"]["linear_regression"]["num_dims"] == 7
    assert shown == OmegaConf.to_container(composed(words, []))
    assert metarun("--cfg", "job", "--package", "run_dir").out == "null\n"
    part = metarun("--cfg", "job", "--package", "evaluation.task", *words, as_given=True).out
    assert part.startswith("# @package evaluation.task\n") and yaml.safe_load(part) == shown["evaluation"]["task"]


def test_hydras_options_still_show_what_they_show():
    assert "num_shots: 5" in metarun("--cfg", "job", "--package", "task").out
    assert "sinusoid" in metarun("--info", "defaults").out
    assert "complete" in metarun("-sc", "install=bash").out


# ---- brackets and colons are only that ----


def test_a_table_prints_names_with_brackets_and_colons_as_they_stand(capsys):
    table_console(80).print("mae_y[/b] [red]x[/nope] :smile:")
    assert capsys.readouterr().out.strip() == "mae_y[/b] [red]x[/nope] :smile:"


def test_the_live_line_takes_a_folder_and_metrics_with_brackets(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "160")
    ticker = Ticker(total=10, start=0)
    assert ticker.live
    ticker.say("run folder: r_[red]x[/nope]")
    ticker.bar.update(ticker.task, note="mae_y[/b] 3", refresh=True)
    ticker.ended("completed")
    shown = capsys.readouterr().err
    assert "r_[red]x[/nope]" in shown and "mae_y[/b] 3" in shown


def test_a_number_for_a_switch_of_an_earlier_run_is_refused_too():
    cfg = compose()
    for text in ("evaluation.fit_images=3", "tf32=2"):
        with pytest.raises(ConfigError, match=f"{text}: must be true or false"):
            with_value(cfg, text)
