"""Splits of classes: names that YAML or a command line would read as numbers or truth values, and all in one split."""

import pytest
from omegaconf import OmegaConf

from metarun.config.compose import composed, parsed
from metarun.config.names import names_as_text
from metarun.errors import DataProblems
from metarun.tasks.splits import SPLITS, named_as_splits, split_classes

NAMES = ["007", "1000", "1_000", "12E3", "oak", "true"]


def split(names, listed) -> dict[str, list[str]]:
    of = split_classes(names, [""] * len(names), listed, 0, "s")
    return {part: [name for name, its in zip(names, of, strict=True) if its == part] for part in SPLITS}


@pytest.mark.parametrize("key", ["task.split", "+evaluation.task.x.split"])
def test_names_of_classes_on_a_command_line_are_read_as_text(key):
    text = f"{key}={{train:[oak,true],val:[12E3, 007],test:[1_000,'1000',\"a, 5\"]}}"
    assert parsed(names_as_text(text)).value() == {
        "train": ["oak", "true"],
        "val": ["12E3", "007"],
        "test": ["1_000", "1000", "a, 5"],
    }


def test_names_of_classes_need_no_quotation_marks_of_their_own():
    text = "task.split={train:[atis#x, Bär],val:[a~b,elm (red)],test:[null,~,a=b]}"
    assert parsed(names_as_text(text)).value() == {
        "train": ["atis#x", "Bär"],
        "val": ["a~b", "elm (red)"],
        "test": ["null", "~", "a=b"],
    }


@pytest.mark.parametrize(
    "text", ["task.split=[6,2,2]", "task.split={train:6,val:2,test:2}", "task.split=given", "rates={a:[1]}", "steps=5"]
)
def test_what_is_no_list_of_classes_is_read_as_ever(text):
    assert names_as_text(text) == text


def test_a_run_reads_its_own_configuration_as_it_was_typed(tmp_path):
    listed = "{train:[oak,true],val:[12E3,007],test:[1_000,1000]}"
    cfg = composed(["task=image_folder", "task.path=x", "base_learner=conv4", f"task.split={listed}"], [])
    OmegaConf.save(cfg, tmp_path / "config.yaml")
    saved = OmegaConf.to_container(OmegaConf.load(tmp_path / "config.yaml").task.split)
    assert split(NAMES, saved) == {"train": ["oak", "true"], "val": ["007", "12E3"], "test": ["1000", "1_000"]}


@pytest.mark.parametrize(
    ("written", "name"),
    [
        (7, "007"),
        (12000.0, "12E3"),
        (True, "true"),
        (1000, "1_000"),
        (True, "yes"),
        (31, "0x1F"),
        (float("nan"), "nan"),
    ],
)
def test_a_value_that_yaml_made_of_a_name_is_that_class_where_only_one_is_spelt_so(written, name):
    names = ["a", "b", name]
    assert split(names, {"train": ["a"], "val": ["b"], "test": [written]})["test"] == [name]


def test_a_value_that_several_classes_are_spelt_as_is_refused_with_their_names():
    with pytest.raises(DataProblems, match=r'the number 1000, which may be any of the classes "1000", "1_000": put'):
        split(NAMES, {"train": ["oak"], "val": ["true"], "test": [1000]})


def test_all_names_that_are_no_class_are_told_with_those_that_are_nearly_equal():
    with pytest.raises(DataProblems) as raised:
        split(["1000", "007", "oak"], {"train": ["1_000"], "val": ["7"], "test": [False, "oaks"]})
    assert raised.value.problems == [
        "task.split.train names '1_000', which is no class; did you mean '1000'?",
        "task.split.val names '7', which is no class; did you mean '007'?",
        "task.split.test names 'False', which is no class (it was read as a truth value: put the name in quotation marks).",
        "task.split.test names 'oaks', which is no class; did you mean 'oak'?",
    ]


@pytest.mark.parametrize("others", [{}, {"train": 0.6, "val": 0.2}, {"train": ["oak"], "val": ["true"]}])
def test_all_classes_can_be_in_one_split_whatever_was_said_of_the_others(others):
    assert split(NAMES, {**others, "test": "all"}) == {"train": [], "val": [], "test": NAMES}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"train": "all", "test": "all"}, r"puts all classes in train, test; name one of"),
        ({"tset": "all"}, r"puts all classes in tset; name one of train, val, test"),
        (
            {"train": "oak", "val": 1, "test": 1},
            r"task.split.train is 'oak', but must be a share, a list of classes, or",
        ),
    ],
)
def test_a_split_in_words_that_mean_nothing_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        split(NAMES, wrong)


PARTS = [
    ["base", "val", "novel"],
    ["background", "evaluation"],
    ["images_background", "images_evaluation"],
    ["seen", "unseen"],
    ["meta_train", "meta-val", "metatest"],
    ["train_images", "val_images", "test_images"],
    ["TrainSet", "TestSet"],
    ["train2017", "val2017"],
    ["seg_train", "seg_test"],
    ["train", "dev"],
    ["trainval", "images_test"],
]


@pytest.mark.parametrize("names", PARTS, ids=["-".join(names) for names in PARTS])
def test_names_that_differ_by_the_word_of_a_split_alone_are_splits(names):
    words = {word for name in names for word in ("base", "background", "seen") if word in name.lower()}
    found = named_as_splits({*names, *([] if words else ["oak", "crash test"])})
    assert len(found) >= 2 and {*found} <= {*names}


def test_ordinary_names_of_classes_are_no_splits():
    vehicles = ["train", "bus", "background", "steam train", "crash test", "trainer", "tester", "novel", "essay"]
    assert named_as_splits([*vehicles, "invalid", "test tube", "base camp"]) == []
    assert named_as_splits(["valid", "invalid", "background", "foreground", "valid 1", "valid 2"]) == []
    assert named_as_splits(["base", "novel", "poem"]) == named_as_splits(["seen", "unseen", "heard"]) == []
