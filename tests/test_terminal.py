"""The live line of a terminal: whole fields, the scores last to go, and a word where no step is taken."""

from types import SimpleNamespace

import pytest

from metarun.execution.choosing import choose_execution
from metarun.execution.execution import Auto, Workload
from metarun.output.terminal import Ticker
from tests.helpers import image_episodes, make

VALUES = {"train/query_loss": 0.7654321, "train/accuracy": 0.8123456, "train/lr": 0.001}


@pytest.fixture
def ticker_of(monkeypatch):
    """A ticker of a terminal with so many columns, whose clock stands at 100 s, half way and validated."""
    clock, tickers = SimpleNamespace(now=0.0), []
    monkeypatch.setattr("metarun.output.terminal.time.monotonic", lambda: clock.now)
    monkeypatch.setenv("FORCE_COLOR", "1")

    def made(columns: int) -> Ticker:
        clock.now = 0.0
        monkeypatch.setenv("COLUMNS", str(columns))
        ticker = Ticker(total=60000, start=0, score="val/accuracy")
        tickers.append(ticker)
        clock.now = 100.0
        ticker.validation(30000, {"val/accuracy": 0.8765432})
        ticker.training(30000, VALUES)
        return ticker

    yield made
    for ticker in tickers:
        ticker.ended("completed")


def line(ticker: Ticker) -> str:
    return ticker.bar.columns[0].render(ticker.bar.tasks[0]).plain


def test_a_wide_terminal_shows_every_field(ticker_of):
    rest = "300/s  0:01:40 left  val/accuracy 0.8765  query_loss 0.7654  accuracy 0.8123"
    assert line(ticker_of(160)) == f"step 30000/60000  {'━' * 8}{'─' * 8}  {rest}"


def test_a_narrow_terminal_loses_whole_fields_and_the_accuracies_last(ticker_of):
    assert line(ticker_of(80)) == "step 30000/60000  0:01:40 left  val/accuracy 0.8765  accuracy 0.8123"
    assert line(ticker_of(60)) == "step 30000/60000  val/accuracy 0.8765  accuracy 0.8123"
    assert line(ticker_of(40)) == "val/accuracy 0.8765  accuracy 0.8123"
    assert line(ticker_of(25)) == "val/accuracy 0.8765"


@pytest.mark.parametrize("columns", range(5, 170, 3))
def test_no_width_cuts_a_field(columns, ticker_of):
    whole = line(ticker_of(200)).split("  ")
    shown = line(ticker_of(columns))
    assert len(shown) < columns
    assert not shown or set(shown.split("  ")) <= set(whole)


def test_what_is_done_instead_of_steps_is_shown_until_the_next_of_them(ticker_of):
    ticker = ticker_of(80)
    ticker.busy("compiling")
    assert line(ticker).startswith("compiling  step 30000/60000")
    ticker.training(30020, VALUES)
    assert line(ticker).startswith("step 30020/60000")


def test_brackets_in_the_live_line_are_only_that(ticker_of):
    ticker = ticker_of(160)
    ticker.training(30020, {"train/mae_y[/b] [red]x[/nope]": 3.0})
    assert "mae_y[/b] [red]x[/nope] 3" in line(ticker)


def test_the_rate_counts_no_time_before_the_first_step(monkeypatch, capsys):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("metarun.output.terminal.time.monotonic", lambda: clock.now)
    ticker = Ticker(total=100, start=0)
    clock.now = 36.0  # of measuring and compiling
    ticker.execution(SimpleNamespace(execution=SimpleNamespace(describe=lambda: "vmapped"), milliseconds={}, notes=[]))
    clock.now = 46.0
    ticker.training(50, {"train/query_loss": 1.0})
    assert capsys.readouterr().err.startswith("step 50/100  5/s  10 s left")
    ticker.ended("completed")


def test_a_run_says_that_it_measures_and_that_it_compiles(monkeypatch):
    monkeypatch.setattr("metarun.execution.choosing.MEASURE_SECONDS", 0.0)
    monkeypatch.setattr("metarun.execution.choosing._try", lambda *args: None)  # the compiler takes minutes
    learner, theta = make("maml", "mlp")
    words: list[str] = []
    work = Workload(learner.meta_loss, theta, image_episodes(2), steps=10)
    for compiled, expected in ((False, ["measuring"]), (True, ["measuring", "compiling"])):
        choose_execution(Auto(None, compile=compiled), work, busy=words.append)
        assert words == expected
        words.clear()
