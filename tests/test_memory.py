"""Inner steps that are computed again in the backward pass, and executions that shrink when memory runs out."""

import json
import weakref
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves as leaves_of

from metarun.core import Params
from metarun.errors import ConfigError, MetarunError
from metarun.execution.choosing import choose_execution
from metarun.execution.compiled import Compiled
from metarun.execution.execution import Auto, Looped, Vmapped, Workload
from metarun.inner.loops import last, recomputing, repeat
from metarun.trees import ravel, tree_leaves
from tests.composing import experiment, options, train
from tests.helpers import BASES, LEARNERS, image_episodes, make, meta_gradient, relative_error
from tests.running import metarun
from tests.test_execution import nodes, saved

SAME = 1e-10  # the same operations, but for where the backward pass starts and how many tasks are summed at a time


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("learner", LEARNERS)
@pytest.mark.parametrize("execution", [Vmapped(None), Vmapped(2), Looped()], ids=lambda e: e.describe())
def test_recomputed_inner_steps_give_the_stored_meta_gradient(execution, learner, base):
    built, theta = make(learner, base)
    recomputed, _ = replace(execution, inner_memory="recomputed").mean_grad(built.meta_loss, theta, image_episodes(3))
    assert relative_error(recomputed, stored(learner, base)) < SAME


@cache
def stored(learner: str, base: str) -> Params:
    """The meta-gradient without recomputing, which is that of every execution (``test_execution.py``)."""
    built, theta = make(learner, base)
    return Vmapped(None).mean_grad(built.meta_loss, theta, image_episodes(3))[0]


def test_recomputed_steps_differentiate_everything_that_the_step_is_given():
    rates = torch.tensor([0.3, 0.5], dtype=torch.float64, requires_grad=True)
    start = torch.tensor([1.0, -2.0], dtype=torch.float64, requires_grad=True)
    with recomputing(True):
        end = last(repeat(lambda p, r: p - r * p**3, start, 4, rates))
    expected = last(repeat(lambda p, r: p - r * p**3, start, 4, rates))
    assert torch.equal(end, expected)
    for got, want in zip(
        torch.autograd.grad(end.sum(), [start, rates]), torch.autograd.grad(expected.sum(), [start, rates]), strict=True
    ):
        assert torch.allclose(got, want, rtol=1e-12)


def test_recomputed_steps_can_be_differentiated_twice():
    start = torch.tensor([0.7], dtype=torch.float64, requires_grad=True)

    def end(p):
        return last(repeat(lambda q: q - 0.1 * q**3, p, 3)).sum()

    with recomputing(True):
        assert torch.autograd.gradgradcheck(end, (start,))


def kept(base: str, steps: int, memory: str) -> int:
    built, theta = make("maml", base)
    built = replace(built, inner_steps=steps)
    episodes = image_episodes(2)
    theta = {name: p.requires_grad_() for name, p in theta.items()}
    with recomputing(memory == "recomputed"):
        losses, _ = Vmapped(None).map(built.meta_loss, theta, episodes)
    tensors = {t.data_ptr(): t.numel() for node in nodes(losses.sum()) for t in saved(node)}
    return sum(tensors.values())


def test_between_recomputed_steps_only_the_params_are_kept():
    _, theta = make("maml", "stride_transductive")
    params = 2 * sum(p.numel() for p in theta.values())  # of two tasks
    per_step = (kept("stride_transductive", 6, "recomputed") - kept("stride_transductive", 2, "recomputed")) / 4
    stored_per_step = (kept("stride_transductive", 6, "stored") - kept("stride_transductive", 2, "stored")) / 4
    assert per_step <= params
    assert stored_per_step > 5 * params


class Peak(TorchDispatchMode):
    """Counts the bytes of the tensors that are alive at the same time inside, of those that were made inside."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        given = {storage.data_ptr() for storage in storages((args, kwargs))}
        for tensor in (t for t in leaves_of(out) if isinstance(t, torch.Tensor)):
            if (storage := tensor.untyped_storage()).data_ptr() not in given:
                self.live += storage.nbytes()
                self.most = max(self.most, self.live)
                weakref.finalize(tensor, self.freed, storage.nbytes())
        return out

    def freed(self, size: int) -> None:
        self.live -= size


def storages(tree):
    return [leaf.untyped_storage() for leaf in leaves_of(tree) if isinstance(leaf, torch.Tensor)]


def peak(overrides: tuple[str, ...], steps: int, memory: str) -> int:
    x = experiment(*overrides, f"meta_learner.inner_steps={steps}")
    learner = x.learner.at(0)
    theta, episodes = x.theta_0, x.task.sample("train", range(2))
    with Peak() as seen:
        Vmapped(None, inner_memory=memory).mean_grad(learner.meta_loss, theta, episodes)
    return seen.most


IMAGES = ("task=prototypes", "base_learner=conv4", "base_learner.channels=4")


@pytest.mark.parametrize(
    "overrides",
    [
        ("meta_learner=maml", *IMAGES),
        ("meta_learner=meta_sgd", *IMAGES),
        ("meta_learner=maml_plus_plus", *IMAGES),  # a loss after each step
        ("meta_learner=learned_optimizer", "meta_learner.unroll=99"),
    ],
    ids=lambda overrides: overrides[0],
)
def test_memory_hardly_grows_with_recomputed_steps(overrides):
    growth = {memory: peak(overrides, 5, memory) - peak(overrides, 2, memory) for memory in ("stored", "recomputed")}
    assert growth["stored"] > 5 * growth["recomputed"], growth


@pytest.mark.parametrize(
    "learner", sorted({*options("meta_learner")} - {"anp", "convcnp", "gaussian_process", "tnp"})
)  # those regress alone, without steps
def test_recomputed_steps_give_the_stored_meta_gradient_of_every_learner(learner):
    x = experiment(f"meta_learner={learner}", "task=prototypes", "task.num_classes=9", "base_learner=mlp")
    built = x.learner.at(0)
    theta, episodes = x.theta_0, x.task.sample("train", range(2))
    torch.manual_seed(0)
    stored, _ = Vmapped(None, inner_memory="stored").mean_grad(built.meta_loss, theta, episodes)
    torch.manual_seed(0)
    recomputed, _ = Vmapped(None, inner_memory="recomputed").mean_grad(built.meta_loss, theta, episodes)
    assert relative_error(ravel(recomputed)[0], ravel(stored)[0]) < SAME


class TightMemory(Vmapped):
    """Runs out of memory with more than two tasks at a time."""

    def map(self, fn, theta, episodes):
        if len(episodes.support.y) > 2:
            raise torch.OutOfMemoryError("no memory")
        return super().map(fn, theta, episodes)


def test_a_smaller_execution_halves_its_chunk_then_recomputes_then_halves_on():
    execution, names = Vmapped(None, inner_memory="auto"), []
    while execution is not None:
        names.append(execution.describe())
        execution = execution.smaller(8)
    assert names == ["vmapped", "vmapped_4", "vmapped_4_recomputed", "vmapped_2_recomputed", "vmapped_1_recomputed"]
    assert Vmapped(None, inner_memory="auto").smaller(1).describe() == "vmapped_recomputed"
    assert Vmapped(1, inner_memory="recomputed").smaller(1) is None


@pytest.mark.parametrize(
    "execution", [Vmapped(1, inner_memory="auto", compile=True), Looped(inner_memory="auto", compile=True)]
)
def test_what_is_compiled_by_demand_and_too_large_is_recomputed_uncompiled(execution):
    assert Compiled(execution).smaller(1) == replace(execution, inner_memory="recomputed", compile=False)


def test_a_run_out_of_memory_goes_on_with_less_and_to_the_same_gradient():
    built, theta = make("maml", "mlp")
    episodes = image_episodes(8)
    execution = TightMemory(None, inner_memory="auto")
    expected, _ = Looped().mean_grad(built.meta_loss, theta, episodes)
    while True:
        try:
            gradient, _ = execution.mean_grad(built.meta_loss, theta, episodes)
            break
        except torch.OutOfMemoryError:
            execution = execution.smaller(8)
    assert (execution.chunk, execution.inner_memory) == (2, "recomputed")
    assert relative_error(gradient, expected) < SAME


CPU_IS_FULL = (
    "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."
)
SMALL = ("meta_batch_size=8", "steps=6", "evaluation.every=3", "log_every=1", "execution=vmapped")
SMALL += ("evaluation.num_val_tasks=12", "evaluation.num_tasks=12")


@pytest.fixture
def tight(monkeypatch):
    """The most tasks that there is memory for, in training and in evaluation; how a device says so; after how many
    meta-gradients, of which each step and each validation takes one."""
    limits = {"train": 8, "evaluate": 50, "error": torch.OutOfMemoryError("no memory"), "steps": 99}
    plain = Vmapped.map

    def tight_map(self, fn, theta, episodes):
        training = torch.is_grad_enabled()
        limits["steps"] -= training
        size = min(self.chunk or 99, len(tree_leaves(episodes)[0]))
        if size > limits["train" if training else "evaluate"] and limits["steps"] < 0:
            raise limits["error"]
        return plain(self, fn, theta, episodes)

    monkeypatch.setattr(Vmapped, "map", tight_map)
    return limits


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("no memory"), RuntimeError(CPU_IS_FULL), MemoryError()], ids=repr
)
def test_a_run_that_is_out_of_memory_says_so_once_and_ends_as_it_would_have(tight, error, tmp_path, capsys):
    expected = train(tmp_path / "roomy", *SMALL)
    capsys.readouterr()
    tight |= {"train": 2, "error": error, "steps": 4}
    found = train(tmp_path / "tight", *SMALL)
    (said,) = [line for line in capsys.readouterr().err.splitlines() if "out of memory" in line]
    assert "out of memory at step 3" in said
    assert "execution=vmapped execution.inner_memory=recomputed execution.chunk=2" in said
    assert found == pytest.approx(expected, rel=1e-9)
    stored = json.loads((tmp_path / "tight" / "execution.json").read_text())
    assert (stored["execution"]["kind"], stored["execution"]["chunk"]) == ("Vmapped", 2)
    train(tmp_path / "tight", *SMALL, "resume=auto", "steps=8")  # begins with what fits
    assert "out of memory" not in capsys.readouterr().err


def test_a_step_that_can_neither_be_compiled_nor_kept_in_memory_says_both(tight, tmp_path, monkeypatch):
    train(tmp_path, *SMALL)
    path = tmp_path / "execution.json"
    stored = json.loads(path.read_text())
    path.write_text(json.dumps({**stored, "execution": {"kind": "Compiled", "inner": stored["execution"]}}))

    def no_compiler(*_, **__):  # as on another machine
        raise OSError("no compiler")

    monkeypatch.setattr("metarun.execution.compiled.lowered", no_compiler)
    tight |= {"train": 2, "steps": 1}  # tracing takes a first call
    train(tmp_path, *SMALL, "resume=auto", "steps=8")
    compiling, memory = json.loads(path.read_text())["notes"]
    assert compiling == "not compiled: OSError: no compiler"
    assert memory.startswith("out of memory at step 6")


@pytest.mark.parametrize("norm", ["transductive", "running"])  # whose statistics are of training tasks
def test_scoring_out_of_memory_takes_fewer_tasks_at_a_time_and_says_so(tight, norm, tmp_path, caplog):
    caplog.set_level("INFO", logger="metarun")
    small = (*SMALL, "task=prototypes", "base_learner=mlp", f"base_learner.batch_norm={norm}")
    expected = train(tmp_path / "roomy", *small)
    tight |= {"evaluate": 5, "steps": -1}
    assert train(tmp_path / "tight", *small) == pytest.approx(expected, rel=1e-9)
    said = {record.getMessage() for record in caplog.records if "out of memory" in record.getMessage()}
    assert "evaluation: out of memory with 12 tasks at a time; going on with 3" in said


def test_a_run_that_can_need_no_less_is_saved_and_says_what_to_do(tight, tmp_path):
    whole = train(tmp_path / "whole", *SMALL, "execution.inner_memory=stored")
    tight |= {"train": 0, "steps": 6}
    with pytest.raises(MetarunError, match=r"(?s)out of memory, with .*chunk=1 too: no memory.*resume=.*dtype=float32"):
        train(tmp_path / "half", *SMALL, "execution.inner_memory=stored")
    status = json.loads((tmp_path / "half" / "status.json").read_text())
    assert (status["state"], status["step"]) == ("failed", 4)
    tight["train"] = 8
    assert train(tmp_path / "half", *SMALL, "execution.inner_memory=stored", "resume=auto") == pytest.approx(whole)


def test_an_optimizer_without_memory_for_its_own_step_ends_the_run(monkeypatch, tmp_path):
    def full(optimizer, *_):
        if len(optimizer.param_groups[0]["params"]) > 1:  # and not the single one by which the optimizer is checked
            raise RuntimeError(CPU_IS_FULL)

    monkeypatch.setattr(torch.optim.Adam, "step", full)
    with pytest.raises(MetarunError, match="no memory for a step of the optimizer"):
        train(tmp_path, *SMALL)


def test_a_candidate_without_enough_memory_is_passed_over_when_measuring():
    class Tight(Auto):
        def candidates(self):
            return [TightMemory(None), Looped()]

    built, theta = make("maml", "mlp")
    choice = choose_execution(Tight(None, compile=False), Workload(built.meta_loss, theta, image_episodes(8)))
    assert choice.execution == Looped()
    assert "out of memory: tightmemory" in choice.notes


def test_the_oracle_of_one_task_is_unchanged_when_steps_are_recomputed():
    built, theta = make("maml", "max_pool_transductive")
    from metarun.trees import slice_tasks

    episode = slice_tasks(image_episodes(1), 0)
    stored = meta_gradient(built, theta, episode)
    with recomputing(True):
        assert relative_error(meta_gradient(built, theta, episode), stored) < SAME


SIZES = {
    "of episodes": (["experiment=anp_gp_rbf", "task.train_num_queries=1000000"], 1, "out of memory: "),
    "of a learner": (["experiment=in_context_linear_20d", "meta_learner.width=1000000"], 2, "out of memory: "),
    "of a network": (
        ["task=sinusoid", "base_learner=mlp", "base_learner.hidden=[1000000,1000000]"],
        2,
        "out of memory: ",
    ),
    "of a grid": (
        ["experiment=convcnp_sawtooth", "meta_learner.levels=1000000"],
        2,
        "levels is 1000000, but must be 30",
    ),
}


@pytest.mark.parametrize("of", SIZES)
def test_sizes_that_need_terabytes_are_refused_without_a_traceback(of, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words, code, message = SIZES[of]
    outcome = metarun(*words, "steps=1", "run_dir=run")
    assert outcome.code == code and message in outcome.err and "Traceback" not in outcome.text, outcome.text
    assert code == 2 or "To need less, take smaller sizes" in outcome.err


def test_a_theta_for_which_there_is_no_memory_is_a_problem_of_the_configuration(monkeypatch):
    def init(self):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4000 bytes")

    monkeypatch.setattr("metarun.meta_learners.maml.MAML.init", init)
    with pytest.raises(ConfigError, match=r"meta_learner: out of memory: .* 4000 bytes. Take smaller sizes"):
        experiment("meta_learner=maml")
