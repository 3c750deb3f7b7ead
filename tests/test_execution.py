"""Ways of running a batch of tasks agree, and first-order learners keep no graph of their inner loop.

Agreement is asked to 1e-10 in float64: the same sums in another order (1e-16), through a few inner steps and batch
norms over six values. torch's fused affine batch norm, wrong under vmap, is off by 1e-3.
"""

import gc
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from metarun.errors import MetarunError
from metarun.execution.choice import Choice, named, stored
from metarun.execution.choosing import settle
from metarun.execution.execution import Auto, Execution, Looped, Vmapped
from metarun.objectives import CROSS_ENTROPY
from metarun.trees import slice_tasks, tree_map
from tests.helpers import BASES, LEARNERS, image_episodes, make, meta_gradient, one_episode, relative_error

SAME = 1e-10
NUM_TASKS = 5


def mean_of_tasks(learner, theta, episodes):
    grads = [meta_gradient(learner, theta, slice_tasks(episodes, i)) for i in range(NUM_TASKS)]
    return {name: sum(g[name] for g in grads) / NUM_TASKS for name in theta}


@pytest.mark.parametrize("base", ["mlp", "stride_transductive", "max_pool_transductive", "stride_support"])
@pytest.mark.parametrize("learner", LEARNERS)
@pytest.mark.parametrize("execution", [Vmapped(None), Vmapped(2), Looped()], ids=lambda e: e.describe())
def test_mean_gradient_is_the_mean_of_the_gradients_of_the_tasks(execution, learner, base):
    built, theta = make(learner, base)
    episodes = image_episodes(NUM_TASKS)  # chunks of 2 do not divide it
    grads, _ = execution.mean_grad(built.meta_loss, theta, episodes)
    assert relative_error(grads, mean_of_tasks(built, theta, episodes)) < SAME


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


def test_a_chunk_below_one_is_refused():
    with pytest.raises(ValueError, match=r"execution\.chunk is 0"):
        Vmapped(0)


# ---- auto ----


def noisy_loss(theta: dict[str, Tensor], episode: object) -> tuple[Tensor, dict[str, Tensor]]:
    noise = torch.randn((), dtype=torch.float64)
    return ((theta["w"] + noise) * episode.query.x.mean()).sum(), {}


@pytest.mark.parametrize("auto", [Auto(None), Auto(2)], ids=["chunk_null", "chunk_2"])
def test_auto_settles_on_the_fastest_of_its_candidates(auto):
    choice = settle(auto, noisy_loss, {"w": torch.ones(2).double()}, image_episodes(3), steps=1)
    settled, timings = choice.execution, choice.milliseconds
    assert timings.keys() <= {candidate.describe() for candidate in auto.candidates()}  # equal groupings are timed once
    assert settled in auto.candidates()
    assert timings[settled.describe()] == min(timings.values())


def test_auto_leaves_the_global_random_numbers_untouched():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    settle(Auto(None), noisy_loss, {"w": torch.ones(2).double()}, image_episodes(3), steps=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_auto_leaves_theta_untouched():
    built, theta = make("maml", "mlp")
    before = tree_map(torch.clone, theta)
    settle(Auto(2), built.meta_loss, theta, image_episodes(2), steps=1)
    assert all(torch.equal(theta[name], p) and not theta[name].requires_grad for name, p in before.items())


@pytest.mark.parametrize("auto", [Auto(None), Auto(2)], ids=["chunk_null", "chunk_2"])
def test_auto_finds_every_candidate_again_by_its_name(auto):
    assert [named(candidate.describe(), like=auto) for candidate in auto.candidates()] == auto.candidates()


@pytest.mark.parametrize(
    "name",
    [
        *("vmapped", "vmapped_matmul", "vmapped_8_matmul", "looped_matmul_recomputed"),
        *("vmapped_matmul_compiled", "vmapped_8_matmul_compiled", "vmapped_8_matmul_recomputed", "looped_matmul"),
    ],
)
def test_an_execution_found_by_a_name_has_that_name(name):
    assert named(name, like=Auto(None, inner_memory="auto", compile="auto")).describe() == name


@pytest.mark.parametrize("content", ["", '{"chosen": "loo', '{"chosen": "looped"}', "[]", "\xff"])
def test_a_damaged_choice_is_an_error_that_says_what_to_do(tmp_path, content):
    path = tmp_path / "execution.json"
    path.write_text(content, encoding="latin-1")
    with pytest.raises(MetarunError, match=r"execution.json is damaged. Remove it: the run measures again"):
        stored(path, like=Auto(None))


@pytest.mark.parametrize("execution", [Vmapped(None), Vmapped(3), Looped()], ids=lambda e: e.describe())
def test_a_fixed_execution_settles_on_itself(execution: Execution):
    assert settle(execution, noisy_loss, {"w": torch.ones(2)}, image_episodes(1), steps=1) == Choice(execution, {}, [])


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
