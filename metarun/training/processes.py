"""The processes of a run on several devices: started here or by torchrun, joined, and ended together.

The first one has the run's folder, and begins the others: it tells them the configuration, and they build the same run.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from metarun.config.build import device_of
from metarun.config.compose import assigned
from metarun.config.experiment import Experiment
from metarun.errors import ConfigError, MetarunError
from metarun.execution.devices import ALONE, Devices, PeerLost, packed, unpacked
from metarun.process import started_together
from metarun.training.signals import StopRequest

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[attr-defined]

LONG = timedelta(days=1)  # until a process that does not answer is given up; one that has ended is noticed at once
LOOK_SECONDS = 0.05
GRACE = 1.0  # seconds that the others have to end by themselves
BEGIN = "metarun/begin"


def refuse_devices(name: str, count: int, exact: bool, begins: bool) -> None:
    """Raise ConfigError where ``count`` processes cannot have a device each (``name`` is the setting ``device``), and
    where a run ``begins`` that is not to be exact, without need."""
    if count == 1:
        if begins and not exact:
            raise ConfigError(["exact=false has no effect with devices=1; leave it out, or set devices."])
        return
    kind, problem = device_of(name).type, ""
    here, present = int(os.environ.get("LOCAL_WORLD_SIZE", count)), torch.cuda.device_count()
    if kind == "mps":
        problem = "device=mps is a single device; use device=cpu, or devices=1"
    elif kind == "cuda" and device_of(name).index is not None:
        problem = f"device={name} names one of them; use device=cuda, and CUDA_VISIBLE_DEVICES to choose"
    elif kind == "cuda" and here > present:
        problem = f"torch finds {present} of them here; use devices={max(1, present)}, or device=cpu"
    elif not dist.is_available():
        problem = "this torch comes without torch.distributed; use devices=1"
    if problem:
        raise ConfigError([f"devices={count}: {problem}."])


@contextmanager
def leading(experiment: Experiment, begin: dict[str, Any], stop: StopRequest) -> Iterator[Devices]:
    """The devices of the first process; the others, which are started here unless torchrun has done so, are told to
    ``begin``. Raises MetarunError where one of them is lost."""
    if experiment.devices == 1:
        yield ALONE
        return
    others: list[subprocess.Popen[bytes]] = []
    try:
        with ExitStack() as stack:
            with stop.breakable():
                store = _store() if started_together() > 1 else _begun(experiment.devices, others)
                store.set(BEGIN, packed(begin))  # type: ignore[arg-type]
                _wait_for(others, store)
                devices = stack.enter_context(joined(store, 0, experiment))
            yield devices
    except PeerLost as error:
        again = f"{assigned('resume', begin['folder'])} goes on, with any number of devices"
        raise MetarunError(f"{error}.\nThe last checkpoint is whole: {again}") from error
    finally:
        for process in others:
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
            process.kill()
            process.wait()


def nothing_to_begin() -> None:
    """Tell the processes that torchrun has started beside this one that there is nothing to do, and let them go."""
    if (count := started_together()) == 1:
        return
    store = _store()
    store.set(BEGIN, packed({}))  # type: ignore[arg-type]
    # this process may hold the store, which must not go before they have read it
    store.wait([f"here/{rank}" for rank in range(1, count)], LONG)


def told(within: timedelta) -> tuple[dict[str, Any], "Store"]:
    """What the first process, to be reached ``within`` a time, tells another one to begin with, nothing where there is
    nothing to do; and where they meet. Raises PeerLost where it ends before."""
    try:
        store = _store(within)
        store.set_timeout(LONG)
        return unpacked(store.get(BEGIN), torch.device("cpu")), store
    except RuntimeError as error:
        said = f"the first process (RANK=0) has ended before the run began; look at its output ({str(error)[:200]})"
        raise PeerLost(f"{said}.") from error


def _store(timeout: timedelta = LONG) -> "Store":
    """Where the processes meet, as torchrun's variables of the environment say."""
    store, _, _ = next(dist.rendezvous("env://", timeout=timeout))  # type: ignore[attr-defined]
    return _of_this_start(store)


def _of_this_start(store: "Store") -> "Store":
    """``store`` apart for each restart of torchrun, or what it starts again would read what was left there before."""
    return dist.PrefixStore(f"metarun/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)  # type: ignore[attr-defined]


def _begun(count: int, others: list[subprocess.Popen[bytes]]) -> "Store":
    """Start the ``others``, each with the variables that torchrun would give it; where all of them meet."""
    if sys.platform.startswith("linux"):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # or it looks for an address of this machine's name
    store = dist.TCPStore(  # type: ignore[attr-defined]
        "127.0.0.1", 0, count, is_master=True, timeout=LONG, wait_for_workers=False
    )
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "WORLD_SIZE": str(count)}
    place["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))  # where --config-dir found its modules, too
    for rank in range(1, count):
        env = {**os.environ, **place, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        command = [sys.executable, "-m", "metarun"]
        # a session of its own: signals of a terminal come to the first process, which tells the others
        others.append(subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, start_new_session=True))
    return _of_this_start(store)


def _wait_for(others: list[subprocess.Popen[bytes]], store: "Store") -> None:
    """Wait until the others are there. Raises PeerLost where one ends before."""
    for rank, process in enumerate(others, start=1):
        while process.poll() is None and not store.check([f"here/{rank}"]):
            time.sleep(LOOK_SECONDS)
        if process.poll() is not None:
            raise PeerLost(f"process {rank} of this run has ended before it began, with exit code {process.returncode}")


@contextmanager
def joined(store: "Store", rank: int, experiment: Experiment) -> Iterator[Devices]:
    """The devices of process ``rank`` of a run, all of which meet at ``store``. Raises PeerLost."""
    count, device = experiment.devices, experiment.device
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    store.set(f"here/{rank}", "")
    try:
        dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=LONG)
    except RuntimeError as error:
        raise PeerLost(f"the {count} processes of this run did not come together: {str(error)[:200]}") from error
    try:
        yield Devices(rank, count, experiment.exact, device)
    finally:
        with suppress(RuntimeError):
            dist.destroy_process_group()
