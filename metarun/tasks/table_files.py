"""The text of a table's file; for a file of another kind, what it is and one command that makes a CSV file of it."""

import codecs
import io
import os
import re
import shlex
import zipfile
from itertools import count
from pathlib import Path
from typing import NamedTuple

from metarun.errors import DataError, MissingDataError, did_you_mean, listed
from metarun.tasks.decoding import decoded

TABLES = (".csv", ".tsv", ".tab", ".txt")


class Kind(NamedTuple):
    """What a file is, and the command that makes a CSV file ``{new}`` of it, ``{old}``, or unpacks it."""

    what: str
    command: str
    needs: str = ""


def _by_pandas(what: str, reader: str, needs: str) -> Kind:
    call = f"pandas.read_{reader}(sys.argv[1]).to_csv(sys.argv[2], index=False)"
    return Kind(what, f'python -c "import pandas, sys; {call}" {{old}} {{new}}', needs)


def _in(encoding: str, but: str = "") -> Kind:
    return Kind(f"text in {encoding}{but}", f"iconv -f {encoding} -t UTF-8 {{old}} > {{new}}")


FEATHER = _by_pandas("a feather file", "feather", "pandas and pyarrow")
WORKBOOK = _by_pandas("a workbook, of which the first sheet is taken", "excel", "pandas and openpyxl")
JSON = _by_pandas("a file of JSON", "json", "pandas")
JSON_LINES = JSON._replace(what="a file of lines of JSON", command=JSON.command.replace("[1])", "[1], lines=True)"))
TAR = Kind("a tar archive", "tar -xf {old}")
BY_FIRST_BYTES = {
    b"PAR1": _by_pandas("a parquet file", "parquet", "pandas and pyarrow"),
    b"ARROW1": FEATHER,
    b"FEA1": FEATHER,
    b"\xd0\xcf\x11\xe0": _by_pandas("a workbook of an old Excel", "excel", "pandas and xlrd"),
    b"<stata_dta>": _by_pandas("a file of Stata", "stata", "pandas"),
    b"$FL": _by_pandas("a file of SPSS", "spss", "pandas and pyreadstat"),
    b"\x1f\x8b": Kind("packed by gzip", "gzip -dc {old} > {new}"),
    b"BZh": Kind("packed by bzip2", "bzip2 -dc {old} > {new}"),
    b"\xfd7zXZ\x00": Kind("packed by xz", "xz -dc {old} > {new}"),
    b"\x28\xb5\x2f\xfd": Kind("packed by zstd", "zstd -dc {old} > {new}"),
    b"version https://git-lfs": Kind("a pointer of Git LFS in the place of the file", "git lfs pull"),
    codecs.BOM_UTF32_LE: _in("UTF-32"),  # before that of UTF-16, with which it begins
    codecs.BOM_UTF16_LE: _in("UTF-16"),
    codecs.BOM_UTF16_BE: _in("UTF-16"),
}


def table_content(path: Path) -> bytes:
    """A table's file. Raises MissingDataError where there is none, and DataError where it cannot be read."""
    if os.path.isdir(path):
        held = listed([str(path / name) for name in _tables_in(path)])
        cure = f"Name one of its files: {held}." if held else f"It holds none that ends with {', '.join(TABLES)}."
        joined = "Where each task has a file, join them into one, with a column that names the task."
        raise DataError(f"{path} is a folder, but a table is one file. {cure} {joined}")
    try:
        return path.read_bytes()
    except FileNotFoundError:
        hint = did_you_mean(path.name, _tables_in(path.parent)) or "."
        raise MissingDataError(f"task.path is {str(path)!r}, but there is no such file{hint}") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error


def table_text(path: Path, content: bytes) -> str:
    """What the file says. Raises DataError unless it is text in UTF-8."""
    if kind := _kind_of(path, content):
        new = "{new}" in kind.command
        makes = "makes a CSV file of it, to be named instead" if new else "gives the files to be named"
        by = f" (by {kind.needs})" * bool(kind.needs)
        raise DataError(f"{path} is {kind.what}. This {makes}{by}: {_command(kind, path)}")
    if b"\0" in content:
        line = content[: content.index(b"\0")].count(b"\n") + 1
        raise DataError(
            f"{path}, line {line} holds a NUL (a byte 0), which no text does. Save the table as CSV in UTF-8."
        )
    if re.match(rb"\s*<(!doctype )?html", content, re.IGNORECASE):
        raise DataError(
            f"{path} is a web page. Download the table itself; sites have it under 'raw', or after a login."
        )
    try:
        return decoded(path, content)
    except DataError as error:
        windows = f"If it was written by Windows in Western Europe or America: {_command(_in('CP1252'), path)}"
        raise DataError(f"{error} {windows}") from error


def _command(kind: Kind, path: Path) -> str:
    return kind.command.format(old=shlex.quote(str(path)), new=shlex.quote(str(_beside(path))))


def _kind_of(path: Path, content: bytes) -> Kind | None:
    """What the file is, where it is no text in UTF-8."""
    found = next((kind for begins, kind in BY_FIRST_BYTES.items() if content.startswith(begins)), None)
    packed = (
        found is not None and found.what.startswith("packed") and (".tar" in path.suffixes or path.suffix == ".tgz")
    )
    if packed or content[257:262] == b"ustar":
        return TAR
    if content.startswith(b"PK\x03\x04"):
        return _zipped(content)
    if re.match(rb'\s*\[?\s*\{\s*"', content):
        return JSON if content.lstrip().startswith(b"[") else JSON_LINES
    return found or _without_mark(content)


def _zipped(content: bytes) -> Kind:
    try:
        names = zipfile.ZipFile(io.BytesIO(content)).namelist()
    except zipfile.BadZipFile:
        return Kind("a zip archive, or a workbook, that is not whole", "unzip {old}")
    if "xl/workbook.xml" in names:
        return WORKBOOK
    if "content.xml" in names:
        return WORKBOOK._replace(needs="pandas and odfpy")
    tables = [name for name in names if name.lower().endswith(TABLES) and not name.startswith("__MACOSX/")]
    one = shlex.quote(tables[0]).replace("{", "{{").replace("}", "}}") if tables else ""
    what = f"a zip archive of {listed(tables or names) or 'nothing'}"
    return Kind(what, f"unzip -p {{old}} {one} > {{new}}" if tables else "unzip {old}")


def _without_mark(content: bytes) -> Kind | None:
    """UTF-16 without a mark: a tenth of its bytes are 0, and in one order of them lines have separators."""
    if 10 * content.count(0) > len(content):
        for encoding in ("UTF-16LE", "UTF-16BE"):
            text = content.decode(encoding, errors="replace")
            if re.match(r".*[,;\t|].*\n", text) and "\0" not in text:
                return _in(encoding, ", as it seems, without a byte order mark")
    return None


def _tables_in(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in folder.iterdir() if entry.suffix.lower() in TABLES)
    except OSError:
        return []


def _beside(path: Path) -> Path:
    """A name for a CSV file beside ``path`` that no file has."""
    stem = Path(path.stem).stem if path.stem.lower().endswith(TABLES) else path.stem
    names = (path.with_name(f"{stem}{f'_{number}' * bool(number)}.csv") for number in count())
    return next(name for name in names if not os.path.lexists(name))
