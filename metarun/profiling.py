"""``profile=true``: where the time of a step goes, as a trace for TensorBoard or Perfetto and as a table."""

from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

WARM_UP_STEPS, PROFILED_STEPS, TABLE_ROWS = 5, 5, 20


class StepProfiler:
    """Records a few steps after a warm-up into ``folder``: trace.json and table.txt. Call ``step`` after each step."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.steps = 0
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

    def _write(self, profiler: profile) -> None:
        self.folder.mkdir(exist_ok=True)
        profiler.export_chrome_trace(str(self.folder / "trace.json"))
        by = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        table = profiler.key_averages().table(sort_by=by, row_limit=TABLE_ROWS, max_name_column_width=50)
        (self.folder / "table.txt").write_text(f"{PROFILED_STEPS} training steps\n{table}\n")
