"""What ``execution=auto`` measures on the first meta-batch, and what it concludes."""

import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch

from metarun.core import Episode, Params
from metarun.execution.choice import Choice
from metarun.execution.compiled import CompilationFailed, Compiled
from metarun.execution.execution import Execution, MetaLoss, generators_kept
from metarun.execution.memory import memory_errors
from metarun.execution.update import Update
from metarun.modes import Convolution
from metarun.trees import detach, ravel, tree_leaves

Changes = Literal["never", "seldom", "always"]

SLOW_MS, HOPELESS = 500.0, 2.0  # a candidate this slow, and so many times the best one's time, is not tried again
MEASURE_SECONDS = 0.4  # of repeated meta-gradients for each candidate, once warm
OTHER = 0.1  # relative; rounding beside kinks of ReLU and max-pooling makes a hundredth of a meta-gradient
COMPILE_SECONDS = 40.0  # a shorter run is not even traced; a longer one is compiled where its graph is small enough
RECORD_SECONDS = 5.0  # a shorter run does not earn back the seconds that recording on a GPU takes
KERNELS_MS = 25.0  # on a CPU, a task that takes longer is spent in kernels that compiling does not speed up


def settle(
    execution: Execution,
    loss_fn: MetaLoss,
    theta: Params,
    episodes: Episode,
    steps: int,
    changes: Changes = "never",
    update: Update | None = None,
    between: Callable[[], None] = lambda: None,
) -> Choice:
    """Choose, by measuring on one meta-batch, what a run of ``steps`` steps will use throughout.

    ``changes``: ``loss_fn`` is that of the first step, and may be another at every step (fresh draws), or seldom
    (annealing). ``update`` is what a step does with a meta-gradient; a compiled step takes it into its graph. Neither theta
    nor the optimizer moves.
    """
    if execution.threads != "auto":
        torch.set_num_threads(execution.threads)
    theta, num_tasks, on_gpu = detach(theta), len(tree_leaves(episodes)[0]), tree_leaves(theta)[0].is_cuda
    candidates = execution.candidates()
    if on_gpu and execution.convolution == "auto":
        formulations: list[Convolution] = ["matmul", "native"]
        candidates = [replace(c, convolution=how) for c in candidates for how in formulations]
    if len(candidates) == 1 and execution.compile is False:
        return Choice(execution)
    # a chunk of 8 is the whole of a smaller meta-batch: keep the first of candidates that group the tasks alike
    distinct = {(type(c), c.formulation, str(c.parts(num_tasks))): c for c in reversed(candidates)}
    counts = _thread_counts(execution, theta)
    timings = _interleaved(list(distinct.values()), counts, loss_fn, theta, episodes, between=between)
    if not timings:
        return Choice(candidates[-1], notes=["none of the candidates fits into the device's memory as it is"])
    best, threads = _preferred(timings)
    torch.set_num_threads(threads)
    milliseconds = {c.describe(): min(ms for (other, _), ms in timings.items() if other == c) for c, _ in timings}
    choice = Choice(best, milliseconds | {best.describe(): timings[best, threads]}, [f"threads: {threads}"])
    choice.notes += [f"out of memory: {c.describe()}" for c in distinct.values() if c.describe() not in milliseconds]
    long = steps * timings[best, threads] / 1e3 > RECORD_SECONDS
    if on_gpu and execution.cuda_graph and len(execution.candidates()) > 1 and long and changes == "never":
        for eager in [c for c in distinct.values() if c.describe() in milliseconds and len(c.parts(num_tasks)) == 1]:
            _try(choice, [Compiled(eager, compiler=False)], eager, loss_fn, theta, episodes, None)
    if execution.compile is not False and changes == "always":
        choice.notes.append("not compiled: what it draws, or drops, changes at every step and is fixed in a graph")
    elif execution.compile == "auto" and changes == "seldom":
        choice.notes.append("not compiled: an annealed learner would compile again at every change")
    elif execution.compile is not False:
        _consider_compiling(choice, _to_compile(timings, best), loss_fn, theta, episodes, steps, update)
    return choice


def _thread_counts(execution: Execution, theta: Params) -> list[int]:
    """One thread is worth a try where torch would use several: small kernels do not gain from more."""
    threads = torch.get_num_threads()
    on_cpu = tree_leaves(theta)[0].device.type == "cpu"
    return [threads] if execution.threads != "auto" or threads == 1 or not on_cpu else [threads, 1]


def _preferred(timings: dict[tuple[Execution, int], float]) -> tuple[Execution, int]:
    """The fastest; with one thread unless several are more than 5% faster, for a machine may be busier later."""
    fastest = min(timings, key=lambda key: timings[key])
    alone = min((key for key in timings if key[1] == 1), key=lambda key: timings[key], default=fastest)
    return alone if timings[alone] < 1.05 * timings[fastest] else fastest


def _to_compile(timings: dict[tuple[Execution, int], float], best: Execution) -> Execution:
    """The execution to compile: on a GPU the one with convolutions as matrix products, else the quickest.

    Uncompiled, native ones are quicker, for they launch fewer kernels; a compiler and a CUDA graph take that away (MAML on
    32 tasks of 5-way 1-shot Omniglot, H100, native against products: 40 and 46 ms, compiled 4.5 and 1.5).
    """
    as_products = [key for key in timings if key[0].formulation == "matmul"]
    return min(as_products, key=lambda key: timings[key])[0] if as_products else best


def _consider_compiling(
    choice: Choice,
    eager: Execution,
    loss_fn: MetaLoss,
    theta: Params,
    episodes: Episode,
    steps: int,
    update: Update | None,
) -> None:
    """Replace the choice by ``eager`` compiled where that is asked for, or earns its time back and measures faster."""
    milliseconds, num_tasks = choice.milliseconds[choice.execution.describe()], len(tree_leaves(episodes)[0])
    seconds, on_gpu, budget = steps * milliseconds / 1e3, tree_leaves(theta)[0].is_cuda, math.inf
    if eager.compile == "auto":
        budget = seconds / 2
        if reason := _not_worth(eager, milliseconds / num_tasks, seconds, on_gpu):
            choice.notes.append(f"not compiled: {reason}")
            return
    # a CPU's fused optimizer is as quick outside the graph; on a GPU every launch counts
    whole = on_gpu and update is not None and update.traceable
    forms = [Compiled(eager, True, budget=budget)] * whole + [Compiled(eager, budget=budget)]
    _try(choice, forms, eager, loss_fn, theta, episodes, update)


def _try(
    choice: Choice,
    forms: list[Compiled],
    eager: Execution,
    loss_fn: MetaLoss,
    theta: Params,
    episodes: Episode,
    update: Update | None,
) -> None:
    """Replace the choice by the first of these forms of ``eager`` that can be made, if it is right, and quicker or asked
    for. The choice's notes say why not."""
    failed = "not compiled" if forms[0].compiler else f"not recorded ({eager.describe()})"
    try:
        for form in forms:
            start = time.perf_counter()
            try:
                with generators_kept(), memory_errors():
                    form.rehearse(loss_fn, theta, episodes, update)
            except CompilationFailed as error:
                choice.notes.append(f"{failed}{' as a whole step' * form.whole}: {error}")
            else:
                break
        else:
            return
        seconds = time.perf_counter() - start
        if not (difference := _difference(form, eager, loss_fn, theta, episodes)) <= OTHER:  # NaN too
            cause = "a fault of the compiler, or a learner that draws numbers"
            choice.notes.append(f"{failed}: the meta-gradient would differ by {difference:.2g} ({cause})")
            return
        timings = _interleaved([form], [torch.get_num_threads()], loss_fn, theta, episodes, update)
    except torch.OutOfMemoryError:
        timings = {}
    finally:
        for form in forms:  # a recording keeps its memory; the run makes its own
            form.recordings.clear()
    if not timings:
        choice.notes.append(f"{failed}: out of memory")
        return
    if form.compiler:
        choice.notes.append(f"compiled in {seconds:.0f} s{form.earned()}")
    before = choice.milliseconds[choice.execution.describe()]
    timing = choice.milliseconds[form.describe()] = min(timings.values())
    if timing < before or (form.compiler and eager.compile is True):
        choice.execution = form
    elif form.compiler:
        choice.notes.append("the compiled graph is not faster and is not used")


def _not_worth(eager: Execution, a_task: float, seconds: float, on_gpu: bool) -> str | None:
    """Why not to compile a run of ``seconds``, of which a task takes ``a_task`` milliseconds; None where it may pay."""
    if eager.inner_memory == "recomputed":
        return "a compiler would store what inner_memory=recomputed computes again"
    if seconds < COMPILE_SECONDS:
        return f"the steps take {seconds:.0f} s in all, so compiling would take longer than it saves"
    if a_task > KERNELS_MS and not on_gpu:
        return f"at {a_task:.0f} ms a task the time goes into CPU kernels"
    return None


def _difference(one: Execution, other: Execution, loss_fn: MetaLoss, theta: Params, episodes: Episode) -> float:
    """Of their meta-gradients, relative."""
    with generators_kept():
        torch.manual_seed(0)
        found, _ = ravel(one.mean_grad(loss_fn, theta, episodes)[0])
        torch.manual_seed(0)
        expected, _ = ravel(other.mean_grad(loss_fn, theta, episodes)[0])
    return float((found - expected).norm() / expected.norm().clamp_min(1e-30))


def _interleaved(
    candidates: list[Execution],
    thread_counts: list[int],
    loss_fn: MetaLoss,
    theta: Params,
    episodes: Episode,
    update: Update | None = None,
    between: Callable[[], None] = lambda: None,
) -> dict[tuple[Execution, int], float]:
    """Best milliseconds of each candidate with each number of threads, in turns: a busy machine slows all alike.

    A candidate that does not fit into the device's memory is left out.
    """
    best: dict[tuple[Execution, int], float] = {}
    with generators_kept():
        for candidate, threads in [(candidate, threads) for candidate in candidates for threads in thread_counts]:
            torch.set_num_threads(threads)
            between()
            try:
                first = _milliseconds(candidate, loss_fn, theta, episodes, update)
                # the first call of all, and of a quick candidate, is mostly spent on what is done only once; on a GPU
                # each candidate's is, which compiles kernels
                again = not best or first < SLOW_MS or tree_leaves(theta)[0].is_cuda
                best[candidate, threads] = (
                    _milliseconds(candidate, loss_fn, theta, episodes, update) if again else first
                )
            except torch.OutOfMemoryError:
                continue
        hopeful = [key for key in best if best[key] < max(SLOW_MS, HOPELESS * min(best.values()))]
        rounds, start = 0, time.perf_counter()
        while rounds < 1 or (rounds < 50 and time.perf_counter() - start < MEASURE_SECONDS * len(hopeful)):
            for candidate, threads in hopeful:
                torch.set_num_threads(threads)
                between()
                milliseconds = _milliseconds(candidate, loss_fn, theta, episodes, update)
                best[candidate, threads] = min(best[candidate, threads], milliseconds)
            rounds += 1
    return best


def _milliseconds(
    execution: Execution, loss_fn: MetaLoss, theta: Params, episodes: Episode, update: Update | None
) -> float:
    start = time.perf_counter()
    with memory_errors():
        execution.rehearse(loss_fn, theta, episodes, update)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - start) * 1e3
