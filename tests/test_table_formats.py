"""One table in five formats: each can be read back, whatever stands in its cells."""

import csv
import io
import json

import pytest
from rich.console import Console

from metarun.errors import ConfigError
from metarun.output import tables
from metarun.output.tables import (
    Score,
    Table,
    as_csv,
    as_json,
    as_latex,
    as_markdown,
    refuse_other_formats,
    show,
    text_of,
)

HOSTILE = [r"a|b\c", "100 % & $5_000 #1 {x} ~^", 'say "hi", now', "two\nlines", "\x1b[31mred", "[b]*_x_*`<i>"]
TABLE = Table(
    ["name", "score", "steps", "done"],
    [["maml", Score(0.98123, 0.00214, 600), 100, True], ["protonet, 5", None, None, False]],
    title="two runs",
)


def test_a_score_is_written_to_the_second_digit_of_its_interval():
    assert Score(0.98123, 0.00214, 600).text() == "0.9812 +- 0.0021"
    assert Score(-512.34, 21.9, 20).text() == "-512 +- 22"
    assert Score(4.1, 1.7, 20).text(" ± ") == "4.1 ± 1.7"
    for unknown in (None, 0.0, float("inf"), float("nan")):
        assert Score(0.98127, unknown).text() == "0.9813"


def test_json_has_numbers_in_full_and_null_for_what_is_not_finite():
    assert json.loads(as_json(TABLE)) == [
        {"name": "maml", "score": {"mean": 0.98123, "ci95": 0.00214, "n": 600}, "steps": 100, "done": True},
        {"name": "protonet, 5", "score": None, "steps": None, "done": False},
    ]
    odd = Table(["a", "b", "c"], [[float("nan"), Score(1.0, float("inf"), 1), [1, {"x": float("inf")}]]])
    assert json.loads(as_json(odd)) == [{"a": None, "b": {"mean": 1.0, "ci95": None, "n": 1}, "c": [1, {"x": None}]}]


def test_csv_spreads_a_score_over_three_columns():
    assert list(csv.reader(io.StringIO(as_csv(TABLE)))) == [
        ["name", "score", "score_ci95", "score_n", "steps", "done"],
        ["maml", "0.98123", "0.00214", "600", "100", "true"],
        ["protonet, 5", "", "", "", "", "false"],
    ]


def test_csv_and_json_give_back_every_text():
    table = Table(["text"], [[text] for text in HOSTILE])
    assert [row[0] for row in csv.reader(io.StringIO(as_csv(table)))][1:] == HOSTILE
    assert [row["text"] for row in json.loads(as_json(table))] == HOSTILE


def test_markdown_has_a_line_a_row_with_numbers_at_the_right():
    assert as_markdown(TABLE).splitlines() == [
        "### two runs",
        "",
        "| name | score | steps | done |",
        "| --- | ---: | ---: | ---: |",
        "| maml | 0.9812 ± 0.0021 | 100 | true |",
        "| protonet, 5 |  |  | false |",
    ]


def test_markdown_escapes_what_would_be_markup():
    lines = as_markdown(Table(["text"], [[text] for text in HOSTILE])).splitlines()[2:]
    assert lines[0] == r"| a\|b\\c |"
    assert lines[3:] == ["| two lines |", r"|  \[31mred |", r"| \[b\]\*\_x\_\*\`\<i\> |"]
    assert "| meta_learner |" in as_markdown(Table(["meta_learner"], []))


def test_latex_is_a_tabular_with_scores_in_mathematics():
    assert as_latex(TABLE).splitlines() == [
        "% two runs",
        r"% needs \usepackage{booktabs}",
        r"\begin{tabular}{lrrr}",
        r"\toprule",
        r"name & score & steps & done \\",
        r"\midrule",
        r"maml & $0.9812 \pm 0.0021$ & 100 & true \\",
        r"protonet, 5 &  &  & false \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]


def test_latex_escapes_its_own_characters():
    lines = as_latex(Table(["text"], [[text] for text in HOSTILE])).splitlines()[5:]
    assert lines[0] == r"a|b\textbackslash{}c \\"
    assert lines[1] == r"100 \% \& \$5\_000 \#1 \{x\} \textasciitilde{}\textasciicircum{} \\"
    assert lines[5] == r"[b]*\_x\_*`\textless{}i\textgreater{} \\"


def test_a_terminal_gets_no_control_characters_and_no_folded_lines(capsys):
    show(Table(["text"], [[text] for text in [*HOSTILE, "x" * 300]]))
    shown = capsys.readouterr().out
    assert "\x1b" not in shown and "[b]*_x_*`<i>" in shown and "x" * 300 in shown
    assert text_of("\x1b[31mred\n\x07") == " [31mred  "


def test_an_unknown_format_is_refused_with_those_that_there_are():
    with pytest.raises(ConfigError, match="--format is 'tex'; use table, json, csv, md or latex"):
        refuse_other_formats("tex")


def test_a_narrow_terminal_folds_the_other_columns_and_no_name(monkeypatch, capsys):
    monkeypatch.setattr(tables, "table_console", lambda width: Console(width=60))
    names = ["omniglot/twenty_ways_1", "sinusoid/5s"]
    show(Table(["name", *"abcd"], [[name, *4 * ["one two three four"]] for name in names]))
    printed = capsys.readouterr().out
    assert all(name in printed for name in names) and max(map(len, printed.splitlines())) <= 60
    show(Table(["name", "a"], [[80 * "x", "y"]]))  # longer than half of the line: folded, with all its letters
    assert capsys.readouterr().out.count("x") == 80
