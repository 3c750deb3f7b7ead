"""Compiled meta-gradients: the eager numbers, to float32 rounding, from one traced graph."""

import shutil
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from metarun.execution.choosing import choose_execution
from metarun.execution.compiled import Compiled
from metarun.execution.cuda_graph import CudaGraphed
from metarun.execution.decorated import GraphFailed
from metarun.execution.execution import Auto, Looped, Vmapped, Workload
from metarun.execution.update import Update, dense
from metarun.models.exact.layers import composing
from metarun.trees import slice_tasks
from tests.composing import experiment, options
from tests.helpers import image_episodes, make, relative_error

FLOAT32 = 1e-4  # accumulated float32 rounding of a few thousand operations in another order

needs_compiler = pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler")


def in_float32(learner: str, base: str):
    built, theta = make(learner, base)
    built = replace(built, inner_steps=2)  # compiled, each is as many nodes as the others
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


def trained(execution, optimizer, clip, steps: int = 6):
    """Theta's leaves and the optimizer's memory after some steps with a falling learning rate."""
    built, theta, episodes = in_float32("maml", "mlp")
    leaves = [p.clone().requires_grad_() for p in theta.values()]
    update = Update(leaves, optimizer(leaves), clip)
    schedule = torch.optim.lr_scheduler.StepLR(update.optimizer, 2, 0.5)
    for _ in range(steps):
        moving = dict(zip(theta, leaves, strict=True))
        execution.rehearse(Workload(built.meta_loss, moving, episodes, update))  # must change nothing
        metrics = execution.train_step(built.meta_loss, moving, episodes, update)
        schedule.step()
    return [p.detach() for p in leaves], update.memory(), metrics


def multiples(leaves):
    """An optimizer of which one leaf steps at thrice the learning rate, and one not at all."""
    parts = [(3.0, leaves[:1]), (0.0, leaves[1:2]), (1.0, leaves[2:])]
    return torch.optim.SGD([{"params": part, "multiple": times} for times, part in parts], lr=0.1, momentum=0.9)


@needs_compiler
@pytest.mark.filterwarnings("error:Detected call of")  # a scheduler that saw no step of the optimizer
@pytest.mark.parametrize(
    ("optimizer", "clip"),
    [
        (partial(torch.optim.Adam, lr=0.01, fused=True), partial(nn.utils.clip_grad_norm_, max_norm=0.1)),
        (partial(torch.optim.SGD, lr=0.1), lambda leaves: None),
        (partial(torch.optim.SGD, lr=0.1, momentum=0.9), partial(nn.utils.clip_grad_value_, clip_value=0.01)),
        (multiples, partial(nn.utils.clip_grad_norm_, max_norm=0.1)),
    ],
    ids=["adam_norm", "sgd", "momentum_value", "multiples_norm"],
)
def test_a_step_in_one_graph_is_the_eager_step_to_float32_rounding(optimizer, clip):
    compiled = Compiled(Vmapped(None), whole=True)
    found, expected = trained(compiled, optimizer, clip), trained(Vmapped(None), optimizer, clip)
    assert [key[0] for key, _ in compiled.cache.graphs] == ["share", "update"]
    for mine, eager in zip([*found[0], *found[1]], [*expected[0], *expected[1]], strict=True):
        assert torch.allclose(mine, eager, rtol=FLOAT32, atol=1e-6)
    assert torch.allclose(found[2]["query_loss"], expected[2]["query_loss"], rtol=FLOAT32)


@needs_compiler
def test_tasks_taken_one_by_one_share_a_graph():
    built, theta, episodes = in_float32("maml", "mlp")
    compiled = Compiled(Looped())
    gradient, metrics = compiled.mean_grad(built.meta_loss, theta, episodes)
    expected, eager_metrics = Looped().mean_grad(built.meta_loss, theta, episodes)
    assert len(compiled.cache.graphs) == 1
    assert relative_error(gradient, expected) < FLOAT32
    assert all(torch.allclose(metrics[name], eager_metrics[name], rtol=1e-4) for name in metrics)


def test_a_graph_to_compile_has_its_norms_in_primitives(monkeypatch):
    built, theta, episodes = in_float32("maml", "stride_transductive")
    calls, own = [], torch.batch_norm
    monkeypatch.setattr(torch, "batch_norm", lambda *arguments: calls.append(1) or own(*arguments))
    with pytest.raises(GraphFailed, match="longer than it would save"):  # once it is traced
        Compiled(Looped(), budget=0.1).mean_grad(built.meta_loss, theta, episodes)
    assert not calls
    Looped().mean_grad(built.meta_loss, theta, episodes)
    assert calls


def test_an_optimizer_without_a_traceable_form_is_stepped_outside_the_graph():
    class Plain(torch.optim.Optimizer):
        def __init__(self, params):
            super().__init__(params, {"lr": 0.1})

        def step(self):
            for p in self.param_groups[0]["params"]:
                p.data -= 0.1 * p.grad

    leaf = torch.ones(2, requires_grad=True)
    update = Update([leaf], Plain([leaf]), lambda leaves: None)
    assert not update.traceable
    update([torch.tensor([1.0, 2.0])])
    assert torch.allclose(leaf, torch.tensor([0.9, 0.8]))


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

    with pytest.raises(GraphFailed) as failure:
        Compiled(Looped()).mean_grad(impossible, {"w": torch.ones(2)}, image_episodes(2))
    assert len(str(failure.value).splitlines()) == 1


class ReadsNothing(TorchDispatchMode):
    def __torch_dispatch__(self, operator, types, arguments=(), keywords=None):
        assert operator is not torch.ops.aten._local_scalar_dense.default
        return operator(*arguments, **(keywords or {}))


ONLY_CURVES = ("anp", "convcnp", "gaussian_process", "tnp", "learned_optimizer")


@pytest.mark.parametrize("learner", options("meta_learner"))
def test_the_meta_gradient_of_each_learner_reads_no_value_so_that_it_can_be_traced(learner):
    task = ["task=sinusoid"] if learner in ONLY_CURVES else ["task=prototypes", "task.num_classes=7"]
    built = experiment(*task, "base_learner=mlp", f"meta_learner={learner}")
    with composing(), ReadsNothing():
        Looped().share(built.learner.at(0).meta_loss, built.theta_0, built.task.sample("train", range(1)), num_tasks=1)


@pytest.mark.parametrize(("steps", "tried"), [(100, False), (10**7, True)])
def test_large_tasks_are_compiled_where_a_run_is_long_enough(steps, tried, monkeypatch):
    monkeypatch.setattr("metarun.execution.choosing.KERNELS_MS", 0.0)
    monkeypatch.setattr("metarun.execution.choosing.COMPILE_SECONDS", 0.0)
    monkeypatch.setattr("metarun.execution.compiled.lowered", uncompiled)
    built, theta, episodes = in_float32("maml", "mlp")
    choice = choose_execution(Auto(None, compile="auto"), Workload(built.meta_loss, theta, episodes, steps=steps))
    assert tried == any(name.endswith("compiled") for name in choice.milliseconds)
    assert tried != any("too few to earn it back" in note for note in choice.notes)


def test_what_cannot_be_compiled_runs_uncompiled_and_says_why(monkeypatch):
    built, theta, episodes = in_float32("maml", "mlp")

    def broken(*arguments, **options):
        raise RuntimeError("no compiler today\nand a long explanation")

    monkeypatch.setattr(torch._inductor, "standalone_compile", broken)
    choice = choose_execution(Auto(None, compile=True), Workload(built.meta_loss, theta, episodes, steps=10))
    assert "compiled" not in choice.execution.describe()
    assert any("no compiler today" in note for note in choice.notes)


@pytest.mark.parametrize(("factor", "said"), [(1.5, "0.5"), (torch.nan, "nan")])
def test_a_graph_that_gives_another_gradient_is_not_used_and_says_so(factor, said, monkeypatch):
    built, theta, episodes = in_float32("maml", "mlp")

    def wrong(graph, leaves, combined):
        return lambda *leaves: [factor * leaf for leaf in graph(*leaves)]

    monkeypatch.setattr("metarun.execution.compiled.lowered", wrong)
    choice = choose_execution(Auto(None, compile=True), Workload(built.meta_loss, theta, episodes, steps=10))
    assert "compiled" not in choice.execution.describe()
    assert any(f"the meta-gradient would differ by {said}" in note for note in choice.notes)


def uncompiled(graph, leaves, combined):
    """In place of a compiler."""
    return graph


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_on_a_gpu_the_first_form_that_can_be_made_is_what_is_used(failing, monkeypatch):
    """A whole step, else the meta-gradient alone; and neither where none can be made."""
    monkeypatch.setattr(Workload, "on_gpu", True)
    monkeypatch.setattr("metarun.execution.compiled.lowered", uncompiled)
    made, rehearse = [], CudaGraphed.rehearse

    def failing_at_first(self, work):
        made.append(self)
        if len(made) <= failing:
            raise GraphFailed("not made", RuntimeError("a reason"))
        rehearse(self, work)

    monkeypatch.setattr(CudaGraphed, "rehearse", failing_at_first)
    built, theta, episodes = in_float32("maml", "mlp")
    leaves = [p.clone().requires_grad_() for p in theta.values()]
    update = Update(leaves, torch.optim.SGD(leaves, lr=0.1), None)
    fixed = Vmapped(None, compile=True, convolution="matmul")
    choice = choose_execution(fixed, Workload(built.meta_loss, theta, episodes, update, steps=10))
    forms = [CudaGraphed(Compiled(fixed, whole=True)), CudaGraphed(Compiled(fixed)), fixed]
    assert choice.execution == forms[failing]
    assert choice.milliseconds.keys() == {"vmapped_matmul", choice.execution.describe()}
    assert sum("not made: RuntimeError: a reason" in note for note in choice.notes) == failing


def test_on_a_gpu_without_cuda_graphs_what_is_compiled_is_not_recorded(monkeypatch):
    monkeypatch.setattr(Workload, "on_gpu", True)
    monkeypatch.setattr("metarun.execution.compiled.lowered", uncompiled)
    built, theta, episodes = in_float32("maml", "mlp")
    auto = Auto(None, compile=True, cuda_graph=False, convolution="native")
    choice = choose_execution(auto, Workload(built.meta_loss, theta, episodes, steps=10**5))
    assert isinstance(choice.execution, Compiled)
    assert not any("recorded" in name for name in choice.milliseconds)


def test_a_compiled_step_says_that_it_begins_before_theta_moves(monkeypatch):
    monkeypatch.setattr("metarun.execution.compiled.lowered", uncompiled)
    built, theta, episodes = in_float32("maml", "mlp")
    moving = {name: p.clone().requires_grad_() for name, p in theta.items()}
    leaves, seen = list(moving.values()), []
    begins = lambda: seen.append([p.detach().clone() for p in leaves])  # noqa: E731
    update = Update(leaves, torch.optim.SGD(leaves, lr=0.1), None, begins)
    Compiled(Vmapped(None), whole=True).train_step(built.meta_loss, moving, episodes, update)
    assert len(seen) == 1
    assert all(torch.equal(before, p) for before, p in zip(seen[0], theta.values(), strict=True))
    assert relative_error(moving, theta) > 1e-6


def test_out_of_memory_while_compiling_is_no_failure_of_the_compiler(monkeypatch):
    built, theta, episodes = in_float32("maml", "mlp")

    def full(*arguments, **options):
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr("metarun.execution.compiled.lowered", full)
    with pytest.raises(torch.OutOfMemoryError):
        Compiled(Vmapped(None)).mean_grad(built.meta_loss, theta, episodes)


def test_a_smaller_execution_makes_graphs_of_its_own():
    compiled = Compiled(Vmapped(4))
    compiled.cache.graphs.append((("x",), lambda leaves: leaves))
    recorded = CudaGraphed(compiled)
    recorded.cache.graphs.append((("x",), lambda leaves: leaves))
    for smaller in (compiled.smaller(4), recorded.smaller(4).inner):
        assert (smaller.inner, smaller.cache.graphs) == (Vmapped(2), [])
    assert recorded.smaller(4).cache.graphs == []


def test_an_update_that_fails_is_undone():
    leaf = torch.ones(2, requires_grad=True)
    update = Update([leaf], torch.optim.SGD([leaf], lr=0.1, momentum=0.9), lambda leaves: None)
    update([torch.ones(2)])
    before = [tensor.clone() for tensor in (leaf.detach(), *update.memory())]
    with pytest.raises(RuntimeError, match="full"), update.undone():
        update([torch.ones(2)])
        raise RuntimeError("full")
    assert all(torch.equal(a, b) for a, b in zip((leaf.detach(), *update.memory()), before, strict=True))


def test_clipping_two_leaves_of_one_gradient_clips_each_once():
    leaves = [torch.zeros(2, requires_grad=True) for _ in range(2)]
    update = Update(leaves, torch.optim.SGD(leaves, lr=1.0), partial(nn.utils.clip_grad_norm_, max_norm=1.0))
    one = torch.full((2,), 5.0)
    update([one, one])
    assert all(torch.allclose(leaf, torch.full((2,), -0.5)) for leaf in leaves) and one[0] == 5


def test_two_leaves_of_one_gradient_are_stepped_as_leaves_of_two():
    def stepped(gradient):
        leaves = [torch.zeros(2, requires_grad=True) for _ in range(2)]
        optimizer = torch.optim.SGD(leaves, lr=1.0, momentum=0.9, nesterov=True, foreach=True)  # writes into gradients
        update = Update(leaves, optimizer, None)
        for _ in range(2):
            update(gradient())
        return leaves

    one = stepped(lambda: [torch.ones(2)] * 2)
    assert all(torch.equal(a, b) for a, b in zip(one, stepped(lambda: [torch.ones(2), torch.ones(2)]), strict=True))


FUSED = {
    "adam": partial(torch.optim.Adam, lr=0.1),
    "adamw": partial(torch.optim.AdamW, lr=0.1, weight_decay=0.1),
    "sgd": partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True),
    "adagrad": partial(torch.optim.Adagrad, lr=0.1),
}
LAYOUTS = {  # of the gradient of a parameter [4, 3, 2, 2], from a contiguous one
    "contiguous": lambda g: g,
    "channels last": lambda g: g.contiguous(memory_format=torch.channels_last),
    "transposed": lambda g: g.transpose(0, 3).contiguous().transpose(0, 3),
    "one number": lambda g: g.mean().expand_as(g),
    "every second": lambda g: torch.stack([g, g], -1)[..., 0],
}


@pytest.mark.parametrize("clipped", [False, True])
@pytest.mark.parametrize("theta", ["contiguous", "channels last", "every second"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("optimizer", FUSED)
def test_a_fused_step_is_the_plain_step_in_whatever_layout_theta_and_gradient_are(optimizer, layout, theta, clipped):
    """torch's fused kernels ignore strides: with gradients that come with channels last, 45% of the signs were wrong."""
    generator = torch.Generator().manual_seed(0)
    first, *gradients = torch.randn(4, 4, 3, 2, 2, generator=generator, dtype=torch.float64)
    clip = partial(nn.utils.clip_grad_norm_, max_norm=1.0) if clipped else None
    found, expected = (
        [dense(LAYOUTS[of](first)).clone().requires_grad_()] for of in (theta, "contiguous")
    )  # as a run begins
    update = Update(found, FUSED[optimizer](found, fused=True), clip)
    plain = FUSED[optimizer](expected, fused=False, foreach=False)
    for gradient in gradients:
        g = LAYOUTS[layout](gradient)
        kept = g.clone()
        update([g])
        assert torch.equal(g, kept)  # whoever made it may use it again
        expected[0].grad = g.clone().contiguous()
        if clip:
            clip(expected)
        plain.step()
    torch.testing.assert_close(found[0], expected[0], rtol=1e-12, atol=1e-12)


def test_two_leaves_whose_gradients_are_parts_of_one_memory_are_stepped_alone():
    both = torch.arange(8.0, dtype=torch.float64)
    leaves = [torch.zeros(4, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    update = Update(leaves, torch.optim.SGD(leaves, lr=1.0), partial(nn.utils.clip_grad_value_, clip_value=2.5))
    update([both[:4], both[2:6]])  # they overlap
    assert leaves[0].tolist() == [0, -1, -2, -2.5] and leaves[1].tolist() == [-2, -2.5, -2.5, -2.5]
    assert both.tolist() == list(range(8))


def test_a_graph_holds_a_step_only_while_the_optimizers_options_are_as_made():
    def of(optimizer):
        leaf = torch.ones(2, requires_grad=True)
        return Update([leaf], optimizer([leaf]), lambda leaves: None)

    update = of(partial(torch.optim.SGD, lr=0.1, momentum=0.9))
    schedule = torch.optim.lr_scheduler.StepLR(update.optimizer, 2, 0.5)
    assert update.as_made() and update.traceable and schedule
    torch.optim.lr_scheduler.OneCycleLR(update.optimizer, 0.1, total_steps=10)
    assert not update.as_made()  # it moves the momentum


def test_a_short_run_is_not_compiled_and_says_why():
    built, theta, episodes = in_float32("maml", "mlp")
    choice = choose_execution(Auto(None, compile="auto"), Workload(built.meta_loss, theta, episodes, steps=10))
    assert "compiled" not in choice.execution.describe()
    assert any("compiling would take longer than it saves" in note for note in choice.notes)


@pytest.mark.parametrize("compile_it", [True, "auto"])
def test_what_changes_at_every_step_is_not_compiled_even_where_that_is_asked_for(compile_it):
    built, theta, episodes = in_float32("maml", "mlp")
    work = Workload(built.meta_loss, theta, episodes, steps=10**7, changes="always")
    choice = choose_execution(Auto(None, compile=compile_it), work)
    assert "compiled" not in choice.execution.describe()
    assert any("draws numbers at every step" in note for note in choice.notes)


def test_the_budget_is_for_the_graphs_of_all_parts(monkeypatch):
    """Three tasks in chunks of two want two graphs."""
    built, theta, episodes = in_float32("maml", "mlp")
    episodes = slice_tasks(episodes, slice(0, 3))
    monkeypatch.setattr("metarun.execution.compiled.SECONDS_A_NODE", 0.0)
    monkeypatch.setattr("metarun.execution.compiled.SECONDS_A_GRAPH", 10.0)
    monkeypatch.setattr("metarun.execution.compiled.lowered", lambda graph, leaves, combined: graph)  # as traced
    Compiled(Vmapped(2), budget=20.0).mean_grad(built.meta_loss, theta, episodes)
    with pytest.raises(GraphFailed, match="longer than it would save"):
        Compiled(Vmapped(2), budget=19.0).mean_grad(built.meta_loss, theta, episodes)


def test_compiling_and_recomputing_exclude_each_other():
    with pytest.raises(ValueError, match="exclude each other"):
        Vmapped(None, compile=True, inner_memory="recomputed")
