"""What a file is that is no text in UTF-8, and one command that makes such a text of it."""

import codecs
import io
import os
import re
import shlex
import zipfile
from itertools import count
from pathlib import Path
from typing import NamedTuple

from metarun.errors import listed

TABLES = (".csv", ".tsv", ".tab", ".txt")
LINES = (*TABLES, ".jsonl", ".ndjson", ".json")  # endings that a file keeps when it is unpacked or written in UTF-8


class Kind(NamedTuple):
    """What a file ``{old}`` is, and the command that makes a text ``{new}`` of it, which ``converts`` it to CSV or leaves
    it what it was, or that unpacks it; the packages that this ``needs``."""

    what: str
    command: str
    needs: str = ""

    @property
    def converts(self) -> bool:
        return self.command.startswith("python")


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


def what_else(path: Path, content: bytes, table: bool) -> str:
    """What a file is instead of text, or instead of a ``table``, with a command that helps; nothing where it is that."""
    if (kind := _kind_of(path, content, table)) is None:
        return ""
    makes = "makes of it a file to be named instead" if "{new}" in kind.command else "gives the files to be named"
    by = f" (by {kind.needs})" * bool(kind.needs)
    return f"{path} is {kind.what}. This {makes}{by}: {_command(kind, path)}"


def from_windows(path: Path) -> str:
    """The command for a text that is in no encoding known by its first bytes."""
    return f"If it was written by Windows in Western Europe or America: {_command(_in('CP1252'), path)}"


def _command(kind: Kind, path: Path) -> str:
    return kind.command.format(old=shlex.quote(str(path)), new=shlex.quote(str(_beside(path, kind.converts))))


def _kind_of(path: Path, content: bytes, table: bool) -> Kind | None:
    """What the file is, where it is no text in UTF-8."""
    found = next((kind for begins, kind in BY_FIRST_BYTES.items() if content.startswith(begins)), None)
    packed = (
        found is not None and found.what.startswith("packed") and (".tar" in path.suffixes or path.suffix == ".tgz")
    )
    if packed or content[257:262] == b"ustar":
        return TAR
    if content.startswith(b"PK\x03\x04"):
        return _zipped(content)
    if table and re.match(rb'\s*\[?\s*\{\s*"', content):
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


def _beside(path: Path, as_csv: bool) -> Path:
    """A name for a text beside ``path`` that no file has."""
    inner = Path(path.stem)  # of table.csv.gz
    stem, ending = (inner.stem, inner.suffix) if inner.suffix.lower() in LINES else (path.stem, path.suffix)
    ending = ending if ending.lower() in LINES and not as_csv else ".csv"
    names = (path.with_name(f"{stem}{f'_{number}' * bool(number)}{ending}") for number in count())
    return next(name for name in names if not os.path.lexists(name))
