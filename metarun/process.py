"""Settings of the process that have to be made before torch is loaded."""

import ctypes
import os
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
KEEP_BELOW = 1 << 30  # bytes


def prepare() -> None:
    """Make torch quick on a CPU. What the user set in the environment stands. Call before torch is imported."""
    sleep_between_kernels()
    keep_freed_memory()


def sleep_between_kernels() -> None:
    """Let torch's threads sleep while they wait for each other.

    By default they spin, and on a busy machine a spinning thread keeps the core from the one it waits for: measured on 2
    cores with a second job running, a meta-gradient of the sinusoid MLP took 46 ms instead of 7.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def keep_freed_memory() -> bool:
    """Raise glibc's malloc thresholds; True where the C library knows how.

    By default large tensors go back to the system when freed, and each new one pays page faults: 1.3 to 2.7 times the
    time of a second-order meta-gradient, measured on 2 cores.
    """
    if not sys.platform.startswith("linux") or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, KEEP_BELOW) and mallopt(M_TRIM_THRESHOLD, KEEP_BELOW))
