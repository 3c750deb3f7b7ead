"""N ways, K shots, Q queries, B episodes. The tests without real data use archives of a few characters, drawn here."""

import hashlib
import shutil
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from metarun.errors import DataError, MissingDataError
from metarun.evaluation.episodes import manifest
from metarun.evaluation.suite import fitted
from metarun.tasks.image_classes import ImageClasses
from metarun.tasks.image_folder import image_folder
from metarun.tasks.omniglot import Omniglot
from metarun.tasks.omniglot_files import OMNIGLOT, RUNS, characters, splits_of, vinyals
from metarun.tasks.omniglot_lake import OmniglotLake
from metarun.tasks.published import Published, PublishedFile
from metarun.tasks.store import Prepared
from tests.tasks.pictures_of import arguments
from tests.tasks.served import served

NUM_DRAWINGS, SIDE = 4, 105
BACKGROUND = [*(f"Latin/character0{n}" for n in range(1, 4)), "Gurmukhi/character41", "Gurmukhi/character42"]
EVALUATION = [f"{alphabet}/character0{n}" for alphabet in ("Hebrew", "Kannada", "Hellenic") for n in (1, 2)]
SPLITS = {
    "train": {"Latin/character01", "Latin/character02", "Latin/character03", "Gurmukhi/character41"}
    | {"Hellenic/character01", "Hellenic/character02"},
    "val": {"Hebrew/character01", "Hebrew/character02"},
    "test": {"Kannada/character01", "Kannada/character02", "Gurmukhi/character42"},
}


def png(name: str, drawing: int, side: int = SIDE) -> bytes:
    """A black and white image of its own for every drawing."""
    seed = int.from_bytes(hashlib.sha256(f"{name}{drawing}".encode()).digest()[:4], "big")
    blocks = np.random.default_rng(seed).random((7, 7)) > 0.2
    file = BytesIO()
    Image.fromarray(np.kron(blocks, np.ones((15, 15), dtype=bool))).resize((side, side)).save(file, "PNG")
    return file.getvalue()


def write_archive(path: Path, characters: list[str], num_drawings: int = NUM_DRAWINGS, side: int = SIDE) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{path.stem}/", "")
        for name in reversed(characters):  # the order inside the archive must not matter
            for drawing in range(num_drawings):
                archive.writestr(f"{path.stem}/{name}/0001_{drawing:02}.png", png(name, drawing, side))


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def tiny_release(web: Path) -> Published:
    """A release of 5 + 6 characters, its archives and those of two runs in the folder ``web``."""
    web.mkdir(parents=True)
    files = []
    for name, names in (("images_background.zip", BACKGROUND), ("images_evaluation.zip", EVALUATION)):
        write_archive(web / name, names)
        address, count = f"http://localhost/{name}", len(names)
        files.append(PublishedFile(name, address, md5(web / name), count, NUM_DRAWINGS * count))
    write_runs(web / "one_shot" / "all_runs.zip")
    return replace(OMNIGLOT, files=tuple(files))


TWO_RUNS = replace(RUNS, files=(RUNS.files[0]._replace(num_classes=40, num_examples=80),))


def prepared(data_root: Path, release: Published = OMNIGLOT, download: bool = False) -> Prepared:
    return release.source(data_root, download).prepared()


def write_runs(path: Path, num_classes: int = 20) -> None:
    """Two runs, whose test images are in the reverse order of the classes."""
    path.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for run in ("run02", "run01"):
            pairs = [(f"class{n:02}.png", f"item{num_classes + 1 - n:02}.png") for n in range(1, num_classes + 1)]
            lines = [f"{run}/test/{item} {run}/training/{name}" for name, item in pairs]
            archive.writestr(f"{run}/class_labels.txt", "\n".join(sorted(lines)))
            for name, item in pairs:
                archive.writestr(f"{run}/training/{name}", png(f"{run}{name}", 0))
                archive.writestr(f"{run}/test/{item}", png(f"{run}{name}", 1))


@pytest.fixture
def release(tmp_path) -> Published:
    return tiny_release(tmp_path / "web")


@pytest.fixture
def online(tmp_path, release, monkeypatch) -> Iterator[Published]:
    """The release on a web server of this machine."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with served(tmp_path / "web") as server:
        yield replace(release, files=tuple(f._replace(url=f"{server.url}/{f.name}") for f in release.files))


@pytest.fixture
def root(tmp_path, release) -> Path:
    """A data root with the archives, not prepared yet."""
    shutil.copytree(tmp_path / "web", tmp_path / "data" / "omniglot-py")
    return tmp_path / "data"


@pytest.fixture(scope="module")
def prepared_root(tmp_path_factory) -> Path:
    """A data root with the prepared images alone."""
    folder = tmp_path_factory.mktemp("omniglot")
    tiny = tiny_release(folder / "omniglot-py")
    prepared(folder, tiny)
    TWO_RUNS.source(folder, download=False).prepared()
    return folder


def omniglot(root: Path, **changed) -> Omniglot:
    arguments = {
        "num_ways": 2,
        "num_shots": 1,
        "num_queries": 2,
        "train_num_ways": None,
        "train_num_shots": None,
        "train_num_queries": None,
        "split": "vinyals",
        "trainval": False,
        "rotations": "per_task",
        "download": False,
        "seed": 0,
        "device": torch.device("cpu"),
        "dtype": torch.float64,
        "data_root": str(root),
    }
    return Omniglot(**{**arguments, **changed})


def limit(cells: int) -> float:
    """About five standard deviations above the mean of a chi-square statistic with cells - 1 degrees of freedom."""
    return cells - 1 + 5 * np.sqrt(2 * (cells - 1))


# ----------------------------------------------------------------------------------------------------------- episodes


@pytest.mark.parametrize("rotations", ["none", "per_task", "as_classes"])
def test_every_example_is_its_image_turned_as_drawn_and_scaled(prepared_root, rotations):
    task = omniglot(prepared_root, rotations=rotations, num_shots=2)
    images = prepared(prepared_root).rows
    draw = task.draw("test", range(20))
    for batch, part in zip(task.episodes(draw)[:2], ("support", "query"), strict=True):
        for b, order in enumerate(draw[f"{part}_order"]):
            assert sorted(order) == [0, 1, 2, 3]
            numbers = draw[part][b].ravel()[order]
            expected = [np.rot90(images[i], draw["rotations"][b, p // 2]) for i, p in zip(numbers, order, strict=True)]
            assert np.array_equal(batch.x[b, :, 0].numpy(), np.array(expected) / 255)
            assert batch.y[b].tolist() == (order // 2).tolist()


def test_support_and_query_never_share_an_image(prepared_root):
    draw = omniglot(prepared_root, num_shots=2).draw("train", range(500))
    images = np.concatenate([draw["support"], draw["query"]], axis=-1)  # [B, N, K + Q]
    assert all(len(set(task.ravel())) == 8 for task in images)
    assert np.all(images // NUM_DRAWINGS == images[..., :1] // NUM_DRAWINGS)  # one character a class


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_episodes_read_all_classes_of_their_split_and_no_other(prepared_root, split):
    names = prepared(prepared_root).names
    support = omniglot(prepared_root).draw(split, range(200))["support"]
    assert {names[i // NUM_DRAWINGS] for i in support.ravel()} == SPLITS[split]


def test_trainval_adds_the_validation_classes_to_training_and_changes_no_other_split(prepared_root):
    task, plain = omniglot(prepared_root, trainval=True), omniglot(prepared_root)
    names = prepared(prepared_root).names
    support = task.draw("train", range(300))["support"]
    assert {names[i // NUM_DRAWINGS] for i in support.ravel()} == SPLITS["train"] | SPLITS["val"]
    for split in ("val", "test"):
        assert torch.equal(task.sample(split, range(5)).query.x, plain.sample(split, range(5)).query.x)


@pytest.mark.parametrize("rotations", ["none", "per_task", "as_classes"])
def test_every_class_is_equally_often_at_every_label(prepared_root, rotations):
    task = omniglot(prepared_root, rotations=rotations)
    classes = task.draw("test", range(12000))["classes"]
    cells = len(task.pools["test"].names)
    assert cells == (12 if rotations == "as_classes" else 3)
    for n in range(2):
        counts = np.bincount(classes[:, n], minlength=cells)
        assert ((counts - 12000 / cells) ** 2 / (12000 / cells)).sum() < limit(cells)


def test_rotations_per_task_are_uniform_and_independent_of_the_classes(prepared_root):
    draw = omniglot(prepared_root).draw("test", range(12000))
    cells = np.bincount((4 * draw["classes"] + draw["rotations"]).ravel(), minlength=12)
    assert ((cells - 2000) ** 2 / 2000).sum() < limit(12)


def test_rotations_per_episode_turn_all_classes_alike_and_are_uniform(prepared_root):
    turns = omniglot(prepared_root, rotations="per_episode").draw("train", range(800))["rotations"]
    assert (turns == turns[:, :1]).all()
    assert np.bincount(turns[:, 0], minlength=4).min() > 150


def test_rotations_as_classes_keep_the_four_rotations_of_a_character_apart(prepared_root):
    draw = omniglot(prepared_root, rotations="as_classes", num_ways=8).draw("val", range(50))  # all 2 x 4 classes
    pairs = np.stack([draw["support"][..., 0] // NUM_DRAWINGS, draw["rotations"]], axis=-1)
    assert all(len({tuple(pair) for pair in task}) == 8 for task in pairs.tolist())


def test_an_episode_is_the_same_alone_in_company_and_in_any_order(prepared_root):
    numbers = [7, 2**33, 0, 3]
    together = omniglot(prepared_root).sample("train", numbers)
    for place, number in enumerate(numbers):
        alone = omniglot(prepared_root).sample("train", [number])
        for one, many in zip(alone[:2], together[:2], strict=True):
            assert torch.equal(one.x[0], many.x[place])
            assert torch.equal(one.y[0], many.y[place])


def test_seeds_and_splits_draw_from_streams_of_their_own(prepared_root):
    draws = [omniglot(prepared_root, seed=s, trainval=True).draw(split, range(9)) for s in (0, 1) for split in SPLITS]
    assert len({draw["rotations"].tobytes() for draw in draws}) == 6


def test_training_sizes_apply_to_training_episodes_only(prepared_root):
    task = omniglot(prepared_root, train_num_ways=3, train_num_shots=2, train_num_queries=1)
    shapes = {split: [tuple(batch.x.shape) for batch in task.sample(split, range(4))[:2]] for split in SPLITS}
    evaluation = [(4, 2, 1, 28, 28), (4, 4, 1, 28, 28)]
    assert shapes == {"train": [(4, 6, 1, 28, 28), (4, 3, 1, 28, 28)], "val": evaluation, "test": evaluation}
    assert (task.spec.num_outputs, task.spec.train_num_ways, task.spec.input_shape) == (2, 3, (1, 28, 28))


def test_images_have_the_asked_dtype_and_labels_are_int64(prepared_root):
    episode = omniglot(prepared_root, dtype=torch.float32).sample("train", range(2))
    assert [(batch.x.dtype, batch.y.dtype) for batch in episode[:2]] == [(torch.float32, torch.int64)] * 2


def test_the_fingerprint_tells_the_images_and_the_split(prepared_root):
    task = omniglot(prepared_root)
    images = prepared(prepared_root).rows
    assert task.prepared[0].sha256 == hashlib.sha256(images.tobytes()).hexdigest()
    assert task.prepared[0].sha256 in task.fingerprint()
    assert "vinyals" in task.fingerprint()
    assert task.fingerprint() != omniglot(prepared_root, trainval=True).fingerprint()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_ways": 3}, r"task.num_ways is 3, but the split 'val' has only 2 classes"),
        ({"train_num_ways": 7}, r"task.train_num_ways is 7, but the split 'train' has only 6 classes"),
        ({"num_ways": 9, "rotations": "as_classes"}, r"task.num_ways is 9, but the split 'val' has only 8 classes"),
        ({"num_queries": 4}, r"task.num_shots \+ task.num_queries is 5, .* only 4 examples"),
        ({"train_num_shots": 3}, r"task.train_num_shots \+ task.train_num_queries is 5, .* only 4 examples"),
        ({"num_shots": 0}, r"task.num_shots is 0"),
        ({"train_num_queries": 0}, r"task.train_num_queries is 0"),
        ({"split": "lake"}, r"task.split is 'lake', but it must be one of vinyals, maml, maml_plus_plus"),
        (
            {"rotations": "maybe"},
            r"task.rotations is 'maybe', but it must be one of none, per_task, per_ep",
        ),
    ],
)
def test_impossible_settings_are_errors_that_name_key_value_and_rule(prepared_root, changed, message):
    with pytest.raises(ValueError, match=message):
        omniglot(prepared_root, **changed)


# ----------------------------------------------------------------------------------------------------------- archives


def test_characters_follow_each_other_by_archive_and_name_with_ink_as_255(root, release):
    images, names, counts, _, _ = prepared(root, release)
    assert list(names) == sorted(BACKGROUND) + sorted(EVALUATION)
    assert set(counts) == {NUM_DRAWINGS}
    for c, name in enumerate(names):
        for drawing in range(NUM_DRAWINGS):
            original = np.asarray(Image.open(BytesIO(png(name, drawing))))  # True is paper
            # blocks of 15 x 15 pixels become 4 x 4: their inner pixels are far from any edge
            inner = images[NUM_DRAWINGS * c + drawing].reshape(7, 4, 7, 4)[:, 1:3, :, 1:3].mean(axis=(1, 3))
            assert np.array_equal(inner > 127, ~original[::15, ::15])


def test_archives_packed_again_give_the_same_images(root, release):
    first = prepared(root, release).sha256
    for archive, names in zip(release.files, (BACKGROUND, EVALUATION), strict=True):
        path = root / "omniglot-py" / archive.name
        write_archive(path, names[::-1])
        assert md5(path) != archive.md5
    shutil.rmtree(root / "prepared")
    assert prepared(root, release).sha256 == first


def moved(path: Path, above: Callable[[str], str]) -> None:
    """The archive with its members in other folders."""
    with zipfile.ZipFile(path) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in contents.items():
            archive.writestr(above(name), content)
            archive.writestr(
                f"__MACOSX/{above(name)}"[::-1].replace("/", "_./", 1)[::-1], b""
            )  # as macOS packs beside it


@pytest.mark.parametrize("above", ["./", "downloads/omniglot/", None])
def test_archives_with_their_content_in_other_folders_give_the_same_images(root, release, above):
    sources = [release.source(root, False), TWO_RUNS.source(root, False)]
    before = [source.prepared().sha256 for source in sources]
    shutil.rmtree(root / "prepared")
    for path in (root / "omniglot-py").rglob("*.zip"):
        inside = "" if path.name == "all_runs.zip" else f"{path.stem}/"
        moved(path, lambda name, inside=inside: name.removeprefix(inside) or "x/" if above is None else above + name)
    assert [source.prepared().sha256 for source in sources] == before


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_bytes_of_an_image(path: Path) -> None:
    content = bytearray(path.read_bytes())
    where = content.index(b"IDAT") + 6
    content[where : where + 4] = bytes(255 - byte for byte in content[where : where + 4])
    path.write_bytes(content)


def web_page(path: Path) -> None:
    path.write_text("<html>404: Not Found</html>")


def foreign_archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("holiday/beach.png", png("beach", 0))


def one_character_less(path: Path) -> None:
    write_archive(path, BACKGROUND[1:])


def one_drawing_less(path: Path) -> None:
    write_archive(path, BACKGROUND, num_drawings=NUM_DRAWINGS - 1)


def other_size(path: Path) -> None:
    write_archive(path, BACKGROUND, side=SIDE + 1)


def text_in_the_place_of_images(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in BACKGROUND:
            for drawing in range(NUM_DRAWINGS):
                archive.writestr(f"{path.stem}/{name}/0001_{drawing:02}.png", "text")


@pytest.mark.parametrize(
    "spoil",
    [
        truncate,
        flip_bytes_of_an_image,
        web_page,
        foreign_archive,
        one_character_less,
        one_drawing_less,
        other_size,
        text_in_the_place_of_images,
    ],
)
def test_an_archive_that_is_not_whole_is_an_error_that_names_it_and_leaves_nothing(root, release, spoil):
    spoil(root / "omniglot-py" / "images_background.zip")
    with pytest.raises(DataError, match=r"images_background.zip is not a whole Omniglot archive.*task.download=true"):
        prepared(root, release)
    assert [path.name for path in (root / "prepared").iterdir()] == [".omniglot-28.lock"]


def test_missing_archives_are_an_error_that_says_which_where_and_how_to_get_them(tmp_path, root, release):
    (root / "omniglot-py" / "images_evaluation.zip").unlink()
    message = r"needs images_evaluation.zip in .*omniglot-py.*metarun \.\.\. task.download=true.*METARUN_DATA"
    with pytest.raises(MissingDataError, match=message):
        prepared(root, release)
    with pytest.raises(MissingDataError, match=r"images_background.zip and images_evaluation.zip"):
        omniglot(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_missing_archives_are_downloaded_and_those_at_hand_are_kept(root, online):
    kept = root / "omniglot-py" / "images_background.zip"
    write_archive(kept, BACKGROUND[::-1])  # packed again: its md5 differs from the published one
    before = md5(kept)
    (root / "omniglot-py" / "images_evaluation.zip").unlink()
    prepared(root, online, download=True)
    assert md5(kept) == before
    assert md5(root / "omniglot-py" / "images_evaluation.zip") == online.files[1].md5
    assert sorted(path.name for path in (root / "omniglot-py").glob("*.*")) == [a.name for a in online.files]


def test_a_download_with_another_md5_is_refused_and_not_kept(tmp_path, online):
    truncate(tmp_path / "web" / "images_background.zip")
    with pytest.raises(DataError, match=rf"images_background.zip \(md5 {online.files[0].md5}\)"):
        prepared(tmp_path / "data", online, download=True)
    assert list((tmp_path / "data" / "omniglot-py").iterdir()) == []


def test_a_download_that_fails_is_an_error_that_names_address_and_folder(tmp_path, online):
    (tmp_path / "web" / "images_background.zip").unlink()
    with pytest.raises(
        DataError, match=r"could not download http://127.*images_background.zip .* to .*omniglot-py.*404"
    ):
        prepared(tmp_path / "data", online, download=True)


# ---------------------------------------------------------------------------------------------------------- real data


@pytest.mark.data
def test_the_manifest_of_the_published_protocol_is_a_known_hash(data_root):
    hashes = {
        "none": "7d66d3d155cdbdf5a63a361643ded98e043dd3122b6bdc47d38aa04d83cb17c5",
        "per_task": "3e85b20ce391ade74d6b45f0b9e59b6cb0ce9774fa114d2522410d8d7cea98f0",
        "as_classes": "7b4c1081687b06a4e4cc23d1f9dbfd9b1871a5e3e7e1fa4cd77c35dba5f8fe4e",
    }
    tasks = {name: omniglot(data_root, num_ways=5, num_queries=5, rotations=name) for name in hashes}
    assert {name: manifest(task, "test", 600) for name, task in tasks.items()} == hashes


@pytest.mark.data
def test_the_split_has_the_published_sizes(data_root):
    names = prepared(data_root).names
    assert Counter(map(vinyals, names)) == {"train": 1028, "val": 172, "test": 423}


@pytest.mark.data
@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_the_split_equals_the_released_files(data_root, split):
    listed = data_root / "omniglot-py" / "splits" / "vinyals" / f"{split}.txt"
    if not listed.is_file():
        pytest.skip(f"METARUN_DATA has no {listed.name} of the release by Snell et al.")
    expected = {line.rpartition("/")[0] for line in listed.read_text().split()}  # "alphabet/characterNN/rot090"
    names = prepared(data_root).names
    assert {name for name in names if vinyals(name) == split} == expected


@pytest.mark.data
def test_the_prepared_images_have_the_ink_of_the_original_drawings(data_root):
    images = prepared(data_root)
    assert images.rows.shape == (32460, 28, 28)
    with zipfile.ZipFile(data_root / "omniglot-py" / "images_evaluation.zip") as archive:
        for number in range(0, 659, 50):
            name = images.names[964 + number]
            member = min(m for m in archive.namelist() if f"/{name}/" in m and m.endswith(".png"))
            ink = 1 - np.asarray(Image.open(BytesIO(archive.read(member)))).astype(float)  # [105, 105]
            small = images.rows[20 * (964 + number)] / 255
            # resizing keeps the mean, but for rounding and for the overshoot of LANCZOS cut at paper and ink
            assert small.mean() == pytest.approx(ink.mean(), rel=0.1)
            coarse = ink.reshape(7, 15, 7, 15).mean(axis=(1, 3))
            assert np.corrcoef(coarse.ravel(), small.reshape(7, 4, 7, 4).mean(axis=(1, 3)).ravel())[0, 1] > 0.99


@pytest.mark.data
def test_resized_by_the_nearest_pixel_images_are_binary_as_in_the_released_codes(data_root):
    images = characters("nearest").source(data_root, download=False).prepared()
    assert set(np.unique(images.rows[::97])) == {0, 255}
    with zipfile.ZipFile(data_root / "omniglot-py" / "images_evaluation.zip") as archive:
        name = images.names[964]
        member = min(m for m in archive.namelist() if f"/{name}/" in m and m.endswith(".png"))
        theirs = Image.open(BytesIO(archive.read(member))).resize((28, 28), Image.Resampling.LANCZOS)  # of mode "1"
    assert (images.rows[20 * 964] == 255 * (1 - np.asarray(theirs).astype(int))).all()


@pytest.mark.data
def test_real_episodes_have_the_published_number_of_classes_to_choose_from(data_root):
    task = omniglot(data_root, num_ways=20, train_num_ways=60, rotations="as_classes", trainval=True, num_queries=15)
    assert {split: len(pool.names) for split, pool in task.pools.items()} == {"train": 4800, "val": 688, "test": 1692}
    assert task.sample("train", range(2)).query.x.shape == (2, 900, 1, 28, 28)


@pytest.mark.parametrize("split", ["maml", "maml_plus_plus", "background_evaluation"])
def test_other_splits_give_every_class_one_split_in_the_published_numbers(split):
    names = tuple(f"alphabet{c // 33}/character{c % 33}" for c in range(1623))
    sizes = {"maml": (1100, 100, 423), "maml_plus_plus": (1150, 50, 423), "background_evaluation": (964, 0, 659)}[split]
    found = Counter(splits_of(split, names, 964))
    assert tuple(found[s] for s in SPLITS) == sizes
    assert splits_of(split, names, 964) == splits_of(split, names, 964)


def test_the_random_splits_mix_the_alphabets_and_background_evaluation_does_not():
    names = tuple(f"{alphabet}/character{n}" for alphabet in ("Hebrew", "Greek", "Angelic") for n in range(541))
    for split, num_alphabets in (("maml", 3), ("background_evaluation", 1)):
        tests = [name for name, of in zip(names, splits_of(split, names, 1082), strict=True) if of == "test"]
        assert len({name.partition("/")[0] for name in tests}) == num_alphabets


@pytest.mark.data
def test_background_evaluation_is_lake_s_division_with_five_alphabets_for_validation(data_root):
    names = prepared(data_root).names
    of = dict(zip(names, splits_of("background_evaluation", names, 964), strict=True))
    assert Counter(of.values()) == {"train": 792, "val": 172, "test": 659}
    assert len({name.partition("/")[0] for name in names if of[name] == "test"}) == 20


# -------------------------------------------------------------------------------------------------------- Lake's runs


def lake(root: Path, **changed) -> OmniglotLake:
    arguments = {"num_queries": 1, "train_num_ways": 6, "train_num_shots": None, "train_num_queries": None}
    arguments |= {"trainval": True, "rotations": "as_classes", "download": False, "data_root": str(root)}
    arguments |= {"seed": 0, "device": torch.device("cpu"), "dtype": torch.float64}
    return OmniglotLake(**{**arguments, **changed})


def test_a_run_pairs_each_training_image_with_the_test_image_that_its_list_names(root, release):
    images = TWO_RUNS.source(root, download=False).prepared()
    assert images.names[:2] == ("run01/class01", "run01/class02")
    assert (len(images.names), set(images.counts)) == (40, {2})
    whole = np.asarray(Image.open(BytesIO(png("run02class03.png", 1))))  # True is paper
    inner = images.rows[2 * 22 + 1].reshape(7, 4, 7, 4)[:, 1:3, :, 1:3].mean(axis=(1, 3))
    assert np.array_equal(inner > 127, ~whole[::15, ::15])


def test_runs_with_a_class_missing_are_refused(root, release):
    write_runs(root / "omniglot-py" / "one_shot" / "all_runs.zip", num_classes=19)
    with pytest.raises(
        DataError, match=r"all_runs.zip is not a whole Omniglot archive: it pairs 38 images and must pair 40"
    ):
        TWO_RUNS.source(root, download=False).prepared()


@pytest.mark.data
def test_the_twenty_runs_are_the_test_set_whatever_the_seed(data_root):
    task = lake(data_root, train_num_ways=60)
    episodes = task.sample("test", range(20))
    assert episodes.support.x.shape == episodes.query.x.shape == (20, 20, 1, 28, 28)
    assert (episodes.support.y.sort().values == torch.arange(20)).all()
    assert torch.equal(episodes.query.x, lake(data_root, seed=7).sample("test", range(20)).query.x)
    assert task.spec.num_test_tasks == 20
    with pytest.raises(ValueError, match="there is no run 21: Lake's test set has 20"):
        task.draw("test", [20])
    assert task.sample("train", [0]).support.x.shape == (1, 60, 1, 28, 28)


@pytest.mark.parametrize(("rotations", "per_character"), [("none", 1), ("per_task", 4), ("as_classes", 4)])
def test_the_classes_of_an_episode_name_a_character_and_its_turn(prepared_root, rotations, per_character):
    task = omniglot(prepared_root, rotations=rotations)
    draw = task.draw("train", range(50))
    numbers = task.episodes(draw).classes.numpy()
    characters = draw["classes"] if rotations != "as_classes" else draw["classes"] // 4
    expected = characters if per_character == 1 else 4 * characters + draw["rotations"]
    assert (numbers == expected).all()
    assert numbers.min() >= 0 and numbers.max() < task.spec.num_train_classes
    assert task.spec.num_train_classes % per_character == 0


def test_arrays_of_drawings_have_ink_as_the_networks_see_it_and_the_user_is_told(prepared_root, tmp_path):
    dark = Image.new("L", (28, 28), 255)
    dark.paste(0, (10, 10, 14, 20))
    reader = omniglot(prepared_root).reader()
    from_image = reader.inputs([dark])
    np.savez(tmp_path / "drawing.npz", x=1 - np.asarray(dark)[None, None] / 255)
    from_array = reader.read(tmp_path / "drawing.npz", labelled=False)
    assert torch.allclose(from_image, from_array.x) and "ink is 1 and paper 0" in from_array.notes[0]


# ----------------------------------------------------------------------------------------------- beside other images


@pytest.fixture
def dark(tmp_path) -> ImageClasses:
    """Six classes of dark drawings on white, 28 x 28 files."""
    for c in range(6):
        for i in range(3):
            pixels = np.full((28, 28), 230, dtype=np.uint8)
            pixels[4 * c : 4 * c + 3, 5 * i : 5 * i + 9] = 20 + c
            path = tmp_path / "dark" / f"c{c}" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    settings = {"path": str(tmp_path / "dark"), "size": 28, "channels": 1, "split_seed": 0}
    return image_folder(**arguments(tmp_path / "data", split={"train": 1, "val": 1, "test": 1}, **settings))


def test_an_image_is_the_same_to_a_network_by_predict_and_by_evaluation_task(prepared_root, dark, tmp_path):
    task = omniglot(prepared_root)
    seen = fitted(dark, task.spec, False)
    draw = seen.draw("test", range(9))
    names = [dark.class_names("test")[c] for c in draw["classes"].flatten()]
    numbers = (draw["support"] - dark.pools["test"].first[draw["classes"]][..., None]).flatten()
    files = [tmp_path / "dark" / name / f"{i}.png" for name, i in zip(names, numbers, strict=True)]
    by_predict, by_task = task.reader().inputs(files), seen.episodes(draw).support.x
    pixels = [sorted(bytes(row) for row in (255 * x).round().byte().view(18, -1)) for x in (by_predict, by_task)]
    assert pixels[0] == pixels[1]
    assert by_task.mean() < 0.5 < dark.episodes(draw).support.x.mean()


def test_drawings_are_dark_on_light_to_a_network_that_learned_such_images(prepared_root, dark, tmp_path):
    task = omniglot(prepared_root)
    seen = fitted(task, dark.spec, False)
    torch.testing.assert_close(seen.sample("test", [0]).support.x, 1 - task.sample("test", [0]).support.x)
    path = tmp_path / "dark/c0/0.png"
    torch.testing.assert_close(dark.reader().inputs([path]), 1 - task.reader().inputs([path]))
    assert fitted(omniglot(prepared_root), task.spec, False).spec.inverted
