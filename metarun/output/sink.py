"""The protocol of all that hears of a run: metrics.jsonl, TensorBoard, the terminal and any other logger."""

from typing import Any, ClassVar

from torch import Tensor

from metarun.execution.choice import Choice


class Sink:
    """A place where one run is told of. A subclass overrides the events that it tells; to the others it does nothing."""

    package: ClassVar[str] = ""  # that it needs beside those of metarun: without it no run begins
    anew: bool = False  # a run that is continued is told to it again from the beginning

    def begun(self, config: str, headline: dict[str, Any]) -> None:
        """A run begins: its configuration as YAML, and the settings that tell runs apart. Not told of one that is continued,
        except where ``anew``."""

    def busy(self, what: str) -> None:
        """No step is taken for a while, for something else is done first: "measuring", "compiling", or no more ("")."""

    def execution(self, choice: Choice) -> None:
        """The execution that the run uses from here on is chosen."""

    def write(self, step: int, values: dict[str, float]) -> None:
        """Numbers by name at a step: what the next three events are, where a sink does not tell them apart."""

    def training(self, step: int, values: dict[str, float]) -> None:
        """Means over the training steps since the last of these events, and the learning rate scheduled for the last."""
        self.write(step, values)

    def validation(self, step: int, values: dict[str, float]) -> None:
        """Scores on the validation tasks."""
        self.write(step, values)

    def test(self, step: int, values: dict[str, float]) -> None:
        """Scores of the final test. A run that is stopped between this event and its end tests again."""
        self.write(step, values)

    def saving(self) -> None:
        """A checkpoint is about to be written, from which the run may go on: what was told until now will not come again."""

    def image(self, name: str, grid: Tensor, step: int) -> None:
        """A picture [channels, height, width] of training data."""

    def figure(self, name: str, figure: Any, step: int) -> None:
        """A figure of matplotlib of the final test."""

    def say(self, line: str) -> None:
        """A line for whoever looks on."""

    def note(self, line: str) -> None:
        """A line for the record alone."""

    def ended(self, state: str) -> None:
        """The process is done with the run, which is now in ``state`` (see ``RunFolder.mark``): close what is open."""
