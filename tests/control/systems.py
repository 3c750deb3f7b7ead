"""The three systems as their YAML files have them, for the tests."""

from metarun.control.system import System
from tests.composing import experiment

NAMES = ("pendulum", "cart_pole", "two_link_arm")


def task_of(name: str, *overrides: str):
    """The SystemIdentification of configs/task/NAME.yaml, float64."""
    return experiment(f"task={name}", *overrides).task


def system_of(name: str, *overrides: str) -> System:
    return task_of(name, *overrides).system
