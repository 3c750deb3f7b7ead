"""Episodes of varying size: what is drawn, masks and padding, and the score over shots."""

import json
import math
from dataclasses import replace

import pytest
import torch

from metarun.core import Batch, Episode
from metarun.errors import ConfigError
from metarun.evaluation.calibration import calibrated, running_norms
from metarun.evaluation.episodes import BLOCK, block_of, by_size, chunks_of, hashes, manifest
from metarun.evaluation.scoring import Subject, score_episodes
from metarun.evaluation.shots import FirstShots, OverShots, first_of_classes, with_shots
from metarun.execution.execution import Looped, Vmapped
from metarun.models.norm_state import recording
from metarun.tasks.sizes import PointSize, sizes_by_split
from metarun.training.padding import PIECES, bucket, num_sizes, padded, pads
from metarun.training.stream import meta_batches
from metarun.trees import ravel, slice_tasks, tree_leaves
from tests.composing import OUTSIDE, experiment
from tests.running import TINY, assert_as_if_never_stopped, killed, metarun, read
from tests.test_devices import SHARED, together

WORDS = ["task=text_jsonl", f"task.path={OUTSIDE / 'requests.jsonl'}", "base_learner=mlp"]
WAYS = [*WORDS, "task.num_ways=[2,3]", "task.num_shots=[1,2]", "task.num_queries=2"]
WAYS += ["task.split={train:4,val:3,test:3}"]
POINTS = ["task.num_shots=[3,7]", "task.train_num_shots=[3,46]", "task.train_num_queries=[2,9]", "task.num_queries=5"]
GENERATED = ["sinusoid", "gaussian_process", "linear_regression", "harmonics", "mixed_curves"]


def same(one: Episode, other: Episode) -> bool:
    return all(torch.equal(a, b) for a, b in zip(tree_leaves(one), tree_leaves(other), strict=True))


# ---- what is drawn ----


@pytest.mark.parametrize("name", GENERATED)
def test_each_meta_batch_has_one_size_within_the_ranges_whatever_the_start(name):
    task = experiment(f"task={name}", *POINTS).task
    steps = list(meta_batches(task, 2, 0, 12))
    sizes = [(e.support.y.shape[1], e.query.y.shape[1]) for e in steps]
    assert len({*sizes}) > 6
    assert all(3 <= shots <= 46 and 2 <= queries <= 9 for shots, queries in sizes)
    for later, whole in zip(meta_batches(task, 2, 5, 12), steps[5:], strict=True):
        assert same(later, whole)


def test_all_sizes_of_a_range_are_drawn_and_about_equally_often():
    task = experiment("task.train_num_shots=[3,6]").task
    drawn = [task.at("train", step).sizes["train"].num_shots for step in range(2000)]
    for shots in range(3, 7):
        assert abs(drawn.count(shots) - 500) < 4 * math.sqrt(2000 * 0.25 * 0.75)


def test_a_fixed_size_is_the_distribution_itself_and_its_manifest_that_of_one_draw():
    task = experiment().task
    assert task.at("train", 7) is task
    assert by_size(task, "test", 65) == [(task, range(65))]


def test_validation_episodes_come_in_blocks_of_one_size_that_no_chunk_crosses():
    task = experiment(*POINTS).task
    for at, indices in chunks_of(task, "val", 70):
        assert len({i // BLOCK for i in indices}) == 1 or at is task.at("val", indices[-1] // BLOCK)
        assert at is task.at("val", indices[0] // BLOCK)
    assert [i for _, indices in chunks_of(task, "val", 70) for i in indices] == [*range(70)]


def test_the_manifest_and_the_hashes_of_episodes_tell_their_sizes():
    one, other = (experiment(f"task.num_shots={shots}").task for shots in ("[3,7]", "[3,8]"))
    assert manifest(one, "test", 40) != manifest(other, "test", 40)
    assert manifest(one, "test", 40) == manifest(experiment("task.num_shots=[3,7]").task, "test", 40)
    blocks = [at.draw("test", [5]) for at, _ in by_size(one, "test", 200)]
    assert len({hashes(draw)[0] for draw in blocks}) == len({id(at) for at, _ in by_size(one, "test", 200)})


def test_motions_stay_whole_where_the_number_of_queries_varies():
    task = experiment("task=pendulum", "task.rollout_steps=5", "task.num_queries=[10,30]").task
    found = {task.at("train", step).sizes["train"].num_queries for step in range(200)}
    assert found == {10, 15, 20, 25, 30}


@pytest.mark.parametrize(
    ("count", "message"),
    [
        ((5, 2), r"task.num_shots is \[5, 2\], but the lowest comes first: use \[2, 5\]"),
        ((0, 2), r"task.num_shots is \(0, 2\), but an episode needs at least 1. Set the lowest to 1 or more"),
        ((1, 2, 3), r"task.num_shots is \(1, 2, 3\); use a whole number, or two as \[lowest, highest\]"),
        ((1.5, 2), r"use a whole number, or two as \[lowest, highest\]"),
    ],
)
def test_a_wrong_range_is_refused_with_value_rule_and_fix(count, message):
    with pytest.raises(ValueError, match=message):
        sizes_by_split(PointSize, (count, 5), None, None)


@pytest.mark.parametrize("wrong", ["[1,2,3]", "[1.5,2]", "[5,2]", "[0,2]", "[a,b]"])
def test_a_wrong_range_in_a_configuration_ends_with_exit_code_2(wrong, tmp_path):
    outcome = metarun(f"task.num_shots={wrong}", f"run_dir={tmp_path / 'run'}")
    assert outcome.code == 2
    assert "task.num_shots is" in outcome.err


def test_one_class_is_refused_as_the_lowest_of_a_range():
    with pytest.raises(ConfigError, match=r"task.num_ways is \[1, 3\], but with one class every answer is right"):
        experiment(*WORDS, "meta_learner=protonet", "task.num_ways=[1,3]")


def test_the_largest_size_is_checked_against_the_data_at_once():
    with pytest.raises(ConfigError, match=r"num_shots \+ task.num_queries is 62"):
        experiment(*WORDS, "meta_learner=protonet", "task.num_shots=[1,60]", "task.num_queries=2")


# ---- learners ----


@pytest.mark.parametrize("learner", ["maml", "reptile", "snail"])
def test_a_learner_with_a_head_for_its_classes_refuses_varying_ways(learner):
    with pytest.raises(ConfigError, match=r"its episodes have 2 to 3 classes .*but the head of .* has a fixed number"):
        experiment(*WAYS, f"meta_learner={learner}")


def test_running_statistics_are_of_adaptations_to_the_ways_of_each_episode():
    norm = ["base_learner.batch_norm=running", "base_learner.hidden=[6]"]
    x, found = experiment(*WAYS, *norm, "meta_learner=proto_maml", "meta_learner.inner_steps=1"), []
    for i in range(32):
        at = block_of(x.task, "train", i)
        support, query = slice_tasks(at.sample("train", [i]), 0)[:2]
        phi = replace(x.learner, num_ways=at.spec.train_num_ways).adapt(x.theta_0, support)
        with recording(running_norms(x.learner)) as collected, torch.no_grad():
            x.learner.query_loss(phi, query)
        found.append(next(collected[name] for name in collected if name.endswith(".mean")))
    with calibrated(x.learner, x.theta_0, x.task, Vmapped(None)):
        (layer,) = running_norms(x.learner).values()
        torch.testing.assert_close(layer.mean, torch.stack(found).mean(0), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("learner", ["protonet", "r2d2", "matchingnet", "cnp", "proto_maml", "metaoptnet"])
def test_a_learner_for_any_ways_trains_and_is_tested_on_varying_ways_and_shots(learner, tmp_path):
    run = tmp_path / "run"
    outcome = metarun(
        *TINY, *WAYS, f"meta_learner={learner}", "execution=vmapped", "evaluation.num_tasks=45", f"run_dir={run}"
    )
    assert outcome.code == 0, outcome.text
    ways = [len(json.loads(line)["classes"]) for line in (run / "episodes.jsonl").read_text().splitlines()]
    assert {*ways} == {2, 3}
    assert ways[:BLOCK] == [ways[0]] * BLOCK


@pytest.mark.parametrize("learner", ["maml", "reptile", "cavia", "cnp", "gaussian_process", "r2d2", "hypernetwork"])
def test_varying_shots_are_trained_and_tested_by_every_kind_of_learner(learner, tmp_path):
    outcome = metarun(*TINY, *POINTS, f"meta_learner={learner}", f"run_dir={tmp_path / 'run'}")
    assert outcome.code == 0, outcome.text


# ---- what a learner can take ----

SNAIL = ["meta_learner=snail", "meta_learner.sequence_length=11", "meta_learner.filters=2"]
SNAIL += ["meta_learner.attention=[[4,4],[4,4]]"]
IN_CONTEXT = ["meta_learner=in_context", "meta_learner.width=8", "meta_learner.depth=1", "meta_learner.heads=2"]
IN_CONTEXT += ["meta_learner.max_points=15", "task.train_num_queries=5"]
TOO_LARGE = {
    "snail": [SNAIL, "sequence_length is 11, but 20 support examples and a query are 21 places"],
    "in_context": [IN_CONTEXT, "max_points is 15, but a support set and one query are 21 points"],
}


@pytest.mark.parametrize("learner", TOO_LARGE)
@pytest.mark.parametrize(
    ("words", "where"),
    [
        (["evaluation.shots=[1,20]"], "test with the 20 shots of evaluation.shots"),
        (["task.num_shots=[2,20]"], "val"),
        (["evaluation.task=sinusoid", "evaluation.task.sinusoid.num_shots=20"], "test"),
    ],
)
def test_more_shots_than_a_learner_takes_are_refused_before_the_first_step(learner, words, where, tmp_path):
    choice, message = TOO_LARGE[learner]
    outcome = metarun(*TINY, *choice, "task.train_num_shots=10", *words, f"run_dir={tmp_path / 'run'}")
    assert outcome.code == 2, outcome.text
    assert f"episodes of {where}: meta_learner.{message}" in outcome.err
    assert not (tmp_path / "run").exists()


def test_training_episodes_larger_than_a_learner_takes_are_refused_too(tmp_path):
    words = [*TINY, *IN_CONTEXT, "task.train_num_shots=[2,12]", f"run_dir={tmp_path / 'run'}"]
    outcome = metarun(*words)
    assert outcome.code == 2, outcome.text
    assert (
        "episodes of train: meta_learner.max_points is 15, but support and query of a training episode" in outcome.err
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("learner", TOO_LARGE)
def test_an_evaluation_with_more_shots_than_a_learner_takes_is_refused(learner, tmp_path):
    choice, message = TOO_LARGE[learner]
    assert metarun(*TINY, *choice, "steps=1", f"run_dir={tmp_path / 'run'}").code == 0
    run = str(tmp_path / "run")
    more, over = "task.num_shots=20", "evaluation.shots=[1,20]"
    for command in (["evaluate", run, more], ["evaluate", run, over], ["explain", run, more]):
        outcome = metarun(*command)
        assert outcome.code == 2, outcome.text
        assert message in outcome.err
    assert not (tmp_path / "run/evaluations").exists()


# ---- exact resume, many devices ----


def test_a_killed_run_with_varying_sizes_goes_on_as_if_never_stopped(tmp_path):
    words = [*TINY, *POINTS, "evaluation.shots=[1,4]"]
    assert metarun(*words, f"run_dir={tmp_path / 'whole'}").code == 0
    killed("between two checkpoints", *words, f"run_dir={tmp_path / 'run'}", cwd=tmp_path)
    assert metarun(f"resume={tmp_path / 'run'}").code == 0
    assert_as_if_never_stopped(tmp_path / "run", tmp_path / "whole")


def test_two_processes_leave_with_varying_sizes_what_one_leaves(tmp_path):
    one, two, words = tmp_path / "one", tmp_path / "two", [*SHARED, *POINTS, "evaluation.shots=[1,4]"]
    assert metarun(*words, f"run_dir={one}").code == 0
    first, other = together(*words, f"run_dir={two}", cwd=tmp_path)
    assert (first.code, other.code, other.text) == (0, 0, ""), first.text + other.text
    assert_as_if_never_stopped(two, one)


def test_shown_episodes_have_the_sizes_that_a_run_gives_them(tmp_path):
    out = tmp_path / "shown.png"
    args = [
        "data",
        "show",
        "sinusoid",
        "task.num_shots=[3,46]",
        "--split=test",
        "--episode=0",
        "--episode=25",
        "--out",
        out,
    ]
    outcome = metarun(*map(str, args), as_given=True)
    assert outcome.code == 0, outcome.text
    assert out.is_file()  # a file for each size
    assert (tmp_path / "shown-25.png").is_file()


# ---- masks ----


@pytest.mark.parametrize("aggregation", ["mean", "attention"])
@pytest.mark.parametrize("task", [POINTS, WAYS], ids=["regression", "classes"])
def test_padding_by_mask_changes_neither_loss_nor_gradient_nor_score_of_a_cnp(aggregation, task):
    built = experiment(*task, "meta_learner=cnp", "base_learner=mlp", f"meta_learner.aggregation={aggregation}")
    step = next(
        s for s in range(50) if built.task.at("train", s).sizes["train"].num_shots == (5 if task is POINTS else 1)
    )
    episodes = built.task.at("train", step).sample("train", range(3))
    longer = padded(episodes, (23, 17))
    assert not longer.support.mask.all()
    for execution in (Looped(), Vmapped(None)):
        loss = built.learner_of(step).meta_loss
        (g, metrics), (h, others) = (execution.mean_grad(loss, built.theta_0, e) for e in (episodes, longer))
        torch.testing.assert_close(ravel(h)[0], ravel(g)[0], rtol=1e-10, atol=1e-10)
        assert metrics.keys() == others.keys()
        for name, value in metrics.items():
            torch.testing.assert_close(others[name], value, rtol=1e-10, atol=1e-10)


def test_what_stands_in_a_padded_row_changes_nothing():
    built = experiment(*POINTS, "meta_learner=cnp")
    episode = slice_tasks(padded(built.task.at("train", 0).sample("train", [0]), (60, 9)), 0)
    support = episode.support
    other = Batch(
        torch.where(support.mask[:, None], support.x, 7.0),
        torch.where(support.mask[:, None], support.y, -3.0),
        support.mask,
    )
    losses = [built.learner.meta_loss(built.theta_0, episode._replace(support=s))[0] for s in (support, other)]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-12, atol=1e-12)


def test_sizes_are_padded_to_few_that_are_never_smaller_nor_above_the_largest():
    built = experiment(*POINTS, "meta_learner=cnp", "steps=1000")
    found = {bucket(built.task, step) for step in range(1000)}
    assert 1 < len(found) <= PIECES
    assert num_sizes(built) == len(found)
    for step in range(100):
        size, rows = built.task.at("train", step).sizes["train"], bucket(built.task, step)
        assert size.num_shots <= rows[0] <= 46
        assert size.num_queries <= rows[1] <= 9


def test_nothing_is_padded_for_learners_without_masks_or_where_a_norm_would_see_it():
    built = experiment(*POINTS, "meta_learner=maml")
    assert not pads(built.learner, built.task)
    assert num_sizes(built) > 100


@pytest.mark.slow
def test_a_compiled_cnp_has_a_graph_a_bucket_and_learns_what_it_learns_without(tmp_path):
    words = [*TINY, "task.train_num_shots=[3,10]", "meta_learner=cnp", "dtype=float64", "meta_learner.width=8"]
    words = [*words, "execution=vmapped", "execution.threads=1"]
    for name, compiled in (("plain", "false"), ("graphs", "true")):
        assert metarun(*words, f"execution.compile={compiled}", f"run_dir={tmp_path / name}").code == 0
    assert "compiled" in read(tmp_path / "graphs" / "execution.json")["chosen"]
    plain, graphs = (read(tmp_path / name / "results.json")["test/mse"]["mean"] for name in ("plain", "graphs"))
    assert graphs == pytest.approx(plain, rel=1e-8)


def test_too_many_sizes_are_not_compiled_and_a_note_says_why(tmp_path):
    outcome = metarun(
        *TINY, *POINTS, "steps=40", "execution=vmapped", "execution.compile=true", f"run_dir={tmp_path / 'run'}"
    )
    assert outcome.code == 0, outcome.text
    notes = " ".join(read(tmp_path / "run" / "execution.json")["notes"])
    assert "sizes, and a graph for each is more than 16 graphs; narrow the ranges" in notes


# ---- the score over shots ----


def test_over_shots_the_tasks_and_queries_are_the_same_and_supports_are_nested():
    task = experiment("task=linear_regression", "task.num_shots=4").task
    most = with_shots(task, "test", 9)
    few, many, all_of_them = (FirstShots(most, k).sample("test", range(4)) for k in (2, 5, 9))
    assert torch.equal(few.query.y, many.query.y)
    assert torch.equal(few.support.x, many.support.x[:, :2])
    assert same(all_of_them, most.sample("test", range(4)))
    own = FirstShots(most, task.sizes["test"].num_shots).sample("test", range(4))
    assert same(own, task.sample("test", range(4)))


def test_of_each_class_the_first_examples_are_seen_in_the_order_of_the_support():
    y = torch.tensor([[0, 1, 1, 0, 0, 1], [1, 1, 1, 0, 0, 0]])
    x = torch.arange(12).view(2, 6, 1)
    first = first_of_classes(Batch(x, y), 2)
    assert first.x[..., 0].tolist() == [[0, 1, 2, 3], [6, 7, 9, 10]]
    assert first.y.tolist() == [[0, 1, 1, 0], [1, 1, 0, 0]]


def test_the_score_over_shots_is_the_score_of_an_evaluation_with_so_many_shots():
    built = experiment("task=gaussian_process", "meta_learner=cnp", "evaluation.shots=[2,6]")
    other = experiment("task=gaussian_process", "meta_learner=cnp", "task.num_shots=2")
    own = Subject(built.test_learner, built.theta_0, built.task, "test", 30, Vmapped(None))
    curve = OverShots([2, 6]).episode_scores(own)
    direct = score_episodes(Subject(built.test_learner, built.theta_0, other.task, "test", 30, Vmapped(None)))
    for name in ("mse", "negative_log_likelihood"):
        torch.testing.assert_close(curve[f"{name}_shots_2"], direct[name], rtol=1e-12, atol=1e-12)


def test_results_terminal_and_figures_tell_the_curve_over_shots(tmp_path):
    run = tmp_path / "run"
    outcome = metarun(*TINY, "meta_learner=cnp", "evaluation.shots=[1,4]", f"run_dir={run}")
    assert outcome.code == 0, outcome.text
    assert "mse over shots 1: " in outcome.out
    assert "negative_log_likelihood over shots 1: " in outcome.out
    results = read(run / "results.json")
    assert {"test/mse_shots_1", "test/mse_shots_4", "test/negative_log_likelihood_shots_4"} <= {*results}
    assert (run / "shots.png").is_file()
    outcome = metarun("evaluate", str(run), "evaluation.shots=[1,2]", as_given=True)
    assert outcome.code == 0, outcome.text
    assert "test/mse_shots_2" in outcome.out
    assert [*(run / "evaluations").glob("*.png")]


@pytest.mark.parametrize("wrong", ["[3,1]", "[0,2]", "[]", "[1,1]", "[1.5]"])
def test_wrong_numbers_of_shots_are_refused(wrong, tmp_path):
    outcome = metarun(f"evaluation.shots={wrong}", f"run_dir={tmp_path / 'run'}")
    assert (outcome.code, "evaluation.shots" in outcome.err) == (2, True)


def test_more_shots_than_the_classes_have_are_refused_before_the_first_step():
    with pytest.raises(ConfigError, match=r"evaluation.shots holds 60, in place of task.num_shots: .*Lower their sum"):
        experiment(*WORDS, "meta_learner=protonet", "task.num_queries=2", "evaluation.shots=[1,60]")
    with pytest.raises(ConfigError, match=r"evaluation.shots has no effect on Quadratics"):
        experiment("task=quadratics", "base_learner=linear", "evaluation.shots=[1,2]")
