"""profile=true: a trace that viewers read, and a table of where the time goes."""

import json

from tests.composing import train

SMALL = ("execution=vmapped", "evaluation.num_val_tasks=2", "evaluation.num_tasks=2", "profile=true")


def test_a_profile_has_a_trace_and_a_table_of_the_parts_of_a_step(tmp_path, capsys):
    train(tmp_path, *SMALL, "steps=12")
    trace = json.loads((tmp_path / "profile" / "metarun.pt.trace.json").read_text())
    names = {event.get("name") for event in trace["traceEvents"]}
    assert {"metarun/episodes", "metarun/step", "metarun/log"} <= names
    head, *rows = (tmp_path / "profile" / "table.txt").read_text().splitlines()
    assert head.startswith("5 training steps")
    milliseconds = dict(row.strip().rsplit(maxsplit=1) for row in rows[:4])
    step, optimizer = (float(milliseconds[name]) for name in milliseconds if "optimizer" in name)
    assert 0 < optimizer < step
    assert str(tmp_path / "profile" / "table.txt") in capsys.readouterr().err


def test_a_run_too_short_to_profile_says_so_before_its_first_step(tmp_path, capsys):
    train(tmp_path, *SMALL, "steps=3")
    said = capsys.readouterr().err
    assert "profile: nothing is written, because it needs 10 steps and there are 3\n" in said.partition("final test")[0]
    assert not (tmp_path / "profile").exists()
