"""Augmentation: the choices' statistics, the pixels beside torchvision image by image, and where it is applied at all."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from metarun.core import Draw
from metarun.counter import uniform
from metarun.errors import ConfigError
from metarun.evaluation.episodes import manifest
from metarun.tasks.augmentation import NONE, NUM_CHOICES, Augmentation
from metarun.tasks.image_classes import ImageClasses, ImageData
from metarun.tasks.images import pixels_on as pixels
from metarun.tasks.sizes import EpisodeSize
from metarun.tasks.store import Prepared
from metarun.trees import tree_leaves
from tests.composing import compose, experiment, options
from tests.running import metarun, read

ALL = Augmentation(padding=3, flip=0.5, brightness=0.4, contrast=0.3, saturation=0.2, rotation_classes=True)
SHAPE = (3, 9, 12)


def images(count: int, *shape: int) -> Tensor:
    return torch.rand(count, *(shape or SHAPE), generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def choices(augmentation: Augmentation, count: int) -> Draw:
    return augmentation.choices(uniform(0, "test", np.arange(count), NUM_CHOICES))


def by_torchvision(augmentation: Augmentation, x: Tensor, drawn: Draw) -> Tensor:
    """The same, one image after the other."""
    out = []
    for image, (top, left), flip, jitter in zip(x, drawn["shift"], drawn["flip"], drawn["jitter"], strict=True):
        cut = tv.crop(tv.pad(image, [augmentation.padding]), int(top), int(left), *x.shape[2:])
        turned = tv.horizontal_flip(cut) if flip else cut
        contrasted = tv.adjust_contrast(tv.adjust_brightness(turned, jitter[0]), jitter[1])
        out.append(tv.adjust_saturation(contrasted, jitter[2]))
    return torch.stack(out)


# ---- pixels ----


@pytest.mark.parametrize("channels", [1, 3])
def test_every_image_is_changed_as_torchvision_changes_it_alone(channels):
    x = images(40, channels, 9, 12)
    augmentation = ALL if channels == 3 else replace(ALL, saturation=0.0)
    drawn = choices(augmentation, 40)
    expected = by_torchvision(augmentation, x, drawn)
    torch.testing.assert_close(augmentation.apply(x, drawn), expected, rtol=0, atol=1e-6)  # factors in float32 there


@pytest.mark.parametrize("name", ["padding", "flip", "brightness", "contrast", "saturation"])
def test_each_change_alone_is_torchvisions(name):
    x, one = images(20), replace(NONE, **{name: getattr(ALL, name)})
    drawn = choices(one, 20)
    torch.testing.assert_close(one.apply(x, drawn), by_torchvision(one, x, drawn), rtol=0, atol=1e-6)
    assert not torch.equal(one.apply(x, drawn), x)


def test_nothing_chosen_changes_nothing():
    x = images(5)
    assert torch.equal(NONE.apply(x, choices(NONE, 5)), x)
    centred = {**choices(ALL, 5), "shift": np.full((5, 2), 3), "flip": np.zeros(5, int), "jitter": np.ones((5, 3))}
    assert torch.equal(ALL.apply(x, centred), x)


def test_what_a_window_leaves_is_black():
    corner = {"shift": np.array([[0, 0]]), "flip": np.array([0]), "jitter": np.ones((1, 3))}
    x = images(1)
    moved = replace(NONE, padding=2).apply(x, corner)
    assert torch.equal(moved, F.pad(x, (2, 0, 2, 0))[:, :, :9, :12])


# ---- choices ----


def test_choices_are_as_often_as_they_should_be():
    n = 20_000
    drawn = choices(ALL, n)
    for axis in (0, 1):
        counts = np.bincount(drawn["shift"][:, axis], minlength=7)
        assert len(counts) == 7 and ((counts - n / 7) ** 2 / (n / 7)).sum() < 22.5  # chi-square, 6 degrees: 1 in 1000
    assert drawn["flip"].mean() == pytest.approx(0.5, abs=4 * 0.5 / n**0.5)
    for column, strength in enumerate((0.4, 0.3, 0.2)):
        factors = drawn["jitter"][:, column]
        assert 1 - strength <= factors.min() < 1 - 0.99 * strength < 1 + 0.99 * strength < factors.max() <= 1 + strength
        assert factors.mean() == pytest.approx(1, abs=4 * strength / (3 * n) ** 0.5)
    together = np.corrcoef(np.column_stack([drawn["shift"], drawn["flip"], drawn["jitter"]]).T)
    assert np.abs(together - np.eye(6)).max() < 4 / n**0.5  # independent


# ---- in a task ----


def task(augmentation: Augmentation, shape: tuple[int, ...] = (3, 8, 8)) -> ImageClasses:
    """Eight classes of six random images: four to train on, two and two."""
    content = np.random.default_rng(0).integers(0, 256, (48, *shape)).astype(np.uint8)
    prepared = Prepared(content, tuple("abcdefgh"), np.full(8, 6), "no file")
    source, splits = SimpleNamespace(prepared=lambda: prepared), ("train",) * 4 + ("val",) * 2 + ("test",) * 2
    data = ImageData("noise", source, lambda names: splits)
    sizes = {"num_ways": 2, "num_shots": 2, "num_queries": 3}
    training = dict.fromkeys((f"train_{name}" for name in sizes), None)
    where = {"seed": 0, "device": torch.device("cpu"), "dtype": torch.float64}
    return ImageClasses(data=lambda: data, augmentation=augmentation, **sizes, **training, **where)


def test_a_training_episode_has_the_same_pixels_each_time_and_in_any_company():
    one, other = task(ALL), task(ALL)
    first = one.sample("train", [3, 7])
    again = other.sample("train", [7])
    assert torch.equal(first.support.x[1], again.support.x[0]) and torch.equal(first.query.x[1], again.query.x[0])


def test_the_pixels_are_those_of_the_images_changed_by_the_draw():
    augmented, plain = task(replace(ALL, rotation_classes=False)), task(NONE)
    draw = augmented.draw("train", [5])
    assert all(np.array_equal(draw[name], values) for name, values in plain.draw("train", [5]).items())
    x = plain.sample("train", [5]).query.x[0]
    flat = {name: draw[f"query_{name}"][0] for name in choices(ALL, 1)}
    torch.testing.assert_close(augmented.episodes(draw).query.x[0], by_torchvision(ALL, x, flat), rtol=0, atol=1e-6)


@pytest.mark.parametrize("split", ["val", "test"])
def test_validation_and_test_episodes_are_untouched(split):
    augmented, plain = task(ALL), task(NONE)
    assert augmented.draw(split, [0, 1]).keys() == plain.draw(split, [0, 1]).keys()
    for a, b in zip(augmented.sample(split, range(4))[:2], plain.sample(split, range(4))[:2], strict=True):
        assert torch.equal(a.x, b.x)


def test_support_and_query_images_of_an_episode_are_changed_apart():
    draw = task(ALL).draw("train", range(50))
    assert not np.array_equal(draw["support_jitter"], draw["query_jitter"][:, :, :2])


def test_quarter_turns_are_training_classes_of_their_own():
    turned = task(replace(NONE, rotation_classes=True))
    assert turned.spec.num_train_classes == 4 * task(NONE).spec.num_train_classes
    draw = turned.draw("train", range(200))
    assert set(draw["classes"].ravel()) == set(range(16))
    store = pixels(torch.device("cpu"), turned.images.rows)
    x, y = turned.episodes(draw).support[:2]  # [B, N * K, ...]
    for b in range(20):
        for n in range(2):
            c = draw["classes"][b, n]
            assert np.all(draw["support"][b, n] // 6 == c // 4)
            images = draw["support"][b].ravel()[draw["support_order"][b]]
            expected = store.take(images[y[b] == n]).rot90(int(c % 4), (-2, -1)).double() / 255
            assert torch.equal(x[b, y[b] == n], expected)


@pytest.mark.parametrize(
    ("change", "shape", "message"),
    [
        ({"padding": -1}, SHAPE, "padding is -1, but must be 0 or more"),
        ({"padding": 5}, SHAPE, "padding is 5, but must be at most 4, half the side of these images of 9 x 12"),
        ({"padding": 1000}, (3, 32, 32), "must be at most 16, .* Set it to 16 or less"),
        ({"flip": 1.5}, SHAPE, "flip is 1.5, but must be from 0 to 1"),
        ({"saturation": -0.1}, SHAPE, "saturation is -0.1"),
        ({"saturation": 0.5}, (1, 8, 8), "no effect on grey images. Set it to 0"),
        ({"contrast": 0.5}, (4, 8, 8), "1 or 3 channels, and these have 4"),
        ({"rotation_classes": True}, (3, 8, 9), "square images, and these have 8 x 9"),
    ],
)
def test_what_cannot_be_done_is_refused(change, shape, message):
    with pytest.raises(ValueError, match=message):
        task(replace(NONE, **change), shape)


def test_the_widest_padding_leaves_a_quarter_of_every_image_in_its_window():
    white = torch.ones(1, 1, 8, 8)
    corner = {"shift": np.array([[8, 0]]), "flip": np.array([0]), "jitter": np.ones((1, 3))}
    widest = task(replace(NONE, padding=4)).augmentation
    assert widest.apply(white, corner).mean() == 0.25


def test_sizes_of_augmented_and_plain_episodes_agree():
    assert task(ALL).sizes["train"] == EpisodeSize(2, 2, 3)
    assert task(ALL).sample("train", [0]).support.x.shape == (1, 4, 3, 8, 8)


def test_training_tasks_are_evaluated_on_images_as_they_are():
    augmented, plain = task(ALL), task(NONE)
    before = manifest(augmented, "train", 30)
    one, other = (each.sample("train", range(30)) for each in (augmented.for_evaluation(), plain))
    assert all(torch.equal(a, b) for a, b in zip(tree_leaves(one), tree_leaves(other), strict=True))
    assert manifest(augmented, "train", 30) == before != manifest(plain, "train", 30)


# ---- the configuration ----


@pytest.mark.parametrize("option", options("task/augmentation"))
def test_every_augmentation_is_a_choice_within_an_image_task(option):
    node = compose("task=cifar_fs", f"task/augmentation={option}").task.augmentation
    made = Augmentation(**{name: value for name, value in node.items() if name != "_target_"})
    assert (made == NONE) == (option == "none")


def test_an_augmentation_written_as_a_value_is_answered_with_the_way_to_choose_it():
    with pytest.raises(ConfigError, match="Write task/augmentation=standard"):
        experiment("task=cifar_fs", "task.augmentation=standard")


@pytest.mark.data
def test_a_run_on_augmented_images_is_tested_on_the_episodes_of_a_plain_one(data_root, tmp_path):
    words = [
        "task=cifar_fs",
        f"data_root={data_root}",
        "meta_learner=protonet",
        "base_learner.hidden=[4]",
        "device=cpu",
    ]
    words += [
        "execution=looped",
        "steps=2",
        "meta_batch_size=2",
        "evaluation.num_val_tasks=2",
        "evaluation.num_tasks=2",
    ]
    augmented = ["task/augmentation=standard", "task.augmentation.rotation_classes=true"]
    for name, more in {"plain": [], "augmented": augmented}.items():
        assert metarun(*words, *more, f"run_dir={tmp_path / name}").code == 0
    plain, other = (read(tmp_path / name / "results.json") for name in ("plain", "augmented"))
    assert plain["protocol"]["manifest"] == other["protocol"]["manifest"]
    assert plain["test/query_loss"] != other["test/query_loss"]
