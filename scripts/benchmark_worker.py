"""One measurement of scripts/benchmark.py, in a process of its own: milliseconds, memory and error of an engine."""

import json
import os
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmark_peers import PEERS, NotComparable
from benchmark_works import METARUN, Engine, Work, device, plain_loop

WARM_UP, MIN_REPEATS, MIN_SECONDS = 2, 3, 4.0
ENGINES: dict[str, Engine] = METARUN | PEERS | {"plain_loop": plain_loop}


def worker(engine: str, work: Work, reference: str) -> dict[str, Any]:
    """Milliseconds, memory and error of one engine on one work."""
    if engine.startswith("metarun"):
        from metarun.process import prepare

        prepare()
    import torch

    if engine == "reference":
        torch.set_num_threads(1)
    if engine.startswith("metarun"):  # as its own runs; a peer's user has torch's default, TF32 in convolutions
        torch.backends.cudnn.allow_tf32 = False
    dtype = torch.float64 if engine == "reference" else torch.float32
    if device() != "cpu":
        torch.cuda.set_device(torch.device(device()).index or 0)
    torch.zeros(1, device=device())
    base = resident()
    began = time.perf_counter()
    step = (plain_loop if engine == "reference" else ENGINES[engine])(work, dtype)
    if engine == "reference":
        torch.save([g.detach().cpu() for g in step()], reference)
        return {}
    gradient = [g.detach().cpu().double().clone() for g in step()]
    ready = time.perf_counter() - began  # building, choosing and compiling included
    for _ in range(WARM_UP - 1):
        step()
    times: list[float] = []
    while len(times) < MIN_REPEATS or sum(times) < MIN_SECONDS:
        start = time.perf_counter()
        step()
        synchronize()
        times.append(time.perf_counter() - start)
    with PeakMemory() as peak:  # not while the clock runs: on 2 cores looking on costs 10%
        step()
    row: dict[str, Any] = {"ms": statistics.median(times) * 1e3, "ready_s": ready}
    row |= {"peak_mb": getattr(step, "peak_mb", lambda: (peak.bytes - base) / 2**20)()}
    row["chosen"] = getattr(step, "chosen", None)
    if Path(reference).is_file():
        exact = torch.load(reference, weights_only=True)
        row["error"] = relative_error(gradient, exact)
    return row


def relative_error(gradient: list[Any], exact: list[Any]) -> float:
    import torch

    difference = torch.cat([(a - b).flatten() for a, b in zip(gradient, exact, strict=True)])
    return (difference.norm() / torch.cat([g.flatten() for g in exact]).norm()).item()


def synchronize() -> None:
    import torch

    if device() != "cpu":
        torch.cuda.synchronize()


def resident() -> int:
    """Bytes held in this process; of a GPU the most so far, with what metarun tried before it chose."""
    if device() != "cpu":
        import torch

        return torch.cuda.max_memory_allocated()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


class PeakMemory:
    """The largest resident size while inside, looked at every few milliseconds."""

    def __enter__(self) -> "PeakMemory":
        self.bytes, self.done = resident(), threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        return self

    def _watch(self) -> None:
        while not self.done.wait(0.005):
            self.bytes = max(self.bytes, resident())

    def __exit__(self, *error: object) -> None:
        self.done.set()
        self.thread.join()


def measured(engine: str, work: Work, reference: Path, timeout: float) -> dict[str, Any]:
    """The row of one engine on one work, from a process of its own; or why it has none."""
    command = [sys.executable, __file__, engine, json.dumps(asdict(work)), str(reference)]
    cache = {"TORCHINDUCTOR_CACHE_DIR": str((reference.parent / "compiled").resolve())}
    environment = {**os.environ, **cache, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        return {"failed": f"more than {timeout:.0f} s"}
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1][:160]}
    return json.loads(done.stdout.strip().splitlines()[-1])


if __name__ == "__main__":
    name, described, beside = sys.argv[1:]
    try:
        print(json.dumps(worker(name, Work(**json.loads(described)), beside)))
    except (ImportError, NotComparable) as unable:
        sys.exit(f"{name}: {unable}")
