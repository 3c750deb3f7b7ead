"""Whole runs on the user's own images: trained on one folder, tested on another, and with all faults told at once."""

import shutil
from pathlib import Path

import pytest

from metarun import load
from metarun.evaluation.calibration import running_norms
from metarun.output.kept import read_alarms
from tests.running import metarun, read
from tests.tasks.pictures_of import colour, cut, left, picture

NAMES = ["ash", "birch", "cedar", "elm", "fir", "oak"]
RUN = [
    *["task=image_folder", "task.size=16", "task.num_shots=1", "task.num_queries=1", "base_learner=conv4"],
    *["base_learner.channels=4", "base_learner.batch_norm=running", "base_learner.downsample=max_pool"],
    *["meta_learner=protonet", "device=cpu", "execution=looped", "steps=2", "meta_batch_size=2", "evaluation.every=2"],
    *["evaluation.num_tasks=4", "evaluation.num_val_tasks=4", "logger=none"],
    "task.split={train:1,val:1,test:1}",
]
SPLIT = "task.split={train:[ash,birch],val:[cedar,elm],test:[fir,oak]}"


def write(root: Path, names: list[str], count: int = 3) -> Path:
    for name in names:
        for i in range(count):
            picture(root / name / f"{i}.png", colour(root.name, name, i), (8, 8))
    return root


@pytest.fixture
def photos(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("METARUN_DATA", str(tmp_path / "data"))
    return write(tmp_path / "photos", NAMES)


@pytest.fixture
def run(photos, tmp_path) -> Path:
    outcome = metarun(*RUN, f"task.path={photos}", SPLIT, f"run_dir={tmp_path / 'run'}")
    assert outcome.code == 0, outcome.text
    return tmp_path / "run"


def test_a_resumed_run_is_not_told_that_nobody_chose_its_network(run):
    outcome = metarun(f"resume={run}", "steps=4")
    assert outcome.code == 0 and "none was chosen" not in outcome.text


@pytest.mark.parametrize("classes", [["yew"], ["larch", "pine", "yew"]])
def test_a_folder_of_test_classes_alone_is_evaluated_where_it_has_enough(run, tmp_path, classes):
    new = write(tmp_path / "new", classes)
    outcome = metarun("evaluate", run, f"task.path={new}", "task.split={test:all}")
    elsewhere = ["evaluation.task=image_folder", f"evaluation.task.image_folder.path={new}"]
    elsewhere += [f"evaluation.task.image_folder.{key}" for key in ("num_shots=1", "num_queries=1", "size=16")]
    second = metarun("evaluate", run, *elsewhere, "evaluation.task.image_folder.split={test:all}")
    if len(classes) < 2:
        assert outcome.code == second.code == 2
        assert "task.num_ways is 2, but the split 'test' has only 1 class" in outcome.err
        return
    assert outcome.code == second.code == 0, outcome.text + second.text
    assert [read(path)["test/accuracy"]["n"] for path in (run / "evaluations").glob("*.json")] == [4, 4]
    assert "trained on" not in outcome.out + second.out
    again = metarun("evaluate", run, f"task.path={new}", "task.split={test:all}", "--split", "val")
    assert (again.code, "task.split leaves no class for 'val'" in again.err) == (2, True)


def test_classes_that_were_trained_on_are_named_where_an_evaluation_tests_on_them(run, tmp_path):
    assert read(run / "trained_on.json") == {"names": ["ash", "birch"]}
    new, others = write(tmp_path / "new", ["birch", "yew", "ash"]), ["task.num_ways=2", "--split", "test"]
    for words in (
        [f"task.path={new}", "task.split={test:all}"],
        ["task.split={train:[elm,fir],val:[cedar,oak],test:[ash,birch]}"],
    ):
        outcome = metarun("evaluate", run, *words, *others)
        assert f"2 of {len(words) + 1} test classes were trained on, by name: ash, birch\n" in outcome.out, outcome.text
    elsewhere = [
        f"evaluation.task.image_folder.{key}" for key in (f"path={new}", "num_shots=1", "num_queries=1", "size=16")
    ]
    elsewhere += ["evaluation.task=image_folder", "evaluation.task.image_folder.split={test:all}"]
    assert "2 of 3 test classes of image_folder were trained on" in metarun("evaluate", run, *elsewhere, *others).out
    (run / "trained_on.json").unlink()
    assert "trained on" not in metarun("evaluate", run, f"task.path={new}", "task.split={test:all}", *others).out


def test_a_run_says_as_it_begins_which_test_classes_it_is_trained_on(photos, tmp_path):
    words = [*RUN, f"task.path={photos}", SPLIT, "evaluation.task=image_folder", f"run_dir={tmp_path / 'run'}"]
    outcome = metarun(*words)  # the evaluation task has the split of the training task
    assert outcome.code == 0 and "trained on" not in outcome.text, outcome.text
    assert "seen_in_training" not in read(tmp_path / "run/results.json")["protocol"]
    other = "evaluation.task.image_folder.split={train:[cedar,elm],val:[ash,fir],test:[oak,birch]}"
    seen = metarun(*words[:-1], other, f"run_dir={tmp_path / 'seen'}")
    line = "1 of 2 test classes of image_folder were trained on, by name: birch"
    told = (
        f"alarm at step 0: 1 of 2 val classes of image_folder were trained on, by name: ash; {line}. Scores on them say"
    )
    assert seen.code == 0 and seen.text.count(told) == 1, seen.text
    assert [alarm["alarm"] for alarm in read_alarms(tmp_path / "seen/alarms.jsonl")] == ["seen_in_training"]
    assert read(tmp_path / "seen/results.json")["protocol"]["seen_in_training"] == [line]
    assert metarun("evaluate", tmp_path / "seen").code == 0
    (evaluation,) = (tmp_path / "seen/evaluations").glob("test*[!s].json")
    assert read(evaluation)["protocol"]["seen_in_training"] == [line]


def test_running_norms_keep_the_statistics_of_the_training_on_other_data(run, photos, tmp_path, capsys):
    new = write(tmp_path / "new", [f"tree{i}" for i in range(9)], count=4)

    def statistics(*overrides: str) -> list[float]:
        layers = running_norms(load(run, *overrides).run.experiment.learner).values()
        return [float(value) for layer in layers for value in (*layer.mean, *layer.var)]

    own = statistics()
    others = [f"task.path={new}", "task.split={train:1,val:1,test:1}"]
    for more in (["task.num_ways=2"], ["task.num_ways=3"]):
        assert statistics(*others, *more) == own
    assert statistics("task.split={train:[elm,fir],val:[cedar,oak],test:[ash,birch]}") == own
    assert "as given now" not in capsys.readouterr().out
    shutil.rmtree(photos)
    assert statistics(*others) != own
    assert "running batch norms take the statistics of the training classes as given now" in capsys.readouterr().out


@pytest.mark.parametrize("split", ["{test:all}", "{train:all}", "{train:[ash,birch],val:[],test:[fir,oak]}"])
def test_a_run_without_classes_for_one_of_its_splits_is_refused_before_it_begins(photos, tmp_path, split):
    outcome = metarun(*RUN, f"task.path={photos}", f"task.split={split}", f"run_dir={tmp_path / 'run'}")
    assert outcome.code == 2
    assert "task.split leaves no class for" in outcome.err
    assert not (tmp_path / "run" / "config.yaml").exists()


@pytest.mark.parametrize("words", [["data", "prepare", "image_folder"], ["data", "verify", "image_folder"], RUN])
def test_all_faults_of_a_folder_are_problems_of_one_list(photos, tmp_path, words):
    (photos / "oak" / "2.png").unlink()
    cut(photos / "elm" / "0.png")
    own = [
        "task.num_ways=3",
        "task.num_shots=1",
        "task.num_queries=2",
        "task.split={train:1,val:1,test:1}",
        "task.size=8",
    ]
    outcome = metarun(*words, f"task.path={photos}", *own)
    assert outcome.code == 2
    assert outcome.err.startswith("metarun: 6 problems in the configuration:\n  - 3 splits x 3 ways need 9 classes")
    assert "'oak'" in outcome.err and "elm/0.png is no image that can be read" in outcome.err
    assert left(tmp_path / "data") == []


def test_names_that_look_like_numbers_are_those_of_the_command_line(photos):
    write(photos, ["007", "1_000", "1000", "true"])
    listed = "task.split={train:[1000,oak],val:[true,ash],test:[007,1_000]}"
    outcome = metarun(
        "data", "show", "image_folder", f"task.path={photos}", listed, "task.num_shots=1", "task.num_queries=1"
    )
    assert outcome.code == 0, outcome.text
    refused = metarun("data", "show", "image_folder", f"task.path={photos}", listed.replace("007", "2_000"))
    assert "task.split.test names '2_000', which is no class" in refused.err
