"""How many support and query examples an episode of a regression task has: K and Q, in training and at test."""

from typing import NamedTuple


class Sizes(NamedTuple):
    num_shots: int  # K
    num_queries: int  # Q


def sizes_by_split(
    num_shots: int, num_queries: int, train_num_shots: int | None, train_num_queries: int | None
) -> dict[str, Sizes]:
    """K and Q of each split; None stands for the number at test. Raises ValueError where one is below 1."""
    test = Sizes(num_shots, num_queries)
    train = Sizes(
        num_shots if train_num_shots is None else train_num_shots,
        num_queries if train_num_queries is None else train_num_queries,
    )
    for prefix, size in (("task.", test), ("task.train_", train)):
        for name, value in size._asdict().items():
            if value < 1:
                raise ValueError(f"{prefix}{name} is {value}, but an episode needs at least 1. Set it to 1 or more.")
    return {"train": train, "val": test, "test": test}
