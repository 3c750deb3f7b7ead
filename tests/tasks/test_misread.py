"""Texts that are UTF-8 read as Windows-1252 are told with what was meant, and others are not."""

import json
import subprocess

import pytest

from metarun.tasks.misread import meant, notes_on_file
from tests.applying import BUDGET, KINDS, data
from tests.running import metarun
from tests.tasks.test_csv_regression import SIZES, problem, table
from tests.tasks.test_image_reading import NAMES, notes  # noqa: F401
from tests.tasks.test_image_reading import task as images
from tests.tasks.test_image_reading import write as write_images

CAFE = "caf\u00e9"


def misread(text: str) -> str:
    """The text as Windows-1252 shows its UTF-8; the five bytes that it lacks are control characters, as in browsers."""
    return "".join(bytes([b]).decode("cp1252", errors="ignore") or chr(b) for b in text.encode())


@pytest.mark.parametrize(
    "text",
    [
        *[
            "caf\u00e9",
            "M\u00fcnchen",
            "\u00e0",
            "\u00c1rbol",
            "don\u2019t",
            "\u201cso\u201d",
            "20 \u00b0C",
            "5 \u20ac",
        ],
        *["\u0141\u00f3d\u017a", "\u041f\u0440\u0438\u0432\u0435\u0442", "\u65e5\u672c\u8a9e"],
    ],
)
def test_what_was_meant_is_found_of_every_script_and_of_itself_nothing(text):
    assert misread(text) != text and meant(misread(text)) == text and meant(text) == ""


@pytest.mark.parametrize(
    "text", ["oak", "N\u00c3O", "\u00c2ge", "\u00c5\u00b2", "\u00d8\u00b1", "M\u00dc\u2122", "\u00c9t\u00e9"]
)
def test_words_that_may_be_meant_as_they_are_stay(text):
    assert meant(text) == ""


def test_the_command_of_the_message_gives_the_file_that_was_meant(tmp_path):
    right = "text,label\nun caf\u00e9 cr\u00e8me,\u00e0 la carte\n"
    file = tmp_path / "my orders.csv"
    file.write_text(misread(right), encoding="utf-8")
    (told,) = notes_on_file(file)
    assert told.startswith(f"words of {file} have letters of UTF-8 that was read as Windows-1252: ")
    assert f"{misread(CAFE)!r} for {CAFE!r}" in told
    subprocess.run(told.rpartition("named instead: ")[2], shell=True, check=True)
    assert (tmp_path / "my orders_utf8.csv").read_text(encoding="utf-8") == right
    assert not notes_on_file(tmp_path / "my orders_utf8.csv")


def test_a_file_that_is_misread_in_part_is_to_be_written_anew(tmp_path):
    file = tmp_path / "orders.jsonl"
    lines = [{"text": misread("un caf\u00e9"), "label": "a"}, {"text": "un th\u00e9", "label": "b"}]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))  # JSON writes \u00c3\u00a9
    (told,) = notes_on_file(file)
    assert "for 'caf\u00e9'" in told and "th" not in told.partition(": ")[2].partition(".")[0]
    file.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    assert "Read its source as UTF-8 (in pandas encoding='utf-8'), and write it anew." in notes_on_file(file)[0]


def test_misread_sentences_are_told_as_a_run_and_a_look_begin(tmp_path):
    file = tmp_path / "texts.jsonl"
    file.write_text((data() / "texts.jsonl").read_text().replace("intent0", misread("caf\u00e9")), encoding="utf-8")
    words = [word.strip("'").replace("DATA/texts.jsonl", str(file)) for word in KINDS["hashed"]]
    outcome = metarun(*words, *BUDGET, f"data_root={tmp_path}", f"run_dir={tmp_path / 'run'}")
    said = f"words of {file} have letters of UTF-8 that was read as Windows-1252"
    assert outcome.code == 0 and outcome.text.count(said) == 1, outcome.text
    sizes = [word for word in words if word.startswith("task.")]
    outcome = metarun("data", "prepare", "text_jsonl", *sizes, f"data_root={tmp_path}")
    assert outcome.code == 0 and outcome.text.count(said) == 1, outcome.text


def test_folders_of_misread_names_are_told_once(tmp_path, notes):  # noqa: F811
    names = [misread("h\u00eatre"), *NAMES]
    images(write_images(tmp_path / "photos", names), split=[1, 1, 1])
    (told,) = (note for note in notes() if "Windows-1252" in note)
    assert told.endswith("for 'h\u00eatre'. Rename them.")


def test_a_column_whose_name_was_misread_is_answered_with_the_command(tmp_path):
    file = tmp_path / "table.csv"
    name = "\u00e2ge"
    file.write_text(table(SIZES).replace("age", misread(name)), encoding="utf-8")
    said = problem(file, f"task.input_columns=[dose,'{name}']")
    assert f"names {name!r}, but" in said and f"{misread(name)!r} for {name!r}" in said and "iconv -f UTF-8" in said
