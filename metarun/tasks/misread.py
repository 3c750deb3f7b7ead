"""Texts of the user's that were UTF-8, were read as Windows-1252, and so were written: cafÃ© in place of café."""

import re
import shlex
from codecs import getincrementaldecoder
from collections.abc import Iterable
from pathlib import Path

from metarun.errors import listed
from metarun.tasks.file_kinds import LINES

WORD = re.compile(r"[A-Za-z\x80-\U0010ffff]*[\x80-\U0010ffff][A-Za-z\x80-\U0010ffff]*")  # with a letter beyond ASCII
ESCAPED = re.compile(r"\\u([0-9a-fA-F]{4})")  # as JSON may write a letter
LEADS = "\u00c2\u00c3\u00e2"  # ÂÃâ, before a sign, begin no word; \u00c5\u00b2 (Å²) is a unit
LOOKED_AT = 10_000_000  # bytes of a file


def meant(text: str) -> str:
    """What was meant by a ``text`` that is UTF-8 read as Windows-1252; empty where it is not, or may be as it is."""
    if text.isascii():
        return ""
    try:
        whole = b"".join(map(_byte, text)).decode()
    except UnicodeError:
        return ""
    beyond = sum(not letter.isascii() for letter in whole)
    return whole if beyond > 1 or any(lead in text for lead in LEADS) else ""


def _byte(letter: str) -> bytes:
    try:
        return letter.encode("cp1252")
    except UnicodeEncodeError:
        return letter.encode("latin-1")  # Windows-1252 has five gaps, which programs read as latin-1


def notes_on_folders(names: Iterable[str]) -> list[str]:
    """A note on ``names`` of folders that were misread, as by a program that unpacked them."""
    return _notes(names, "names of folders", "Rename them.")


def _notes(names: Iterable[str], what: str, cure: str) -> list[str]:
    """A note on ``names`` (of ``what``) that were misread, and what to do."""
    of = {name: right for name in sorted({*names}) if (right := meant(name))}
    said = listed([f"{name!r} for {right!r}" for name, right in of.items()])
    return [f"{what} have letters of UTF-8 that was read as Windows-1252: {said}. {cure}"] if of else []


def notes_on_file(file: str | Path) -> list[str]:
    """A note on words of the text in ``file`` that were misread; nothing of a folder, or of what is no text in UTF-8."""
    path = Path(file).expanduser()
    if path.suffix.lower() not in LINES or not path.is_file():
        return []
    try:
        with path.open("rb") as content:
            text = getincrementaldecoder("utf-8")().decode(content.read(LOOKED_AT))  # a letter may be cut at its end
    except (OSError, UnicodeDecodeError):
        return []
    words = {*WORD.findall(ESCAPED.sub(lambda code: chr(int(code[1], 16)), text))}
    return _notes(words, f"words of {path}", _cure(path)) if any(map(meant, words)) else []


def _cure(path: Path) -> str:
    """What makes a right file of this one; reads the whole of it."""
    try:
        path.read_bytes().decode().encode("cp1252").decode()
    except (OSError, UnicodeError):
        return "Read its source as UTF-8 (in pandas encoding='utf-8'), and write it anew."
    new = path.with_stem(f"{path.stem}_utf8")
    command = f"iconv -f UTF-8 -t CP1252 {shlex.quote(str(path))} > {shlex.quote(str(new))}"
    return f"This makes of it a file to be named instead: {command}"
