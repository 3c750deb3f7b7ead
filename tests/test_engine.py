"""Compiled meta-gradients: the eager numbers, to float32 rounding, from one traced graph."""

import shutil
from dataclasses import replace

import pytest
import torch

from metarun import engine
from metarun.engine import CompilationFailed, Compiled
from metarun.execution import Auto, Looped, Vmapped, named
from metarun.measuring import settle
from tests.helpers import image_episodes, make, relative_error

FLOAT32 = 1e-4  # accumulated float32 rounding of a few thousand operations in another order

needs_compiler = pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler")


def in_float32(learner: str, base: str):
    built, theta = make(learner, base)
    built.base_learner.float()
    episodes = image_episodes(4)
    single = [batch._replace(x=batch.x.float()) for batch in episodes[:2]]
    return built, {name: p.float() for name, p in theta.items()}, type(episodes)(*single)


@needs_compiler
@pytest.mark.parametrize(
    ("learner", "base"),
    [("maml", "mlp"), ("reptile", "mlp"), pytest.param("maml", "stride_transductive", marks=pytest.mark.slow)],
)
def test_a_compiled_meta_gradient_is_the_eager_one_to_float32_rounding(learner, base):
    built, theta, episodes = in_float32(learner, base)
    compiled = Compiled(Vmapped(None))
    for shift in (0.0, 0.5):  # the second call must not replay the first call's tensors
        moved = {name: p + shift * torch.randn_like(p) for name, p in theta.items()}
        expected, metrics = Vmapped(None).mean_grad(built.meta_loss, moved, episodes)
        gradient, compiled_metrics = compiled.mean_grad(built.meta_loss, moved, episodes)
        assert relative_error(gradient, expected) < FLOAT32
        assert compiled_metrics.keys() == metrics.keys()
        assert all(torch.allclose(compiled_metrics[name], metrics[name], rtol=1e-4) for name in metrics)


@needs_compiler
def test_a_compiled_run_is_the_eager_run_to_float32_rounding():
    built, theta, episodes = in_float32("maml", "mlp")
    ends = []
    for execution in (Vmapped(None), Compiled(Vmapped(None))):
        params = {name: p.clone() for name, p in theta.items()}
        for _ in range(5):
            gradient, _ = execution.mean_grad(built.meta_loss, params, episodes)
            params = {name: p - 0.05 * gradient[name] for name, p in params.items()}
        ends.append(params)
    assert relative_error(ends[1], ends[0]) < FLOAT32


@needs_compiler
def test_compiling_does_not_move_the_draws_of_a_learner():
    def noisy(theta, episode):
        loss = (theta["w"] * torch.randn(())).sum() + 0 * episode.support.x.sum()
        return loss, {"loss": loss.detach()}

    theta, episodes, compiled = {"w": torch.ones(2)}, image_episodes(2), Compiled(Vmapped(None))
    draws = []
    for _ in range(2):  # with compiling, and without
        torch.manual_seed(0)
        draws.append([compiled.mean_grad(noisy, theta, episodes)[1]["loss"].item() for _ in range(3)])
    assert draws[0] == draws[1] and len(set(draws[0])) == 3


def test_a_graph_that_cannot_be_made_is_a_failure_with_one_line():
    def impossible(theta, episode):
        if episode.support.x.sum() > 0:  # a branch on a value cannot be traced
            return theta["w"].sum(), {}
        return -theta["w"].sum(), {}

    with pytest.raises(CompilationFailed) as failure:
        Compiled(Looped()).mean_grad(impossible, {"w": torch.ones(2)}, image_episodes(2))
    assert len(str(failure.value).splitlines()) == 1


def test_what_cannot_be_compiled_runs_uncompiled_and_says_why(monkeypatch):
    built, theta, episodes = in_float32("maml", "mlp")

    def broken(*arguments, **options):
        raise RuntimeError("no compiler today\nand a long explanation")

    monkeypatch.setattr(engine.torch, "compile", broken)
    choice = settle(Auto(None, compile=True), built.meta_loss, theta, episodes, steps=10)
    assert "compiled" not in choice.execution.describe()
    assert any("no compiler today" in note for note in choice.notes)


def test_a_short_run_is_not_compiled_and_says_why():
    built, theta, episodes = in_float32("maml", "mlp")
    choice = settle(Auto(None, compile="auto"), built.meta_loss, theta, episodes, steps=10)
    assert "compiled" not in choice.execution.describe()
    assert any("do not earn a compilation back" in note for note in choice.notes)


def test_compiling_and_recomputing_exclude_each_other():
    with pytest.raises(ValueError, match="exclude each other"):
        Vmapped(None, compile=True, inner_memory="recomputed")


def test_a_compiled_execution_is_found_again_by_its_name():
    compiled = Compiled(Vmapped(8))
    again = named(compiled.describe(), like=replace(Auto(None), compile="auto"))
    assert again.describe() == compiled.describe()
