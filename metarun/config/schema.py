"""The typed root of the configuration: the keys that every run has."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class EvaluationConfig:
    """How often a run is validated, and on what and how many tasks it is validated and tested."""

    every: int = 500  # validation and checkpoint every so many steps
    num_val_tasks: int = 100
    num_tasks: int = 600  # of the final test; 0: there is none
    inner_steps: int | None = None  # adaptation steps at validation and test; null: as trained
    task: dict[str, Any] = field(
        default_factory=dict
    )  # by name, what is validated and tested on; none: the training task
    fit_images: bool = False  # whether their images are made to have the training images' size and channels
    evaluator: dict[str, Any] = field(default_factory=dict)  # by name, what is scored beside what every run scores
    shots: list[int] | None = None  # numbers of shots, for each of which the final test scores the same tasks again
    train_fractions: list[float] | None = None  # of a sweep: a run for each share of the training classes or tasks


@dataclass
class Config:
    """The keys of every run, with their types, and their values where nothing sets them."""

    seed: int = 0
    steps: int = 1000
    meta_batch_size: int = 4
    device: str = "auto"
    devices: int = 1
    exact: bool = True
    dtype: str = "float32"
    tf32: bool = False
    data_root: str = ""
    run_dir: str | None = None
    resume: str | None = None
    log_every: int = 20
    checkpoint_minutes: float | None = 10
    profile: bool = False
    clip_norm: float | None = None
    clip_value: float | None = None
    rates: dict[str, Any] = field(default_factory=dict)
    task: Any = None
    base_learner: Any = None
    meta_learner: Any = None
    optimizer: Any = None
    scheduler: Any = None
    execution: Any = None
    logger: dict[str, Any] = field(default_factory=dict)  # by name, who is told of the run
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)


def without_fetching(node: Any) -> Any:
    """A configuration as it is where the data are at hand: that a task may fetch them changes no number."""
    if not isinstance(node, dict):
        return node
    return {
        key: False if key == "download" and value is True else without_fetching(value) for key, value in node.items()
    }
