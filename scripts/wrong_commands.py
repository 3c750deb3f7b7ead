"""Wrong command lines: flags, words and quotes that nobody should type, and config folders that nobody should write."""

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from damaged_files import TINY
from wrong_input import ANY, REFUSED, Case, answer

LONG = "x" * 300
ODD = (
    "''",
    "''''",
    LONG,
    "'é漢😀'",
    "'r_[red]x[/nope]'",
    "'a b'",
    "'a\tb'",
    "/dev/null",
    "/dev/null/x",
    "/proc/x",
    "'\\x00'",
)
OKAY = frozenset({0, 2})

# ---- what is typed ----

FLAGS = [
    *(["--resolve"], ["--shell-completion"], ["-sc"], ["-sc", "install=x"], ["-sc", "install=bash"], ["--hydra-help", "foo"]),
    *(["--hydra-help", "foo=1"], ["--cfg"], ["--cfg", "foo"], ["--cfg=foo"], ["-c"], ["--package"], ["--package", "foo"]),
    *(["-p", "task"], ["-i", "foo"], ["--info", "foo"], ["--info=foo"], ["--multirun"], ["-x"], ["--"], ["-"], ["---"]),
    *(["--run"], ["-r"], ["--config-path", "x"], ["-cp", "x"], ["--config-name", "x"], ["-cn", "x"], ["--experimental-rerun", "x"]),
    *(["--seed", "3"], ["--steps=3"], ["-steps", "3"], ["--help=x"], ["--version=3"], ["--allow"], ["--allow="], ["--allow", "steps=60"]),
    *(["--allow", "os", "task._target_=os.system"], ["--allow=torch.hub", "task._target_=torch.hub.load"], ["--allow", "x" * 5000, "steps=0"]),
    *(["--config-dir"], ["--config-dir="], ["--config-dir", "steps=3"], ["--config-dir", "/dev/null"], ["-cd", "nowhere"]),
    *(["--config-dir", "/dev/null/x"], ["--config-dir", LONG], ["--config-dir", "a\nb"], ["--cfg", "job", "steps=abc"]),
    *(["--cfg", "job", "foo"], ["--cfg", "all", "steps=0"], ["--cfg", "job", "--resolve", "rates='${nowhere}'"]),
    *(["--cfg", "job", "--package", "foo"], ["--cfg", "job", "-p", "task.foo"], ["--info", "searchpath", "foo"], ["-m", "--cfg", "job"]),
    *(["-m", "--resolve"], ["-m", "-sc", "install=x"], ["-m", "--hydra-help", "foo"], ["-m", "--foo"], ["--resolve", "steps=0"]),
    *(["--help", "--foo"], ["-hx"], ["-mh"], ["--multirun=3"], ["-m=3"], ["--config_dir=x"], ["--configdir", "x"]),
]  # fmt: skip
WORDS = [
    *(["foo"], ["trian"], ["evalute", "x"], ["run"], ["train"], ["help"], ["sweep"], ["version"], ["data"], ["doctor", "foo"]),
    *(["steps"], ["="], ["=3"], ["steps="], ["steps=="], ["steps=3=4"], ["+"], ["~"], ["+="], ["~="], ["+steps"], ["~steps"]),
    *(["~steps=3"], ["++steps=abc"], ["+steps=3"], ["~task"], ["~task=sinusoid"], ["~optimizer.lr"], ["~evaluation"], ["~nowhere"]),
    *(["steps=1", "steps=0"], ["steps=3", "steps=4"], ["task=sinusoid", "task=harmonics"], ["run_dir=a", "run_dir=b"]),
    *(["meta_learner.inner_lr=0.1", "meta_learner.inner_lr=0.2"], ["experiment=smoke", "experiment=maml_sinusoid"]),
    *(["+steps=3", "steps=4"], ["evaluation.task=sinusoid", "evaluation.task=harmonics"], ["resume=a", "resume=b"]),
    *(["steps='3"], ['steps="3'], ["steps=[3"], ["steps={3"], ["steps=3]"], ["steps=}"], ["steps=(3)"], ["steps=3,4"], ["steps=3,"]),
    *(["steps=range(3)"], ["steps=choice(3,4)"], ["steps=glob(*)"], ["steps=interval(1,2)"], ["steps=sort(3,1)"], ["steps=int('a')"]),
    *(["steps=float(nan)"], ["steps=extend_list(3)"], ["steps=\\"], ["steps=\n"], ["steps=3\nseed=4"], ["\x1b[31msteps=3"]),
    *(["steps=${steps}"], ["steps=${seed}", "seed=${steps}"], ["steps=${oc.env:NOWHERE}"], ["steps=${oc.decode:x}"], ["steps=${foo:1}"]),
    *(["steps=${"], ["steps='${'"], ["steps='${oc.env:PATH}'"], ["rates='${seed}'"], ["rates='${oc.env:HOME}'"], ["task='${seed}'"]),
    *(["task=x" + "y" * 5000], ["task=../config"], ["task=/etc/passwd"], ["task=.."], ["task=augmentation/standard"], ["task=features"]),
    *(["experiment=t"], ["experiment=[smoke"], ["experiment=[smoke,smoke]"], ["experiment=[foo,smoke]"], ["experiment={}"], ["experiment=5"]),
    *(["experiment=[]", "steps=0"], ["experiment=null", "steps=0"], ["per_learner=foo"], ["per_learner=omniglot_5w1s/maml", "steps=0"]),
    *(["hydra.run.dir=x"], ["hydra.job.chdir=true"], ["hydra/launcher=basic"], ["hydra.mode=MULTIRUN"], ["hydra=foo"], ["hydra.foo=1"]),
    *(["hydra.verbose=true"], ["hydra/help=x"], ["hydra.searchpath=[file:///nowhere]"], ["hydra.searchpath=5"], ["hydra.output_subdir=x"]),
    *(["hydra.sweep.dir=x"], ["hydra/job_logging=default"], ["hydra/sweeper=basic"], ["~hydra"], ["+hydra.x=1"], ["hydra.run.dir=null"]),
    *(["optimizer._partial_=abc"], ["optimizer._partial_=false"], ["task._partial_=true"], ["+optimizer._recursive_=false"]),
    *(["+optimizer._convert_=all"], ["+optimizer._args_=[1]"], ["~optimizer._target_"], ["~optimizer._partial_"], ["+task.seed=3"]),
    *(["+meta_learner.base_learner=3"], ["+optimizer.params=[1]"], ["rates={a:b}"], ["rates.head=10"], ["+rates.head=nan"]),
    *(["+rates.head=-1"], ["+rates.head=abc"], ["+rates.foo=1"], ["+rates.={}"], ["evaluation.fit_images=true"], ["evaluation.task=foo"]),
    *(["evaluation.task=[sinusoid,foo]"], ["evaluation.task={a: foo}"], ["evaluation.task=5"], ["evaluation.task={a: {b: c}}"]),
    *(["evaluation.task='${seed}'"], ["evaluation.task.foo=1"], ["evaluation=foo"], ["evaluation=[]"], ["evaluation=null"], ["evaluation.task=[[a]]"]),
    *(["defaults=[]"], ["+defaults=[]"], ["defaults"], ["task.path=a,b.csv"], ["task=csv_regression", "task.path=a,b.csv"]),
    *(["task=image_folder", "task.path=x", "task.split={train: [a], val: [atis#x], test: [c]}"], ["seed=1_0", "steps=0"], ["seed=0x10"]),
    *(["device=cuda:abc"], ["device=cuda:-1"], ["device=cuda:99999999999999999999"], ["device=mps", "dtype=float64"], ["device=meta"]),
    *(["device=xpu"], ["device=''"], ["device=5"], ["device=cpu:7"], ["dtype=''"], ["dtype=torch.float32"], ["dtype=None"], ["dtype=int64"]),
    *(["jobs=2"], ["sweep_dir=x"], ["run_dir=x", "resume=y"], ["resume=''"], ["resume=true"], ["resume=auto", "run_dir=''"], ["resume=/dev/null"]),
    *(["resume=."], ["resume=" + LONG], ["resume=nowhere", "steps=abc"], ["resume='r_[red]x[/nope]'"], ["resume=5"], ["resume=[]"]),
    *(["execution=looped", "execution.compile=maybe"], ["execution.inner_memory=recomputed", "execution.compile=true"], ["execution.threads=100000"]),
    *(["scheduler=multistep", "scheduler.milestones=[50]", "scheduler.gamma=abc"], ["scheduler=multistep", "scheduler.milestones=abc"]),
    *(["scheduler=multistep", "scheduler.milestones=['50']"], ["scheduler=multistep", "scheduler.milestones=5"], ["scheduler=cosine", "scheduler.eta_min=-1"]),
    *(["scheduler=step", "scheduler.gamma=-1"], ["+scheduler.last_epoch=5"], ["+scheduler.verbose=true"], ["meta_learner.inner_steps=999999999999999999999"]),
    *(["task.train_num_queries=2000000000"], ["base_learner.hidden=[2000000000]"], ["meta_batch_size=2000000000"], ["task.num_queries=2000000000"]),
    *(["base_learner.hidden=[1000000,1000000]"], ["evaluation.num_tasks=2000000000"], ["evaluation.num_val_tasks=2000000000"], ["log_every=2000000000", "steps=0"]),
]  # fmt: skip
SWEEPS = [
    *(["-m"], ["-m", "steps=range(0)"], ["-m", "seed=range(1,1000000000)"], ["-m", "seed=range(1,100000)", "steps=1,2,3,4,5"]),
    *(["-m", "steps=range(0,10,0)"], ["-m", "steps=range(a)"], ["-m", "steps=choice()"], ["-m", "steps=glob(*)"], ["-m", "steps=interval(0,1)"]),
    *(["-m", "steps=1,2,abc"], ["-m", "steps="], ["-m", "foo"], ["-m", "foo=1,2"], ["-m", "steps=1,2", "steps=3,4"], ["-m", "jobs=0"]),
    *(["-m", "seed=1,2", "jobs=abc"], ["-m", "seed=1,2", "jobs="], ["-m", "seed=1,2", "jobs=99999999999999999999", "steps=0"], ["-m", "seed=1,2", "jobs=1", "jobs=2"]),
    *(["-m", "seed=1,2", "sweep_dir="], ["-m", "seed=1,2", "sweep_dir=/dev/null"], ["-m", "seed=1,2", "sweep_dir=" + LONG], ["-m", "seed=1,2", "sweep_dir=/proc/x"]),
    *(["-m", "seed=1,2", "resume=x"], ["-m", "seed=1,2", "run_dir=x"], ["-m", "meta_learner=maml,foo"], ["-m", "meta_learner.inner_lr=0.1,nan"]),
    *(["-m", "task=sinusoid,omniglotto", "steps=0"], ["-m", "seed=1,-1"], ["-m", "steps=0,1"], ["-m", "hydra/launcher=foo", "seed=1,2"]),
    *(["-m", "hydra/sweeper=foo", "seed=1,2"], ["-m", "hydra/launcher=basic", "steps=0,abc"], ["-m", "hydra.sweep.dir=x", "steps=0,1"]),
    *(["-m", "evaluate"], ["-m", "data", "list"], ["-m", "-h=3"], ["-m", "seed='1,2"], ["-m", "seed=shuffle(1,2)", "steps=0"], ["-m", "seed=tag(a,b)"]),
    *(["-m", "~steps"], ["-m", "+steps=1,2"], ["-m", "evaluation.task=foo,bar"], ["-m", "experiment=smoke,foo"], ["-m", "seed=1,2", "device=cuda:99"]),
    *(["-m", "--config-dir=nowhere", "seed=1,2"], ["-m", "seed=1,1", "steps=0"], ["-m", "-m", "steps=0"], ["-m", "steps=${seed},0", "seed=0"]),
]  # fmt: skip
SUBCOMMANDS = [
    *(["evaluate"], ["evaluate", "nowhere"], ["evaluate", ""], ["evaluate", LONG], ["evaluate", "/dev/null"], ["evaluate", "a", "b"], ["evaluate", "--foo"]),
    *(["evaluate", ".", "--split"], ["evaluate", ".", "--split=foo"], ["evaluate", ".", "--checkpoint=foo"], ["evaluate", ".", "steps=abc"]),
    *(["evaluate", "-m", "x"], ["evaluate", "--config-dir=nowhere", "."], ["evaluate", "--allow"], ["evaluate", "r_[red]x[/nope]"], ["evaluate", "\x00x"]),
    *(["data"], ["data", "foo"], ["data", "list", "foo"], ["data", "list", "steps=0"], ["data", "list", "data_root=/dev/null/x"], ["data", "list", "data_root="]),
    *(["data", "list", "--foo"], ["data", "list", "data_root=[a]"], ["data", "prepare"], ["data", "prepare", "foo"], ["data", "prepare", "sinusoid", "foo"]),
    *(["data", "prepare", "omniglot", "data_root=/dev/null/x"], ["data", "prepare", "omniglot", "data_root=nowhere"], ["data", "prepare", "", "x"]),
    *(["data", "prepare", "task=omniglot"], ["data", "verify"], ["data", "verify", "foo"], ["data", "verify", "omniglot", "data_root=nowhere"]),
    *(["data", "show"], ["data", "show", "foo"], ["data", "show", "sinusoid", "--split=foo"], ["data", "show", "sinusoid", "--episode=-1"]),
    *(["data", "show", "sinusoid", "--episode=abc"], ["data", "show", "sinusoid", "--out=/dev/null/x.png"], ["data", "show", "sinusoid", "--out=x.foo"]),
    *(["data", "show", "sinusoid", "--out="], ["data", "show", "sinusoid", "--episode=99999999999999999999999"], ["data", "show", "sinusoid", "--out=/"]),
    *(["data", "show", "image_folder", "task.path=nowhere"], ["data", "show", "csv_regression", "task.path=nowhere"], ["data", "show", "../config"]),
    *(["data", "show", "sinusoid", "task.num_shots=0"], ["data", "show", "sinusoid", "task.num_shots=nan"], ["data", "show", "sinusoid", "task=foo"]),
    *(["data", "prepare", "text_jsonl", "task.path=/dev/null"], ["data", "show", "sinusoid", "steps=0"], ["data", "show", "sinusoid", "--out=" + LONG + ".png"]),
    *(["control"], ["control", "nowhere"], ["control", ".", "--shots=abc"], ["control", ".", "--tasks=0"], ["control", ".", "--tasks=abc"], ["control", ".", "--shots="]),
    *(["control", ".", "--shots=-1"], ["control", ".", "--shots=99999999999999999999"], ["control", ".", "--foo"], ["doctor", "--foo"], ["doctor", "--data-root"]),
    *(["doctor", "steps=3"], ["evaluate", "--help=x"], ["data", "-m"]),
]  # fmt: skip
OF_A_RUN = [  # beside a completed run on sine waves, in "run"
    *(["evaluate", "run", "steps=3"], ["evaluate", "run", "foo=3"], ["evaluate", "run", "meta_learner.inner_lr=nan"], ["evaluate", "run", "meta_learner.inner_lr=1e30"]),
    *(["evaluate", "run", "task=foo"], ["evaluate", "run", "task.num_shots=0"], ["evaluate", "run", "task.num_shots=10000000000000000000000000"]),
    *(["evaluate", "run", "evaluation.inner_steps=-1"], ["evaluate", "run", "evaluation.inner_steps=999999999999999999999"], ["evaluate", "run", "evaluation.num_tasks=0"]),
    *(["evaluate", "run", "evaluation.num_tasks=2000000000"], ["evaluate", "run", "meta_learner=protonet"], ["evaluate", "run", "base_learner.hidden=[9]"]),
    *(["evaluate", "run", "~task"], ["evaluate", "run", "+task.foo=1"], ["evaluate", "run", "task=sinusoid,harmonics"], ["evaluate", "run", "execution.threads=0"]),
    *(["evaluate", "run", "execution.threads=100000"], ["evaluate", "run", "device=cuda:9"], ["evaluate", "run", "dtype=foo"], ["evaluate", "run", "seed=-1"]),
    *(["evaluate", "run", "evaluation.task=foo"], ["evaluate", "run", "task"], ["evaluate", "run", "task.num_shots=3", "task.num_shots=4"], ["evaluate", "run", "--", "--foo"]),
    *(["evaluate", "run", "optimizer.lr=3"], ["evaluate", "run", "task=[sinusoid"], ["evaluate", "run", "hydra.run.dir=x"], ["evaluate", "run", "--split=train", "--split=foo"]),
    *(["resume=run", "seed=3"], ["resume=run", "steps=abc"], ["resume=run", "steps=1,2"], ["resume=run", "run_dir=x"], ["resume=run", "steps=0"], ["resume=run", "steps=-1"]),
    *(["resume=run", "steps=10000000000000000000000000"], ["resume=run", "log_every=0"], ["resume=run", "device=foo"], ["resume=run", "foo"], ["resume=run", "experiment=smoke"]),
    *(["resume=run", "steps=3", "steps=4"], ["resume=run", "resume=run"], ["resume=run", "task.path=x"], ["resume=run", "~steps"], ["resume=run", "hydra.run.dir=x"]),
    *(["run_dir=run"], ["run_dir=run", "resume=auto"], ["run_dir=run", "resume=auto", "seed=3"], ["run_dir=run/config.yaml"], ["run_dir=run/config.yaml/x"]),
    *(["control", "run"], ["control", "run", "--shots=1"], ["data", "show", "sinusoid", "--out=run"], ["-m", "steps=0,1", "sweep_dir=run"], ["evaluate", "run/config.yaml"]),
]  # fmt: skip

# ---- config folders: the files in them, and what is typed ----

LEARNER = "_target_: mine.Mine\n"
BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10)
)
MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 50)}]}}\n" for i in range(1, 9))
FOLDERS: dict[str, tuple[dict[str, str], list[str]]] = {
    "a list at the top": ({"task/bad.yaml": "- a\n- b\n"}, ["task=bad"]),
    "a word at the top": ({"task/bad.yaml": "abc\n"}, ["task=bad"]),
    "nothing": ({"task/bad.yaml": ""}, ["task=bad"]),
    "null": ({"task/bad.yaml": "null\n"}, ["task=bad"]),
    "defaults in a circle": ({"task/bad.yaml": "defaults: [bad]\n_target_: x.Y\n"}, ["task=bad"]),
    "defaults in a wider circle": (
        {"task/bad.yaml": "defaults: [worse]\n", "task/worse.yaml": "defaults: [bad]\n"}, ["task=bad"]),
    "an experiment in a circle": ({"experiment/bad.yaml": "# @package _global_\ndefaults: [bad]\nsteps: 3\n"}, ["experiment=bad"]),
    "defaults that are a word": ({"task/bad.yaml": "defaults: abc\n"}, ["task=bad"]),
    "defaults that are a number": ({"task/bad.yaml": "defaults: 5\n"}, ["task=bad"]),
    "defaults of nothing": ({"task/bad.yaml": "defaults: [nowhere]\n"}, ["task=bad"]),
    "defaults of mappings": ({"task/bad.yaml": "defaults: [{a: {b: c}}]\n"}, ["task=bad"]),
    "an integer key": ({"task/bad.yaml": "1: 2\n_target_: metarun.tasks.sinusoid.Sinusoid\n"}, ["task=bad"]),
    "a null key": ({"task/bad.yaml": "null: 2\n"}, ["task=bad"]),
    "a list as a key": ({"task/bad.yaml": "? [a, b]\n: 2\n"}, ["task=bad"]),
    "a date": ({"task/bad.yaml": "_target_: metarun.tasks.sinusoid.Sinusoid\nnum_shots: 2026-01-01\n"}, ["task=bad"]),
    "depth": ({"task/bad.yaml": "a: " + "{a: " * 2000 + "1" + "}" * 2000 + "\n"}, ["task=bad"]),
    "depth of lists": ({"task/bad.yaml": "a: " + "[" * 2000 + "]" * 2000 + "\n"}, ["task=bad"]),
    "an anchor bomb": ({"task/bad.yaml": BOMB}, ["task=bad"]),
    "a merge bomb": ({"task/bad.yaml": MERGES}, ["task=bad"]),
    "an anchor that holds itself": ({"task/bad.yaml": "a: &a\n  b: *a\n"}, ["task=bad"]),
    "a Python object": ({"task/bad.yaml": "a: !!python/object/apply:os.system ['touch executed']\n"}, ["task=bad"]),
    "a tag": ({"task/bad.yaml": "a: !foo bar\n"}, ["task=bad"]),
    "broken YAML": ({"task/bad.yaml": "a: [\n"}, ["task=bad"]),
    "a tab": ({"task/bad.yaml": "a:\n\tb: 1\n"}, ["task=bad"]),
    "two documents": ({"task/bad.yaml": "a: 1\n---\nb: 2\n"}, ["task=bad"]),
    "a key twice": ({"task/bad.yaml": "_target_: metarun.tasks.sinusoid.Sinusoid\n_target_: x.Y\n"}, ["task=bad"]),
    "Latin-1": ({"task/bad.yaml": "\udce9: 1\n"}, ["task=bad"]),
    "zeros": ({"task/bad.yaml": "\x00" * 100}, ["task=bad"]),
    "an unknown package": ({"task/bad.yaml": "# @package foo.bar\n_target_: x.Y\n"}, ["task=bad"]),
    "a package of nonsense": ({"task/bad.yaml": "# @package [[\n_target_: x.Y\n"}, ["task=bad"]),
    "a root of its own": ({"config.yaml": "- a\n"}, ["steps=0"]),
    "an experiment with an unknown key": ({"experiment/bad.yaml": "# @package _global_\nstepz: 3\n"}, ["experiment=bad"]),
    "an experiment with a wrong type": ({"experiment/bad.yaml": "# @package _global_\nsteps: abc\n"}, ["experiment=bad"]),
    "an experiment that overrides nothing": (
        {"experiment/bad.yaml": "# @package _global_\ndefaults: [{override /foo: bar}]\n"}, ["experiment=bad"]),
    "an experiment that overrides by nothing": (
        {"experiment/bad.yaml": "# @package _global_\ndefaults: [{override /task: nowhere}]\n"}, ["experiment=bad"]),
    "an experiment without a package": ({"experiment/bad.yaml": "steps: 3\n"}, ["experiment=bad"]),
    "an interpolation in a circle": ({"task/bad.yaml": "_target_: x.Y\na: ${.b}\nb: ${.a}\n"}, ["task=bad"]),
    "an interpolation to nowhere": ({"task/bad.yaml": "_target_: metarun.tasks.sinusoid.Sinusoid\na: ${nowhere}\n"}, ["task=bad"]),
    "a broken interpolation": ({"task/bad.yaml": "_target_: metarun.tasks.sinusoid.Sinusoid\na: ${\n"}, ["task=bad"]),
    "no target": ({"task/bad.yaml": "a: 1\n"}, ["task=bad"]),
    "a folder for a file": ({"task/bad.yaml/x": ""}, ["task=bad"]),
    "a class that is no learner": (
        {"mine.py": "class Mine:\n    pass\n", "meta_learner/bad.yaml": LEARNER}, ["meta_learner=bad"]),
    "a function for a learner": (
        {"mine.py": "def Mine(**given):\n    return 5\n", "meta_learner/bad.yaml": LEARNER}, ["meta_learner=bad"]),
    "a value for a learner": ({"mine.py": "Mine = 5\n", "meta_learner/bad.yaml": LEARNER}, ["meta_learner=bad"]),
    "a module that does not parse": ({"mine.py": "def (:\n", "meta_learner/bad.yaml": LEARNER}, ["meta_learner=bad"]),
    "a module that raises": ({"mine.py": "raise RuntimeError('no')\n", "meta_learner/bad.yaml": LEARNER}, ["meta_learner=bad"]),
    "a module that exits": ({"mine.py": "import sys\nsys.exit(3)\n", "meta_learner/bad.yaml": LEARNER}, ["meta_learner=bad"]),
    "a module of zeros": ({"mine.py": "\x00", "meta_learner/bad.yaml": LEARNER}, ["meta_learner=bad"]),
    "a module that lacks a package": ({"mine.py": "import nowhere\n", "meta_learner/bad.yaml": LEARNER}, ["meta_learner=bad"]),
    "an abstract learner": (
        {"mine.py": "from metarun.core import MetaLearner as Mine\n", "meta_learner/bad.yaml": LEARNER}, ["meta_learner=bad"]),
    "a class that raises": (
        {"mine.py": "from torch import nn\nclass Mine(nn.Module):\n    def __init__(self):\n        raise KeyError('no')\n",
         "base_learner/bad.yaml": LEARNER}, ["base_learner=bad"]),
    "a module of a standard name": ({"json.py": "", "task/bad.yaml": "_target_: json.loads\n"}, ["task=bad"]),
}  # fmt: skip
NAMES = ("a'b", "a, b", "a[b", "a b", "a=b", "sw~p", "a#b", "é漢", "$x", "{a}", "[red]x[b]", "a:b", "~", "-x", "%s")


def cases(number: int, seed: int, place: Path) -> list[Case]:
    """At least ``number`` command lines, or a sample of so many."""
    found = [
        *(Case("commands", "flags", tuple(argv), _expected(argv)) for argv in FLAGS),
        *(Case("commands", "words", tuple(argv), _expected(argv)) for argv in WORDS),
        *(Case("commands", "sweeps", tuple(argv), _expected(argv)) for argv in SWEEPS),
        *(Case("commands", "sub-commands", tuple(argv), _expected(argv)) for argv in SUBCOMMANDS),
        *_run_folders(),
        *_config_folders(),
        *_beside_a_run(place),
    ]
    return found if number >= 300 else random.Random(seed).sample(found, number)


TAKEN = {  # of the above, what is right, or does no harm
    *(
        ["-p task", "--info foo", "-m --cfg job", "--shell-completion", "-sc", "--cfg job --package foo", "--cfg all steps=0", "data", "data -m"]
    ),
    *(["control", "evaluate", "-i foo", "--help --foo", "data list", "data list steps=0", "-hx", "-mh", "data prepare sinusoid"]),
    *(
        ["--cfg job --resolve rates='${nowhere}'", "steps=sort(3,1)", "seed=0x10", "device=cpu:7", "data show sinusoid steps=0"]
    ),
    *(["-m -h=3", "data list data_root=/dev/null/x", "data list data_root=", "-m -m steps=0"]),
}


def _expected(argv: list[str]) -> frozenset[int]:
    return OKAY if " ".join(argv) in TAKEN else REFUSED


def _run_folders() -> Iterator[Case]:
    for text in ODD:
        for terminal in (False, True):
            yield Case("commands", "run_dir", (*TINY, f"run_dir={text}"), ANY, terminal=terminal)
    yield Case("commands", "run_dir", (*TINY, "run_dir="), REFUSED)
    yield Case(
        "commands", "run_dir", (*TINY, "run_dir=file"), ANY - {0}, before=lambda folder: (folder / "file").touch()
    )
    yield Case("commands", "run_dir", (*TINY, "run_dir=file/run"), ANY - {0}, before=lambda f: (f / "file").touch())
    yield Case("commands", "run_dir", (*TINY, "run_dir=run"), ANY - {0}, before=lambda f: (f / "run").symlink_to("run"))


def _config_folders() -> Iterator[Case]:
    for name, (files, argv) in FOLDERS.items():
        yield Case(
            "commands",
            "config folders",
            ("--config-dir=mine", *argv, "steps=1"),
            REFUSED,
            before=_written(files),
            damage=name,
        )
    good = {"task/mine.yaml": "defaults: [sinusoid]\n"}
    for name in NAMES:

        def before(folder: Path, name: str = name) -> None:
            _written(good)(folder)
            (folder / "mine").rename(folder / name)

        argv = (f"--config-dir={name}", "task=mine", *TINY)
        yield Case("commands", "names of config folders", (*argv, "run_dir=run"), OKAY, before=before)
        yield Case("commands", "names of sweep folders", ("-m", *TINY, "seed=-1,-2", f"sweep_dir={name}"), REFUSED)


def _written(files: dict[str, str]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        for name, text in files.items():
            path = folder / "mine" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text.encode(errors="surrogateescape"))

    return write


def _beside_a_run(place: Path) -> Iterator[Case]:
    made = answer(Case("", "", (*TINY, "run_dir=run"), ANY), place)
    assert made.code == 0, made.text

    def before(folder: Path) -> None:
        shutil.copytree(place / "run", folder / "run")

    for argv in OF_A_RUN:
        expects = ANY - {0} if argv[-1] in ("run_dir=run/config.yaml", "run_dir=run/config.yaml/x") else REFUSED
        yield Case("commands", "beside a run", tuple(argv), expects, before=before)
