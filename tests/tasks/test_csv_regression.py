"""Tables: what is read, how it is split and standardised, and the answer to every mistake; the documented example runs."""

import gzip
import logging
import os
import re
import shlex
import subprocess
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch

from metarun.applied.trained import trained
from metarun.commands.evaluate import evaluate_run
from metarun.errors import ConfigError, DataError
from metarun.evaluation.episodes import manifest
from metarun.tasks.doubtful import nearly_equal
from tests.composing import experiment, train
from tests.running import metarun

PAGE = Path(__file__).parents[2] / "docs" / "your_own_data.md"
NAMES = ["task.task_column=subject", "task.input_columns=[dose,age]", "task.output_columns=[response]"]


def table(sizes: dict[str, int], separator: str = ",") -> str:
    """A line for each measurement: the subject's number is in every entry, so that rows can be told apart."""
    lines = [separator.join(["subject", "dose", "age", "response"])]
    for s, (subject, rows) in enumerate(sizes.items()):
        lines += [separator.join([subject, f"{s + r / 100}", f"{10 * s - r}", f"{s * s + r / 7}"]) for r in range(rows)]
    return "\n".join(lines) + "\n"


SIZES = {
    "anna": 12,
    "ben": 10,
    "cem": 15,
    "dora": 11,
    "eva": 10,
    "finn": 13,
    "gil": 10,
    "hugo": 10,
    "ida": 10,
    "jan": 10,
}


@pytest.fixture
def path(tmp_path) -> Path:
    (tmp_path / "table.csv").write_text(table(SIZES))
    return tmp_path / "table.csv"


def task_of(path: Path, *overrides: str):
    return experiment("task=csv_regression", f"task.path='{path}'", *NAMES, *overrides).task


def problem(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as error:
        task_of(path, *overrides)
    assert len(error.value.problems) == 1
    return error.value.problems[0]


def test_accents_of_a_letter_and_beside_it_are_one_task_and_one_category(path):
    lines = table({"rené": 12, **SIZES}).replace("subject", "kind,subject", 1).splitlines()
    rows = [f"{('é', 'è')[i // 2 % 2]},{line}" for i, line in enumerate(lines[1:])]
    rows[::2] = [unicodedata.normalize("NFD", row) for row in rows[::2]]
    path.write_text("\n".join([lines[0], *rows]))
    named = f"task.test_tasks=[{unicodedata.normalize('NFD', 'rené')}]"
    task = task_of(path, "task.input_columns=[kind,dose]", "task.val_tasks=[ben]", named)
    assert task.split["test"] == ["rené"] and task.spec.input_shape == (3,)


def test_an_episode_has_different_rows_of_one_task_in_the_training_tasks_units(path):
    task = task_of(path)
    rows = [line.split(",") for line in path.read_text().splitlines()[1:]]
    subjects = np.array([row[0] for row in rows])
    values = np.array([[float(entry) for entry in row[1:]] for row in rows])
    training = values[np.isin(subjects, task.split["train"])]
    standard = (values - training.mean(0)) / training.std(0)
    for split in ("train", "val", "test"):
        draw = task.draw(split, range(30))
        support, query, _ = task.episodes(draw)
        both = np.concatenate([draw["support"], draw["query"]], 1)
        for b, chosen in enumerate(both):
            assert len(set(chosen)) == 10
            assert set(subjects[chosen]) == {task.split[split][draw["task"][b]]}
        x, y = (torch.cat(parts, 1).numpy() for parts in zip(support[:2], query[:2], strict=True))
        np.testing.assert_allclose(np.concatenate([x, y], -1), standard[both], rtol=0, atol=1e-12)


def test_splits_have_every_task_once_and_come_from_their_own_seed(path):
    split = task_of(path).split
    assert sorted(name for names in split.values() for name in names) == sorted(SIZES)
    assert {name: len(names) for name, names in split.items()} == {"train": 6, "val": 2, "test": 2}
    assert task_of(path, "seed=5").split == split
    assert task_of(path, "task.split_seed=1").split != split


def test_the_order_of_the_lines_does_not_change_the_split(path):
    split, (header, *lines) = task_of(path).split, path.read_text().splitlines()
    path.write_text("\n".join([header, *reversed(lines)]))
    assert task_of(path).split == split


def test_a_split_by_lists_or_by_a_column(path):
    by_lists = task_of(path, "task.val_tasks=[ben]", "task.test_tasks=[eva,anna]").split
    assert by_lists["val"] == ["ben"] and by_lists["test"] == ["eva", "anna"] and len(by_lists["train"]) == 7
    header, *lines = path.read_text().splitlines()
    kinds = {"anna": "test", "ben": "val"}
    path.write_text("\n".join([header + ",part", *(f"{x},{kinds.get(x.split(',')[0], 'train')}" for x in lines)]))
    by_column = task_of(path, "task.split_column=part").split
    assert by_column["val"] == ["ben"] and by_column["test"] == ["anna"] and len(by_column["train"]) == 8


def test_the_choices_are_those_they_have_always_been(path):
    digest = manifest(task_of(path), "test", 20)
    assert digest == "b98f11dd39853e039d2cd9688df214d3c4e6dad3d02a8d99daf3918d2e16a81c"


def test_a_task_is_chosen_as_often_as_another_and_each_of_its_rows_too(path):
    draw = task_of(path, "task.num_shots=1", "task.num_queries=1").draw("train", range(6000))
    counts = np.bincount(draw["task"], minlength=6)
    assert ((counts - 1000) ** 2 / 1000).sum() < 5 + 5 * np.sqrt(10)  # chi-square of 6 cells, five deviations
    rows = draw["support"][draw["task"] == 0, 0]
    counts = np.unique(rows, return_counts=True)[1]
    expected = len(rows) / len(counts)
    assert ((counts - expected) ** 2 / expected).sum() < len(counts) - 1 + 5 * np.sqrt(2 * len(counts))


def test_the_mean_absolute_error_is_in_the_unit_of_the_column(path):
    task = task_of(path)
    (_, query, _), draw = task.sample("test", [0]), task.draw("test", [0])

    class Zero:
        def predict(self, phi, x):
            return x.new_zeros(len(x), 1)

    episode = task.sample("test", [0])
    one = type(episode)(*(type(b)(b.x[0], b.y[0]) for b in episode[:2]))
    value = task.further_scores(Zero(), None, one)["mae_response"]
    rows = [float(line.split(",")[3]) for line in path.read_text().splitlines()[1:]]
    training = [
        float(x.split(",")[3]) for x in path.read_text().splitlines()[1:] if x.split(",")[0] in task.split["train"]
    ]
    expected = np.abs(np.array(rows)[draw["query"][0]] - np.mean(training)).mean()
    np.testing.assert_allclose(value, expected)
    assert len(query.x[0]) == 5


def test_other_separators_a_byte_order_mark_quotes_and_empty_lines_are_read(tmp_path):
    for separator, written in ((";", '";"'), ("\t", '"\\t"')):
        text = table(SIZES, separator).replace("anna", '"anna"') + "\n\n"
        (tmp_path / "other.csv").write_text(text, encoding="utf-8-sig")
        task = task_of(tmp_path / "other.csv", f"task.separator={written}")
        assert sorted(n for names in task.split.values() for n in names) == sorted(SIZES)


def test_quotation_marks_after_a_blank_are_none_of_an_entry(path):
    plain = task_of(path)
    lines = [line.split(",") for line in path.read_text().splitlines()]
    path.write_text("\n".join(", ".join([first, *(f'"{entry}"' for entry in others)]) for first, *others in lines))
    quoted = task_of(path)
    assert torch.equal(quoted.x, plain.x) and quoted.split == plain.split


@pytest.mark.parametrize("end", ["\n", "\r", "\r\n"])
def test_marks_within_an_entry_end_no_line(path, tmp_path, end):
    plain = task_of(path)
    text = path.read_text().replace("anna", "an\u2028n\x85a").replace("ben", "b\x0be\x0cn\x1c.")
    (tmp_path / "odd.csv").write_bytes(text.replace("\n", end).encode())
    task = task_of(tmp_path / "odd.csv")
    assert torch.equal(task.x, plain.x) and {"an\u2028n\x85a", "b\x0be\x0cn\x1c."} < {
        n for names in task.split.values() for n in names
    }


def test_the_advice_on_another_separator_can_be_pasted_into_a_shell(tmp_path):
    for separator in (";", "\t"):
        (tmp_path / "other.csv").write_text(table(SIZES, separator))
        (advised,) = shlex.split(problem(tmp_path / "other.csv").rpartition("? ")[2])
        assert len(task_of(tmp_path / "other.csv", advised).y) == sum(SIZES.values())


def test_the_documented_separators_can_be_pasted_into_a_shell(tmp_path):
    row = next(line for line in PAGE.read_text().splitlines() if "task.separator=" in line)
    for separator, written in zip((";", "\t"), re.findall(r"`('?task\.separator.*?)`", row), strict=True):
        (tmp_path / "other.csv").write_text(table(SIZES, separator))
        assert len(task_of(tmp_path / "other.csv", *shlex.split(written)).y) == sum(SIZES.values())


def test_it_trains_tests_and_resumes_to_the_same_end(path, tmp_path):
    few = ["task=csv_regression", f"task.path='{path}'", *NAMES, "base_learner.hidden=[8]", "evaluation.every=1"]
    few += ["evaluation.num_val_tasks=2", "evaluation.num_tasks=3", "meta_batch_size=2"]
    whole = train(tmp_path / "whole", *few, "steps=3")
    train(tmp_path / "run", *few, "steps=2")
    assert train(tmp_path / "run", *few, "steps=3", "resume=auto") == whole


def test_verify_notices_a_table_that_has_changed_and_the_picture_names_the_columns(path):
    task = task_of(path)
    task.verify()
    figure = task.show("test", [0, 1])
    assert figure.axes[0].get_xlabel() == "dose" and figure.axes[0].get_ylabel() == "response"
    path.write_text(path.read_text() + "anna,1,2,3\n")
    with pytest.raises(DataError, match="has changed"):
        task.verify()


# ---- what a table says ----


def rows_in(task, split: str = "train") -> np.ndarray:
    return np.concatenate([rows.rows for rows in task.rows[split]])


def told(caplog) -> str:
    return "\n".join(record.getMessage() for record in caplog.records)


def test_decimal_commas_are_read_and_said_once(path, tmp_path, caplog):
    caplog.set_level("INFO")
    plain = task_of(path)
    (tmp_path / "comma.csv").write_text(table(SIZES, ";").replace(".", ","))
    task = task_of(tmp_path / "comma.csv", "task.separator=';'")
    assert torch.equal(task.x, plain.x) and torch.equal(task.y, plain.y)
    assert told(caplog).count("decimal commas are read in 'dose', 'response'") == 1
    (tmp_path / "comma.csv").write_text(table(SIZES, ";").replace("0.03", "0,03"))
    assert "decimal commas (line 5) and decimal points" in problem(tmp_path / "comma.csv", "task.separator=';'")


@pytest.mark.parametrize("more", ["7", "1,234,567", "0,125", "1,25"])
def test_commas_that_may_be_those_of_thousands_are_refused(tmp_path, more):
    ages = ["950", "1,234", "-12,500", more]
    rows = [f"{subject};{i};{ages[i % 4]};{i % 7}" for subject in "abcde" for i in range(12)]
    (tmp_path / "odd.csv").write_text("\n".join(["subject;dose;age;response", *rows]))
    if more in ("7", "1,234,567"):
        said = problem(tmp_path / "odd.csv", "task.separator=';'")
        assert "entries of column 'age', as '1,234' (line 3), may be thousands or decimals. Write all of" in said
    else:  # decimals
        assert task_of(tmp_path / "odd.csv", "task.separator=';'").fits[0][1].mean[0] < 300


def test_lines_of_comments_are_left_out_and_counted(path, caplog):
    caplog.set_level("INFO")
    plain = task_of(path)
    header, *lines = path.read_text().splitlines()
    path.write_text("\n".join(["# measured by A, B, and C", header, lines[0], "#", *lines[1:]]))
    assert torch.equal(task_of(path).x, plain.x)
    assert "2 lines of comments" in told(caplog)


def test_a_header_that_is_a_comment_is_spoken_of_where_names_are_missing(path):
    header, *lines = path.read_text().splitlines()
    for first in (lines[0], "anna,1,1,2"):  # which becomes the header
        path.write_text("\n".join([f"# {header}", first, *lines]))
        with pytest.raises(
            ConfigError, match=r"1 line that begins with # is a comment; is that the header\? Remove its #"
        ):
            task_of(path)


@pytest.mark.parametrize("mark", ["", "NA", "NaN", "?", "-"])
def test_rows_with_missing_values_are_left_out_or_get_the_mean_as_asked(path, mark):
    text = path.read_text()
    path.write_text(text.replace("0.03,", f"{mark},", 1).replace("0.05,", f"{mark},", 1))
    refusal = problem(path)
    assert "line 5: column 'dose' is" in refusal and "; line 7: column" in refusal
    assert all(f"task.missing={choice}" in refusal for choice in ("drop", "mean", "refuse"))
    assert (
        len(task_of(path, "task.missing=drop", "task.test_tasks=[ben]", "task.val_tasks=[cem]").rows["train"][0]) == 10
    )
    filled = task_of(path, "task.missing=mean", "task.test_tasks=[ben]", "task.val_tasks=[cem]")
    assert filled.x[3, 0] == filled.x[5, 0] == 0 and len(filled.rows["train"][0]) == 12


@pytest.mark.parametrize("mark", ["None", "<NA>", "#N/A", ".", "--", "NaT"])
def test_what_is_no_number_but_says_that_one_is_missing_is_missing_among_numbers(path, mark):
    path.write_text(path.read_text().replace("0.03,", f"{mark},", 1))
    assert f"'dose' is {mark!r}" in problem(path) and "task.missing=drop" in problem(path)
    filled = task_of(path, "task.missing=mean", "task.test_tasks=[ben]", "task.val_tasks=[cem]")
    assert filled.x[3, 0] == 0 and filled.spec.input_shape == (2,)


def test_words_that_say_missing_stay_levels_of_a_column_of_words(path, caplog):
    caplog.set_level(logging.INFO, "metarun")
    with_site(path, lambda i, line: ("None", "drug")[i % 2])
    assert task_of(path, *SITE).spec.input_shape == (3,)
    assert "'site' holds categories, an input for each: None, drug." in caplog.text


def test_names_that_say_missing_and_categories_that_are_nearly_equal_are_told(path, caplog):
    caplog.set_level(logging.INFO, "metarun")
    path.write_text(path.read_text().replace("\ndora", "\nNA"))
    with_site(path, lambda i, line: ("Male", "male", "NULL", "none")[i % 4])
    task_of(path, *SITE, "task.missing=mean")
    assert "tasks named 'NA' are what missing entries" in caplog.text
    assert (
        "names of categories of 'site' that are nearly equal, and taken for different ones: 'Male' and" in caplog.text
    )
    assert "categories of 'site' named 'none' are" in caplog.text


def test_a_task_that_lies_within_another_is_told(path, caplog):
    caplog.set_level(logging.INFO, "metarun")
    rows = [line.replace("cem", "cem_old") for line in path.read_text().splitlines() if line.startswith("cem")][:11]
    path.write_text("\n".join([path.read_text().rstrip(), *rows]))
    task_of(path)
    assert "1 task has the rows of another task, under another name: 'cem_old' within 'cem'." in caplog.text


def test_rows_of_few_values_that_many_tasks_have_are_no_task_within_another(path, caplog):
    caplog.set_level(logging.INFO, "metarun")
    levels = [(a, b, c, d) for a in (0, 1) for b in (0, 1) for c in (0, 1) for d in (0, 1)]
    chosen = {str(task): levels[task % 3 : 8 + task] for task in range(8)}
    rows = [",".join([task, *map(str, row)]) for task, of_task in chosen.items() for row in of_task]
    path.write_text("\n".join(["subject,dose,age,site,response", *rows]))
    task_of(path, "task.input_columns=[dose,age,site]", "task.num_shots=2", "task.num_queries=2")
    assert "rows of another task" not in caplog.text


def test_a_number_near_the_others_is_no_code(path, caplog):
    caplog.set_level(logging.INFO, "metarun")
    with_site(path, lambda i, line: 99 if i % 9 == 0 else 99.9 + i / 1e4)
    task_of(path, *SITE)
    assert "far from" not in caplog.text


@pytest.mark.parametrize(("column", "code"), [("age", -999), ("age", 9999), ("response", -999)])
def test_numbers_that_are_codes_of_missing_ones_are_told(path, caplog, column, code):
    caplog.set_level(logging.INFO, "metarun")
    header, *lines = path.read_text().splitlines()
    rows, at = [line.split(",") for line in lines], header.split(",").index(column)
    for row in rows[::30]:
        row[at] = str(code)
    path.write_text("\n".join([header, *map(",".join, rows)]))
    task_of(path)
    assert f"column {column!r} has 4 times {code}, far from all others (" in caplog.text


def test_an_input_that_is_the_output_in_another_unit_is_told(path, caplog):
    caplog.set_level(logging.INFO, "metarun")
    task_of(path, "task.input_columns=[dose,age]")
    assert "is a line" not in caplog.text and "far from" not in caplog.text
    with_site(path, lambda i, line: 32 - 1.8 * float(line.split(",")[3]))
    task_of(path, "task.input_columns=[dose,age,site]")
    assert "an output is a line in all rows, so that they tell it: 'site' of 'response'." in caplog.text


def test_an_input_that_rises_with_the_output_or_has_one_for_each_category_is_told(path, caplog):
    caplog.set_level(logging.INFO)
    lines = ["subject,dose,round,exp,grade,response"]
    for i, dose in enumerate(np.random.default_rng(0).normal(size=60)):
        step = round(2 * dose) / 2 if abs(dose) < 1 else 5.0
        lines.append(f"s{i % 6},{i * i % 17},{step:.1f},{-np.exp(step + i % 7 / 100)},{step > 0},{step + i % 7 / 100}")
    path.write_text("\n".join(lines))
    task_of(path, "task.input_columns=[dose,round,exp,grade]")
    told = [note for note in caplog.messages if "tell it" in note]
    assert told == [
        "input columns with which an output rises, or falls, in all rows, so that they tell it: 'exp' of 'response'. Leave "
        "out what is not known when the output is to be predicted."
    ]
    path.write_text("\n".join([lines[0], *(re.sub("[^,]+$", line.split(",")[2], line) for line in lines[1:])]))
    caplog.clear()
    task_of(path, "task.input_columns=[dose,round,exp,grade]")
    assert "'round' of 'response'" in caplog.text and "'grade' of" not in caplog.text
    path.write_text(
        "\n".join([lines[0], *(re.sub("[^,]+$", str(len(line.split(",")[4])), line) for line in lines[1:])])
    )
    caplog.clear()
    task_of(path, "task.input_columns=[dose,grade]")
    assert "of which each category has one output, so that they tell it: 'grade' of 'response'" in caplog.text


def test_numbers_that_begin_with_0_and_dates_written_as_numbers_are_told(path, caplog):
    caplog.set_level(logging.INFO)
    rows = [line.split(",") for line in table(SIZES).splitlines()[1:]]
    rows = [
        [s, ["01234", "10115", "80331"][i % 3], f"2024{i % 12 + 1:02}{i % 28 + 1:02}", y]
        for i, (s, _, _, y) in enumerate(rows)
    ]
    path.write_text("\n".join(["subject,dose,age,response", *map(",".join, rows)]))
    task_of(path)
    assert (
        "column 'dose' has numbers that begin with 0, as '01234', and is read as numbers. If they are codes"
        in caplog.text
    )
    assert "column 'age' has dates written as numbers, as 20240101, and is read as these" in caplog.text
    caplog.clear()
    task_of(path, "task.category_columns=[dose]")
    assert "begin with 0" not in caplog.text


def test_words_in_an_output_are_answered_without_advice_on_categories(path):
    path.write_text(re.sub(r",[^,]*\n", ",True\n", path.read_text()).replace("age,True", "age,response"))
    assert "1 and 0 for yes and no" in problem(path) and "category_columns" not in problem(path)


@pytest.mark.parametrize("column", ["dose", "response"])
@pytest.mark.parametrize("power", ["e200", "e307", "e-200", "e-310"])
def test_numbers_whose_deviation_cannot_be_computed_are_refused(path, column, power):
    header, *lines = path.read_text().splitlines()
    at = header.split(",").index(column)
    rows = [
        [f"1.{i:03}{power}" if k == at else v for k, v in enumerate(line.split(","))] for i, line in enumerate(lines)
    ]
    path.write_text("\n".join([header, *map(",".join, rows)]))
    assert f"column {column!r} has numbers from 1" in problem(path) and "task.log_columns" in problem(path)


def test_numbers_too_large_for_the_model_are_refused_in_all_splits(path):
    path.write_text(path.read_text().replace("ben,1.0,", "ben,1e300,", 1))
    said = problem(path, "task.test_tasks=[ben]", "task.val_tasks=[cem]", "dtype=float32")
    assert "line 14: numbers that are too large for the model" in said


def test_a_column_that_varies_by_rounding_alone_is_refused_with_all_such_columns(path):
    path.write_text(path.read_text().replace("\n", ",7\n").replace("response,7", "response,same"))
    text = re.sub(r"(?m)^(\w+),\d[^,]*,", r"\1,0.3,", path.read_text())
    path.write_text(text.replace(",0.3,", ",0.30000000000000004,", 1))
    assert "column 'dose', 'same' has one and the same" in problem(path, "task.input_columns=[dose,age,same]")


def test_a_row_without_a_target_is_left_out_where_others_get_the_mean(path):
    path.write_text(path.read_text().replace(",0.0\n", ",NA\n", 1))
    task = task_of(path, "task.missing=mean", "task.test_tasks=[ben]", "task.val_tasks=[cem]")
    assert 0 not in rows_in(task) and torch.isfinite(task.y[rows_in(task)]).all()


def with_site(path: Path, site) -> None:
    header, *lines = path.read_text().splitlines()
    path.write_text("\n".join([f"{header},site", *(f"{line},{site(i, line)}" for i, line in enumerate(lines))]))


SITE = ["task.input_columns=[dose,site]", "task.val_tasks=[ben]", "task.test_tasks=[anna]"]


def test_a_column_of_words_has_an_input_for_each_level_of_the_training_tasks(path, caplog):
    caplog.set_level("INFO")
    with_site(path, lambda i, line: "moon" if line.startswith("anna") and i < 3 else ("north", "south")[i % 2])
    task = task_of(path, *SITE)
    assert task.spec.input_shape == (3,)
    assert task.x[:5, 1:].tolist() == [[0, 0], [0, 0], [0, 0], [0, 1], [1, 0]]
    assert told(caplog).count("no training task has 'moon'") == 1


@pytest.mark.parametrize("ages", [("800", "1.234"), ("-12.500", "1.234"), ("1.234", "0.5")])
def test_points_that_may_be_those_of_thousands_are_refused_beside_decimal_commas(tmp_path, ages):
    rows = [f"{subject};{i},5;{ages[i % 2]};{i % 7}" for subject in "abcde" for i in range(12)]
    (tmp_path / "german.csv").write_text("\n".join(["subject;dose;age;response", *rows]))
    if "0.5" in ages:  # a decimal point
        assert task_of(tmp_path / "german.csv", "task.separator=';'").fits[0][1].mean[0] < 2
        return
    said = problem(tmp_path / "german.csv", "task.separator=';'")
    assert "entries of column 'age', as '" in said and "may be thousands or decimals, for the table has" in said
    (tmp_path / "german.csv").write_text("\n".join(["subject;dose;age;response", *rows]).replace(",5;", ".5;"))
    assert task_of(tmp_path / "german.csv", "task.separator=';'")  # no decimal comma: they are decimals as everywhere


@pytest.mark.parametrize(
    "forms", [("10%", "20 %"), ("1,000", "2,000.5"), ("\u22125", "\u22126"), ("1\xa0000", "2'000")]
)
def test_categories_that_look_like_numbers_are_told_with_the_fix(path, forms):
    with_site(path, lambda i, _: f'"{forms[i % 2]}"')
    inputs = "task.input_columns=[site,dose]"
    assert any("They look like numbers." in note and "without %" in note for note in task_of(path, inputs).notes)
    assert "look like" not in " ".join(task_of(path, inputs, "task.category_columns=[site]").notes)


@pytest.mark.parametrize("forms", [("5 kg", "12kg"), ("$5", "$ 7.50"), ("1.234,5", "12.000,25"), ("<3", "<0.5")])
def test_categories_that_are_numbers_with_a_unit_are_told_with_the_fix(path, forms):
    with_site(path, lambda i, _: f'"{forms[i % 2]}"')
    notes = task_of(path, "task.input_columns=[site,dose]").notes
    assert any("They look like numbers." in note and "and units" in note for note in notes)


@pytest.mark.parametrize("forms", [("2021-03-04", "2021-3-5"), ("04.03.2021", "5.3.21"), ("08:30", "9:15:00")])
def test_categories_that_are_dates_or_times_are_told_with_the_fix(path, forms):
    with_site(path, lambda i, _: forms[i % 2])
    notes = task_of(path, "task.input_columns=[site,dose]").notes
    assert any("They look like dates or times." in note and "days since" in note for note in notes)


def test_categories_that_hold_digits_beside_letters_are_said_without_advice(path):
    with_site(path, lambda i, _: ("north 1", "1st", "2020-01-02", "1.2.3")[i % 4])
    assert "look like" not in " ".join(task_of(path, "task.input_columns=[site,dose]").notes)


def test_a_column_of_another_percentage_in_each_row_is_answered_with_the_fix(path):
    with_site(path, lambda i, _: f"{i}%")
    assert "write them without %" in problem(path, "task.input_columns=[site,dose]")


def test_numbers_are_categories_where_the_user_says_so(path):
    with_site(path, lambda i, line: str(i % 3))
    assert task_of(path, *SITE).spec.input_shape == (2,)
    assert task_of(path, *SITE, "task.category_columns=[site]").spec.input_shape == (4,)


def test_levels_that_are_numbers_are_known_in_every_form_of_the_examples(path, tmp_path):
    with_site(path, lambda i, line: str(i % 3))
    reader = task_of(path, *SITE, "task.category_columns=[site]").reader()
    (tmp_path / "rows.csv").write_text("dose,site\n" + "".join(f"0.5,{site}\n" for site in ("0", "2.0", "1")))
    forms = [{"dose": [0.5] * 3, "site": sites} for sites in ([0, 2, 1], [0.0, 2.0, 1.0], ["0", " 2", "1"])]
    forms += [np.array([[0.5, 0], [0.5, 2], [0.5, 1]]), [{"dose": 0.5, "site": site} for site in (0, 2, 1)]]
    found = [reader.inputs(form) for form in forms] + [reader.read(tmp_path / "rows.csv", labelled=False).x]
    assert all(x[:, 1:].tolist() == [[1, 0, 0], [0, 0, 1], [0, 1, 0]] for x in found)


def test_an_unknown_level_of_examples_in_memory_is_warned_of(path):
    with_site(path, lambda i, line: str(i % 3))
    reader = task_of(path, *SITE, "task.category_columns=[site]").reader()
    with pytest.warns(UserWarning, match=r"column 'site': no training task has '7'"):
        assert reader.inputs({"dose": [0.5, 0.5], "site": [7, 1]})[:, 1:].tolist() == [[0, 0, 0], [0, 1, 0]]


def test_a_level_of_examples_in_other_letters_is_told_with_the_one_that_is_known(path, recwarn):
    with_site(path, lambda i, _: ("north", "south")[i % 2])
    reader = task_of(path, *SITE).reader()
    reader.inputs({"dose": [1, 2], "site": ["north", "south"]})
    assert not recwarn
    reader.inputs({"dose": [1, 2], "site": ["NORTH", "south"]})
    said = "names of categories of 'site' that are nearly equal, and taken for different ones: 'NORTH' and 'north'"
    assert [said in str(one.message) for one in recwarn] == [False, True]


def test_no_column_that_is_read_is_taken_for_one_that_is_missing(path):
    path.write_text(path.read_text().replace("age", "pose"))
    reader = task_of(path, "task.input_columns=[dose,pose]").reader()
    with pytest.raises(DataError, match=r"column 'dose' is missing: .*no such column; there are 'amount', 'pose'"):
        reader.inputs({"amount": [1], "pose": [2]})


def test_columns_without_a_name_are_passed_over_as_spreadsheets_leave_them(path):
    text = path.read_text()
    right = task_of(path).x
    path.write_text(text.replace("\n", ",,\n"))
    assert torch.equal(task_of(path).x, right)


def test_an_unknown_level_of_arrays_in_a_file_is_a_note_and_no_warning(path, tmp_path, recwarn):
    with_site(path, lambda i, line: str(i % 3))
    reader = task_of(path, *SITE, "task.category_columns=[site]").reader()
    np.savez(tmp_path / "rows.npz", x=[[0.5, 7], [0.5, 1]])
    notes = reader.read(tmp_path / "rows.npz", labelled=False).notes
    assert "rows.npz: column 'site': no training task has '7'" in notes[0] and not len(recwarn)


def test_no_row_is_left_out_of_those_that_are_to_be_predicted(path, tmp_path):
    text = "dose,age,response\n0.5,1,2\nNA,2,3\n0.7,3,4\n"
    (tmp_path / "rows.csv").write_text(text)
    reader = task_of(path, "task.missing=drop").reader()
    for read, place in (
        (
            lambda: reader.inputs({"dose": [0.5, np.nan, 0.7], "age": [1, 2, 3]}),
            "counted from 0, line 1: column 'dose'",
        ),
        (lambda: reader.read(tmp_path / "rows.csv", labelled=False), "line 3: column 'dose'"),
    ):
        with pytest.raises(DataError, match=f"{place} is .*task.missing=mean"):
            read()
    assert reader.read(tmp_path / "rows.csv", labelled=True).items == ["line 2", "line 4"]
    filled = task_of(path, "task.missing=mean").reader().read(tmp_path / "rows.csv", labelled=False)
    assert filled.items == ["line 2", "line 3", "line 4"] and filled.x[1, 0] == 0


def test_a_logarithm_is_taken_and_the_error_stays_in_the_unit_of_the_column(path):
    path.write_text(re.sub(r",0.0\n", ",0.1\n", path.read_text()))
    task = task_of(path, "task.log_columns=[response]")
    values = np.log([float(line.split(",")[3]) for line in path.read_text().splitlines()[1:]])
    training = values[rows_in(task)]
    np.testing.assert_allclose(task.y[:, 0], (values - training.mean()) / training.std(), atol=1e-12)

    class Zero:
        def predict(self, phi, x):
            return x.new_zeros(len(x), 1)

    episode = task.sample("test", [0])
    one = type(episode)(*(type(b)(b.x[0], b.y[0]) for b in episode[:2]))
    expected = np.abs(np.exp(values[task.draw("test", [0])["query"][0]]) - np.exp(training.mean())).mean()
    np.testing.assert_allclose(task.further_scores(Zero(), None, one)["mae_response"], expected)
    assert "line 2: column 'dose' is 0.0" in problem(path, "task.log_columns=[dose]")


def test_small_tasks_are_refused_all_at_once_or_left_out_by_min_rows(path, caplog):
    caplog.set_level("INFO")
    path.write_text(table({**SIZES, "kim": 3, "lea": 7}))
    refusal = problem(path)
    assert "'kim'" in refusal and "only 3 rows" in refusal and "lea (7)" in refusal and "task.min_rows=10" in refusal
    task = task_of(path, "task.min_rows=10")
    assert sorted(name for names in task.split.values() for name in names) == sorted(SIZES)
    assert "kim (3), lea (7)" in told(caplog)


def test_the_first_rows_are_the_support_where_later_ones_are_forecast(path):
    task = task_of(path, "task.support=first")
    draw = task.draw("train", range(50))
    for t, support, query in zip(draw["task"], draw["support"], draw["query"], strict=True):
        rows = task.rows["train"][t].rows
        assert support.tolist() == rows[:5].tolist() and {*query} <= {*rows[5:]} and len({*query}) == 5


def test_a_number_with_an_underscore_is_none(path):
    path.write_text(path.read_text().replace("0.03,", "1_0,", 1))
    assert "line 5: column 'dose' is '1_0', which is not a finite number" in problem(path)


def test_repeated_rows_of_a_task_are_kept_once_and_counted(path, caplog):
    caplog.set_level("INFO")
    header, *lines = path.read_text().splitlines()
    path.write_text("\n".join([header, *(line for line in lines for _ in range(4))]))
    task = task_of(path)
    assert sum(len(rows) for split in task.rows.values() for rows in split) == len(lines)
    assert f"{3 * len(lines)} rows repeat another row of the same task" in told(caplog)
    assert "num_shots + task.num_queries is 13" in problem(path, "task.num_shots=8")


def test_rows_that_hold_the_same_numbers_are_one_however_these_are_written(path):
    text = path.read_text()
    path.write_text(text + "anna,+0.010,-1.0,1.42857142857142849e-01\n" + "anna,-0.0,0,0.\n")
    note = "2 rows repeat another row of the same task and are left out: line 113 = line 3, line 114 = line 2."
    assert note in task_of(path).notes
    lines = text.splitlines()
    path.write_text(
        "\n".join([f"{lines[0]},nr", *(f"{line},{i}" for i, line in enumerate(lines[1:])), "anna,0.0,-0,0,x"])
    )
    assert any("1 row of" in note and "in all columns that are used" in note for note in task_of(path).notes)


def test_tasks_that_hold_the_same_rows_under_two_names_are_told(path):
    text = path.read_text()
    copied = "".join(f"new {line}\n" for line in text.splitlines() if line.startswith(("ben", "eva")))
    path.write_text(text + copied)
    note = "2 tasks have the rows of another task, under another name: 'new ben' = 'ben', 'new eva' = 'eva'."
    assert any(said.startswith(note) for said in task_of(path).notes)


def test_columns_that_are_not_read_are_told_and_one_of_splits_with_its_setting(path):
    header, *lines = path.read_text().splitlines()
    parts = {"anna": "test", "ben": "Valid"}
    more = [f"{line},1,{parts.get(line.split(',')[0], 'train')},a,b,c,d" for line in lines]
    path.write_text("\n".join([f"{header},site,split,a,b,c,d", *more]))
    unread = f"{path}: not read are the columns 'site', 'split', 'a', 'b', 'c' (and 1 more)"
    assert f"{unread}; task.split_column=split splits the tasks by it." in task_of(path).notes
    assert f"{unread}." in task_of(path, "task.val_tasks=[ben]", "task.test_tasks=[anna]").notes
    by_column = " ".join(task_of(path, "task.split_column=split").notes)
    assert "not read are the columns 'site', 'a', 'b', 'c', 'd'." in by_column


def test_rows_of_one_group_are_never_in_both_support_and_query(path):
    header, *lines = path.read_text().splitlines()
    copies = [f"{line},{i}" for i, line in enumerate(lines) for _ in range(3)]
    path.write_text("\n".join([f"{header},visit,nr", *(f"{line},{nr}" for nr, line in enumerate(copies))]))
    for support in ("random", "first"):
        draw = task_of(path, "task.group_column=visit", f"task.support={support}").draw("train", range(100))
        for one, other in zip(draw["support"] // 3, draw["query"] // 3, strict=True):
            assert not {*one} & {*other}


def test_forecasts_are_of_rows_below_the_support_also_where_groups_interleave(path):
    header, *lines = table(dict.fromkeys("abcdefgh", 30)).splitlines()
    path.write_text("\n".join([f"{header},visit", *(f"{line},v{i % 30 % 10}" for i, line in enumerate(lines))]))
    draw = task_of(path, "task.group_column=visit", "task.support=first").draw("train", range(100))
    assert (draw["support"] % 30 == np.arange(5)).all()
    assert (draw["query"].min(1) > draw["support"].max(1)).all() and draw["query"].max() % 30 > 9
    for one, other in zip(draw["support"] % 10, draw["query"] % 10, strict=True):
        assert len({*one, *other}) == 10


def test_a_task_that_is_not_there_is_answered_with_those_that_are(path):
    said = problem(path, "task.test_tasks=[ann]", "task.val_tasks=[ben]")
    assert "name 'ann', which is no task of the data; there are 'anna', 'ben', " in said


def test_names_of_tasks_match_as_text_and_stand_once(path):
    path.write_text(table({"007": 10, "7": 10, "1_000": 10, "1000": 10, "true": 10}))
    split = task_of(path, "task.val_tasks=[007]", "task.test_tasks=[1_000,true]").split
    assert split == {"train": ["1000", "7"], "val": ["007"], "test": ["1_000", "true"]}
    assert "task.val_tasks names '7' more than once" in problem(path, "task.val_tasks=[7,7]", "task.test_tasks=[007]")


def test_names_of_tasks_that_are_nearly_equal_are_told():
    assert nearly_equal(["s1", "S1", "2", "2.0", "007", "7", "a b", "a\xa0 b", "a\u200b", "a"], "tasks") == [
        "names of tasks that are nearly equal, and taken for different ones: '007' and '7', '2' and '2.0', 'S1' and 's1', "
        "'a' and 'a\\u200b', 'a b' and 'a\\xa0 b'. Write them alike where they are one."
    ]
    assert nearly_equal(["a", "b", "a", "s1", "s10"], "tasks") == []


def test_names_of_tasks_and_groups_that_are_nearly_equal_join_the_notes(path):
    header, *lines = table({"big oak": 12, "big  oak": 12, **SIZES}).splitlines()
    path.write_text("\n".join([f"{header},visit", *(f"{line},{i}" for i, line in enumerate(lines)), "ben,1,9,3,0001"]))
    notes = " ".join(task_of(path, "task.group_column=visit").notes)
    assert "names of tasks that are nearly equal, and taken for different ones: 'big  oak' and 'big oak'." in notes
    assert "names of groups that are nearly equal, and taken for different ones: '0001' and '1'." in notes


def test_all_faults_are_told_at_once_five_of_each_kind_and_a_count(path):
    text = re.sub(r"(?m)^anna,[^,]*,", "anna,word,", path.read_text())
    path.write_text(text.replace("ben,1.0,", " ,,", 1))
    with pytest.raises(ConfigError) as error:
        task_of(path)
    said = "\n".join(error.value.problems)
    assert "line 6: column 'dose' is 'word'" in said and "line 7" not in said and "(and 7 more)" in said
    assert "line 14: column 'dose' is empty" in said and "line 14: column 'subject'" in said


FEW = [
    "base_learner.hidden=[8]",
    "evaluation.every=1",
    "evaluation.num_val_tasks=2",
    "evaluation.num_tasks=3",
    "steps=1",
]


def test_another_table_is_measured_by_the_means_of_the_training(path, tmp_path):
    train(tmp_path / "run", "task=csv_regression", f"task.path='{path}'", *NAMES, *FEW)
    rows = [line.split(",") for line in path.read_text().splitlines()]
    more = [[f"new {row[0]}", str(5 * float(row[1])), *row[2:]] for row in rows[1:]]
    (tmp_path / "new.csv").write_text("\n".join(map(",".join, [rows[0], *more])))
    run = trained(tmp_path / "run", [f"task.path='{tmp_path / 'new.csv'}'", "task.split={test: all}"], "last", [])
    before, after = task_of(path), run.experiment.task
    assert after.splits == ("test",) and len(after.split["test"]) == 10
    assert torch.equal(after.y, before.y) and torch.equal(after.x[:, 1], before.x[:, 1])
    assert after.fitted() == before.fitted()
    assert evaluate_run(tmp_path / "run", [f"task.path='{tmp_path / 'new.csv'}'"], "test", "last", []) is None


def test_tasks_that_were_trained_on_are_named_where_an_evaluation_tests_on_them(path, tmp_path, capsys):
    train(tmp_path / "run", "task=csv_regression", f"task.path='{path}'", *NAMES, *FEW)
    names = ", ".join(sorted(task_of(path).split["train"]))
    evaluate_run(tmp_path / "run", ["task.split={test: all}"], "test", "last", [])
    assert f"6 of 10 test tasks were trained on, by name: {names}\n" in capsys.readouterr().out


def test_a_run_that_kept_no_means_takes_those_of_the_new_table_and_says_so(path, tmp_path, capsys):
    train(tmp_path / "run", "task=csv_regression", f"task.path='{path}'", *NAMES, *FEW)
    (tmp_path / "run" / "fitted.json").unlink()
    (tmp_path / "new.csv").write_text(path.read_text().replace("anna", "zoe"))
    trained(tmp_path / "run", [f"task.path='{tmp_path / 'new.csv'}'"], "last", [])
    assert "has no fitted.json" in capsys.readouterr().out


# ---- mistakes ----


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["task.task_column=subjct"],
            r"task.task_column names 'subjct', .*; did you mean 'subject'\?; there are 'subject'",
        ),
        (["task.task_column=''"], r"task.task_column names '', .*no such column"),
        (["task.group_column=''"], r"task.group_column names '', .*no such column"),
        (["task.input_columns=[dosis]"], r"task.input_columns names 'dosis', .*did you mean 'dose'"),
        (["task.output_columns=[dose]"], r"'dose' is named more than once"),
        (["task.input_columns=[]"], r"must each name at least one column"),
        (
            ["task.num_shots=6"],
            r"num_queries is 11, but the task '\w+' .* has only 10 rows .*Lower their sum to at most 10",
        ),
        (["task.val_tasks=[zoe]"], r"name 'zoe', which is no task"),
        (["task.val_tasks=[ben]"], r"leaves no task for test"),
        (["task.val_tasks=[ben]", "task.test_tasks=[ben]"], r"both name 'ben'"),
        (["task.val_share=0.6", "task.test_share=0.4"], r"below 1 in sum"),
        (["task.split_column=age"], r"line 2: column 'age'|named more than once"),
        (["task.separator=';'"], r"names 'subject'|is another separator used\? 'task.separator=\",\"'"),
        (["task.separator='||'"], r"must be one character"),
    ],
)
def test_a_wrong_setting_is_answered_with_the_fix(path, overrides, message):
    assert re.search(message, problem(path, *overrides))


def replaced(old: str, new: str, count: int = 1):
    return lambda text: text.replace(old, new, count)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (replaced("0.03,", "three,"), r"line 5: column 'dose' is 'three', which is not a finite number"),
        (replaced("0.03,", "nan,"), r"line 5: column 'dose' is 'nan', which is not a finite number"),
        (replaced("0.03,", "inf,"), r"line 5: column 'dose' is 'inf', which is not a finite number"),
        (replaced("0.03,", ","), r"line 5: column 'dose' is empty"),
        (
            replaced("\nanna,0.03", "\n ,0.03"),
            r"line 5: column 'subject', which names the task, is empty. Correct the line",
        ),
        (replaced("0.03,", ""), r"line 5: 3 entries, where the header has 4"),
        (replaced("dose,age", "age,age"), r"several columns are named 'age'"),
        (lambda text: "", r"is empty; it must have a line of column names"),
        (lambda text: text.splitlines()[0], r"has column names and no further line"),
        (
            lambda text: table({"anna": 30}),
            r"has 1 different values, but training, validation and test need a task each",
        ),
        (
            lambda text: re.sub(r",[^,]*\n", ",5\n", text).replace("age,5", "age,response"),
            r"'response' has one and the same",
        ),
        (replaced("anna", '"anna'), r"Quotation marks must come in pairs"),
        (
            replaced("anna", "a" * 140_000),
            r"line 2: an entry has more than 131072 letters, which are not read\. Shorten",
        ),
    ],
)
def test_a_mistake_in_the_table_is_answered_with_its_place(path, change, message):
    path.write_text(change(path.read_text()))
    assert re.search(message, problem(path))


@pytest.mark.parametrize(
    ("entries", "cure"),
    [
        (["10%", "20%"], "write them without % and units"),
        (["5 \u20ac", "6 \u20ac"], "write them without % and units"),
        (['"1,234"', '"2,500"'], "without commas, points or blanks between thousands"),
        (["2024-01-31", "2024-02-01"], "days since the first, say"),
        (["yes", "no"], "1 and 0 for yes and no"),
    ],
)
def test_an_output_that_is_written_as_people_do_is_answered_with_how_to_write_it(path, entries, cure):
    lines = path.read_text().splitlines()
    changed = [re.sub("[^,]+$", entries[i % 2], line) for i, line in enumerate(lines[1:])]
    path.write_text("\n".join([lines[0], *changed]))
    assert cure in problem(path)


def test_lines_that_all_have_one_entry_more_are_answered_with_where_it_comes_from(path):
    first, *lines = path.read_text().splitlines()
    path.write_text("\n".join([first, *(f"{line}," for line in lines)]))
    assert "has 4 names, and every other line an entry more. All of these end with ',': end the first line" in problem(
        path
    )
    path.write_text("\n".join([f"{first},", *(f"{line}," for line in lines)]))
    task_of(path)
    path.write_text("\n".join([first, *(f"{i},{line}" for i, line in enumerate(lines, 1))]))
    assert "If they begin with names of rows, as R writes them, begin the first line with a name and ','." in problem(
        path
    )


@pytest.mark.parametrize("blanks", [" ", "   "])
def test_a_table_of_blanks_is_answered_with_the_command_that_makes_commas(path, blanks):
    right = path.read_text()
    path.write_text("".join(f" {line} \n" for line in right.replace(",", blanks).splitlines()))
    said = problem(path)
    assert "its columns are separated by blanks" in said
    subprocess.run(said.rpartition("named instead: ")[2], shell=True, check=True)
    assert path.with_stem("table_commas").read_text() == right


def test_files_that_are_no_tables_are_refused(path, tmp_path):
    path.write_bytes(path.read_bytes().replace(b"ben", b"b\xe9n", 1))
    assert re.search(r"line 14 is not UTF-8 \(byte 0xe9\)", problem(path))
    path.write_bytes(gzip.compress(b"dose,age\n1,2\n"))
    assert "is packed by gzip. This makes of it a file to be named instead: gzip -dc" in problem(path)
    assert "there is no such file" in problem(tmp_path / "nothing.csv")
    assert "is a folder, but a table is one file. Name one of its files: " in problem(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_refused(path):
    path.chmod(0)
    assert "cannot be read: Permission denied" in problem(path)


def test_a_mistake_ends_a_command_with_code_2_one_message_and_nothing_left_behind(path, tmp_path):
    path.write_text(path.read_text().replace("0.03,", "three,", 1))
    outcome = metarun("task=csv_regression", f"task.path={path}", *NAMES, f"run_dir={tmp_path / 'run'}")
    assert outcome.code == 2
    assert "line 5: column 'dose' is 'three'" in outcome.text and "Traceback" not in outcome.text
    assert not (tmp_path / "run").exists()
    outcome = metarun("task=csv_regression", f"run_dir={tmp_path / 'run'}")
    assert outcome.code == 2 and "task.path has no value; add task.path=..." in outcome.text


# ---- the documentation ----


def test_the_documented_example_makes_a_table_of_200_lines_and_gives_a_test_score(tmp_path, monkeypatch):
    section = PAGE.read_text().split("## Tables")[1].split("\n## ")[0]
    monkeypatch.chdir(tmp_path)
    exec(re.search(r"```python\n(.*?)```", section, re.S)[1], {})
    assert len((tmp_path / "growth.csv").read_text().splitlines()) == 201
    command = shlex.split(re.search(r"^metarun (experiment=table .*?)(?:\s+#.*)?$", section, re.M)[1])
    fast = ["execution=vmapped", "dtype=float32"]
    assert train(tmp_path / "run", *command, *fast) < 0.1
    other = re.search(r"`(task=csv_regression\s+meta_learner=r2d2 .*?)` with the columns as above", section)[1].split()
    assert train(tmp_path / "r2d2", *other, *command[1:], *fast) < 0.1
