"""``metarun doctor``: what works here, what is slow, and the fix."""

import os
import shutil
import sys
from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
from rich.table import Table
from rich.text import Text

from metarun.commands.data import entries
from metarun.config.compose import assigned
from metarun.output.tables import table_console
from metarun.process import SPIN_COUNT, THRESHOLDS, keep_freed_memory
from metarun.sweep.slots import usable_cpus

GIB = 2**30
NEEDED_DISK = 2 * GIB
LAUNCHERS = ("joblib", "submitit", "ray")  # named as the packages that they need


class Finding(NamedTuple):
    """One thing that was looked at: how it is, what was seen, and the fix, if there is one."""

    what: str
    state: str  # ok | slow | missing | info
    value: str
    fix: str = ""


def findings(data_root: Path) -> Iterator[Finding]:
    """Everything worth telling about this machine, in reading order."""
    yield from _versions()
    yield from _device()
    yield from _processor()
    yield from _compiler()
    yield from _data(data_root)
    yield from _launchers()


def _versions() -> Iterator[Finding]:
    versions = [f"{name} {metadata.version(name)}" for name in ("torch", "torchvision", "hydra-core", "tensorboard")]
    yield Finding("versions", "ok", f"python {sys.version.split()[0]}, {', '.join(versions)}")


def _device() -> Iterator[Finding]:
    if not torch.cuda.is_available():
        built_for = torch.version.cuda
        why = "torch is a CPU build" if built_for is None else f"torch is built for CUDA {built_for} and sees no GPU"
        yield Finding("device", "info", f"cpu ({why})", "device=auto uses the CPU")
        yield Finding("precision", "ok", "float32, or dtype=float64")
        return
    for i in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(i)
        free, total = torch.cuda.mem_get_info(i)
        yield Finding(f"cuda:{i}", "ok", f"{facts.name}, {free / GIB:.0f} of {total / GIB:.0f} GiB free")
    yield Finding("precision", "ok", "float32; metarun switches TF32 off for exact meta-gradients")


def _processor() -> Iterator[Finding]:
    threads, cpus = torch.get_num_threads(), usable_cpus()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if threads > cpus:
        yield Finding("threads", "slow", f"{threads} threads on {cpus} cores", f"export OMP_NUM_THREADS={cpus}")
    else:
        yield Finding("threads", "ok", f"{threads} of {cpus} cores")
    if load > 0.5 * cpus:
        yield Finding("load", "slow", f"{load:.1f} running on {cpus} cores", "timings and execution=auto are less sure")
    own = [f"{name}={os.environ[name]}" for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT") if name in os.environ]
    if own == [f"GOMP_SPINCOUNT={SPIN_COUNT}"]:
        yield Finding("waiting", "ok", "threads that wait spin briefly, then sleep")
    else:
        fix = "unset OMP_WAIT_POLICY" if "OMP_WAIT_POLICY" in os.environ else ""
        yield Finding("waiting", "info", f"as your environment says ({', '.join(own)})", fix)
    yield _allocator()


def _allocator() -> Finding:
    preloaded = os.environ.get("LD_PRELOAD", "")
    if "jemalloc" in preloaded or "tcmalloc" in preloaded:
        return Finding("allocator", "ok", Path(preloaded.split(":")[0]).name)
    if own := [name for name in THRESHOLDS if name in os.environ]:
        return Finding("allocator", "info", f"as your environment says ({', '.join(own)})", f"unset {' '.join(own)}")
    if keep_freed_memory():
        return Finding("allocator", "ok", "glibc, told to keep freed memory")
    fix = "preload jemalloc: LD_PRELOAD=libjemalloc.so.2 metarun ..." if sys.platform.startswith("linux") else ""
    return Finding("allocator", "slow", "gives large tensors back to the system at every step", fix)


def _compiler() -> Iterator[Finding]:
    name = next((name for name in (os.environ.get("CXX", ""), "g++", "clang++") if name and shutil.which(name)), "")
    if name:
        yield Finding("compiler", "ok", f"{name}: execution.compile works on the CPU")
    else:
        yield Finding("compiler", "missing", "no C++ compiler: execution.compile falls back", "apt install g++")


def _data(root: Path) -> Iterator[Finding]:
    if not root.is_dir():
        yield Finding("data root", "missing", str(root), "made by the first download, or set METARUN_DATA")
    else:
        writable = os.access(root, os.W_OK)
        yield Finding("data root", "ok" if writable else "missing", str(root), "" if writable else "make it writable")
        free = shutil.disk_usage(root).free
        if free < NEEDED_DISK:
            yield Finding("disk", "slow", f"{free / GIB:.1f} GiB free", "free some space")
    for name, _, state, _ in entries([assigned("data_root", root)], []):
        if state == "ready":
            yield Finding(name, "ok", "prepared")
        elif state == "raw files found":
            yield Finding(name, "ok", "found; prepared at its first use")
        elif state == "absent":
            yield Finding(name, "info", "absent", f"metarun data prepare {name} says where it comes from")


def _launchers() -> Iterator[Finding]:
    yield Finding("sweeps", "ok", "metarun -m jobs=N: N runs at a time, a process each")
    here = {f"launcher={name}": (name, find_spec(name) is not None) for name in LAUNCHERS}
    here["metarun search"] = "'metarun[search]'", find_spec("optuna") is not None
    for what, (package, present) in here.items():
        state, value = ("ok", "installed") if present else ("info", "not installed")
        yield Finding(what, state, value, "" if present else f"pip install {package}")
    submits = shutil.which("sbatch") is not None
    yield Finding("launcher=slurm", "ok" if submits else "info", "sbatch is here" if submits else "no sbatch here")


def doctor(data_root: Path) -> None:
    """Print the findings as a table."""
    colours = {"ok": "green", "slow": "yellow", "missing": "red", "info": "blue"}
    table = Table(box=None, pad_edge=False)
    for column in ("", "state", "here", "fix"):
        table.add_column(column, overflow="fold", no_wrap=column in ("", "state"))
    for what, state, value, fix in findings(data_root):
        table.add_row(what, Text(state, style=colours[state]), value, fix)
    table_console(160).print(table)
