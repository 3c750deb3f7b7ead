"""Trained scores, where the plain loop puts them: see ``tests/canaries.py``, which found the intervals."""

import json

import pytest

from tests.canaries import CANARIES, INTERVALS, overrides_of
from tests.composing import train

KNOWN = json.loads(INTERVALS.read_text())
WIDTH = 4.0  # deviations over seeds; with 45% of a step's signs wrong, max-pooled scores fell by 5 to 20 of them


def test_every_canary_has_an_interval():
    assert KNOWN.keys() == CANARIES.keys()


@pytest.mark.parametrize("name", CANARIES)
def test_a_trained_score_lies_where_the_plain_loop_puts_it(name, tmp_path):
    score = train(tmp_path / "run", *overrides_of(name, seed=0))
    assert abs(score - KNOWN[name]["mean"]) < WIDTH * KNOWN[name]["deviation"]
