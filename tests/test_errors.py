"""Errors that travel: launchers pickle what a job raises, and read it in another process."""

import pickle

import pytest

from metarun.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    DataProblems,
    Diverged,
    Interrupted,
    MetarunError,
    MissingDataError,
)
from metarun.execution.decorated import GraphFailed

RAISED = [
    MetarunError("why"),
    ConfigError(["one", "two"], where="a file"),
    CheckpointError("gone"),
    Diverged("nan"),
    Interrupted(15),
    DataError("short"),
    DataProblems(["one", "two"]),
    MissingDataError("gone"),
    GraphFailed("not compiled", ValueError("why"), "; leave it out"),
]


def test_every_error_of_the_module_is_tried_here():
    def below(kind: type) -> set[type]:
        return {kind}.union(*map(below, kind.__subclasses__()))

    ours = {kind for kind in below(Exception) if kind.__module__ == "metarun.errors"}
    assert ours <= {type(error) for error in RAISED}


@pytest.mark.parametrize("error", RAISED, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_an_error_survives_pickling_with_its_text_problems_and_exit_code(error, protocol):
    again = pickle.loads(pickle.dumps(error, protocol))
    assert type(again) is type(error) and str(again) == str(error) and again.args == error.args
    assert vars(again) == vars(error)
    assert getattr(again, "exit_code", None) == getattr(error, "exit_code", None)
