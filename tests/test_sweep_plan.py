"""What a sweep consists of: its grammar, its mistakes told at once, and which runs are the same run."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from omegaconf import OmegaConf

from metarun.config.compose import composed, kept_text
from metarun.config.trust import trust
from metarun.errors import ConfigError, MetarunError
from metarun.sweep import identity as identity_module
from metarun.sweep.composing import Composer
from metarun.sweep.grammar import combinations
from metarun.sweep.plan import planned
from metarun.sweep.record import added, recorded
from metarun.sweep.view import final_table
from tests.running import environment, metarun, read

NOWHERE = Path("none")


def plan(*overrides: str, sweep: Path = NOWHERE, build: bool = False, folders: tuple[Path, ...] = ()):
    return planned(list(overrides), list(folders), sweep, build=build)


def problems(*overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        plan(*overrides, build=True)
    return caught.value.problems


# ---- grammar ----


@pytest.mark.parametrize(("text", "expected"), [
    ("seed=choice(1,2)", ["seed=1", "seed=2"]),
    ("seed=range(3)", ["seed=0", "seed=1", "seed=2"]),
    ("optimizer.lr=range(0.25,1,0.25)", ["optimizer.lr=0.25", "optimizer.lr=0.5", "optimizer.lr=0.75"]),
    ("seed=sort(3,1,2,reverse=true)", ["seed=3", "seed=2", "seed=1"]),
    ("base_learner.hidden=[4],[5,6]", ["base_learner.hidden=[4]", "base_learner.hidden=[5,6]"]),
    ("task=glob(sin*)", ["task=sinusoid"]),
    ("task=glob([sin*,quad*],exclude=sin*)", ["task=quadratics"]),
    ("data_root='a,b'", ["data_root='a,b'"]),
])  # fmt: skip
def test_a_sweep_takes_what_hydras_grammar_has(text, expected):
    assert [job for [job] in combinations([text])] == expected


def test_a_shuffled_sweep_has_the_same_runs():
    assert sorted(map(tuple, combinations(["seed=shuffle(range(5))"]))) == [(f"seed={n}",) for n in range(5)]


def test_glob_of_a_star_takes_every_option_also_those_of_a_folder_of_ones_own(tmp_path):
    (tmp_path / "meta_learner").mkdir()
    (tmp_path / "meta_learner" / "mine.yaml").write_text("_target_: mine.Mine\n")
    found = [job for [job] in combinations(["meta_learner=glob(*)"], [tmp_path])]
    assert "meta_learner=mine" in found and "meta_learner=maml" in found and len(found) == len(set(found)) > 20


@pytest.mark.parametrize(("text", "expected"), [
    ("optimizer.lr=interval(0.1,1)", "an interval has values without end"),
    ("seed=glob(*)", "seed is none"),
    ("task=glob(nothing*)", "it matches none of"),
    ("seed=range(0,1,0)", "a step beside 0"),
    ("seed=choose(1,2)", "choose"),
    ("seed=[choice(1,2)]", "seed"),
])  # fmt: skip
def test_what_a_sweep_does_not_take_is_one_clear_line(text, expected):
    outcome = metarun("-m", text)
    assert outcome.code == 2 and "1 problem" in outcome.err and expected in outcome.err
    assert len(outcome.err.strip().splitlines()) == 2


# ---- mistakes ----


def test_a_mistake_that_shows_when_a_run_is_built_is_found_before_any_starts():
    (problem,) = problems("base_learner=conv4", "seed=0,1,2")  # on sine waves
    assert problem.startswith("base_learner")


def test_a_mistake_of_all_runs_is_told_once_and_one_of_some_names_them():
    found = problems("seed=0,1", "meta_learner.inner_lr=0.1,abc", "meta_learner.nothing=1")
    assert len([text for text in found if "nothing" in text]) == 1
    (some,) = [text for text in found if "'abc'" in text]
    assert some.endswith("(in seed=0 meta_learner.inner_lr=abc, seed=1 meta_learner.inner_lr=abc)")


def test_options_of_a_sweep_that_lack_a_setting_are_named():
    both = "experiment=protonet_omniglot_5w1s,maml_sinusoid,matchingnet_omniglot_5w1s"
    of = "of experiment=maml_sinusoid, but not of experiment=protonet_omniglot_5w1s, experiment=matchingnet_omniglot_5w1s"
    told = f"meta_learner.inner_lr is a setting {of}. Leave it out, or give those without it a command of their own."
    with pytest.raises(ConfigError) as caught:
        plan(both, "meta_learner.inner_lr=0.1,0.2", "seed=0,1")
    assert caught.value.problems == [told]
    with pytest.raises(ConfigError) as caught:
        plan(both, "meta_learner.nothing=1")
    assert all("meta_learner.nothing is not a setting; " in text for text in caught.value.problems)


def test_runs_that_differ_in_values_are_composed_as_each_by_itself():
    shared = ["steps=5", "meta_learner=anil"]
    compose = Composer([])
    for values in (
        ["seed=3", "optimizer.lr=0.5"],
        ["base_learner.hidden=[3,4]", "task.num_shots=3"],
        ["+rates.head=2"],
    ):
        assert compose([*shared, *values], shared) == composed([*shared, *values], [])


def test_two_hundred_runs_are_checked_in_seconds():
    began = time.process_time()
    jobs = plan("steps=1", "optimizer.lr=range(0.001,0.2005,0.001)", build=True)
    assert len(jobs) == 200
    assert time.process_time() - began < 10  # about 3 s of a core; composed one by one 20 s


# ---- identity ----


def identities(*overrides: str, folders: tuple[Path, ...] = ()) -> list[str]:
    return [job.identity for job in plan(*overrides, folders=folders)]


def test_a_run_is_the_same_whatever_does_not_change_its_numbers():
    same = ["device=cpu", "log_every=7", "data_root=elsewhere", "checkpoint_minutes=null", "logger=csv"]
    assert identities("seed=1") == identities("seed=1", *same) == identities("seed=1", "meta_learner=maml")
    assert identities("seed=1") != identities("seed=1", "optimizer.lr=0.5")
    assert identities("task=omniglot") == identities("task=omniglot", "task.download=true")


def test_runs_that_a_sweep_compares_are_others_even_where_their_numbers_are_the_same():
    assert len(set(identities("log_every=1,2"))) == 2


def test_overrides_that_say_the_same_make_one_run():
    assert len(plan("optimizer.lr=0.1,0.10,1e-1")) == 1


def test_an_edited_yaml_of_ones_own_makes_another_run(tmp_path):
    (tmp_path / "optimizer").mkdir()
    file = tmp_path / "optimizer" / "mine.yaml"
    text = "_target_: torch.optim.SGD\n_partial_: true\nlr: 0.1\n"
    file.write_text(text)
    before = plan("optimizer=mine", "seed=0,1", sweep=tmp_path / "sweep", folders=(tmp_path,))
    file.write_text(text.replace("0.1", "0.2"))
    after = plan("optimizer=mine", "seed=0,1", sweep=tmp_path / "sweep", folders=(tmp_path,))
    assert {job.identity for job in before}.isdisjoint(job.identity for job in after)
    assert {job.folder.path for job in before}.isdisjoint(job.folder.path for job in after)


# ---- sweep.json ----


def test_sweep_json_tells_of_each_run_its_overrides_configuration_hash_and_the_code(tmp_path):
    jobs = plan("steps=5", "seed=0,1", sweep=tmp_path)
    assert recorded(tmp_path, jobs, []) == []
    recorded(tmp_path, plan("steps=5", "seed=1,2", sweep=tmp_path), [])
    content = read(tmp_path / "sweep.json")
    assert [row["name"] for row in content["jobs"]] == ["seed=0", "seed=1", "seed=2"]
    first = content["jobs"][0]
    assert (first["overrides"], first["config"]["steps"], first["config"]["seed"]) == (["steps=5", "seed=0"], 5, 0)
    assert first["hash"] == jobs[0].identity and first["folder"] == jobs[0].folder.path.name
    assert {"metarun", "commit", "changes"} <= content["code"].keys() and len(content["history"]) == 2


@pytest.mark.parametrize("state", ["completed", "interrupted"])
def test_another_commit_warns_where_runs_are_kept_or_go_on(state, tmp_path, monkeypatch):
    (job,) = plan("seed=0", sweep=tmp_path)
    recorded(tmp_path, [job], [])
    content = read(tmp_path / "sweep.json")
    (tmp_path / "sweep.json").write_text(json.dumps(content | {"code": {**content["code"], "commit": "f" * 40}}))
    now = {**content["code"], "commit": "a" * 40}
    monkeypatch.setattr("metarun.sweep.record.code", lambda folders: now)
    assert recorded(tmp_path, [job], []) == []  # nothing is kept
    job.folder.create()
    (job.folder.path / "config.yaml").touch()
    job.folder.mark(state)
    (warning,) = recorded(tmp_path, [job], [])
    assert "f" * 10 in warning and "a" * 10 in warning


def test_other_changes_of_the_same_commit_are_other_code(tmp_path, monkeypatch):
    def git(*words: str) -> None:
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True, capture_output=True)

    monkeypatch.setattr(identity_module, "PACKAGE", tmp_path)
    (tmp_path / "core.py").write_text("x = 1\n")
    git("init")
    git("add", "core.py")
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-m", "first")
    seen = [identity_module.code([])]
    for name, text in (("core.py", "x = 2\n"), ("core.py", "x = 3\n"), ("more.py", "y = 1\n"), ("more.py", "y = 2\n")):
        (tmp_path / name).write_text(text)
        seen.append(identity_module.code([]))
        assert "uncommitted changes" in identity_module.other_code(seen[-2], seen[-1])
    assert (
        identity_module.other_code({"commit": seen[0]["commit"], "changed": False}, seen[1]) == ""
    )  # of earlier times


def test_another_version_without_a_checkout_is_other_code():
    then, now = ({"metarun": name, "commit": None, "changes": None, "outside": None} for name in ("1.0", "1.1"))
    assert "metarun 1.0, and this is 1.1" in identity_module.other_code(then, now)


def test_changed_modules_of_ones_own_warn_too(tmp_path):
    (tmp_path / "mine.py").write_text("x = 1\n")
    before = identity_module.code([tmp_path])
    (tmp_path / "mine.py").write_text("x = 2\n")
    assert "modules" in identity_module.other_code(before, identity_module.code([tmp_path]))
    assert identity_module.other_code(before, before) == ""


@pytest.mark.parametrize("content", ['{"jobs": [1]}', '{"jobs": null}', '{"history": null}', "[]", ""])
def test_a_damaged_sweep_json_is_written_anew_and_runs_are_found_all_the_same(content, tmp_path):
    (job,) = plan("seed=0", sweep=tmp_path)
    job.folder.create()
    (tmp_path / "sweep.json").write_text(content)
    added(tmp_path, job)  # of a search, whose file is damaged while it goes on
    assert [row["hash"] for row in read(tmp_path / "sweep.json")["jobs"]] == [job.identity]
    (tmp_path / "sweep.json").write_text(content)
    assert "damaged" in recorded(tmp_path, [job], [])[0]
    assert plan("seed=0", sweep=tmp_path)[0].folder.path == job.folder.path


# ---- a dry run ----


@pytest.mark.usefixtures("statuses_alone")
def test_a_dry_run_lists_runs_folders_and_what_would_be_done_and_touches_nothing(tmp_path):
    sweep = tmp_path / "sweep"
    first, second, _ = plan("seed=0,1,2", sweep=sweep)
    first.folder.create()
    first.folder.mark("completed")
    second.folder.create()
    second.folder.mark("interrupted", step=7, steps=9)
    (second.folder.path / "config.yaml").touch()
    before = sorted(tmp_path.rglob("*"))
    outcome = metarun("-m", "--dry", "seed=0,1,2", f"sweep_dir={sweep}")
    assert outcome.code == 0, outcome.err
    for text in (first.folder.path.name, "be kept, completed", "continue at step 7", "begin", "1 would begin"):
        assert text in outcome.out
    assert sorted(tmp_path.rglob("*")) == before


def finished(sweep: Path) -> Any:
    """A job whose folder holds what its run leaves."""
    (job,) = plan("seed=0", "steps=6", "meta_learner.inner_lr=1e-5", sweep=sweep)
    job.folder.create()
    job.folder.mark("completed", step=6, steps=6)
    (job.folder.path / "config.yaml").write_text(kept_text(OmegaConf.create(job.config)))
    (job.folder.path / "results.json").write_text("{}")
    assert job.completed
    return job


def test_a_run_that_was_trained_longer_than_the_job_counts(tmp_path):
    job = finished(tmp_path)
    for name, old, new in (("config.yaml", "steps: 6", "steps: 9"), ("status.json", '"step": 6', '"step": 9')):
        path = job.folder.path / name
        path.write_text(path.read_text().replace(old, new))
    assert job.completed and not job.damage


DAMAGES: dict[str, tuple[str, Callable[[bytes], bytes | None], str]] = {
    "other settings": (
        "config.yaml",
        lambda text: text.replace(b"steps: 6", b"steps: 3"),
        "steps is 3, not 6. Delete the folder",
    ),
    "no configuration": ("config.yaml", lambda text: None, "config.yaml: is missing. Delete the folder"),
    "an early step": ("status.json", lambda text: text.replace(b'"step": 6', b'"step": 1'), "it ended at step 1 of 6"),
    "no step": ("status.json", lambda text: b'{"state": "completed"}', "it ended at step 0 of 6"),
    "no results": ("results.json", lambda text: None, "results.json: is missing. Delete seed-0"),
    "half of the results": ("results.json", lambda text: b"{", "results.json: cannot be read"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_completed_run_that_is_not_the_jobs_is_named_and_does_not_count(damage, tmp_path, capsys):
    job, (name, change, why) = finished(tmp_path), DAMAGES[damage]
    path = job.folder.path / name
    if (content := change(path.read_bytes())) is None:
        path.unlink()
    else:
        path.write_bytes(content)
    assert (job.completed, job.describe()) == (False, "damaged") and why in job.damage
    assert final_table([job], tmp_path) == 0
    out = capsys.readouterr().out
    assert "0 of 1 runs completed" in out and "damaged" in out and "and the same command" in out
    outcome = metarun("-m", "--dry", *job.overrides, f"sweep_dir={tmp_path}")
    assert "1 would be left, damaged" in outcome.out


def test_dry_without_a_sweep_says_where_it_belongs():
    outcome = metarun("--dry", "seed=0")
    assert outcome.code == 2 and "metarun -m --dry" in outcome.err


@pytest.mark.parametrize("text", ["retries=-1", "retries=x", "timeout=0", "timeout=soon", "timeout=-3h", "jobs=0"])
def test_a_limit_that_is_none_is_refused(text):
    outcome = metarun("-m", "seed=0,1", text)
    assert outcome.code == 2 and text in outcome.err


def test_the_command_of_a_run_can_be_typed_and_names_folders_and_trust(tmp_path):
    with mock.patch.dict(os.environ):
        trust([], ["somebody"])
    (job,) = plan("seed=0", sweep=tmp_path / "a b")
    flags = [f"--config-dir={tmp_path}", "--allow=somebody"]
    assert job.command(flags) == [*flags, "seed=0", f"run_dir='{job.folder.path}'", "resume=auto"]


def test_a_sweep_folder_that_cannot_be_written_is_an_error_that_names_it(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(MetarunError, match="cannot write to the sweep's folder") as caught:
        recorded(tmp_path / "file" / "sweep", plan("seed=0", sweep=tmp_path), [])
    assert caught.value.exit_code == 2 and "sweep_dir=PATH" in str(caught.value)


def test_a_dry_run_of_one_of_hydras_sweepers_is_refused():
    outcome = metarun("-m", "--dry", "seed=0,1", "hydra/sweeper=basic")
    assert outcome.code == 2 and "--dry" in outcome.err


PRELOADS = """
import torch

asked = []
for owner, name in ((torch.cuda, "is_available"), (torch.cuda, "device_count"), (torch._C, "_cuda_getDeviceCount")):
    if hasattr(owner, name):
        setattr(owner, name, lambda *_, name=name: asked.append(name) or 0)
import torch._dynamo, metarun.commands.train
from metarun.config.compose import composed
from metarun.sweep.preloaded import preload
composed([], [])
preload()
print(asked)
"""


def test_nothing_asks_for_gpus_before_runs_are_forked_for_they_do_not_survive_it():
    done = subprocess.run(
        [sys.executable, "-c", PRELOADS], capture_output=True, text=True, check=True, env=environment()
    )
    assert done.stdout == "[]\n"
