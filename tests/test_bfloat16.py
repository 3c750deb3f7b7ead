"""Matrix products in bfloat16: close to float32, with theta, gradient and loss in float32, and the same bits when resumed.

bfloat16 keeps 8 bits: a product is off by 0.004, and by chance, so the gradient of a loss of many terms by a few percent.
"""

import pytest
import torch
from torch.nn.functional import cosine_similarity

from metarun.config.experiment import Experiment
from metarun.errors import ConfigError
from metarun.execution.execution import Looped, Vmapped
from metarun.trees import ravel, tree_leaves
from tests.composing import experiment, train
from tests.running import identical

SMALL = {
    "tnp": ["meta_learner.width=16", "meta_learner.depth=2", "meta_learner.heads=2", "meta_learner.feedforward=32"],
    "in_context": ["meta_learner.width=16", "meta_learner.depth=2", "meta_learner.heads=2"],
    "pfn": ["meta_learner.width=16", "meta_learner.layers=2", "meta_learner.heads=2", "meta_learner.feedforward=32"],
}


def words(learner: str, *more: str) -> list[str]:
    return ["task=sinusoid", "base_learner=linear", f"meta_learner={learner}", *SMALL[learner], "dtype=float32", *more]


def gradient(built: Experiment, execution: Looped | Vmapped) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    episodes = built.task.sample("train", range(8))
    grad, metrics = execution.mean_grad(built.learner.meta_loss, built.theta_0, episodes)
    return ravel(grad)[0], metrics


@pytest.mark.parametrize("learner", SMALL)
def test_a_gradient_in_bfloat16_is_that_of_float32_but_for_its_rounding(learner):
    exact, metrics = gradient(experiment(*words(learner)), Vmapped(None))
    built = experiment(*words(learner, "meta_learner.bfloat16=true"))
    found, rounded = gradient(built, Vmapped(None))
    assert found.dtype == torch.float32 and all(leaf.dtype == torch.float32 for leaf in tree_leaves(built.theta_0))
    assert not torch.equal(found, exact)
    assert cosine_similarity(found, exact, dim=0) > 0.99
    assert rounded["query_loss"].dtype == torch.float32
    torch.testing.assert_close(rounded["query_loss"], metrics["query_loss"], rtol=0.03, atol=0.01)


@pytest.mark.parametrize("learner", SMALL)
def test_one_task_after_the_other_gives_the_gradient_of_all_at_once(learner):
    built = experiment(*words(learner, "meta_learner.bfloat16=true"))
    looped, vmapped = (gradient(built, execution)[0] for execution in (Looped(), Vmapped(None)))
    assert cosine_similarity(looped, vmapped, dim=0) > 0.999


def test_a_run_in_bfloat16_that_was_stopped_ends_as_one_that_was_not(tmp_path):
    told = words("tnp", "meta_learner.bfloat16=true", "evaluation.every=3", "evaluation.num_val_tasks=2")
    told += ["evaluation.num_tasks=2", "execution=vmapped"]
    train(tmp_path / "whole", *told, "steps=6")
    train(tmp_path / "halves", *told, "steps=3")
    train(tmp_path / "halves", *told, "steps=6", "resume=auto")
    thetas = [
        torch.load(tmp_path / run / "checkpoints" / "last.pt", weights_only=True)["theta"]
        for run in ("whole", "halves")
    ]
    assert identical(*thetas)


def test_bfloat16_in_a_run_of_float64_is_refused():
    with pytest.raises(ConfigError, match="bfloat16=true has no effect with dtype=float64"):
        experiment(*words("tnp", "meta_learner.bfloat16=true", "dtype=float64"))
