"""The sub-commands that look at run folders, by typer. None of them but ``rerun`` imports torch."""

from typing import Annotated

import typer

Format = Annotated[str, typer.Option("--format", help="table, json, csv, md or latex")]


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


COMMANDS = (runs,)
