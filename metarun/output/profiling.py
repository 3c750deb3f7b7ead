"""``profile=true``: where the time of a step goes, as a trace for Perfetto or TensorBoard and as a table."""

import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function, schedule

WARM_UP_STEPS, PROFILED_STEPS, TABLE_ROWS = 5, 5, 20
PHASES = {
    "episodes": "waiting for episodes (drawn beside, in a thread)",
    "step": "meta-gradient, clipping and optimizer",
    "optimizer": "  of these the optimizer, where seen apart",
    "log": "logging",
}  # of a training step, by the CPU's clock: a GPU computes on when they end


def too_few(steps: int) -> str:
    """Why a run of so many steps leaves no profile; empty where it does."""
    needed = WARM_UP_STEPS + PROFILED_STEPS
    return (
        f"profile: nothing is written, because it needs {needed} steps and there are {steps}" if steps < needed else ""
    )


class StepProfiler:
    """A recording of a few steps after a warm-up: a trace and table.txt in ``folder``. Call ``step`` after each step."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.trace = folder / "metarun.pt.trace.json"  # as TensorBoard's plugin torch-tb-profiler looks for it
        self.steps = 0
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else it tells of a GPU that is not there
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
        plan = schedule(wait=0, warmup=WARM_UP_STEPS, active=PROFILED_STEPS, repeat=1)
        self.profiler = profile(activities=activities, schedule=plan, on_trace_ready=self._write, profile_memory=True)
        self.profiler.start()

    def step(self) -> bool:
        """Count one training step; True once the recording is complete and written."""
        self.profiler.step()
        self.steps += 1
        if self.steps < WARM_UP_STEPS + PROFILED_STEPS:
            return False
        self.profiler.stop()
        return True

    def abandon(self) -> str:
        """End the recording before it is complete; returns why there is nothing to look at."""
        self.profiler.stop()
        return too_few(self.steps)

    def _write(self, profiler: profile) -> None:
        self.folder.mkdir(exist_ok=True)
        profiler.export_chrome_trace(str(self.trace))
        rows = profiler.key_averages()
        phases = {
            row.key.removeprefix("metarun/"): row.cpu_time_total for row in rows if row.key.startswith("metarun/")
        }
        lines = [f"{PROFILED_STEPS} training steps. Milliseconds a step:"]
        phases["optimizer"] = sum(row.cpu_time_total for row in rows if row.key.startswith("Optimizer.step#"))
        lines += [f"  {what:50} {phases.get(name, 0) / PROFILED_STEPS / 1e3:10.3f}" for name, what in PHASES.items()]
        by = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        table = rows.table(sort_by=by, row_limit=TABLE_ROWS, max_name_column_width=50)
        (self.folder / "table.txt").write_text("\n".join([*lines, table, ""]))


def profile_span(name: str, profiled: bool) -> Any:
    """A context that a profile shows as the part ``name`` of a step."""
    return record_function(f"metarun/{name}") if profiled else nullcontext()
