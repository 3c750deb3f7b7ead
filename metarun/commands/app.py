"""The sub-commands, by typer. Each command lives in its own module and is imported when it is called."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from metarun.commands.app_runs import Allow, ConfigDir, RunPath, register
from metarun.paths import usable


def _usable(option: typer.CallbackParam, value: Path | None) -> Path | None:
    """The path that an option names, with ~ as the home folder."""
    return None if value is None else usable(value, option.opts[0])


PathOption = partial(typer.Option, callback=_usable)

app = typer.Typer(
    name="metarun", add_completion=False, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False
)

data = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Which data there is; prepare, verify and look at it."
)
app.add_typer(data, name="data")
register(app)

Split = Annotated[str, typer.Option(help="test, val or train")]
Checkpoint = Annotated[str, typer.Option(help="best or last")]
Scored = Annotated[list[str] | None, typer.Argument(help="task.num_shots=5 evaluation.inner_steps=10 ...")]
Applied = Annotated[list[str] | None, typer.Argument(help="evaluation.inner_steps=10 device=cpu ...")]
Name = Annotated[str, typer.Argument(help="an option of the group task: omniglot, cifar_fs, ...")]
Overrides = Annotated[list[str] | None, typer.Argument(help="task.download=true data_root=DIR ...")]


@app.callback()
def metarun() -> None:
    """Sub-commands of metarun; everything else on its command line configures a run (see metarun --help)."""


@app.command()
def doctor(
    data_root: Annotated[Path, PathOption(envvar="METARUN_DATA", help="where the data sets are")] = Path(
        "~/.cache/metarun"
    ),
) -> None:
    """Say what works on this machine, what is slow or missing, and the fix."""
    from metarun.process import prepare

    prepare()
    from metarun.commands.doctor import doctor as examine

    examine(data_root)


@app.command()
def evaluate(
    run: RunPath,
    overrides: Scored = None,
    split: Split = "test",
    checkpoint: Checkpoint = "best",
    config_dir: ConfigDir = [],  # noqa: B006 (typer reads defaults from the signature)
    allow: Allow = [],  # noqa: B006
) -> None:
    """Score a finished run again: with other adaptation steps, shots, ways, episodes or data."""
    folders = _prepared_process(config_dir, allow)
    from metarun.commands.evaluate import evaluate_run

    evaluate_run(run, overrides or [], split, checkpoint, folders)


@app.command()
def explain(
    run: RunPath,
    overrides: Scored = None,
    split: Split = "test",
    tasks: Annotated[int | None, typer.Option(help="their number; default 100")] = None,
    checkpoint: Checkpoint = "best",
    to: Annotated[Path | None, PathOption(help="a folder for the files; default RUN/explanations/NAME")] = None,
    config_dir: ConfigDir = [],  # noqa: B006
    allow: Allow = [],  # noqa: B006
) -> None:
    """Say what a finished run's adaptation does: to the layers, losses, gradients, confidence and mistakes."""
    folders = _prepared_process(config_dir, allow)
    from metarun.commands.explain import explain_run

    explain_run(run, overrides or [], split, tasks, checkpoint, to, folders)


@app.command()
def reproduce(  # noqa: PLR0913, PLR0917
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME ...] [KEY=VALUE ...]", help="maml/omniglot/5w1s ..., task.download=true ..."),
    ] = None,
    listed: Annotated[bool, typer.Option("--list", help="say which figures there are; run nothing")] = False,
    all_of_them: Annotated[bool, typer.Option("--all", help="also those that no preset of ours trains")] = False,
    paper: Annotated[str, typer.Option(help="only of this paper, as in the names: maml")] = "",
    within: Annotated[str, typer.Option(metavar="TIME", help="only what was measured to take less: 2h, 90m")] = "",
    seeds: Annotated[int, typer.Option(help="runs, of seeds 0, 1, ...")] = 1,
    budget: Annotated[str, typer.Option(metavar="TIME", help="stop training then; the same command goes on")] = "",
    to: Annotated[Path, PathOption(help="the folder of the runs and cards")] = Path("runs/reproduce"),
    chosen: Annotated[str, typer.Option("--format", help="of --list: table, json, csv, md or latex")] = "table",
) -> None:
    """Repeat a paper's training and test, continue it where it stands, and say how far the figure is from the paper's."""
    _prepared_process([], [])
    from metarun.commands.reproduce import Wanted, reproduce

    raise typer.Exit(reproduce(words or [], Wanted(listed, all_of_them, paper, within, seeds, budget, to, chosen)))


@data.command("list")
def list_(
    overrides: Annotated[list[str] | None, typer.Argument(help="data_root=DIR")] = None,
    config_dir: ConfigDir = [],  # noqa: B006
    allow: Allow = [],  # noqa: B006
) -> None:
    """Say of every task distribution whether its data is ready, found, absent or generated."""
    folders = _prepared_process(config_dir, allow)
    from metarun.commands.data import list_data

    list_data(overrides or [], folders)


@data.command()
def prepare(
    name: Name,
    overrides: Overrides = None,
    config_dir: ConfigDir = [],  # noqa: B006
    allow: Allow = [],  # noqa: B006
) -> None:
    """Make the data ready: downloaded where task.download=true, checked, and prepared once."""
    folders = _prepared_process(config_dir, allow)
    from metarun.commands.data import prepare

    prepare(name, overrides or [], folders)


@data.command()
def verify(
    name: Name,
    overrides: Overrides = None,
    config_dir: ConfigDir = [],  # noqa: B006
    allow: Allow = [],  # noqa: B006
) -> None:
    """Read all the prepared data again, and say whether it is what was prepared."""
    folders = _prepared_process(config_dir, allow)
    from metarun.commands.data import verify

    verify(name, overrides or [], folders)


@data.command()
def show(
    name: Name,
    overrides: Overrides = None,
    split: Annotated[str, typer.Option(help="train, val or test")] = "train",
    episode: Annotated[list[int], typer.Option(help="its number; may be repeated")] = [0],  # noqa: B006
    out: Annotated[Path | None, PathOption(help="the picture's file; default NAME-SPLIT-EPISODE.png")] = None,
    config_dir: ConfigDir = [],  # noqa: B006
    allow: Allow = [],  # noqa: B006
) -> None:
    """Write a picture of sample episodes."""
    folders = _prepared_process(config_dir, allow)
    from metarun.commands.data import show

    show(name, overrides or [], folders, split, episode, out)


def _prepared_process(config_dir: list[str], allow: list[str]) -> list[Path]:
    """The process made ready for torch; the trusted config folders."""
    from metarun.config.trust import trust
    from metarun.process import prepare

    prepare()
    return trust(config_dir, allow)


@app.command()
def control(
    run: Annotated[
        Path, typer.Argument(help="the folder of a run on pendulum, cart_pole, two_link_arm or your system")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="task.planner.horizon=30 task.control_steps=200 ...")
    ] = None,
    shots: Annotated[
        str, typer.Option(help="numbers of transitions that the model adapts to; 0: not adapted")
    ] = "0,1,3,10",
    tasks: Annotated[int, typer.Option(help="test systems to control")] = 20,
    checkpoint: Checkpoint = "best",
    config_dir: ConfigDir = [],  # noqa: B006
    allow: Allow = [],  # noqa: B006
) -> None:
    """Let a finished run's model control unknown systems: the return after so many transitions seen, beside the oracle's."""
    folders = _prepared_process(config_dir, allow)
    from metarun.commands.control import control_run

    control_run(run, overrides or [], shots, tasks, checkpoint, folders)


@app.command()
def predict(  # noqa: PLR0913, PLR0917
    run: RunPath,
    overrides: Applied = None,
    support: Annotated[
        Path | None,
        PathOption(help="labelled examples: a folder of class folders, or a .csv, .jsonl, .tsv or .npz file"),
    ] = None,
    query: Annotated[Path | None, PathOption(help="examples to predict: the same, or a flat folder of images")] = None,
    tasks: Annotated[
        Path | None, PathOption(help="a folder with a folder for each task, which holds its support and query")
    ] = None,
    out: Annotated[Path, PathOption(help="the file of the predictions")] = Path("predictions.csv"),
    save_phi: Annotated[Path | None, PathOption(help="a file for the adapted weights, too")] = None,
    checkpoint: Checkpoint = "best",
    config_dir: ConfigDir = [],  # noqa: B006
    allow: Allow = [],  # noqa: B006
) -> None:
    """Adapt a finished run's model to your labelled examples, and predict the class or value of others."""
    folders = _prepared_process(config_dir, allow)
    from metarun.commands.predict import predict_run

    predict_run(run, overrides or [], support, query, tasks, out, save_phi, checkpoint, folders)


@app.command()
def export(
    run: RunPath,
    to: Annotated[Path, PathOption(help="a new folder for the files")],
    overrides: Applied = None,
    support: Annotated[
        Path | None, PathOption(help="labelled examples as of metarun predict: the adapted weights are written, too")
    ] = None,
    query: Annotated[Path | None, PathOption(help="examples to predict: as many as the program is to take")] = None,
    checkpoint: Checkpoint = "best",
    config_dir: ConfigDir = [],  # noqa: B006
    allow: Allow = [],  # noqa: B006
) -> None:
    """Write a finished run's weights, and a program that adapts and predicts without metarun, with a model card."""
    folders = _prepared_process(config_dir, allow)
    from metarun.commands.export import export_run

    export_run(run, overrides or [], to, support, query, checkpoint, folders)
