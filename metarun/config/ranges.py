"""Ranges of the numbers in a configuration: one table of rules by a setting's name, looked up before anything is built.

Every number must be finite and fit into torch's types. Those of the root and of metarun's own classes are 0 or more, and
what they count fits into memory, unless the table says otherwise; it also has torch's settings. What a class of somebody
else's means by ``width`` is not known here. Where a class refuses a number itself, and says more than a range can, the
table leaves that end open.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

LARGEST_INT = 2**63 - 1
LARGEST_FLOAT = 3.4028234e38  # of float32


@dataclass(frozen=True)
class Range:
    """The numbers from ``least`` to ``most``; ``above`` and ``below`` say that the ends are outside.

    ``why`` there is a ``most``, and ``instead``: what else may stand there; ``or_zero``: 0 may, too.
    """

    least: float = -LARGEST_FLOAT
    most: float = LARGEST_FLOAT
    above: bool = False
    below: bool = False
    why: str = ""
    instead: str = ""
    or_zero: bool = False

    def refusal(self, number: float) -> str | None:
        """What a number must be that is outside; None for one inside."""
        if self.or_zero and number == 0:
            return None
        if number < self.least or (self.above and number == self.least):
            return f"{f'above {self.least}' if self.above else f'{self.least} or more'}{self.instead}"
        if number > self.most or (self.below and number == self.most):
            return f"{f'below {self.most}' if self.below else f'{self.most} or less'}{self.why and f': {self.why}'}"
        return None


BITS = "torch's numbers have 64 bits"
HELD = "what is counted must fit into memory"
ENDS = "a run must end"
ANY_INT = Range(-LARGEST_INT, LARGEST_INT, why=BITS)
ANY_FLOAT = Range(why="float32 holds no larger numbers")
ABOVE_0 = Range(0, above=True)
AT_LEAST_0 = Range(0)
SHARE = Range(0, 1, below=True)
COUNT = Range(1, 1_000_000, why=HELD)
COUNT_OR_0 = Range(0, 1_000_000, why=HELD)
LAYERS = Range(1, 1000, why="each is made and computed by itself")
TIMES = Range(1, 10**12, why=ENDS)
TIMES_OR_0 = Range(0, 10**12, why=ENDS)
EPISODES = Range(2, 10**9, why=ENDS)  # an interval needs two
INNER_STEPS = Range(0, 100_000, why="memory grows with each")

OF_THE_ROOT: dict[str, Range] = {
    "seed": Range(0, LARGEST_INT, why="torch's generators take 64 bits"),
    "steps": TIMES,
    "devices": Range(1, 4096, why="no run has more"),
    "meta_batch_size": COUNT,
    "log_every": TIMES,
    "checkpoint_minutes": replace(ABOVE_0, instead=", or null: at validations alone"),
    "clip_norm": replace(ABOVE_0, instead=", or null for no clipping"),
    "clip_value": replace(ABOVE_0, instead=", or null for no clipping"),
    "evaluation.every": TIMES,
    "evaluation.num_val_tasks": EPISODES,
    "evaluation.num_tasks": replace(EPISODES, instead=", or 0 for no final test", or_zero=True),
    "evaluation.inner_steps": replace(INNER_STEPS, instead=", or null: as in training"),
}
OURS: dict[str, Range] = {  # by the last word of a key
    "inner_steps": INNER_STEPS,
    "inner_lr": ABOVE_0,
    "epoch": TIMES_OR_0,
    "steps_per_epoch": TIMES,
    "multi_step_epochs": TIMES_OR_0,
    "first_order_epochs": TIMES_OR_0,
    "drop_block_steps": TIMES_OR_0,
    "drop_rate": SHARE,
    "dropout": SHARE,
    "split_seed": Range(0, LARGEST_INT, why=BITS),
    "size": Range(1, 10_000, why=HELD),  # of the side of an image
    "x_range": ANY_FLOAT,
    "quantiles": ANY_FLOAT,
    "interval": ANY_FLOAT,
    **dict.fromkeys(
        (
            "hidden",
            "hidden_size",
            "width",
            "latent_width",
            "channels",
            "filters",
            "windows",
            "heads",
            "feedforward",
            "cells",
        ),
        COUNT,
    ),
    **dict.fromkeys(("depth", "layers", "num_layers"), LAYERS),
    **dict.fromkeys(
        ("encoder_layers", "decoder_layers", "generator_layers", "embedder_layers"), replace(LAYERS, least=0)
    ),
    "levels": Range(1, 30, why="each halves a grid, of 2^levels points or more"),
    "bins": replace(COUNT, least=3),
    "threads": Range(most=1024, why="no run has more cores"),
    "chunk": Range(most=COUNT.most, why=HELD),
}
TORCHS: dict[str, Range] = {
    "lr": AT_LEAST_0,
    "weight_decay": AT_LEAST_0,
    "momentum": Range(0, 1),
    "dampening": Range(0, 1),
    "alpha": Range(0, 1),
    "rho": Range(0, 1),
    "lambd": AT_LEAST_0,
    "lr_decay": AT_LEAST_0,
    "momentum_decay": AT_LEAST_0,
    "eps": AT_LEAST_0,
    "betas": Range(0, 1, below=True, why="they are shares"),
    "gamma": ABOVE_0,
    "eta_min": AT_LEAST_0,
    "milestones": TIMES,
    "step_size": TIMES_OR_0,
    "total_iters": TIMES_OR_0,
    "T_max": TIMES_OR_0,
    "power": AT_LEAST_0,
    "base_lr": AT_LEAST_0,
    "max_lr": AT_LEAST_0,
    "start_factor": AT_LEAST_0,
    "end_factor": AT_LEAST_0,
}


def rule_for(key: str, number: float, owner: str) -> Range:
    """The range of the setting ``key`` of a class of ``owner``: metarun, torch, or another package."""
    name = key.rpartition(".")[2]
    if owner == "metarun":
        by_name = OF_THE_ROOT.get(key) or OURS.get(name)
        return by_name or (COUNT_OR_0 if isinstance(number, int) else AT_LEAST_0)
    return (TORCHS.get(name) if owner == "torch" else None) or range_of_type(number)


def range_of_type(number: float) -> Range:
    """The range of every number of the type of ``number``."""
    return ANY_INT if isinstance(number, int) else ANY_FLOAT


def range_problems(key: str, value: Any, owner: str = "metarun") -> Iterator[str]:
    """The problem of a value that is no number in the range of its key, or holds such a number in lists and mappings."""
    for number in numbers_in(value):
        if must := _refusal(key, number, owner):
            yield (
                f"{key} is {number}, but must be {must}."
                if number is value
                else f"{key} holds {number}; each must be {must}."
            )
            return


def _refusal(key: str, number: float, owner: str) -> str | None:
    if isinstance(number, float) and not math.isfinite(number):
        return "a finite number"
    return range_of_type(number).refusal(number) or rule_for(key, number, owner).refusal(number)


def numbers_in(value: Any) -> Iterator[float]:
    """The numbers in a plain value, however deep; true and false are none."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from numbers_in(item)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield value
