"""What a process does that is not the first of its run: the same steps, and nothing else; and how it is let go."""

import os
import sys
from collections.abc import Callable
from threading import Thread

from omegaconf import OmegaConf

from metarun.config.build import device_of
from metarun.config.ready import ready
from metarun.errors import ConfigError, Diverged, Interrupted, MetarunError
from metarun.execution.devices import PeerLost
from metarun.output.folder import RunFolder
from metarun.output.silent import Silent
from metarun.process import started_rank
from metarun.training.processes import joined, nothing_to_begin, told
from metarun.training.runner import Runner
from metarun.training.signals import StopRequest

PATIENCE = 60.0  # seconds in which the others must have come to be let go, where there is no run


def led(begin: Callable[[], int]) -> int:
    """``begin`` the run as its first process; its exit code. Where it is refused, the others hear that there is none."""
    try:
        return begin()
    except ConfigError as error:
        print(f"metarun: {error}", file=sys.stderr, flush=True)
        telling = Thread(target=nothing_to_begin, daemon=True)
        telling.start()
        telling.join(PATIENCE)
        return error.exit_code


def follow() -> int:
    """Take part in the run that the first process leads; the exit code. What ends all of them, the first one tells."""
    begin, store = told()
    if not begin:
        store.set(f"here/{started_rank()}", "")
        return 0
    cfg = OmegaConf.create(begin["text"])
    if device_of(cfg.device).type == "cuda":
        cfg.device = f"cuda:{os.environ['LOCAL_RANK']}"
    experiment = ready(cfg, begin["fitted"], begun=True)  # the first process has asked
    stop = StopRequest()
    try:
        with stop.listening(), joined(store, started_rank(), experiment) as devices:
            runner = Runner(experiment, Silent(RunFolder(begin["folder"])), stop, devices)  # type: ignore[arg-type]
            if begin["step"]:
                runner.restore("last")
            runner.run()
    except (PeerLost, Interrupted, Diverged) as error:
        return error.exit_code
    except MetarunError as error:
        print(f"metarun (process {started_rank()}): {error}", file=sys.stderr)
        return error.exit_code
    return 0
