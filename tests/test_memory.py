"""Inner steps that are computed again in the backward pass, and executions that shrink when memory runs out."""

from dataclasses import replace

import pytest
import torch

from metarun.adaptation import last, recomputing, repeat
from metarun.execution import Auto, Looped, Vmapped, named
from metarun.measuring import settle
from tests.helpers import BASES, LEARNERS, image_episodes, make, meta_gradient, relative_error
from tests.test_execution import nodes, saved

SAME = 1e-10  # the same operations in the same order, but for where the backward pass starts


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("learner", LEARNERS)
@pytest.mark.parametrize("execution", [Vmapped(None), Vmapped(2), Looped()], ids=lambda e: e.describe())
def test_recomputed_inner_steps_give_the_stored_meta_gradient(execution, learner, base):
    built, theta = make(learner, base)
    episodes = image_episodes(3)
    stored, _ = execution.mean_grad(built.meta_loss, theta, episodes)
    recomputed, _ = replace(execution, inner_memory="recomputed").mean_grad(built.meta_loss, theta, episodes)
    assert relative_error(recomputed, stored) < SAME


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


class TightMemory(Vmapped):
    """Runs out of memory with more than two tasks at a time."""

    def map(self, fn, theta, episodes):
        if len(episodes.support.y) > 2:
            raise torch.OutOfMemoryError("no memory")
        return super().map(fn, theta, episodes)


def test_a_smaller_execution_first_recomputes_and_then_halves_its_chunk():
    execution, names = Vmapped(None, inner_memory="auto"), []
    while execution is not None:
        names.append(execution.describe())
        execution = execution.smaller(8)
    assert names == ["vmapped", "vmapped_recomputed"] + [f"vmapped_{n}_recomputed" for n in (4, 2, 1)]
    assert all(named(name, like=Vmapped(None)).describe() == name for name in names)


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
    assert execution.describe() == "tightmemory_2_recomputed" or execution.chunk == 2
    assert relative_error(gradient, expected) < SAME


def test_a_candidate_without_enough_memory_is_passed_over_when_measuring():
    class Tight(Auto):
        def candidates(self):
            return [TightMemory(None), Looped()]

    built, theta = make("maml", "mlp")
    choice = settle(Tight(None, compile=False), built.meta_loss, theta, image_episodes(8), steps=1)
    assert choice.execution == Looped()
    assert "out of memory: tightmemory" in choice.notes


def test_the_oracle_of_one_task_is_unchanged_when_steps_are_recomputed():
    built, theta = make("maml", "max_pool_transductive")
    from metarun.trees import slice_tasks

    episode = slice_tasks(image_episodes(1), 0)
    stored = meta_gradient(built, theta, episode)
    with recomputing(True):
        assert relative_error(meta_gradient(built, theta, episode), stored) < SAME
