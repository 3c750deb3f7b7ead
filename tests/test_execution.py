"""Ways of running a batch of tasks agree, and first-order learners keep no graph of their inner loop.

Agreement is asked to 1e-10 in float64: the same sums in another order (1e-16), through a few inner steps and batch
norms over six values. torch's fused affine batch norm, wrong under vmap, is off by 1e-3.
"""

import gc
import json
from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from metarun.core import Params
from metarun.errors import MetarunError
from metarun.execution.choice import Choice
from metarun.execution.choosing import choose_execution
from metarun.execution.compiled import Compiled
from metarun.execution.cuda_graph import CudaGraphed
from metarun.execution.execution import Auto, Execution, Looped, Vmapped, Workload
from metarun.objectives import CROSS_ENTROPY
from metarun.trees import slice_tasks, tree_map
from tests.helpers import BASES, LEARNERS, image_episodes, make, meta_gradient, one_episode, relative_error

SAME = 1e-10
NUM_TASKS = 3  # chunks of 2 do not divide it


@cache
def mean_of_tasks(learner: str, base: str) -> Params:
    built, theta = make(learner, base)
    episodes = image_episodes(NUM_TASKS)
    grads = [meta_gradient(built, theta, slice_tasks(episodes, i)) for i in range(NUM_TASKS)]
    return {name: sum(g[name] for g in grads) / NUM_TASKS for name in theta}


@pytest.mark.parametrize("base", ["mlp", "stride_transductive", "max_pool_transductive", "stride_support"])
@pytest.mark.parametrize("learner", LEARNERS)
@pytest.mark.parametrize("execution", [Vmapped(None), Vmapped(2), Looped()], ids=lambda e: e.describe())
def test_mean_gradient_is_the_mean_of_the_gradients_of_the_tasks(execution, learner, base):
    built, theta = make(learner, base)
    grads, _ = execution.mean_grad(built.meta_loss, theta, image_episodes(NUM_TASKS))
    assert relative_error(grads, mean_of_tasks(learner, base)) < SAME


@pytest.mark.parametrize("base", ["mlp", "stride_support"])
@pytest.mark.parametrize("learner", LEARNERS)
@pytest.mark.parametrize("execution", [Vmapped(None), Vmapped(2), Looped()], ids=lambda e: e.describe())
def test_metrics_are_the_means_of_the_metrics_of_the_tasks(execution, learner, base):
    built, theta = make(learner, base)
    episodes = image_episodes(NUM_TASKS)
    _, metrics = execution.mean_grad(built.meta_loss, theta, episodes)
    rows = [built.meta_loss(theta, slice_tasks(episodes, i))[1] for i in range(NUM_TASKS)]
    assert metrics.keys() == {"query_loss", "accuracy"}
    for name, value in metrics.items():
        torch.testing.assert_close(value, sum(row[name] for row in rows) / NUM_TASKS, rtol=SAME, atol=0)


@pytest.mark.parametrize("execution", [Vmapped(None), Vmapped(2), Looped(), Auto(None)], ids=lambda e: e.describe())
def test_map_returns_the_results_in_the_order_of_the_tasks(execution):
    built, theta = make("maml", "stride_support")
    episodes = image_episodes(NUM_TASKS)
    logits = execution.map(lambda p, e: built.predict(built.adapt(p, e.support), e.query.x), theta, episodes)
    for i in range(NUM_TASKS):
        support, query, _ = slice_tasks(episodes, i)
        expected = built.predict(built.adapt(theta, support), query.x)
        torch.testing.assert_close(logits[i], expected, rtol=SAME, atol=SAME)


def test_a_parameter_without_influence_gets_a_gradient_of_zeros():
    theta = {"used": torch.ones(2).double(), "unused": torch.ones(3).double()}
    grads, _ = Vmapped(None).mean_grad(lambda p, e: (p["used"].sum() * e.query.x.sum(), {}), theta, image_episodes(2))
    assert torch.equal(grads["unused"], torch.zeros(3).double())


def test_the_gradient_leaves_theta_without_a_graph():
    built, theta = make("maml", "mlp")
    grads, metrics = Looped().mean_grad(built.meta_loss, theta, image_episodes(2))
    assert not any(t.requires_grad for tree in (theta, grads, metrics) for t in tree.values())


@pytest.mark.parametrize("execution", [Vmapped(None), Looped(), Looped(inner_memory="recomputed")], ids=str)
def test_a_derivative_that_torch_does_not_have_is_named_with_the_fix(execution):
    def second_order(theta, episode):
        return torch.func.grad(lambda w: F.hardsigmoid(w).sum())(theta["w"]).sum() + 0 * episode.query.x.sum(), {}

    with pytest.raises(MetarunError, match=r"no derivative of hardsigmoid_backward.*meta_learner\.first_order=true"):
        execution.mean_grad(second_order, {"w": torch.ones(2)}, image_episodes(2))


def test_a_chunk_below_one_is_refused():
    with pytest.raises(ValueError, match=r"execution\.chunk is 0"):
        Vmapped(0)


# ---- auto ----


def noisy_loss(theta: dict[str, Tensor], episode: object) -> tuple[Tensor, dict[str, Tensor]]:
    noise = torch.randn((), dtype=torch.float64)
    return ((theta["w"] + noise) * episode.query.x.mean()).sum(), {}


@pytest.mark.parametrize("auto", [Auto(None), Auto(2)], ids=["chunk_null", "chunk_2"])
def test_auto_chooses_the_fastest_of_its_candidates(auto):
    choice = choose_execution(auto, Workload(noisy_loss, {"w": torch.ones(2).double()}, image_episodes(3)))
    chosen, timings = choice.execution, choice.milliseconds
    assert timings.keys() <= {candidate.describe() for candidate in auto.candidates()}  # equal groupings are timed once
    assert chosen in auto.candidates()
    assert timings[chosen.describe()] == min(timings.values())


def test_auto_leaves_the_global_random_numbers_untouched():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    choose_execution(Auto(None), Workload(noisy_loss, {"w": torch.ones(2).double()}, image_episodes(3)))
    assert torch.equal(torch.get_rng_state(), before)


def test_auto_leaves_theta_untouched():
    built, theta = make("maml", "mlp")
    before = tree_map(torch.clone, theta)
    choose_execution(Auto(2), Workload(built.meta_loss, theta, image_episodes(2)))
    assert all(torch.equal(theta[name], p) and not theta[name].requires_grad for name, p in before.items())


def written(path, text: str):
    path = path / "execution.json"
    path.write_text(text, encoding="latin-1")
    return path


STORED = [
    *Auto(None).candidates(),
    *Auto(2, inner_memory="recomputed", threads=3, cuda_graph=False).candidates(),
    *(Vmapped(8, inner_memory="auto", compile="auto", convolution="matmul"), Looped(convolution="native")),
    *(Compiled(Vmapped(8)), CudaGraphed(Looped()), CudaGraphed(Compiled(Vmapped(None), whole=True))),
]


@pytest.mark.parametrize("execution", STORED, ids=lambda e: e.describe())
def test_a_stored_execution_is_read_again_as_it_was(execution, tmp_path):
    path = tmp_path / "execution.json"
    Choice(execution, {"looped": 2.0}, ["a note"]).write(path)
    assert Choice.read(path, like=Auto(None)) == Choice(execution)


def test_reading_a_choice_gives_its_threads_and_sets_none(tmp_path):
    before, path = torch.get_num_threads(), tmp_path / "execution.json"
    Choice(Looped(), threads=before + 1).write(path)
    assert Choice.read(path, like=Auto(None)).threads == before + 1
    assert torch.get_num_threads() == before


def test_without_a_stored_choice_a_run_has_the_execution_of_its_config(tmp_path):
    assert Choice.read(tmp_path / "execution.json", like=Looped(threads=3)) == Choice(Looped(threads=3), threads=3)


MATMUL, LIKE = {"convolution": "matmul"}, {"threads": 3, "inner_memory": "auto"}
OLD = {  # what earlier versions wrote, all of it
    "vmapped": Vmapped(None, **LIKE),
    "vmapped_8": Vmapped(8, **LIKE),
    "looped": Looped(**LIKE),
    "vmapped_4_recomputed": Vmapped(4, threads=3, inner_memory="recomputed"),
    "looped_matmul_recomputed": Looped(threads=3, inner_memory="recomputed", **MATMUL),
    "vmapped_matmul": Vmapped(None, **LIKE, **MATMUL),
    "vmapped_8_slices": Vmapped(8, **LIKE),
    "vmapped_triton_compiled": CudaGraphed(Compiled(Vmapped(None, **LIKE))),
    "vmapped_8_matmul_compiled": CudaGraphed(Compiled(Vmapped(8, **LIKE, **MATMUL))),
    "vmapped_matmul_compiled_step": CudaGraphed(Compiled(Vmapped(None, **LIKE, **MATMUL), whole=True)),
    "looped_recorded": CudaGraphed(Looped(**LIKE)),
}


@pytest.mark.parametrize("name", OLD)
def test_the_name_that_an_earlier_version_stored_is_understood(name, tmp_path):
    path = written(tmp_path, json.dumps({"chosen": name, "threads": 2, "milliseconds": {}, "notes": []}))
    like = Auto(None, compile="auto", **LIKE)
    assert Choice.read(path, like) == Choice(OLD[name], threads=2)
    if isinstance(OLD[name], CudaGraphed):
        plain = OLD[name].inner
        without = Choice.read(path, replace(like, cuda_graph=False)).execution
        assert (type(without), without.describe()) == (type(plain), plain.describe())


def fields(**changes: object) -> str:
    """The file of a vmapped execution with other fields, or without those that are None."""
    stored = {"kind": "Vmapped", "chunk": 4, "threads": 1, "inner_memory": "auto", "compile": False, **changes}
    return json.dumps({"execution": {k: v for k, v in stored.items() if v is not None}, "threads": 1})


def old(chosen: object, threads: object = 1) -> str:
    return json.dumps({"chosen": chosen, "threads": threads})


DAMAGED = [
    *("", '{"chosen": "loo', '{"chosen": "looped"}', "[]", "\xff", "null", "3"),
    *(old("looped", threads) for threads in (0, -1, True, 1.0, "2", None, [], 1025, 10**30)),
    *(old(name) for name in ("vmapped_0", "vmapped_", "vmapped_x", "looped_8x", "sideways", "", "auto", 3, None, {})),
    *(old(f"vmapped_{10**12}"), fields(threads=1025)),
    *(fields(kind=kind) for kind in ("Auto", "Execution", "Sideways", "vmapped", 3, [], None)),
    *(fields(chunk=chunk) for chunk in (0, -1, True, "4", 2.5, [], 10**12)),
    *(fields(threads=0), fields(threads="many"), fields(inner_memory="much"), fields(inner_memory=1)),
    *(fields(compile="yes"), fields(compile=1), fields(cuda_graph="no"), fields(convolution="triton")),
    *(fields(colour="red"), fields(inner={}), fields(compile=True, inner_memory="recomputed")),
    *(fields(kind="Compiled"), json.dumps({"execution": "looped", "threads": 1})),
    json.dumps({"execution": {"kind": "Compiled", "inner": {"kind": "Vmapped", "chunk": 0}}, "threads": 1}),
    json.dumps({"execution": {"kind": "Compiled", "inner": {"kind": "Looped"}, "whole": "no"}, "threads": 1}),
    json.dumps({"execution": {"kind": "CudaGraphed", "inner": 3}, "threads": 1}),
    *("[" * 100_000, '{"execution": ' + '{"kind": "Compiled", "inner": ' * 900 + "1" + "}" * 901),
]


@pytest.mark.parametrize("content", DAMAGED, ids=lambda content: content[:80])
def test_a_damaged_choice_is_an_error_that_says_what_to_do(tmp_path, content):
    with pytest.raises(MetarunError, match=r"execution.json is damaged. Remove it: the run measures again"):
        Choice.read(written(tmp_path, content), like=Auto(None))


@pytest.mark.parametrize("execution", [Vmapped(None), Vmapped(3), Looped()], ids=lambda e: e.describe())
def test_a_fixed_execution_is_its_own_choice(execution: Execution):
    work = Workload(noisy_loss, {"w": torch.ones(2)}, image_episodes(1))
    assert choose_execution(execution, work) == Choice(execution, {}, [])


@pytest.mark.parametrize("learner", ["maml", "protonet"])
def test_the_first_task_of_a_loop_does_not_change_the_second(learner):
    built, theta = make(learner, "stride_support")
    both = image_episodes(2)
    together = Looped().map(built.meta_loss, theta, both)[0]
    alone = built.meta_loss(theta, slice_tasks(both, 1))[0]
    assert torch.equal(together[1], alone)


# ---- first order keeps no second-order graph ----


def saved_elements(output: Tensor) -> int:
    """Elements of the distinct tensors that the graph behind ``output`` keeps for its backward pass."""
    return sum({t.data_ptr(): t.numel() for node in nodes(output) for t in saved(node)}.values())


def nodes(output: Tensor) -> set:
    seen, todo = set(), [output.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            todo += [parent for parent, _ in node.next_functions]
    return seen


def saved(node: object) -> Iterator[Tensor]:
    values = [getattr(node, name) for name in dir(node) if name.startswith("_saved_")]
    return (value for value in values if isinstance(value, Tensor))


def elements_kept(learner: str, base: str, steps: int) -> int:
    built, theta = make(learner, base)
    leaves = tree_map(lambda p: p.clone().requires_grad_(), theta)
    return saved_elements(replace(built, inner_steps=steps).meta_loss(leaves, one_episode())[0])


@pytest.mark.parametrize("base", ["mlp", *(name for name in BASES if name.startswith("stride"))])
@pytest.mark.parametrize("learner", ["fomaml", "fomaml_head", "reptile"])
def test_a_first_order_graph_does_not_grow_with_the_inner_steps(learner, base):
    assert elements_kept(learner, base, steps=5) == elements_kept(learner, base, steps=1)


@pytest.mark.parametrize("learner", ["maml", "anil"])
def test_a_second_order_graph_grows_with_the_inner_steps(learner):
    one, three, five = (elements_kept(learner, "mlp", steps) for steps in (1, 3, 5))
    assert one < three < five  # so the count of the test above does see inner steps


@pytest.mark.parametrize("learner", ["fomaml", "reptile"])
def test_first_order_adaptation_holds_one_set_of_adapted_weights(learner):
    built, theta = make(learner, "mlp")
    alive = []

    def counting_loss(outputs: Tensor, y: Tensor) -> Tensor:
        shape = theta["body.1.weight"].shape
        alive.append(sum(type(t) is Tensor and t.shape == shape for t in gc.get_objects()))
        return F.cross_entropy(outputs, y)

    counting = replace(built, objective=replace(CROSS_ENTROPY, loss=counting_loss), inner_steps=6)
    gc.collect()  # tensors that earlier tests left in cycles are not counted
    counting.adapt(theta, one_episode().support)
    assert alive[5] <= alive[1]  # at step 1 the start is still held beside the current weights
