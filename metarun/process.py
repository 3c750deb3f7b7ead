"""Settings of the process that have to be made before torch is loaded."""

import ctypes
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
THRESHOLDS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")  # with which a user sets them
KEEP_BELOW = 1 << 30  # bytes
SPIN_COUNT = "10000"  # turns of an empty loop
LED = "METARUN_LED"  # variable of the environment of a run that another command of metarun starts, and speaks for


def prepare() -> None:
    """Make torch quick on a CPU. What the user set in the environment stands. Call before torch is imported."""
    spin_briefly()
    keep_freed_memory()
    tell()


def forget_empty_data_root() -> None:
    """Take an empty METARUN_DATA, as ``docker -e METARUN_DATA=`` leaves it, for one that is not set."""
    if not os.environ.get("METARUN_DATA", "set").strip():
        del os.environ["METARUN_DATA"]


def tell() -> None:
    """Let metarun's own notes (what is downloaded, what is prepared) reach the terminal."""
    notes = logging.getLogger("metarun")
    if not notes.handlers:
        notes.addHandler(Terminal())
        notes.setLevel(logging.INFO)


class Terminal(logging.Handler):
    """Log handler that writes to what is standard error at the time of the message."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr)


def spin_briefly() -> None:
    """Let torch's threads spin for about 10 microseconds between kernels, then sleep until there is work.

    OpenMP's own default spins far longer, and on a busy machine a spinning thread keeps the core from the one that it
    waits for. Measured milliseconds stand in docs/decisions.md, under "Threads".
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)


def peak_memory_mb() -> float | None:
    """Most memory held so far, in MB of 2^20 bytes; None where the system does not say.

    On a GPU, where one is in use, what is allocated there; else what is resident in this process.
    """
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated() / 2**20
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def keep_freed_memory() -> bool:
    """Raise glibc's malloc thresholds, so that freed memory is kept; return True where the C library knows how.

    By default large tensors go back to the system when freed, and each new one pays page faults: 1.3 to 2.7 times the
    time of a second-order meta-gradient, measured on 2 cores.
    """
    if not sys.platform.startswith("linux") or any(name in os.environ for name in THRESHOLDS):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, KEEP_BELOW) and mallopt(M_TRIM_THRESHOLD, KEEP_BELOW))


@contextmanager
def bounded_memory(device: str) -> Iterator[None]:
    """A context in which Linux refuses this process, and those it starts, more memory than there is, where it would else
    promise it and then kill: so that metarun can take fewer tasks at a time, or say what is too large. A limit of the
    user's stands. Not for GPUs, whose drivers map more than there is."""
    torch, left = sys.modules["torch"], memory_left()
    if left is None or not (device.startswith("cpu") or (device == "auto" and not torch.cuda.is_available())):
        yield
        return
    import resource

    soft, hard = before = resource.getrlimit(resource.RLIMIT_DATA)
    if soft == resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_DATA, (left if hard == resource.RLIM_INFINITY else min(left, hard), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def memory_left() -> int | None:
    """Bytes that this process could have: what is free, or half of the machine's where others hold more for now, and no
    more than the limit of its container or job; None where the system does not say."""
    try:
        lines = [line.split() for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines()]
        kib = {words[0].rstrip(":"): int(words[1]) for words in lines}
        pages = [int(word) for word in Path("/proc/self/statm").read_text(encoding="ascii").split()]
        resident, held = (pages[place] * os.sysconf("SC_PAGE_SIZE") for place in (1, 5))
        free = max(held + 1024 * (kib["MemAvailable"] + kib["SwapFree"]), 1024 * kib["MemTotal"] // 2)
        return min([free, *(held + max(limit - resident, 0) for limit in memory_limits())])
    except (OSError, ValueError, LookupError):
        return None


def memory_limits(root: Path = Path("/")) -> list[int]:
    """Bytes that Linux's control groups allow this process: those of containers and of Slurm's jobs. A container sees its
    own group as the uppermost."""
    limits = []
    for line in (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        mount, name = ("memory", "memory.limit_in_bytes") if controllers else ("", "memory.max")  # version 1, 2
        for folder in (own := Path(group.lstrip("/")), *own.parents):
            with suppress(OSError, ValueError):  # a group of the machine's that a container does not see; or "max"
                limits.append(int((root / "sys/fs/cgroup" / mount / folder / name).read_text(encoding="ascii")))
    return limits


def return_freed_memory() -> None:
    """Give freed memory back to the system: once, after work that took more of it than the work ahead will."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform.startswith("linux") else None
    if trim is not None:
        trim(0)
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def started_together() -> int:
    """The number of processes that torchrun has started for one run, of which this is one; 1 where it has not."""
    given = {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= set(os.environ)
    return int(os.environ["WORLD_SIZE"]) if given else 1


def started_rank() -> int:
    """The number of this process among those, from 0."""
    return int(os.environ["RANK"]) if started_together() > 1 else 0


def ending_with(parent: int) -> Callable[[], None] | None:
    """What a child does before it starts, so that it gets SIGTERM, and writes a checkpoint, when its parent is killed."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def prepare() -> None:
        prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(128 + signal.SIGTERM)

    return prepare
