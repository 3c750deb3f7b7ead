"""What a process does that is not the first of its run: the same steps, and nothing else; and how it is let go."""

import os
import sys
from collections.abc import Callable
from datetime import timedelta
from threading import Thread

from omegaconf import OmegaConf
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from metarun.config.build import device_of
from metarun.config.ready import ready
from metarun.errors import ConfigError, Diverged, Interrupted, MetarunError, shortened
from metarun.execution.devices import PeerLost
from metarun.output.folder import RunFolder
from metarun.output.silent import Silent
from metarun.process import started_rank
from metarun.training.processes import joined, nothing_to_begin, told
from metarun.training.runner import Runner
from metarun.training.signals import StopRequest

PATIENCE = 60.0  # seconds in which the others must have come to be let go, where there is no run
SIGN = timedelta(minutes=10)  # in which the first process must be there: as long as torchrun waits for processes


def led(begin: Callable[[], int]) -> int:
    """``begin`` the run as its first process; its exit code. Where it is refused, the others hear that there is none.

    Whatever it prepares, for hours where data are fetched, it can be reached from the start: that is its sign of life."""
    held = None if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" else _met(first=True)
    try:
        return begin()
    except ConfigError as error:
        print(f"metarun: {error}", file=sys.stderr, flush=True)
        telling = Thread(target=nothing_to_begin, daemon=True)
        telling.start()
        telling.join(PATIENCE)
        return error.exit_code
    finally:
        del held  # it is closed


def follow() -> int:
    """Take part in the run that the first process leads; the exit code. What ends all of them, the first one tells. Raises
    MetarunError where there is no first process."""
    _met(first=False)
    begin, store = told(SIGN)
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


def _met(first: bool) -> TCPStore:
    """Where the processes meet: opened by the ``first``, which shares it with what it begins; or found within ``SIGN``."""
    address, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    try:
        return TCPStore(address, int(port), is_master=first, timeout=SIGN, wait_for_workers=False, multi_tenant=first)
    except (RuntimeError, ValueError) as error:
        rule = "is where the first process (RANK=0) must be reached"
        why = "it cannot open that" if first else f"none has come in {SIGN.total_seconds() / 60:g} minutes"
        fix = "Look at its output, and give all processes the address of its machine and a port that is free there."
        reason = shortened(str(error).partition("\n")[0])
        raise MetarunError(f"MASTER_ADDR:MASTER_PORT {address}:{port} {rule}, but {why} ({reason}). {fix}") from error
