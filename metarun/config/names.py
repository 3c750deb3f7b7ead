"""Names of classes and tasks on the command line, read by Hydra as other values (1_000, true) or not at all (a#b)."""

import re

LISTS = re.compile(
    r"[^=]*\b(?:split(?:\.(?:train|val|test)=\[|=.*\{)|(?:val|test)_tasks=\[)", re.DOTALL
)  # not those of shares, split=[6,2,2]
TOKEN = re.compile(r"""'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|[\[\]]|[^\s,\[\]{}:'"](?:[^,\[\]{}'"]*[^\s,\[\]{}'"])?""")
NO_TEXT = re.compile(
    r"[+-]?[.\d].*|[+-]?inf|nan|true|false|null|.*[^\w\s/.+$%*@?|:-].*|.*[^\x00-\x7f].*", re.IGNORECASE
)


def names_as_text(override: str) -> str:
    """The override with those names in quotation marks that stand in lists of classes and would not be read as text."""
    if not LISTS.match(override) or "${" in override:
        return override
    depth = 0

    def quoted(match: re.Match[str]) -> str:
        nonlocal depth
        token = match[0]
        depth += {"[": 1, "]": -1}.get(token, 0)
        bare = depth > 0 and token[0] not in "[]'\"" and "\\" not in token
        return f"'{token}'" if bare and NO_TEXT.fullmatch(token) else token

    key, _, value = override.partition("=")
    return f"{key}={TOKEN.sub(quoted, value)}"
