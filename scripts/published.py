"""What the scripts that write into docs/ share: their command lines, the runs that they begin, and tables of Markdown."""

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import receipt


def markdown(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table of Markdown."""
    lines = [f"| {' | '.join(map(str, row))} |" for row in (columns, *rows)]
    return "\n".join([lines[0], "|---" * len(columns) + "|", *lines[1:]])


def percent(score: dict[str, float]) -> str:
    return f"{100 * score['mean']:.1f} +- {100 * score['ci95']:.1f}"


def filled(text: str, mark: str, table: Callable[[str], str]) -> str:
    """``text`` with ``table(words)`` between each ``<!-- mark: words -->``, or ``<!-- mark -->``, and ``<!-- end -->``."""
    marks = re.compile(rf"(<!-- {mark}(?:: ([\w ]+))? -->).*?<!-- end -->", re.S)
    return marks.sub(lambda found: f"{found[1]}\n{table(found[2] or '')}\n<!-- end -->", text)


def read_receipts(path: Path) -> dict[str, Any]:
    """The receipts in a file, by name; none where there is no file."""
    return json.loads(path.read_text()) if path.is_file() else {}


def write_receipts(path: Path, kept: dict[str, Any]) -> None:
    path.write_text(json.dumps(kept, indent=1) + "\n")


def complete(place: Path, names: Iterable[str]) -> list[str]:
    """Those of the runs in ``place`` that are; raises SystemExit where none is."""
    found = [name for name in names if (place / name / "results.json").is_file()]
    return found or sys.exit(f"{place} holds no complete runs.")


def run_to_its_end(folder: Path | str, overrides: Sequence[str]) -> None:
    """Begin a run of metarun in ``folder``, or go on with what is there, in this process."""
    from metarun.commands.main import main

    try:
        main([*overrides, f"run_dir={folder}", "resume=auto"])
    except SystemExit as end:
        if end.code:
            print(f"{Path(folder).name}: exit code {end.code}")


def write_page(doc: str, path: Path, page: Callable[[], str]) -> None:
    """The script ``[--check]`` of a whole page: write it, or exit with code 1 where it is not what would be written."""
    if sys.argv[1:] == ["--check"]:
        # how old a receipt is changes with the code, and receipt.py --tables writes it
        found, made = (receipt.AGES.sub("", text) for text in (path.read_text() if path.is_file() else "", page()))
        sys.exit(0 if found == made else f"{path} is old: python scripts/{path.stem}.py")
    if sys.argv[1:]:
        sys.exit(doc)
    path.write_text(page())
    print(path)


def command_line(doc: str | None) -> argparse.ArgumentParser:
    """The words that all of these scripts have."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--publish", action="store_true", help="run nothing, write into docs/")
    return parser


def place_of_runs(
    argv: list[str] | None,
    doc: str,
    what: str,
    keep: Callable[[Path], None],
    page: Path,
    filled: Callable[[str], str],
    tables: Callable[[Path], str] | None = None,
) -> argparse.Namespace | None:
    """The script ``[DIR] [WORD ...] [--publish]`` of runs and their table: the folder ``place``, made, and the ``words``.

    None after --publish, which keeps a receipt of the runs in DIR, where one is named, and fills the table of the page; and
    after --tables, which prints the ``tables``. ``what`` lies in DIR, and is chosen by its name.
    """
    parser = command_line(doc)
    parser.add_argument("place", metavar="DIR", nargs="?", type=Path, help=f"the folder of the data and {what}")
    parser.add_argument("words", metavar="WORD", nargs="*", help=f"run only the {what} whose names hold all of them")
    if tables:
        parser.add_argument("--tables", action="store_true", help="run nothing, print the tables")
    args = parser.parse_args(argv)
    if args.place is None and not args.publish:
        parser.error(f"give the DIR of the {what}, or --publish to write the table of the receipt into docs/.")
    shown = tables and args.tables
    if args.words and (shown or args.publish):
        parser.error("a WORD chooses what is run, and these options run nothing.")
    if args.publish:
        if args.place:
            keep(args.place)
        page.write_text(filled(page.read_text()))
    elif tables and shown:
        print(tables(args.place))
    if shown or args.publish:
        return None
    args.place.mkdir(parents=True, exist_ok=True)
    return args
