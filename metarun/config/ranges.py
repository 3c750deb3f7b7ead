"""Ranges of the numbers in a configuration: one table of rules by a setting's name, looked up before anything is built.

Every number must be finite and fit into torch's types. The table's rules are for the root and for metarun's and torch's own
classes: what somebody else's class means by ``width`` is not known here. Where a class refuses a number itself, and says
more than a range can, the table leaves that end open.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

LARGEST_INT = 2**63 - 1
LARGEST_FLOAT = 3.4028234e38  # of float32


@dataclass(frozen=True)
class Range:
    """The numbers from ``least`` to ``most``; ``above`` and ``below`` say that the ends are outside.

    ``why`` there is a ``most``, and ``instead``: what else may stand there.
    """

    least: float = -LARGEST_FLOAT
    most: float = LARGEST_FLOAT
    above: bool = False
    below: bool = False
    why: str = ""
    instead: str = ""

    def refusal(self, number: float) -> str | None:
        """What a number must be that is outside; None for one inside."""
        if number < self.least or (self.above and number == self.least):
            return f"{f'above {self.least}' if self.above else f'{self.least} or more'}{self.instead}"
        if number > self.most or (self.below and number == self.most):
            return f"{f'below {self.most}' if self.below else f'{self.most} or less'}{self.why and f': {self.why}'}"
        return None


BITS = "torch's numbers have 64 bits"
ANY_INT = Range(-LARGEST_INT, LARGEST_INT, why=BITS)
ANY_FLOAT = Range(why="float32 holds no larger numbers")
ABOVE_0 = Range(0, above=True)
AT_LEAST_0 = Range(0)
SHARE = Range(0, 1, below=True)
HELD = "what is counted must fit into memory"
COUNT = Range(1, 1_000_000, why=HELD)
COUNT_OR_0 = Range(0, 1_000_000, why=HELD)
TIMES = Range(1, 10**12, why="a run must end")
STEPS = Range(0, 100_000, why="memory grows with each")
NO_CLIPPING = Range(0, above=True, instead=", or null for no clipping")
AS_TRAINED = Range(0, STEPS.most, why=STEPS.why, instead=", or null: as in training")

# By the end of a key; the first that fits counts.
RULES: tuple[tuple[str, Range], ...] = (
    ("seed", Range(0, LARGEST_INT, why="torch's generators take 64 bits")),
    ("steps", TIMES),
    ("log_every", TIMES),
    ("clip_norm", NO_CLIPPING),
    ("clip_value", NO_CLIPPING),
    ("rates.*", AT_LEAST_0),
    ("evaluation.every", TIMES),
    ("evaluation.num_val_tasks", Range(2, 10**9, why="a run must end")),  # an interval needs two episodes
    ("evaluation.num_tasks", Range(2, 10**9, why="a run must end")),
    ("evaluation.inner_steps", AS_TRAINED),
    # learners
    ("*.inner_steps", STEPS),
    ("*.inner_lr", ABOVE_0),
    ("*.epoch", Range(0, LARGEST_INT, why=BITS)),
    ("*.num_reads", COUNT_OR_0),
    ("*.layer", COUNT_OR_0),
    # networks
    ("*.dropout", SHARE),
    ("*.drop_rate", SHARE),
    # tasks
    ("*.noise_std", AT_LEAST_0),
    ("*.padding", COUNT_OR_0),
    ("*.split_seed", Range(0, LARGEST_INT, why=BITS)),
    ("*.size", Range(1, 10_000, why=HELD)),
    # execution
    ("*.threads", Range(most=1024, why="no machine has more cores for one run")),
    ("*.chunk", Range(most=COUNT.most, why=HELD)),
    # torch's own
    ("optimizer.lr", ANY_FLOAT),
    ("*.gamma", ABOVE_0),
    ("*.eta_min", AT_LEAST_0),
    ("*.milestones", TIMES),
    ("*.power", AT_LEAST_0),
    # and what many have
    ("*.num_*", COUNT),
    ("*_steps", Range(0, 10**12)),
    ("*_std", AT_LEAST_0),
)


def rule_for(key: str, number: float) -> Range:
    """The range of the setting ``key`` of a class that is known here; that of every number of its type without a rule."""
    return next((rule for pattern, rule in RULES if fnmatchcase(key, pattern)), range_of_type(number))


def range_of_type(number: float) -> Range:
    """The range of every number of the type of ``number``."""
    return ANY_INT if isinstance(number, int) else ANY_FLOAT


def range_problems(key: str, value: Any, known: bool = True) -> Iterator[str]:
    """The problem of a value that is no number in the range of its key, or holds such numbers in lists and mappings.

    ``known`` says whether the table knows the setting: it is of the root, or of a class of metarun's or torch's.
    """
    for number in numbers_in(value):
        must = _refusal(key, number, known)
        if must:
            held = f"is {number}" if number is value else f"holds {number}"
            yield f"{key} {held}, but must be {must}." if number is value else f"{key} {held}; each must be {must}."
            return


def _refusal(key: str, number: float, known: bool) -> str | None:
    if isinstance(number, float) and not math.isfinite(number):
        return "a finite number"
    rule = rule_for(key, number) if known else range_of_type(number)
    return range_of_type(number).refusal(number) or rule.refusal(number)


def numbers_in(value: Any) -> Iterator[float]:
    """The numbers in a plain value, however deep; true and false are none."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from numbers_in(item)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield value
