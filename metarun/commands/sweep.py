"""``metarun -m``: one run for each combination, each in a process of its own, so that none can take another down."""

import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from rich.table import Table

from metarun.commands.data_efficiency import leave_curves, spread
from metarun.commands.slots import Slots
from metarun.config.compose import (
    assigned,
    composed,
    hydra_arguments,
    override_key,
    readable,
    register_schema,
    with_evaluation_tasks,
)
from metarun.config.help import SWEEP_KEYS
from metarun.config.names import names_as_text
from metarun.config.overrides import given_twice, refuse_sweeps_without_end
from metarun.errors import ConfigError, shortened
from metarun.output.folder import RunFolder, new_name, place, short_hash, slug, tensorboard_command
from metarun.output.tables import table_console
from metarun.paths import as_shown, config_dir
from metarun.training.signals import stopping_signals

POLL_SECONDS = 0.1
NOT_IN_A_SWEEP = ("run_dir", "resume")  # every run has a folder of its own, and continues it


@dataclass
class Job:
    """One run of a sweep, its process, and what became of it."""

    overrides: list[str]
    name: str  # what tells it from the other jobs
    folder: RunFolder
    process: subprocess.Popen | None = None
    code: int | None = None
    slot: int = 0
    began: float = 0.0
    seconds: float = 0.0


def sweep(arguments: list[str], config_dirs: list[Path]) -> int:
    """Run every combination that ``arguments`` span; exit code 0 if all completed, 1 if some did not."""
    if any(text.startswith(("hydra/launcher=", "hydra/sweeper=")) for text in arguments):
        return _by_hydra(arguments, config_dirs)
    wrong = [text for text in arguments if text.startswith("-") or text.split("=")[0] in NOT_IN_A_SWEEP]
    if wrong:
        raise ConfigError(
            [
                f"{text} cannot stand beside -m; each run of a sweep has its own folder in sweep_dir=DIR, and goes on there."
                for text in wrong
            ]
        )
    if problems := given_twice(readable(arguments)):
        raise ConfigError(problems)
    own = dict(text.split("=", 1) for text in arguments if text.startswith(tuple(f"{name}=" for name in SWEEP_KEYS)))
    rest = [text for text in arguments if text.partition("=")[0] not in own]
    folder = place(own.get("sweep_dir", str(Path("runs", new_name("sweep")))), "sweep_dir")
    slots = Slots(_number_of_jobs(own.get("jobs", "1")))
    plan = spread(rest, config_dirs)
    combinations = _combinations(plan)
    jobs = [
        Job(overrides, " ".join(shown) or "defaults", _job_folder(folder, overrides, shown))
        for overrides, shown in zip(combinations, _varying(combinations), strict=True)
    ]
    _check(jobs, config_dirs)
    print(f"sweep of {len(jobs)} runs: {as_shown(folder)}", file=sys.stderr)
    _run_all(jobs, slots, [f"--config-dir={path}" for path in config_dirs])
    code = _report(jobs, folder)
    if plan != rest:
        print("\n".join(leave_curves([(job.overrides, job.folder) for job in jobs], folder)))
    return code


def _number_of_jobs(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError([f"jobs={text}: must be a whole number of 1 or more, the runs at a time."])
    return int(text)


def _combinations(overrides: list[str]) -> list[list[str]]:
    """Each combination once, in the order of its first: two jobs must not share a folder."""
    try:
        parsed = OverridesParser.create().parse_overrides([*map(names_as_text, overrides)])
        refuse_sweeps_without_end(parsed)
        jobs = [tuple(job) for batch in BasicSweeper.split_arguments(parsed, None) for job in batch]
        return [list(job) for job in dict.fromkeys(jobs)]
    except (HydraException, AssertionError) as error:
        raise ConfigError([shortened(" ".join(str(error).split()) or "an override has no key", 300)]) from None


def _varying(combinations: list[list[str]]) -> list[list[str]]:
    """The overrides of each combination that not all combinations share; all of them where there is only one."""
    if len(combinations) == 1:
        return combinations
    shared = set.intersection(*map(set, combinations))
    return [[text for text in overrides if text not in shared] for overrides in combinations]


def _job_folder(sweep: Path, overrides: list[str], shown: list[str]) -> RunFolder:
    """Named by the overrides ``shown`` and a hash of all: the same sweep run again, or one with more values, finds the
    folders that it has and their results."""
    number = short_hash(sorted(overrides))
    there = next((path for path in sweep.glob(f"*-{number}") if path.is_dir()), None)
    return RunFolder(there or sweep / f"{slug('_'.join(shown) or 'defaults')}-{number}")


def _check(jobs: list[Job], config_dirs: list[Path]) -> None:
    """Every mistake that can be seen without building anything or reading data, before the first job starts."""
    from metarun.config.build import check

    problems: dict[str, None] = {}
    for job in jobs:
        try:
            problems |= dict.fromkeys(check(composed(job.overrides, config_dirs)))
        except ConfigError as error:
            problems |= dict.fromkeys(error.problems)
    if problems:
        raise ConfigError(list(problems))


def _run_all(jobs: list[Job], slots: Slots, flags: list[str]) -> None:
    """Run at most ``slots.jobs`` processes at a time; a signal is passed on to them and starts no more."""
    stop: list[int] = []
    for signum in stopping_signals():
        signal.signal(signum, lambda number, frame: stop.append(number))
    waiting = list(enumerate(jobs))
    running: list[Job] = []
    passed_on = 0
    while running or (waiting and not stop):
        while waiting and len(running) < slots.jobs and not stop:
            number, job = waiting.pop(0)
            if job.folder.read_status()["state"] == "completed":
                job.code = 0
                print(f"[{number + 1}/{len(jobs)}] {job.name}: completed before, kept", file=sys.stderr)
                continue
            job.slot = min(set(range(slots.jobs)) - {other.slot for other in running})
            _start(job, number, len(jobs), slots, flags)
            running.append(job)
        for number in stop[passed_on:]:
            for job in running:
                job.process.send_signal(number)  # type: ignore[union-attr]
        passed_on = len(stop)
        running = [job for job in running if not _ended(job, jobs)]
        time.sleep(POLL_SECONDS)
    if stop:
        print("sweep stopped; the same command with the same sweep_dir continues it", file=sys.stderr)
        sys.exit(128 + stop[0])


def _start(job: Job, number: int, total: int, slots: Slots, flags: list[str]) -> None:
    job.folder.create()
    folder = assigned("run_dir", job.folder.path)
    command = [sys.executable, "-m", "metarun", *flags, *job.overrides, folder, "resume=auto"]
    print(f"[{number + 1}/{total}] {job.name}: started", file=sys.stderr)
    job.began = time.monotonic()
    with (job.folder.path / "output.txt").open("a") as output:
        output.write(f"$ {shlex.join(command)}\n")
        output.flush()
        job.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=slots.environment(job.slot),
            start_new_session=True,  # Ctrl-C reaches the parent alone, which passes it on
        )


def _ended(job: Job, jobs: list[Job]) -> bool:
    assert job.process is not None
    job.code = job.process.poll()
    if job.code is None:
        return False
    job.seconds = time.monotonic() - job.began
    outcomes = {0: "completed", 129: "interrupted", 130: "interrupted", 143: "interrupted"}
    outcome = outcomes.get(job.code, f"failed, exit code {job.code}")
    print(f"[{jobs.index(job) + 1}/{len(jobs)}] {job.name}: {outcome} after {job.seconds:.0f} s", file=sys.stderr)
    return True


def _report(jobs: list[Job], folder: Path) -> int:
    """The final table: every job, its score or the reason it has none."""
    table = Table(title=f"{sum(job.code == 0 for job in jobs)} of {len(jobs)} runs completed")
    for column in ("run", "state", "score", "seconds", "why"):
        table.add_column(column, overflow="fold")
    for job in jobs:
        status = job.folder.read_status()
        score = next((f"{name} {value:.4g}" for name, value in status.items() if name.startswith("test/")), "")
        state = (
            "completed" if job.code == 0 else status["state"].replace("unknown", "failed").replace("running", "died")
        )
        table.add_row(job.name, state, score, f"{job.seconds:.0f}", "" if job.code == 0 else "\n".join(_why(job)))
    table_console(160).print(table)
    print(f"runs:        {as_shown(folder)}\ntensorboard: {tensorboard_command(folder)}")
    return 0 if all(job.code == 0 for job in jobs) else 1


def _why(job: Job) -> Iterator[str]:
    """The message in a failed job's output: from the last line that metarun began, or else its last line."""
    if job.code is not None and job.code < 0:
        yield f"killed by signal {-job.code}"
        return
    lines = (job.folder.path / "output.txt").read_text(errors="replace").splitlines()
    start = max((i for i, line in enumerate(lines) if line.startswith("metarun: ")), default=len(lines) - 1)
    before = [lines[start - 1]] if "did not expect" in lines[start] else []
    yield from (line.removeprefix("metarun: ") for line in (before or lines[start:]))


def _by_hydra(arguments: list[str], config_dirs: list[Path]) -> int:
    """Another launcher or sweeper (Slurm, Ray, Optuna): Hydra runs the show, with ``hydra_job`` as its task."""
    import hydra

    register_schema()
    arguments = with_evaluation_tasks(arguments, config_dirs)[0]
    sys.argv = [sys.argv[0], *hydra_arguments(config_dirs), "--multirun", *arguments]
    if not any(text.startswith("hydra.sweep.dir=") for text in arguments):
        sys.argv.append(f"hydra.sweep.dir={Path('runs', new_name('sweep'))}")
    hydra.main(version_base="1.3", config_path=str(config_dir()), config_name="config")(hydra_job)()
    return 0


def hydra_job(cfg):  # type: ignore[no-untyped-def]
    """One job under a Hydra launcher; returns the best validation score, which a Hydra sweeper may optimise."""
    import torch
    from hydra.core.hydra_config import HydraConfig

    from metarun.commands.train import Job as Training
    from metarun.commands.train import run
    from metarun.output.checkpoint import load

    hydra_config = HydraConfig.get()
    overrides = [text for text in hydra_config.overrides.task if override_key(text) not in ("run_dir", "resume")]
    folder = _job_folder(Path(hydra_config.sweep.dir).resolve(), overrides, overrides)
    run(Training(cfg, overrides, folder, continues=folder.holds_a_run))
    return load(folder.checkpoints / "best.pt", torch.device("cpu"))["best"]["value"]
