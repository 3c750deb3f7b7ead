"""How numbers are written in tables, and what people read as numbers or times where a table's reader does not."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?", re.ASCII | re.IGNORECASE)  # 1_0 is none
THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}(?:,\d{3})+", re.ASCII)
POINTS_OF_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}\.\d{3}", re.ASCII)  # with more points than one it is no number
DECIMAL_COMMA = re.compile(r"[+-]?\d*,\d+(?:e[+-]?\d+)?", re.ASCII | re.IGNORECASE)

BETWEEN_THOUSANDS = re.compile(r"(?<=\d)[.,'\u2019\s](?=\d{3}(?!\d))")
# 5 kg, $5, <5 and 5 %: a mark, a number and a unit
WITH_UNIT = re.compile(r"([$\u20ac\u00a3\u00a5<>\u2264\u2265~\u2248]?)\s*([+-]?[\d.,].*?)\s*(\D*)", re.ASCII)
DATE = r"(?:\d{4}([-/.])\d{1,2}\1\d{1,2}|\d{1,2}([-/.])\d{1,2}\2\d{2,4})"
CLOCK = r"\d{1,2}:\d{2}(?::\d{2}(?:[.,]\d+)?)?"
TIME = re.compile(rf"(?:{DATE}(?:[T ]{CLOCK}\S*)?|{CLOCK})", re.ASCII)


class Look(NamedTuple):
    """What texts look like, and what makes them numbers."""

    like: str
    cure: str


NUMBERS = Look(
    "numbers",
    "To have them read as numbers, write them without % and units, without commas, points or blanks between thousands, with "
    "decimal points and with - (not \u2212) below 0.",
)
TIMES = Look(
    "dates or times",
    "To have them read as numbers, write them as such: days since the first, say, or hours of the day.",
)


def look_of(texts: Sequence[str]) -> Look | None:
    """What people read in most of the ``texts`` though ``NUMBER`` does not: numbers, as 10%, 1,000 or 5 kg, all in one unit,
    or times; None where they read neither."""
    units = Counter(unit for unit in map(_unit_of_number, texts) if unit is not None)
    if units and 2 * max(units.values()) > len(texts):
        return NUMBERS
    return TIMES if 2 * sum(bool(TIME.fullmatch(text)) for text in texts) > len(texts) else None


def _unit_of_number(text: str) -> tuple[str, str] | None:
    """What stands before and after a number, as people write one; None where the text is none. A % is of no other unit
    than nothing: 10 beside 10% is a number too."""
    parts = WITH_UNIT.fullmatch(text.replace("\u2212", "-"))
    if parts is None:
        return None
    bare = BETWEEN_THOUSANDS.sub("", parts[2])
    if not (NUMBER.fullmatch(parts[2]) or NUMBER.fullmatch(bare) or DECIMAL_COMMA.fullmatch(bare)):
        return None
    return parts[1], parts[3].strip().removeprefix("%")


def level_of(text: str, levels: Sequence[str]) -> str:
    """The level that an entry names: that which is written so, or else the only one of the same number, as 1 of 1.0."""
    if text in levels or not NUMBER.fullmatch(text):
        return text
    equal = [level for level in levels if NUMBER.fullmatch(level) and float(level) == float(text)]
    return equal[0] if len(equal) == 1 else text
