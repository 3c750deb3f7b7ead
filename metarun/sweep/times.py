"""Times as they are written on a command line, 90, 90s, 30m or 1h30m, and for people."""

import re

UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
LONGEST = 1e9  # about 30 years
FORMS = "90, 90s, 30m, 1h30m or 2d"


def seconds_in(text: str) -> float | None:
    """The seconds of a time, which is more than none and less than 30 years; None where ``text`` is no time."""
    number = r"\d+(?:\.\d+)?"
    if not re.fullmatch(rf"{number}|(?:{number}[smhd])+", text, re.ASCII):
        return None
    seconds = sum(float(amount) * UNITS[unit] for amount, unit in re.findall(rf"({number})([smhd]?)", text))
    return seconds if 0 < seconds < LONGEST else None


def shortly(seconds: float) -> str:
    """A time in its largest unit."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
