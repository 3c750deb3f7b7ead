"""The words of a sentence, by a rule that runs keep."""

import re
import sys
import unicodedata
from dataclasses import replace
from functools import cache
from typing import Any

from metarun.tasks.splits import composed
from metarun.tasks.text_sets import say

WORD = re.compile(r"\w+|[^\w\s]")  # rule 1, of runs that name none: marks split words, Chinese has one a sentence
UNSPACED = (  # letters of Thai, Lao, Burmese, Khmer, kana, and Han ideographs, whose words no blanks part
    "\u0e01-\u0e4e\u0e80-\u0ece\u0edc-\u0edf\u1000-\u103f\u1050-\u108f\u1780-\u17d3"
    "\u3005-\u3007\u3021-\u3029\u3031-\u3035\u3040-\u30fa"
    "\u30fc-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f"
    "\U0001b000-\U0001b16f\U00020000-\U0003ffff"
)
RULES = (1, 2)  # of words


def words(text: str, rule: int = 2) -> list[str]:
    """Lower-case words, and punctuation marks as words of their own; at least one of a text that is not blank.

    By rule 2 combining marks are part of the word, and where words are not parted by blanks each letter is one.
    """
    return WORD.findall(text.casefold()) if rule == 1 else _word().findall(composed(text.casefold()))


@cache
def _word() -> re.Pattern[str]:
    """A word of rule 2: a letter of ``UNSPACED``, or others in a row, each with its marks; or a punctuation mark."""
    marks = "".join(c for c in map(chr, range(sys.maxunicode + 1)) if unicodedata.category(c)[0] == "M")
    with_marks = f"[{marks}\u200c\u200d]*"  # and the joiners of Persian and Indic letters
    return re.compile(rf"(?=\w)[{UNSPACED}]{with_marks}|(?:(?![{UNSPACED}])\w{with_marks})+|[^\w\s]")


def of_rule(rule: int) -> str:
    """What a description of features says of the rule: nothing of the first."""
    return f"-words{rule}" * (rule > 1)


def check_rule(rule: int) -> None:
    """Raise ValueError unless there is such a rule."""
    if rule not in RULES:
        raise ValueError(f"task.features.word_rule is {rule}, but must be one of {', '.join(map(str, RULES))}.")


def by_rule_of(described: str, features: Any) -> Any:
    """``features`` by the rule of words of a run that ``described`` its own so, where they differ in that alone."""
    made = [replace(features, word_rule=rule) for rule in RULES] if hasattr(features, "word_rule") else []
    own = next((one for one in made if one.describe() == described), features)
    if own != features:
        say([f"words are by task.features.word_rule={own.word_rule}, as in the run's training"])
    return own
