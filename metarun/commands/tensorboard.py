"""``metarun tensorboard DIR``: TensorBoard of this environment, with the scores of all runs on its HParams page."""

import os
import sys
from typing import Any

from metarun.errors import wrong_command
from metarun.output.ledger import folders
from metarun.paths import usable


def start(words: list[str]) -> None:
    """Serve the runs in the folder that comes first (runs, where none does) until Ctrl-C; TensorBoard's options follow."""
    named = bool(words) and not words[0].startswith("-")
    root, further = usable(words[0] if named else "runs", "DIR"), words[named:]
    if not os.path.isdir(root):
        raise wrong_command(f"there is no folder {root}. Name a run, or the folder that your runs lie in.")
    if next(folders(root), None) is None:
        raise wrong_command(f"{root} holds no run. Name a run, or the folder that your runs lie in.")
    from absl import app  # what TensorBoard reads its options with
    from tensorboard import main_lib

    main_lib.global_init()
    board = server()
    app.run(board.main, flags_parser=board.configure, argv=[sys.argv[0], f"--logdir={root}", *further])


def server() -> Any:
    """TensorBoard with metarun's HParams page in the place of its own."""
    from tensorboard import default, program
    from tensorboard.plugins.hparams.hparams_plugin import HParamsPlugin

    from metarun.output.hparams import HParamsOfAllRuns

    plugins = [HParamsOfAllRuns if plugin is HParamsPlugin else plugin for plugin in default.get_plugins()]
    return program.TensorBoard(plugins=plugins)
