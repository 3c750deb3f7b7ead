"""What ``execution=auto`` measures on the first meta-batch, and what it concludes."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import torch

from metarun.execution.choice import Choice
from metarun.execution.compiled import Compiled
from metarun.execution.cuda_graph import CudaGraphed
from metarun.execution.decorated import Decorated, GraphFailed
from metarun.execution.execution import Eager, Execution, Workload, generators_kept
from metarun.execution.failures import memory_errors
from metarun.modes import Convolution
from metarun.trees import detach, ravel, tree_leaves

E = TypeVar("E", bound=Execution)
Timings = dict[tuple[Eager, int], float]  # milliseconds with a number of threads

SLOW_MS, HOPELESS = 500.0, 2.0  # a candidate this slow, and so many times the best one's time, is not tried again
MEASURE_SECONDS = 0.4  # of repeated meta-gradients for each candidate, once warm
OTHER = 0.1  # relative; rounding beside kinks of ReLU and max-pooling makes a hundredth of a meta-gradient
COMPILE_SECONDS = 40.0  # a shorter run is not even traced; a longer one is compiled where its graph is small enough
RECORD_SECONDS = 5.0  # a shorter run does not earn back the seconds that recording on a GPU takes
MOST_SIZES = 16  # of meta-batches, each of which needs a graph
KERNELS_MS = 25.0  # on a CPU; compiling makes a task that takes longer 0 to 40 % quicker
LONG_SECONDS = 3600.0  # a run of such tasks that takes less does not earn back the minutes of compiling


def choose_execution(
    execution: Eager,
    work: Workload,
    between: Callable[[], None] = lambda: None,
    busy: Callable[[str], None] = lambda what: None,
) -> Choice:
    """Choose, by measuring on one meta-batch, what a run of this work will use throughout; ``busy`` hears what is done.

    Neither theta nor the optimizer moves. torch is left with the number of threads that was measured to be best.
    """
    torch.set_num_threads(execution.num_threads)
    work, candidates = replace(work, theta=detach(work.theta)), execution.candidates()
    if work.on_gpu and execution.convolution == "auto":
        formulations: list[Convolution] = ["matmul", "native"]
        candidates = [replace(c, convolution=how) for c in candidates for how in formulations]
    if len(candidates) == 1 and execution.compile is False:
        return Choice(execution)
    # a chunk of 8 is the whole of a smaller meta-batch: keep the first of candidates that group the tasks alike
    alike = {(type(c), c.formulation, str(c.parts(work.num_tasks))): c for c in reversed(candidates)}
    distinct = list(alike.values())
    busy("measuring")
    timings = _interleaved(distinct, _thread_counts(execution, work), work, between)
    if not timings:
        return Choice(
            candidates[-1], notes=["the meta-batch does not fit into memory in any of the ways that were tried"]
        )
    best, threads = _preferred(timings)
    torch.set_num_threads(threads)
    milliseconds = {c.describe(): min(ms for (other, _), ms in timings.items() if other == c) for c, _ in timings}
    choice = Choice(best, milliseconds | {best.describe(): timings[best, threads]}, [f"threads: {threads}"])
    choice.notes += [f"out of memory: {c.describe()}" for c in distinct if c.describe() not in milliseconds]
    alone = work.changes == "never" and work.sizes == 1  # one recording does for the whole run
    worth_recording = alone and work.steps * timings[best, threads] / 1e3 > RECORD_SECONDS
    if work.on_gpu and execution.cuda_graph and len(execution.candidates()) > 1 and worth_recording:
        for eager in distinct:
            if eager.describe() in milliseconds and len(eager.parts(work.num_tasks)) == 1:
                _try(choice, [CudaGraphed(eager)], work)
    if execution.compile is not False:
        _consider_compiling(choice, _to_compile(timings, best), work, busy)
    return choice


def _thread_counts(execution: Eager, work: Workload) -> list[int]:
    """One thread is worth a try where torch would use several: small kernels do not gain from more."""
    threads = torch.get_num_threads()
    on_cpu = tree_leaves(work.theta)[0].device.type == "cpu"
    return [threads] if execution.threads != "auto" or threads == 1 or not on_cpu else [threads, 1]


def _preferred(timings: Timings) -> tuple[Eager, int]:
    """The fastest, on one thread unless several are more than 5% faster, for a machine may be busier later."""
    fastest = min(timings, key=lambda key: timings[key])
    alone = min((key for key in timings if key[1] == 1), key=lambda key: timings[key], default=fastest)
    return alone if timings[alone] < 1.05 * timings[fastest] else fastest


def _to_compile(timings: Timings, best: Eager) -> Eager:
    """The execution to compile: on a GPU the one with convolutions as matrix products, else the quickest.

    Uncompiled, native ones are quicker, for they launch fewer kernels; a compiler and a CUDA graph take that away (MAML on
    32 tasks of 5-way 1-shot Omniglot, H100, native against products: 40 and 46 ms, compiled 4.5 and 1.5).
    """
    as_products = [key for key in timings if key[0].formulation == "matmul"]
    return min(as_products, key=lambda key: timings[key])[0] if as_products else best


def _consider_compiling(choice: Choice, eager: Eager, work: Workload, busy: Callable[[str], None]) -> None:
    """Let the choice be ``eager`` compiled where that is asked for, or earns its time back and measures faster."""
    milliseconds, asked = choice.milliseconds[choice.execution.describe()], eager.compile is True
    if reason := _why_not_to_compile(eager, work, milliseconds):
        choice.notes.append(f"not compiled: {reason}")
        return
    busy("compiling")
    budget = math.inf if asked else work.steps * milliseconds / 1e3 / 2
    # a CPU's fused optimizer is as quick outside the graph; on a GPU every launch counts
    whole = work.on_gpu and work.update is not None and work.update.traceable
    forms = [Compiled(eager, whole, work.sizes, budget) for whole in ([True, False] if whole else [False])]
    recorded = work.on_gpu and eager.cuda_graph and work.sizes == 1
    _try(choice, [CudaGraphed(form) for form in forms] if recorded else forms, work, asked)


def _why_not_to_compile(eager: Eager, work: Workload, milliseconds: float) -> str | None:
    """Why a run whose steps take these milliseconds is not worth compiling; None where it may be."""
    seconds, a_task = work.steps * milliseconds / 1e3, milliseconds / work.num_tasks
    if work.changes == "always":
        return "the learner or its dropout draws numbers at every step, and a graph would repeat the first"
    if work.sizes > MOST_SIZES:
        return (
            f"the meta-batches have {work.sizes} sizes, and a graph for each is more than {MOST_SIZES} graphs; narrow "
            "the ranges of task.num_shots and others, or choose a learner that reads masks, as cnp"
        )
    if eager.compile is True:
        return None
    reasons = {
        "its hyperparameters change in training, and each change would compile again": work.changes == "seldom",
        "a compiler would store what inner_memory=recomputed computes again": eager.inner_memory == "recomputed",
        f"the steps take {seconds:.0f} s in all, so compiling would take longer than it saves": seconds
        < COMPILE_SECONDS,
        f"a task takes {a_task:.0f} ms, mostly in kernels, and {seconds:.0f} s of steps are too few to earn it back": (
            a_task > KERNELS_MS and seconds < LONG_SECONDS and not work.on_gpu
        ),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def _try(choice: Choice, forms: Sequence[Decorated], work: Workload, asked: bool = False) -> None:
    """Let the choice be the first of these forms of one execution that can be made, if it is right, and quicker or asked
    for. The choice's notes say why not."""
    before, timings = choice.milliseconds[choice.execution.describe()], {}
    try:
        made = next((form for form in forms if _can_be_made(form, choice, work)), None)
        if made is None:
            return
        if not (difference := _difference(made, made.eager, work)) <= OTHER:  # NaN too
            cause = "a fault of the compiler, or a learner that draws numbers"
            choice.notes.append(f"{made.describe()}: the meta-gradient would differ by {difference:.2g} ({cause})")
            return
        timings = _interleaved([made], [torch.get_num_threads()], work)
    except torch.OutOfMemoryError:
        pass
    finally:
        for form in forms:  # a recording keeps its memory; the run makes its own
            form.release()
    if not timings:
        choice.notes.append(f"out of memory: {forms[0].describe()}")
        return
    [((execution, _), milliseconds)] = timings.items()
    choice.milliseconds[execution.describe()] = milliseconds
    if milliseconds < before or asked:
        choice.execution = execution
    else:
        choice.notes.append(f"{execution.describe()} is not faster and is not used")


def _can_be_made(form: Decorated, choice: Choice, work: Workload) -> bool:
    """Whether the graphs of ``form`` can be made; the choice's notes say how long that took, or why not."""
    start = time.perf_counter()
    try:
        with generators_kept(), memory_errors():
            form.rehearse(work)
    except GraphFailed as error:
        choice.notes.append(f"{form.describe()}: {error}")
        return False
    steps = work.steps * choice.milliseconds[choice.execution.describe()] / 1e3
    choice.notes.append(
        f"{form.describe()}: took {time.perf_counter() - start:.0f} s to make; the steps take {steps:.0f} s"
    )
    return True


def _difference(one: Execution, other: Execution, work: Workload) -> float:
    """The relative distance between their meta-gradients."""
    found = []
    with generators_kept():
        for execution in (one, other):
            torch.manual_seed(0)
            found.append(ravel(execution.mean_grad(work.loss_fn, work.theta, work.episodes)[0])[0])
    return float((found[0] - found[1]).norm() / found[1].norm().clamp_min(1e-30))


def _interleaved(
    candidates: Sequence[E], thread_counts: list[int], work: Workload, between: Callable[[], None] = lambda: None
) -> dict[tuple[E, int], float]:
    """Best milliseconds of each candidate with each number of threads, in turns: a busy machine slows all alike.

    A candidate that does not fit into the device's memory is left out.
    """
    best: dict[tuple[E, int], float] = {}

    with generators_kept():
        for candidate, threads in [(candidate, threads) for candidate in candidates for threads in thread_counts]:
            torch.set_num_threads(threads)
            between()
            try:
                first = _milliseconds(candidate, work)
                # the first call of all, and of a quick candidate, is mostly spent on what is done only once; on a GPU
                # each candidate's is, which compiles kernels
                again = not best or first < SLOW_MS or work.on_gpu
                best[candidate, threads] = _milliseconds(candidate, work) if again else first
            except torch.OutOfMemoryError:
                continue
        hopeful = [key for key in best if best[key] < max(SLOW_MS, HOPELESS * min(best.values()))]
        rounds, start = 0, time.perf_counter()
        while rounds < 1 or (rounds < 50 and time.perf_counter() - start < MEASURE_SECONDS * len(hopeful)):
            for candidate, threads in hopeful:
                torch.set_num_threads(threads)
                between()
                best[candidate, threads] = min(best[candidate, threads], _milliseconds(candidate, work))
            rounds += 1
    return best


def _milliseconds(execution: Execution, work: Workload) -> float:
    start = time.perf_counter()
    with memory_errors():
        execution.rehearse(work)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - start) * 1e3
