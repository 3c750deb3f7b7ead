"""The joint likelihood by the chain rule, and the oracle's scores beside a learner's."""

from dataclasses import replace

import pytest
import torch
from torch.distributions import MultivariateNormal

from metarun.evaluation.autoregressive import Autoregressive
from metarun.evaluation.baselines import Oracle
from metarun.evaluation.scoring import score_episodes
from metarun.execution.execution import Looped, Vmapped
from metarun.trees import slice_tasks, tree_map
from tests.composing import experiment, train
from tests.running import checkpoint, read

FEW = ["task=gaussian_process", "task.num_shots=4", "task.num_queries=5", "base_learner=linear", "dtype=float64"]
FEW += ["task.noise_std=0.2"]
NAME = "autoregressive_negative_log_likelihood"


def subject_of(*texts: str):
    x = experiment(*FEW, *texts)
    torch.manual_seed(1)
    theta = tree_map(lambda p: p + 0.1 * torch.randn_like(p), x.theta_0)
    return x.subject(theta, "test", 6, Vmapped(None))


def test_of_a_gaussian_process_the_chain_rule_gives_the_joint_density():
    subject = subject_of("meta_learner=gaussian_process")
    learner, theta = subject.learner, subject.theta
    found = Autoregressive().episode_scores(subject)[NAME]
    for i, value in enumerate(found):
        support, query = slice_tasks(subject.task.sample("test", range(6)), i)[:2]

        prior = learner.prior(theta, support)

        def density(x, y, prior=prior):
            points = learner.points(prior, x)
            noise = (2 * theta["log_noise"]).exp() + 0.01**2
            covariance = learner.kernel(prior, points, points)[0] + noise * torch.eye(len(x)).double()
            return MultivariateNormal(points.mean[0], covariance).log_prob(y[:, 0])

        both = density(torch.cat([support.x, query.x]), torch.cat([support.y, query.y]))
        joint = (both - density(support.x, support.y)) / 5
        torch.testing.assert_close(value, -joint.detach(), rtol=0, atol=1e-9)


def test_the_first_query_of_a_transformer_is_predicted_from_the_support_alone():
    subject = subject_of("meta_learner=tnp", "task.num_queries=1")
    plain = score_episodes(subject)["negative_log_likelihood"]
    torch.testing.assert_close(Autoregressive().episode_scores(subject)[NAME], plain, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "words", [["meta_learner=anp", "base_learner=mlp"], ["meta_learner=pfn", "base_learner=linear"]]
)
def test_a_single_query_has_the_likelihood_of_the_learners_own_density(words):
    subject = subject_of(*words, "task.num_queries=1")
    own = score_episodes(subject)["negative_log_likelihood"]
    torch.testing.assert_close(Autoregressive().episode_scores(subject)[NAME], own, rtol=0, atol=1e-10)


def test_the_chain_rule_looped_is_the_chain_rule_vmapped():
    by_vmap = Autoregressive().episode_scores(subject_of("meta_learner=tnp"))[NAME]
    subject = subject_of("meta_learner=tnp")
    looped = Autoregressive().episode_scores(replace(subject, execution=Looped()))[NAME]
    torch.testing.assert_close(by_vmap, looped, rtol=0, atol=1e-10)


def test_the_command_line_names_it_and_a_run_tells_its_mean_over_the_test_episodes(tmp_path):
    words = [*FEW, "meta_learner=cnp", "meta_learner.width=4", "steps=1", "meta_batch_size=1", "evaluation.num_tasks=3"]
    words += ["+evaluation.evaluator.joint._target_=metarun.evaluation.autoregressive.Autoregressive"]
    train(tmp_path / "run", *words, "evaluation.num_val_tasks=2")
    x = experiment(*words)
    subject = x.subject(checkpoint(tmp_path / "run", "best")["theta"], "test", 3, Looped())
    expected = Autoregressive().episode_scores(subject)[NAME].mean().item()
    assert read(tmp_path / "run" / "results.json")[f"test/{NAME}"]["mean"] == pytest.approx(expected, abs=1e-10)


def test_a_learner_without_a_deviation_has_no_joint_likelihood():
    assert Autoregressive().episode_scores(subject_of("meta_learner=maml", "base_learner=mlp")) == {}


def test_the_oracle_is_scored_on_the_episodes_of_the_learner_and_is_not_beaten():
    subject = subject_of("meta_learner=cnp")
    scores = Oracle().episode_scores(subject)
    assert set(scores) == {f"oracle_{n}" for n in ("negative_log_likelihood", "joint_negative_log_likelihood", "mse")}
    task, learners = subject.task, score_episodes(subject)
    expected = task.oracle(task.draw("test", range(6)))
    assert all(torch.equal(scores[f"oracle_{name}"], values) for name, values in expected.items())
    assert scores["oracle_mse"].mean() < learners["mse"].mean()


def test_the_oracle_keeps_to_the_size_of_each_block_of_episodes():
    x = experiment("task=gp_rbf", "meta_learner=cnp", "base_learner=linear", "task.num_shots=[3,9]")
    values = Oracle().episode_scores(x.subject(x.theta_0, "test", 50, Vmapped(None)))["oracle_negative_log_likelihood"]
    task = x.task.at("test", 2)
    assert torch.equal(values[40:], task.oracle(task.draw("test", range(40, 50)))["negative_log_likelihood"])


def test_a_task_without_an_oracle_has_no_scores_of_one():
    x = experiment("task=sinusoid", "meta_learner=cnp")
    assert Oracle().episode_scores(x.subject(x.theta_0, "test", 3, Vmapped(None))) == {}
