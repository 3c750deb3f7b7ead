"""``metarun explain RUN``: what adaptation does, by plain computation; what is left out and why; and what is touched."""

import functools
import json
import math
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.func import functional_call

from metarun.applied.trained import Trained, trained
from metarun.evaluation.intervals import over
from metarun.evaluation.scoring import score_episodes
from metarun.output.explained.figures import embedding, layers
from metarun.trees import slice_tasks
from tests import applying
from tests.running import TINY, metarun

SINUSOIDS = {
    "maml": ["meta_learner=maml", "meta_learner.inner_steps=2", "base_learner.hidden=[8,8]", "dtype=float64"],
    "anil": ["meta_learner=anil", "meta_learner.inner_steps=2"],
    "boil": ["meta_learner=boil", "meta_learner.inner_steps=2"],
    "r2d2": ["meta_learner=r2d2"],
    "cnp": ["meta_learner=cnp", "meta_learner.width=8"],
}
BUDGET = ["steps=2", "evaluation.every=2", "evaluation.num_val_tasks=2", "evaluation.num_tasks=2"]


@functools.cache
def run(kind: str) -> Path:
    """The folder of a finished run of this kind; it may not be changed."""
    if kind not in SINUSOIDS:
        return applying.run(kind)
    folder = Path(tempfile.mkdtemp()) / "run"
    outcome = metarun(*TINY, *SINUSOIDS[kind], *BUDGET, f"run_dir={folder}")
    assert outcome.code == 0, outcome.text
    return folder


@functools.cache
def explained(kind: str, *words: str) -> tuple[dict[str, Any], str, Path]:
    """explain.json of 4 test tasks, what was printed, and the folder of the files."""
    folder = Path(tempfile.mkdtemp()) / "explained"
    outcome = metarun("explain", str(run(kind)), "--tasks=4", f"--to={folder}", *words)
    assert outcome.code == 0, outcome.text
    return json.loads((folder / "explain.json").read_text(), parse_constant=pytest.fail), outcome.out, folder


def parts(kind: str) -> dict[str, Any]:
    return explained(kind)[0]["parts"]


def by_layer(kind: str, key: str) -> dict[str, float]:
    return {row["layer"]: row[key]["mean"] for row in parts(kind)["layers"]["rows"]}


def loaded(kind: str) -> Trained:
    return trained(run(kind), [], "best", [])


# ---- how sure it is ----


def test_scores_have_their_interval_over_classes_beside_that_over_episodes():
    content, said, _ = explained("protonet")
    task = loaded("protonet").experiment.task
    origin = task.drawn_from("test", task.draw("test", range(4)))
    expected = over("classes", {"": np.array(content["parts"]["episodes"]["scores"])}, origin.names)[""]
    found = content["parts"]["steps"]["rows"][-1]["query_accuracy"]
    unknown = math.isnan(expected.ci95)
    assert found["num_classes"] == expected.number
    assert found["ci95_over_classes"] == (None if unknown else pytest.approx(expected.ci95))
    assert f"over {expected.number} classes" in said and ("unknown for other classes" in said) == unknown


# ---- what changes ----


def test_anil_leaves_its_body_and_what_the_body_puts_out_as_they_were():
    change, cka = by_layer("anil", "change"), by_layer("anil", "cka")
    assert change["body"] == change["body.1"] == 0 < change["head"]
    assert [cka["body"], cka["body.1"]] == pytest.approx([1, 1], abs=1e-12)


def test_boil_leaves_its_head_and_changes_what_the_body_puts_out():
    change, cka = by_layer("boil", "change"), by_layer("boil", "cka")
    assert change["head"] == 0 < change["body.1"]
    assert cka["body"] < 1


def test_the_change_of_a_layer_is_that_of_its_parameters_over_the_tasks():
    one, expected = loaded("maml"), []
    for i in range(4):
        episode = slice_tasks(one.experiment.task.sample("test", [i]), 0)
        phi = one.experiment.test_learner.adapt(one.theta, episode.support)
        old, new = (
            np.concatenate([tree[f"body.3.{part}"].detach().numpy().ravel() for part in ("weight", "bias")])
            for tree in (one.theta, phi)
        )
        expected.append(np.linalg.norm(new - old) / np.linalg.norm(old))
    found = next(row for row in parts("maml")["layers"]["rows"] if row["layer"] == "body.3")
    assert found["change"]["mean"] == pytest.approx(np.mean(expected), rel=1e-9)
    assert found["parameters"] == 72 and found["kind"] == "Linear"


def test_a_layer_that_begins_at_zero_is_told_in_words_of_its_own(tmp_path):
    folder, words = tmp_path / "run", ["task=image_folder", f"task.path={applying.data() / 'photos'}", *applying.IMAGES]
    words += [*applying.MLP, "meta_learner=baseline", "meta_learner.inner_steps=2"]
    words += [f"data_root={applying.data()}", f"run_dir={folder}"]
    assert metarun(*applying.BUDGET, *[word.strip("'") for word in words]).code == 0
    outcome = metarun("explain", str(folder), "--tasks=2", f"--to={tmp_path / 'to'}")
    assert outcome.code == 0, outcome.text
    assert re.search(r"layer that moves away from zero .* head \(Linear\)", outcome.out)
    assert re.search(r"other layer that changes most .* body\.1 \(Linear\): by 0 of its length", outcome.out)
    assert "<td>away from zero</td>" in (tmp_path / "to" / "explanation.html").read_text()
    rows = json.loads((tmp_path / "to" / "explain.json").read_text())["parts"]["layers"]["rows"]
    assert [row["layer"] for row in rows if row["change"]["mean"] is None] == ["head"]
    (text,) = layers({"rows": rows}).axes[0].texts
    assert text.get_text().strip() == "away from zero"


def test_the_similarity_of_a_body_is_that_of_its_features_on_the_queries():
    one, expected = loaded("maml"), []
    learner = one.experiment.test_learner
    for i in range(4):
        episode = slice_tasks(one.experiment.task.sample("test", [i]), 0)
        phi = learner.adapt(one.theta, episode.support)
        features = []
        for params in (one.theta, phi):
            body = {name[5:]: p for name, p in params.items() if name.startswith("body.")}
            z = functional_call(learner.base_learner.body, body, (episode.query.x,)).detach().numpy()
            features.append(z - z.mean(0))
        a, b = features
        expected.append(np.linalg.norm(b.T @ a) ** 2 / (np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b)))
    assert by_layer("maml", "cka")["body"] == pytest.approx(np.mean(expected), rel=1e-6)


def test_the_scores_of_each_step_are_those_of_an_evaluation():
    one = loaded("maml")
    subject = one.experiment.subject(one.theta, "test", 4, one.execution)
    expected = score_episodes(subject, curve=True)
    rows = parts("maml")["steps"]["rows"]
    assert len(rows) == 3
    for k, row in enumerate(rows):
        assert row["query_loss"]["mean"] == pytest.approx(expected[f"query_loss_step_{k}"].mean().item(), rel=1e-9)
    assert rows[2]["support_loss"]["mean"] < rows[0]["support_loss"]["mean"]
    assert parts("maml")["episodes"]["scores"] == pytest.approx(expected["mse"].tolist())


def test_gradients_are_aligned_as_autograd_has_them():
    one = loaded("maml")
    net, expected = one.experiment.test_learner.base_learner, []
    for i in range(4):
        episode = slice_tasks(one.experiment.task.sample("test", [i]), 0)
        rows = []
        for x, y, _ in episode[:2]:
            theta = {name: p.detach().requires_grad_() for name, p in one.theta.items()}
            loss = (functional_call(net, theta, (x,)) - y).square().mean()
            rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, [*theta.values()])]).numpy())
        a, b = rows
        expected.append(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    assert parts("maml")["gradient_alignment"]["values"] == pytest.approx(expected, rel=1e-9)


@functools.cache
def of_classes(*words: str) -> Path:
    """The folder of a run on characters."""
    folder = Path(tempfile.mkdtemp()) / "run"
    outcome = metarun(*TINY, "task=omniglot", *words, *BUDGET, f"run_dir={folder}")
    assert outcome.code == 0, outcome.text
    return folder


@pytest.mark.data
def test_gradients_are_those_of_parameters_and_statistics_of_the_support_follow(tmp_path):
    norm = ["base_learner.hidden=[4]", "base_learner.batch_norm=support", "dtype=float64"]
    folder = of_classes("meta_learner=maml", "meta_learner.inner_steps=2", *norm)
    assert metarun("explain", str(folder), "--tasks=2", f"--to={tmp_path}").code == 0
    found = json.loads((tmp_path / "explain.json").read_text())["parts"]["gradient_alignment"]["values"]
    one, cosines = trained(folder, [], "best", []), []

    def loss(theta, support, batch):
        linear, norm = (f"body.{i}." for i in (1, 2))
        seen, asked = (x.flatten(1) @ theta[linear + "weight"].T + theta[linear + "bias"] for x in (support.x, batch.x))
        hidden = (asked - seen.mean(0)) / (seen.var(0, unbiased=False) + 1e-5).sqrt()
        hidden = (hidden * theta[norm + "weight"] + theta[norm + "bias"]).relu()
        return torch.nn.functional.cross_entropy(hidden @ theta["head.weight"].T + theta["head.bias"], batch.y)

    for i in range(2):
        support, query = slice_tasks(one.experiment.task.sample("test", [i]), 0)[:2]
        theta = {name: p.detach().clone().requires_grad_() for name, p in one.theta.items()}
        rows = [torch.autograd.grad(loss(theta, support, batch), [*theta.values()]) for batch in (support, query)]
        a, b = (torch.cat([g.flatten() for g in row]) for row in rows)
        cosines.append((a @ b / a.norm() / b.norm()).item())
    assert found == pytest.approx(cosines, rel=1e-7)


@pytest.mark.data
@pytest.mark.parametrize("learner", ["protonet", "baseline"])
def test_running_norms_of_other_ways_in_training_are_explained_as_they_are_tested(learner, tmp_path):
    norm = ["base_learner.hidden=[4]", "base_learner.batch_norm=running"]
    folder = of_classes(f"meta_learner={learner}", "task.train_num_ways=8", *norm)
    outcome = metarun("explain", str(folder), "--tasks=2", f"--to={tmp_path}")
    assert outcome.code == 0, outcome.text
    steps = json.loads((tmp_path / "explain.json").read_text())["parts"]["steps"]
    test = json.loads((folder / "results.json").read_text())["test/query_loss"]["mean"]
    assert steps["rows"][-1]["query_loss"]["mean"] == pytest.approx(test, rel=1e-5)


def test_classes_whose_score_is_no_accuracy_have_a_reliability(tmp_path):
    folder, words = tmp_path / "run", ["task=logistic_regression", "base_learner=linear", "meta_learner.inner_steps=2"]
    outcome = metarun("device=cpu", "execution=looped", *words, *BUDGET, "meta_batch_size=2", f"run_dir={folder}")
    assert outcome.code == 0, outcome.text
    outcome = metarun("explain", str(folder), "--tasks=2", f"--to={tmp_path / 'explained'}")
    assert outcome.code == 0, outcome.text
    assert (
        json.loads((tmp_path / "explained" / "explain.json").read_text())["parts"]["calibration"]["kind"] == "classes"
    )


def test_the_meta_gradients_of_training_tasks_are_compared_two_by_two():
    one, rows = loaded("maml"), []
    for i in range(3):
        theta = {name: p.detach().requires_grad_() for name, p in one.theta.items()}
        loss, _ = one.experiment.learner.meta_loss(theta, slice_tasks(one.experiment.task.sample("train", [i]), 0))
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, [*theta.values()])]).numpy())
    found = np.array(parts("maml")["tasks_alignment"]["matrix"])
    unit = np.array([row / np.linalg.norm(row) for row in rows])
    assert found.shape == (16, 16)
    assert np.allclose(found[:3, :3], unit @ unit.T, atol=1e-6)  # kept as float32


# ---- every kind of learner and task gives what it has ----

NO_STEPS = {"layers", "gradient_alignment"}
KINDS = {  # what is left out
    "maml": {"confusion"},
    "anil": {"confusion"},
    "boil": {"confusion"},
    "r2d2": {"confusion", *NO_STEPS},
    "cnp": {"confusion", *NO_STEPS},
    "protonet": NO_STEPS,
    "hashed": NO_STEPS,
    "tokens": NO_STEPS,
    "running norms": NO_STEPS,
    "table": {"confusion", *NO_STEPS},
}
ALL = {"layers", "steps", "tasks_alignment", "gradient_alignment", "calibration", "confusion", "embedding", "episodes"}


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_learner_lacks_is_left_out_in_a_line_and_all_else_is_there(kind):
    content, printed, folder = explained(kind)
    assert set(content["left_out"]) == KINDS[kind] and set(content["parts"]) == ALL - KINDS[kind]
    for name, reason in content["left_out"].items():
        assert f"left out: {name.replace('_', ' ')}, for {reason}." in printed
    figures = {"embedding", "calibration", "tasks_alignment"}
    assert figures <= {file.stem for file in folder.glob("*.png")}
    assert content["num_tasks"] == 4 and len(content["parts"]["episodes"]["scores"]) == 4


def test_classes_are_told_by_name_and_episodes_shown_as_their_task_does():
    content, printed, folder = explained("protonet")
    names = {row["class"] for row in content["parts"]["confusion"]["hardest"]}
    assert names and all(name.startswith("shape") for name in names)
    assert (folder / "best.png").is_file() and (folder / "worst.png").is_file()
    assert "expected calibration error" in printed


def test_a_learner_with_a_deviation_tells_the_coverage_of_its_intervals():
    one = loaded("cnp")
    shares = []
    for i in range(4):
        episode = slice_tasks(one.experiment.task.sample("test", [i]), 0)
        phi = one.experiment.test_learner.adapt(one.theta, episode.support)
        mean, deviation = one.experiment.test_learner.posterior(phi, episode.query.x)
        shares.append(((episode.query.y - mean).abs() <= 1.6448536 * deviation).double().mean().item())
    part = parts("cnp")["calibration"]
    assert part["kind"] == "intervals"
    assert part["coverage"][part["levels"].index(0.9)] == pytest.approx(np.mean(shares))
    assert parts("r2d2")["calibration"]["kind"] == "residuals"


def test_the_features_of_an_episode_are_shown_before_and_after_its_steps():
    part = parts("boil")["embedding"]
    assert part["features"] == 8
    assert [len(part[moment]["query"]) for moment in ("before", "after")] == [5, 5]
    assert part["before"] != part["after"]
    assert parts("anil")["embedding"]["before"] == parts("anil")["embedding"]["after"]


def test_classes_that_have_no_colour_of_their_own_are_left_out_and_counted():
    def shown(ways: int):
        part = {which: [[float(c), 0.0] for c in range(ways)] for which in ("support", "query")}
        labels = {which: list(range(ways)) for which in ("support", "query")}
        figure = embedding({"after": part, "labels": labels})
        colours = figure.axes[0].collections[0]
        colours.update_scalarmappable()
        return {tuple(one) for one in colours.get_facecolors()}, figure.legends[0].get_title().get_text()

    assert (len(shown(20)[0]), shown(20)[1]) == (20, "")
    assert (len(shown(30)[0]), shown(30)[1]) == (20, "the first 20 of 30 classes")


def test_other_steps_and_another_split_are_explained_by_overrides_and_options():
    content, _, _ = explained("maml", "evaluation.inner_steps=3", "--split=train")
    assert len(content["parts"]["steps"]["rows"]) == 4
    assert (content["split"], content["overrides"]) == ("train", ["evaluation.inner_steps=3"])


def test_of_several_evaluation_tasks_the_first_is_explained_and_named():
    content, printed, _ = explained("maml", "evaluation.task=[harmonics,step_functions]")
    assert content["task"] == "harmonics" and "MAML on harmonics: 4 test tasks" in printed
    assert "explained on harmonics, the first task of harmonics, step_functions" in printed


# ---- the page ----


@pytest.mark.parametrize("kind", ["maml", "protonet"])
def test_the_page_needs_nothing_but_itself(kind):
    content, _, folder = explained(kind)
    text = (folder / "explanation.html").read_text()
    sources = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert len(sources) > 4 and all(source.startswith("data:") for source in sources)
    assert "<script" not in text and "url(" not in text and "@import" not in text
    assert all(f'<section id="{name}">' in text for name in ALL)
    assert all(f"Left out: {reason}." in text for reason in content["left_out"].values())


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Debian's chromium")
def test_a_browser_reads_the_numbers_of_the_page_without_an_error():
    content, _, folder = explained("maml")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0", "--dump-dom"]
    page = (folder / "explanation.html").as_uri()
    read = subprocess.run(["chromium", *flags, page], capture_output=True, text=True, check=True, timeout=120)
    assert "CONSOLE" not in read.stderr
    cells = dict(re.findall(r"<tr><td>([^<]*)</td><td>([^<]*)</td></tr>", read.stdout))
    best = content["parts"]["episodes"]["best"]
    assert cells["best episode"] == f"{best['episode']}: mse {best['score']:.4g}"


# ---- what is touched ----


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def told(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder)).Reload()


@pytest.fixture
def own(tmp_path) -> Path:
    """A run of the test's own."""
    return Path(shutil.copytree(run("maml"), tmp_path / "run"))


def test_a_run_gets_a_folder_and_an_event_file_and_stays_as_it_was(own):
    before, scalars = contents(own), told(own).Tags()["scalars"]
    outcome = metarun("explain", str(own), "--tasks=2")
    assert outcome.code == 0, outcome.text
    (folder,) = (own / "explanations").iterdir()
    assert f"page: {folder / 'explanation.html'}" in outcome.out
    after = contents(own)
    assert {path: after[path] for path in before} == before
    new = [path for path in after if path not in before and folder not in path.parents]
    assert len(new) == 1 and new[0].name.startswith("events.out.tfevents.")
    tags = told(own).Tags()
    shown = {f"explain/{folder.name}/{name}" for name in ("layers", "steps")}
    assert tags["scalars"] == scalars and shown <= set(tags["images"])


def test_two_explanations_of_a_run_have_tags_of_their_own(own):
    choices = (["--split=train"], ["--checkpoint=last"], ["evaluation.inner_steps=3"])
    for words in choices:
        assert metarun("explain", str(own), "--tasks=2", *words).code == 0
    names = {folder.name for folder in (own / "explanations").iterdir()}
    shown = told(own)
    tags = [tag for tag in shown.Tags()["images"] if tag.endswith("/steps")]
    assert len(names) == 3 and set(tags) == {f"explain/{name}/steps" for name in names}
    assert [len(shown.Images(tag)) for tag in tags] == [1, 1, 1]


def test_figures_of_a_run_that_goes_on_do_not_hide_what_it_still_tells(own):
    status = json.loads((own / "status.json").read_text())
    (own / "status.json").write_text(json.dumps(status | {"state": "running"}))
    events = sorted(own.glob("events.*"))
    assert metarun("explain", str(own), "--tasks=2").code == 0
    (folder,) = (own / "explanations").iterdir()
    assert sorted(own.glob("events.*")) == events and len(list(folder.glob("events.*"))) == 1


def test_an_explanation_is_the_same_each_time(own):
    folder, found = own.parent / "to", []
    for _ in range(2):
        assert metarun("explain", str(own), "--tasks=2", f"--to={folder}").code == 0
        found.append((folder / "explain.json").read_text())
    assert found[0] == found[1]


# ---- wrong input ----


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--split=other"], "--split is 'other'; use train, val or test."),
        (["--tasks=1"], "--tasks is 1, but must be 2 or more"),
        (["evaluation.num_tasks=9"], "evaluation.num_tasks=9: the number of tasks is given by --tasks."),
        (["--checkpoint=first"], "--checkpoint is 'first'; use best or last."),
        (["steps=9"], "steps=9: an evaluation can change"),
        (["--to", ""], "--to is empty; give it a value, or leave it out."),
        (["--to="], "--to is empty; give it a value, or leave it out."),
        (["--to=/proc/none"], "Name a folder for the explanation by --to DIR."),
    ],
)
def test_wrong_input_is_one_message_and_exit_code_2(words, told):
    outcome = metarun("explain", str(run("maml")), *words)
    assert outcome.code == 2 and told in outcome.err, outcome.text
    assert not (run("maml") / "explanations").exists()


def test_where_the_run_cannot_be_written_to_the_message_names_the_way_out(own):
    (own / "explanations").touch()  # where a folder would be made
    outcome = metarun("explain", str(own), "--tasks=2")
    assert outcome.code == 2 and "by --to DIR" in outcome.err, outcome.text
