"""Times as they are written on a command line: 90, 90s, 30m, 12h, 2d."""

import re

UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
FORMS = "90, 90s, 30m, 12h or 2d"


def seconds_in(text: str) -> float | None:
    """The seconds of a time, which is more than none; None where ``text`` is no time."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text, re.ASCII)
    return float(found[1]) * UNITS[found[2]] if found and float(found[1]) else None
