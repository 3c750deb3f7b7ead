"""``metarun compare``: differences on the same episodes, with intervals and p values that mean what they say."""

import csv
import io
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from metarun.evaluation.student import student_t, two_sided
from metarun.output.paired import higher_is_better, holm, of_strata, of_values, win_rate
from tests.kept_runs import EPISODES, episodes, keep, made
from tests.running import metarun


def told(*words) -> dict:
    outcome = metarun("compare", *words, "--format=json")
    assert outcome.code == 0, outcome.err
    return json.loads(outcome.out)


@pytest.fixture
def difficulty() -> np.ndarray:
    """How hard each episode is, which all learners share."""
    return np.random.default_rng(0).normal(0, 0.1, EPISODES)


@pytest.fixture
def sweep(tmp_path, difficulty) -> Path:
    """Two learners of three seeds each; the second is better by 0.05, and by as much more as its seed."""
    for seed in range(3):
        noise = np.random.default_rng(seed).normal(0, 0.02, (2, EPISODES))
        easy = np.roll(difficulty, seed)
        made(tmp_path / f"maml{seed}", 0.8 + easy + noise[0], learner="maml", seed=seed)
        made(tmp_path / f"protonet{seed}", 0.85 + 0.001 * seed + easy + noise[1], learner="protonet", seed=seed)
    return tmp_path


# ---- what is computed ----


def test_p_values_are_those_of_the_closed_forms_of_student_s_t():
    for t in (0.0, 0.1, 1.0, 2.5, 30.0):
        assert two_sided(t, 1) == pytest.approx(1 - 2 / math.pi * math.atan(t), rel=1e-9)
        assert two_sided(t, 2) == pytest.approx(1 - t / math.sqrt(2 + t * t), rel=1e-9)
        assert two_sided(t, 10**7) == pytest.approx(math.erfc(t / math.sqrt(2)), rel=1e-3, abs=1e-190)


def test_the_quantiles_are_those_of_the_tables():
    known = {1: 12.7062047, 2: 4.30265273, 5: 2.57058184, 19: 2.09302405, 599: 1.96393225}
    assert {df: student_t(df) for df in known} == pytest.approx(known, rel=1e-8)


def test_a_p_value_is_below_5_percent_exactly_where_the_interval_leaves_out_zero():
    rng = np.random.default_rng(0)
    for n in (2, 5, 40):
        for _ in range(50):
            score, p = of_values(list(rng.normal(0.3, 1, n)))
            assert (p < 0.05) == (abs(score.mean) > score.ci95)


def test_pairs_find_a_point_between_600_episodes_that_unpaired_intervals_do_not():
    """Two learners of which one is a point better; episodes differ by ten points, and each learner adds three of its own."""
    rng, paired, unpaired = np.random.default_rng(3), [], []
    for _ in range(200):
        episodes = rng.normal(0.8, 0.10, 600)
        first, second = (episodes + rng.normal(shift, 0.03, 600) for shift in (0.01, 0.0))
        difference, (a, _), (b, _) = (
            of_values(list(first - second)).score,
            of_values(list(first)),
            of_values(list(second)),
        )
        paired.append(difference.mean > difference.ci95)
        unpaired.append(a.mean - b.mean > np.hypot(a.ci95, b.ci95))
    assert np.mean(paired) > 0.99 and np.mean(unpaired) < 0.6


def test_the_interval_of_few_seeds_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(1)
    inside = [abs(score.mean) <= score.ci95 for score, _ in (of_values(list(rng.normal(0, 1, 3))) for _ in range(2000))]
    assert np.mean(inside) == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize("deviations", [(1, 1, 1), (1, 1, 30)])  # a seed that went wrong scatters more
def test_the_interval_over_the_episodes_of_given_seeds_covers_their_mean(deviations):
    rng, truth = np.random.default_rng(2), np.array([0.0, 5.0, -2.0])
    strata = ([list(rng.normal(mean, sd, 6)) for mean, sd in zip(truth, deviations, strict=True)] for _ in range(3000))
    inside = [abs(score.mean - truth.mean()) <= score.ci95 for score, _ in map(of_strata, strata)]
    assert np.mean(inside) == pytest.approx(0.95, abs=0.012)


def test_the_interval_over_the_episodes_of_given_seeds_is_welch_s():
    one, other = [1.0, 2.0, 3.0, 6.0], [0.0, 40.0, -10.0, 4.0, 7.0]
    expected = stats.ttest_ind(one, [-value for value in other], equal_var=False)  # of the sum of the means
    score, p = of_strata([one, other])
    half = student_t(int(expected.df)) * expected.statistic**-1 * (np.mean(one) + np.mean(other)) / 2
    assert (score.mean, score.ci95) == pytest.approx(((np.mean(one) + np.mean(other)) / 2, half))
    assert p == pytest.approx(expected.pvalue, abs=0.02)
    assert of_strata([one, one]).score.ci95 == pytest.approx(student_t(6) * np.std(one, ddof=1) / math.sqrt(8))
    huge = of_strata([[1e100 * value for value in each] for each in (one, other)]).score
    assert huge.ci95 == pytest.approx(1e100 * score.ci95)


def test_one_value_has_no_interval_and_equal_values_are_certain():
    assert of_values([0.5]) == ((0.5, None, 1), None)
    assert of_values([0.0, 0.0]).p == 1.0 and of_values([0.1, 0.1]).p == 0.0
    assert of_strata([[0.5], [0.1, 0.2]]).score.ci95 is None


def test_holm_corrects_p_values_step_by_step():
    assert holm([0.01, 0.04, 0.03, None]) == pytest.approx([0.03, 0.06, 0.06, None])
    assert holm([0.6, 0.9]) == [1.0, 1.0] and holm([0.02]) == [0.02] and holm([]) == []


def test_a_win_is_more_accuracy_or_less_error_and_equal_counts_half():
    assert win_rate([0.1, 0.0, -0.2, 0.3], higher_is_better("accuracy", {})) == 0.625
    assert win_rate([0.1, 0.0, -0.2, 0.3], higher_is_better("mse", {})) == 0.375
    assert [
        higher_is_better(name, {}) for name in ("accuracy", "return", "query_loss", "mae_dose", "cross_entropy")
    ] == [*(True, True, False, False, False)]
    assert not any(
        higher_is_better(f"{of}negative_log_likelihood", {}) for of in ("", "joint_", "oracle_", "autoregressive_")
    )


def test_which_scores_are_better_is_what_the_results_say_and_else_their_names():
    reward_loss = {"score": {"name": "reward_loss", "higher_is_better": True}}
    assert higher_is_better("reward_loss", reward_loss) and not higher_is_better("query_loss", reward_loss)
    own = {"score": {"name": "perplexity", "higher_is_better": False}}  # of an outsider's objective
    derived = ("perplexity_step_3", "perplexity_shots_10", "baseline_perplexity", "frozen_perplexity")
    assert not any(higher_is_better(name, own) for name in derived)
    assert not higher_is_better("reward_loss", {"score": "damaged"})


# ---- two runs ----


def test_pairing_finds_a_point_that_the_intervals_of_the_runs_do_not(tmp_path, difficulty):
    noise = np.random.default_rng(5).normal(0, 0.05, (2, EPISODES))
    noise -= noise.mean(1, keepdims=True)
    one = made(tmp_path / "one", 0.91 + difficulty + noise[0])
    other = made(tmp_path / "other", 0.90 + difficulty + noise[1])
    shown = told(one, other)
    first, second = (row["accuracy over episodes"] for row in shown["scores"])
    assert first["mean"] - first["ci95"] < second["mean"] + second["ci95"]
    (pair,) = shown["differences"]
    difference = pair["difference over episodes"]
    assert difference["n"] == EPISODES and difference["mean"] == pytest.approx(0.01)
    assert difference["mean"] > difference["ci95"] and pair["p over episodes"] < 0.01 and pair["win rate"] > 0.5
    assert (pair["first"], pair["second"]) == ("one", "other") and "Holm's p over episodes" not in pair


def test_the_order_of_the_episodes_in_their_file_is_of_no_importance(tmp_path, difficulty):
    one, other = (made(tmp_path / name, shift + difficulty) for name, shift in (("one", 0.8), ("other", 0.7)))
    lines = (other / "episodes.jsonl").read_text().splitlines()
    (other / "episodes.jsonl").write_text("\n".join(reversed(lines)))
    difference = told(one, other)["differences"][0]["difference over episodes"]
    assert difference["mean"] == pytest.approx(0.1) and difference["ci95"] < 1e-12


def test_only_shared_episodes_are_compared_and_that_is_said(tmp_path):
    one, other = made(tmp_path / "one", [0.9, 0.5, 0.7]), made(tmp_path / "other", [0.8, 0.6])
    with (other / "episodes.jsonl").open("a") as file:
        file.write('{"episode": 2, "hash": "0-2", "scor')  # killed
    shown = told(one, other)
    assert shown["differences"][0]["difference over episodes"]["n"] == 2
    assert "one and other share 2 of 3 and 2 episodes" in shown["notes"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda path: made(path, [0.1, 0.2], seed=1), "drawn differently: seed 0 and 1"),
        (lambda path: episodes(keep(path, steps=7), [0.1, 0.2], seed=9), "the hashes of their choices are others"),
    ],
)
def test_runs_without_a_common_episode_are_refused_with_the_reason(change, reason, tmp_path):
    outcome = metarun("compare", made(tmp_path / "one", [0.1, 0.2]), change(tmp_path / "other"))
    assert (outcome.code, outcome.out) == (2, "") and "one and other share no episode: " in outcome.err
    assert reason in outcome.err


def test_episodes_of_other_data_are_not_the_same(tmp_path):
    one, other = (made(tmp_path / name, [0.1, 0.2]) for name in ("one", "other"))
    facts = json.loads((other / "run.json").read_text())
    (other / "run.json").write_text(json.dumps({**facts, "data": "omniglot: 7 images"}))
    outcome = metarun("compare", one, other)
    assert outcome.code == 2 and "of other data: omniglot: 32460 images and omniglot: 7 images" in outcome.err


def test_runs_without_scores_of_episodes_are_left_out_by_name(tmp_path):
    one, _ = (made(tmp_path / name, [0.1, 0.2]) for name in ("one", "other"))
    keep(tmp_path / "old")
    keep(tmp_path / "died", state="failed", score=None)
    notes = told(tmp_path)["notes"]
    assert "old is left out: no scores of single episodes (episodes.jsonl)" in notes
    assert "died is left out: no scores of single episodes (episodes.jsonl); the run is failed" in notes
    outcome = metarun("compare", one, tmp_path / "old")
    assert outcome.code == 2 and "metarun evaluate RUN" in outcome.err


@pytest.mark.parametrize("state, score, fix", [
    ("diverged", "accuracy", "but 1. metarun show RUN says why it ended; train with other settings."),
    ("killed", "accuracy", "but 1. metarun resume=RUN goes on with a run that was stopped."),
    ("completed", "accuracy", "but 1. Runs of earlier versions get them by metarun evaluate RUN;"),
    ("diverged", "mse", "by mse, but 0. --score takes accuracy, query_loss. metarun show RUN says"),
])  # fmt: skip
def test_a_run_that_cannot_be_compared_is_told_with_what_helps_there(state, score, fix, tmp_path):
    made(tmp_path / "one", [0.1, 0.2])
    keep(tmp_path / "other", state=state.replace("killed", "running"), score=0.5 if state == "completed" else None)
    outcome = metarun("compare", tmp_path, f"--score={score}")
    assert outcome.code == 2 and fix in outcome.err


def test_groups_that_are_one_are_told_so(tmp_path):
    for seed in range(2):
        made(tmp_path / f"maml{seed}", [0.1, 0.2], seed=seed)
    outcome = metarun("compare", tmp_path, "--by=meta_learner")
    assert outcome.code == 2 and "but 1. Choose another --by KEY." in outcome.err


def test_an_evaluation_made_later_can_be_compared(tmp_path):
    for name, value in (("one", 0.9), ("other", 0.8)):
        run = made(tmp_path / name, [0.1, 0.2])
        (run / "evaluations").mkdir()
        episodes(run, [value, value + 0.1]).joinpath("episodes.jsonl").rename(
            run / "evaluations" / "five.episodes.jsonl"
        )
        (run / "evaluations" / "five.json").write_text("{}")
    shown = told(tmp_path / "one", tmp_path / "other", "--evaluation=five")
    assert shown["differences"][0]["difference over episodes"]["mean"] == pytest.approx(0.1)
    outcome = metarun("compare", tmp_path, "--evaluation=fiv")
    assert outcome.code == 2 and "no run has it; did you mean 'five'? There is five." in outcome.err


def test_a_score_may_be_named_as_results_json_names_it(tmp_path):
    for name in ("one", "other"):
        made(tmp_path / name, [0.1, 0.2, 0.4])
    assert told(tmp_path, "--score=test/accuracy") == told(tmp_path, "--score=accuracy")


def test_episodes_of_several_tasks_are_told_apart(tmp_path):
    for name, shift in (("one", 0.0), ("other", 0.5)):
        run = made(tmp_path / name, [0.1, 0.2])
        text = "".join(
            episodes(run, [value + shift], task=task).joinpath("episodes.jsonl").read_text()
            for task, value in (("cub", 0.1), ("cifar_fs", 0.3))
        )
        (run / "episodes.jsonl").write_text(text)
    difference = told(tmp_path)["differences"][0]["difference over episodes"]
    assert (difference["n"], difference["mean"]) == (1, pytest.approx(-0.5))  # tasks of one number are one value


# ---- several evaluation tasks ----


@pytest.fixture
def two_tasks(tmp_path) -> Path:
    """Two runs on a task where the first is better by 0.1, and on one of twice as many episodes where it is worse by 0.3."""
    rng = np.random.default_rng(0)
    for name, gains in (("one", (0.1, -0.3)), ("other", (0.0, 0.0))):
        lines = []
        for task, count, gain, level in (("near", 50, gains[0], 0.8), ("far", 100, gains[1], 0.5)):
            values = level + gain + rng.normal(0, 0.01, count)
            path = episodes(keep(tmp_path / name), [float(value) for value in values], task=task)
            lines.append((path / "episodes.jsonl").read_text())
        (path / "episodes.jsonl").write_text("".join(lines))
    return tmp_path


def test_evaluation_tasks_are_kept_apart_and_count_alike(two_tasks):
    shown = told(two_tasks)
    (pair,) = shown["differences"]
    sign = 1 if pair["first"] == "one" else -1
    assert sign * pair["difference over episodes"]["mean"] == pytest.approx(-0.1, abs=0.005)
    # what differs between the tasks is no noise of the episodes
    error = 0.01 * math.sqrt(2) * math.hypot(1 / math.sqrt(50), 1 / math.sqrt(100)) / 2
    assert pair["difference over episodes"]["ci95"] == pytest.approx(1.98 * error, rel=0.2)
    assert pair["win rate"] == pytest.approx(0.5)
    means = {row["run"]: row["accuracy over episodes"]["mean"] for row in shown["scores"]}
    assert means == pytest.approx({"one": 0.55, "other": 0.65}, abs=0.005)
    assert any("is the mean over the evaluation tasks near, far, which count alike" in note for note in shown["notes"])


def test_tasks_whose_episodes_have_the_same_numbers_are_no_independent_ones(tmp_path):
    rng, alone, both = np.random.default_rng(0), tmp_path / "alone", tmp_path / "both"
    for name in ("one", "other"):
        values = [float(value) for value in rng.normal(0.5, 0.1, 20)]
        episodes(keep(alone / name), values)
        run = keep(both / name)
        lines = [(episodes(run, values, task=task) / "episodes.jsonl").read_text() for task in ("near", "far")]
        (run / "episodes.jsonl").write_text("".join(lines))
    assert told(alone)["differences"][0]["difference over episodes"] == pytest.approx(
        told(both)["differences"][0]["difference over episodes"]
    )


def test_seeds_that_are_tested_on_the_very_same_episodes_do_not_narrow_the_interval(tmp_path):
    rng, one_seed, four = np.random.default_rng(0), tmp_path / "one", tmp_path / "four"
    values = {learner: [float(value) for value in rng.normal(0.5, 0.1, 20)] for learner in ("maml", "protonet")}
    for learner, scores in values.items():
        episodes(keep(one_seed / learner, learner=learner), scores)
        for seed in range(4):
            episodes(keep(four / f"{learner}{seed}", learner=learner, seed=seed), scores)
    found = [told(folder, "--by=meta_learner")["differences"][0] for folder in (one_seed, four)]
    assert found[0]["difference over episodes"] == pytest.approx(found[1]["difference over episodes"])
    assert found[0]["p over episodes"] == pytest.approx(found[1]["p over episodes"])


def test_episodes_without_a_finite_score_are_said(tmp_path):
    for name, shift in (("one", 0.0), ("other", 0.3)):
        episodes(keep(tmp_path / name), [*(0.1 * i + shift * (i % 2) for i in range(6)), None, None])
    assert any("one: 2 of 8 episodes have no finite accuracy" in note for note in told(tmp_path)["notes"])


def test_one_evaluation_task_is_compared_by_its_name_before_the_score(two_tasks):
    shown = told(two_tasks, "--score=near/accuracy")
    (pair,) = shown["differences"]
    sign = 1 if pair["first"] == "one" else -1
    difference = pair["difference over episodes"]
    assert (sign * difference["mean"], difference["n"]) == (pytest.approx(0.1, abs=0.01), 50)
    assert not any("count alike" in note for note in shown["notes"])
    outcome = metarun("compare", two_tasks, "--score=nowhere/accuracy")
    assert outcome.code == 2 and "no score nowhere/accuracy" in outcome.err


# ---- few classes or tasks ----

SUBJECTS = {"anna": -0.17, "ben": 0.001, "carl": 0.007}


def of_subjects(folder: Path, effects: dict[str, float], seed: int = 0, count: int = 200) -> Path:
    """Two runs on so many episodes of each subject, of whom each has a difference of his own."""
    rng = np.random.default_rng(seed)
    for name, sign in (("one", 1.0), ("other", 0.0)):
        lines = []
        for i, (subject, effect) in enumerate(effects.items()):
            values = [float(value) for value in 0.5 + sign * effect + rng.normal(0, 0.01, count)]
            run = episodes(keep(folder / name, seed=seed), values, seed=seed, tasks=[subject])
            rows = map(json.loads, (run / "episodes.jsonl").read_text().splitlines())
            lines += [json.dumps({**row, "episode": row["episode"] * len(effects) + i}) for row in rows]
        (run / "episodes.jsonl").write_text("\n".join(lines))
    return folder


def test_few_tasks_have_an_interval_of_their_own_from_which_to_conclude(tmp_path):
    shown = told(of_subjects(tmp_path, SUBJECTS))
    (pair,) = shown["differences"]
    wide, narrow = pair["difference over tasks"], pair["difference over episodes"]
    assert wide["ci95"] == pytest.approx(4.3027 * np.std([*SUBJECTS.values()], ddof=1) / math.sqrt(3), rel=0.02)
    assert (wide["n"], wide["mean"]) == (3, narrow["mean"]) and narrow["ci95"] < 0.02
    assert pair["p over episodes"] < 1e-9 and 0.3 < pair["p over tasks"] < 0.5
    assert any("conclude from that over tasks, whose interval is wider" in note for note in shown["notes"])


def test_more_seeds_of_the_same_tasks_do_not_narrow_the_interval_over_them(tmp_path):
    for seed in range(3):
        of_subjects(tmp_path / str(seed), SUBJECTS, seed)
        for name, learner in (("one", "maml"), ("other", "protonet")):
            keep(tmp_path / str(seed) / name, learner=learner, seed=seed)
    shown = told(tmp_path, "--by=meta_learner")
    (pair,) = shown["differences"]
    (alone,) = told(tmp_path / "0")["differences"]
    assert pair["difference over tasks"]["ci95"] == pytest.approx(alone["difference over tasks"]["ci95"], rel=0.05)
    report = metarun("report", str(tmp_path), "--by=meta_learner", "--format=json", f"--out={tmp_path / 'report'}")
    assert [row["accuracy over tasks"] for row in json.loads(report.out)["scores"]] == [
        row["accuracy over tasks"] for row in shown["scores"]
    ]


def test_a_test_of_one_task_says_that_others_are_unknown(tmp_path):
    shown = told(of_subjects(tmp_path, {"anna": -0.17}))
    (pair,) = shown["differences"]
    assert pair["difference over tasks"]["ci95"] is None is pair["p over tasks"]
    assert any("unknown for other tasks, of which the test has too few" in note for note in shown["notes"])


def test_equal_differences_are_said_to_tell_nothing_of_others(tmp_path):
    for name, shift in (("one", 0.1), ("other", 0.0)):
        made(tmp_path / name, [0.5 + shift, 0.7 + shift])
    (note,) = [note for note in told(tmp_path)["notes"] if "are equal" in note]
    assert note == "one and other: all 2 differences over episodes are equal: an interval of 0 tells nothing of others"


# ---- groups of seeds ----


def test_groups_have_the_interval_over_seeds_beside_that_over_episodes(sweep):
    shown = told(sweep, "--by=meta_learner")
    maml, protonet = shown["scores"]
    assert (maml["group"], maml["seeds"], protonet["group"]) == ("maml", "0, 1, 2", "protonet")
    assert (maml["accuracy over seeds"]["n"], maml["accuracy over episodes"]["n"]) == (3, 3 * EPISODES)
    (pair,) = shown["differences"]
    seeds, over_episodes = pair["difference over seeds"], pair["difference over episodes"]
    assert seeds["mean"] == pytest.approx(over_episodes["mean"]) == pytest.approx(-0.051, abs=0.003)
    means = [-0.05, -0.051, -0.052]
    assert seeds["ci95"] == pytest.approx(4.3027 * np.std(means, ddof=1) / math.sqrt(3), abs=0.004)
    assert over_episodes["ci95"] == pytest.approx(1.96 * 0.02 * math.sqrt(2 / EPISODES / 3), rel=0.1)
    assert pair["win rate"] < 0.1 and pair["p over seeds"] < 0.01 > pair["p over episodes"]


def test_seeds_of_one_group_alone_are_said_and_left_out(sweep):
    (sweep / "maml2" / "episodes.jsonl").unlink()
    shown = told(sweep, "--by=meta_learner")
    assert "maml and protonet: seeds 2 are in one of them alone" in shown["notes"]
    assert shown["differences"][0]["difference over seeds"]["n"] == 2


def test_several_comparisons_are_corrected(sweep, difficulty):
    for seed in range(3):
        made(sweep / f"third{seed}", 0.9 + np.roll(difficulty, seed), learner="maml_plus_plus", seed=seed)
    shown = told(sweep, "--by=meta_learner")
    assert [(pair["first"], pair["second"]) for pair in shown["differences"]] == [
        *(("maml", "protonet"), ("maml", "maml_plus_plus"), ("protonet", "maml_plus_plus"))
    ]
    raw = [pair["p over seeds"] for pair in shown["differences"]]
    assert [pair["Holm's p over seeds"] for pair in shown["differences"]] == pytest.approx(holm(raw))
    assert any("corrected for 3 comparisons" in note for note in shown["notes"])


def test_two_runs_of_one_seed_in_a_group_are_refused(sweep):
    made(sweep / "again", [0.5, 0.6], learner="maml", seed=0, steps=5)
    outcome = metarun("compare", sweep, "--by=meta_learner")
    assert outcome.code == 2 and "are both of seed 0" in outcome.err and "KEY=VALUE" in outcome.err
    assert metarun("compare", sweep, "steps=100", "--by=meta_learner").code == 0


def test_own_learners_of_one_class_are_groups_of_their_own(tmp_path):
    for learner, seed in itertools.product(("fast", "slow"), range(2)):
        run = made(tmp_path / f"{learner}{seed}", 0.8 + 0.01 * seed + np.zeros(EPISODES), learner="maml", seed=seed)
        facts = json.loads((run / "run.json").read_text())
        facts["history"][0]["overrides"].append(f"meta_learner={learner}")
        (run / "run.json").write_text(json.dumps(facts))
    rows = told(tmp_path, "--by", "meta_learner")["scores"]
    assert [row["group"] for row in rows] == ["fast", "slow"]


def test_every_format_has_the_differences(sweep):
    words = ("compare", sweep, "--by=meta_learner")
    (row,) = csv.DictReader(io.StringIO(metarun(*words, "--format=csv").out))
    assert row["first"] == "maml" and float(row["difference over seeds"]) < 0 < float(row["difference over seeds_ci95"])
    assert metarun(*words, "--format=md").out.count("\n| maml |") == 2
    assert metarun(*words, "--format=latex").out.count(r"\begin{tabular}") == 2
    assert "how often the first is better (higher accuracy)" in metarun(*words).out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "there is no folder nowhere"),
        (["RUNS/maml0"], "two or more runs can be compared, and these are 1"),
        (["RUNS", "--by=learnr"], "--by learnr: no run has this; did you mean 'learner'?"),
        (["RUNS", "--by=learner,"], "--by an empty key: no run has this"),
        (["RUNS", "learnr=maml"], "learnr: no run has this; did you mean 'learner'?"),
        (["RUNS", "learner=anil"], "passes the filter; learner is maml, protonet there"),
        (["RUNS", "--evaluation=later"], "--evaluation later: no run has it. metarun evaluate RUN makes one."),
        (["RUNS", "--score=mse"], "no score mse that is finite"),
        (["RUNS", "--format=x"], "use table"),
    ],
)
def test_what_cannot_be_compared_is_refused_with_the_fix(words, said, sweep):
    outcome = metarun("compare", *(word.replace("RUNS", str(sweep)) for word in words))
    assert (outcome.code, outcome.out) == (2, "") and said in outcome.err
