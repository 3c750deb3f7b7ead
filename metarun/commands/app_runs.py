"""The sub-commands that look at run folders, by typer. None of them but ``search`` and ``rerun`` imports torch."""

from pathlib import Path
from typing import Annotated

import typer

RunPath = Annotated[Path, typer.Argument(help="the run's folder")]
Format = Annotated[str, typer.Option("--format", help="table, json, csv, md or latex")]
ConfigDir = Annotated[list[str], typer.Option("--config-dir", help="a further folder of YAML groups, trusted")]
Allow = Annotated[list[str], typer.Option("--allow", help="a package whose classes a config may name")]


def runs(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[DIR] [KEY=VALUE ...]", help="state=failed task=omniglot seed=0,1 ..."),
    ] = None,
    sort: Annotated[str, typer.Option(metavar="KEY", help="a column, setting or score; -KEY: the highest first")] = "",
    chosen: Format = "table",
) -> None:
    """List the runs in a folder: state, age, learner, task, score and step."""
    from metarun.commands.runs import list_runs

    list_runs(words or [], sort, chosen)


def show(run: RunPath, chosen: Format = "table") -> None:
    """Say what a run is: protocol, scores, adaptation curve, cost, and what differs from the defaults."""
    from metarun.commands.show import show_run

    show_run(run, chosen)


def diff(
    one: Annotated[Path, typer.Argument(metavar="RUN", help="a run's folder")],
    other: Annotated[Path, typer.Argument(metavar="RUN", help="another one's")],
    chosen: Format = "table",
) -> None:
    """Say in what two runs differ: settings, data, versions, commit, machine and scores."""
    from metarun.commands.diff import show_difference

    show_difference(one, other, chosen)


def tensorboard(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[DIR] [OPTIONS]", help="a run, or the folder of runs; TensorBoard's own options"),
    ] = None,
) -> None:
    """Start TensorBoard on a folder, with the scores and settings of all runs on its HParams page."""
    from metarun.commands.tensorboard import start

    start(words or [])


def compare(
    words: Annotated[
        list[str], typer.Argument(metavar="RUN|DIR ... [KEY=VALUE ...]", help="runs, folders of runs, and filters")
    ],
    by: Annotated[str, typer.Option(metavar="KEY", help="runs that agree in it are one group, of several seeds")] = "",
    score: Annotated[str, typer.Option(help="accuracy, mse, query_loss ...; default: the task's own")] = "",
    evaluation: Annotated[str, typer.Option(metavar="NAME", help="of evaluations/NAME.json, not the final test")] = "",
    chosen: Format = "table",
) -> None:
    """Compare runs on the same test episodes: difference with its interval, win rate and p value, for each two."""
    from metarun.commands.compare import compare_runs

    compare_runs(words, by, score, evaluation, chosen)


def report(
    words: Annotated[
        list[str], typer.Argument(metavar="DIR [KEY=VALUE ...]", help="the folder of the runs, and filters")
    ],
    by: Annotated[
        str, typer.Option(metavar="KEY,...", help="what makes a group of seeds; default: all in which runs differ")
    ] = "",
    score: Annotated[str, typer.Option(help="accuracy, mse, query_loss ...; default: the tasks' own")] = "",
    out: Annotated[str, typer.Option(metavar="DIR", help="where to write; default DIR/report")] = "",
    chosen: Format = "table",
) -> None:
    """Write a page (HTML) and tables (Markdown, LaTeX, CSV) of the runs in a folder: means over seeds, curves, cost."""
    from metarun.commands.report import report_on

    report_on(words, by, score, out, chosen)


def search(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="DIR trials=N KEY=interval(A,B) ...", help="the folder, settings of the search, and runs"
        ),
    ],
    dry: Annotated[bool, typer.Option("--dry", help="only check, and say what would be searched")] = False,
    config_dir: ConfigDir = [],  # noqa: B006 (typer reads defaults from the signature)
    allow: Allow = [],  # noqa: B006
) -> None:
    """Search for the best values of settings by Optuna: trials by validation scores, the winner tested over fresh seeds.

    Settings of the search: trials=N in all, sampler=tpe|random|cmaes|gp|qmc, sampler_seed=N, pruner=median|hyperband|none,
    seeds=N fresh ones for the winner; jobs=, retries= and timeout= as of a sweep.
    """
    from metarun.commands.search import search
    from metarun.config.trust import as_flags, trust

    folders = trust(config_dir, allow)
    raise typer.Exit(search(words, folders, as_flags(folders, allow), dry))


def rerun(
    run: RunPath,
    run_dir: Annotated[str | None, typer.Option("--run-dir", help="the new run's folder; default RUN-rerun")] = None,
    config_dir: Annotated[list[str], typer.Option(help="as the run was given it")] = [],  # noqa: B006
    allow: Annotated[list[str], typer.Option(help="as the run was given it")] = [],  # noqa: B006
) -> None:
    """Run the same configuration again, and say whether the numbers are the same, bit by bit, or else what differs."""
    from metarun.config.trust import trust
    from metarun.process import prepare

    prepare()
    trust(config_dir, allow)
    from metarun.commands.rerun import rerun

    raise typer.Exit(rerun(run, run_dir))


def register(app: typer.Typer) -> None:
    """Add these commands to ``app``."""
    for command in (runs, show, diff, compare, report, search, rerun):
        app.command()(command)
    app.command(context_settings={"ignore_unknown_options": True})(tensorboard)
