"""Sentences in classes: the episodes, the features, the splits, and every file that is not what it should be.

The tests without real data read tests/outside/requests.jsonl: ten classes of twenty sentences. N ways, K shots, Q queries
"""

import csv
import gzip
import hashlib
import json
import os
import re
import subprocess
import unicodedata
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from sklearn.feature_extraction.text import TfidfTransformer

from metarun import load
from metarun.config.ready import lot_problems
from metarun.errors import DataError, MissingDataError
from metarun.evaluation.baselines import FrozenBaseline
from metarun.evaluation.episodes import manifest
from metarun.evaluation.scoring import Subject, evaluate
from metarun.evaluation.suite import baseline_of, check_words
from metarun.execution.execution import Looped, Vmapped
from metarun.tasks.published import Published
from metarun.tasks.splits import PublishedSplit
from metarun.tasks.store import Source
from metarun.tasks.text import TextClasses
from metarun.tasks.text_features import Hashed, Tokens
from metarun.tasks.text_files import Fields
from metarun.tasks.text_sets import Row, TextSet, class_rows, text_set
from metarun.tasks.text_sources import CLINC150, banking77, clinc150, text_jsonl
from metarun.tasks.text_vectors import Vectors
from metarun.tasks.text_words import words
from tests.composing import experiment
from tests.running import metarun, read, scores

FILE = Path(__file__).parents[1] / "outside" / "requests.jsonl"
HASHED, TOKENS = Hashed(256, 2, [3, 4]), Tokens(32, 2, 50)
SIZES = {"num_ways": 2, "num_shots": 2, "num_queries": 3}
WITHOUT_OTHERS = {"train_num_ways": None, "train_num_shots": None, "train_num_queries": None}


def task(root: Path, **changed) -> TextClasses:
    given = {"seed": 0, "device": torch.device("cpu"), "dtype": torch.float64, "data_root": str(root)}
    own = {"path": str(FILE), "features": HASHED, "split": [0.6, 0.2, 0.2], "split_seed": 0}
    return text_jsonl(**{**SIZES, **WITHOUT_OTHERS, **given, **own, **changed})


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("texts")


def limit(cells: int) -> float:
    """About five standard deviations above the mean of a chi-square statistic with cells - 1 degrees of freedom."""
    return cells - 1 + 5 * np.sqrt(2 * (cells - 1))


def sentences(a_task: TextClasses, numbers: np.ndarray) -> list[str]:
    return [a_task.text_set.texts[i] for i in numbers.ravel()]


def label_of() -> dict[str, str]:
    return {row["text"]: row["label"] for row in map(json.loads, FILE.read_text().splitlines())}


# ----------------------------------------------------------------------------------------------------------- episodes


def test_the_splits_share_no_class_and_hold_all_of_them(root):
    pools = task(root).pools
    names = [name for pool in pools.values() for name in pool.names]
    assert sorted(names) == sorted(set(label_of().values()))
    assert [len(pools[s].names) for s in ("train", "val", "test")] == [6, 2, 2]


def test_sentences_have_the_class_of_their_label_and_support_and_query_share_none(root):
    a_task, labels = task(root), label_of()
    for split in ("train", "val", "test"):
        draw = a_task.draw(split, range(200))
        for b in range(200):
            support, query = (sentences(a_task, draw[part][b]) for part in ("support", "query"))
            assert len({*support, *query}) == 2 * (2 + 3)
            names = [a_task.pools[split].names[c] for c in draw["classes"][b]]
            assert [labels[text] for text in support] == [name for name in names for _ in range(2)]
            assert [labels[text] for text in query] == [name for name in names for _ in range(3)]


def test_every_class_is_equally_often_at_every_label(root):
    classes = task(root).draw("train", range(12000))["classes"]
    for n in range(2):
        counts = np.bincount(classes[:, n], minlength=6)
        assert ((counts - 2000) ** 2 / 2000).sum() < limit(6)


def test_every_sentence_of_a_class_is_equally_often_drawn(root):
    draw = task(root).draw("test", range(4000))
    counts = Counter(np.concatenate([draw["support"], draw["query"]], -1).ravel().tolist())
    expected = sum(counts.values()) / 40
    assert len(counts) == 40
    assert sum((count - expected) ** 2 / expected for count in counts.values()) < limit(40)


def test_episodes_are_rows_of_the_encoding_in_the_draws_order(root):
    a_task = task(root)
    draw = a_task.draw("test", [0, 5])
    support, query, classes = a_task.episodes(draw)
    assert support.x.shape == (2, 4, 256)
    assert query.x.shape == (2, 6, 256)
    assert support.y.tolist() == (draw["support_order"] // 2).tolist()
    numbers = draw["support"][1].ravel()[draw["support_order"][1]]
    assert torch.equal(support.x[1], a_task.encoded.take(torch.tensor(numbers)))
    assert np.array_equal(classes.numpy(), draw["classes"])


def test_an_episode_is_the_same_alone_in_company_and_in_any_order(root):
    numbers = [7, 2**33, 0, 3]
    together = task(root).sample("train", numbers)
    for place, number in enumerate(numbers):
        alone = task(root).sample("train", [number])
        assert torch.equal(alone.query.x[0], together.query.x[place])


def test_the_manifest_of_the_test_episodes_never_changes(root):
    # of integers alone: equal on every machine and Python
    assert manifest(task(root), "test", 50) == "de16d21d7a649a0d3b316b54e6421758ede56a701e2283154431bd5d7867cd09"


def test_the_order_of_the_lines_has_no_say(root, tmp_path):
    lines = FILE.read_text().splitlines(keepends=True)
    (tmp_path / "reversed.jsonl").write_text("".join(reversed(lines)))
    a_task, other = task(root), task(root, path=str(tmp_path / "reversed.jsonl"))
    assert torch.equal(a_task.sample("test", range(9)).support.x, other.sample("test", range(9)).support.x)
    assert a_task.fingerprint() == other.fingerprint()


def test_json_and_csv_are_the_same_data(root, tmp_path):
    rows = [json.loads(line) for line in FILE.read_text().splitlines()]
    with open(tmp_path / "requests.csv", "w", newline="", encoding="utf-8-sig") as file:  # with a mark, as Excel writes
        writer = csv.DictWriter(file, ["label", "id", "text"])
        writer.writeheader()
        writer.writerows({**row, "id": i} for i, row in enumerate(rows))
    assert task(root, path=str(tmp_path / "requests.csv")).fingerprint() == task(root).fingerprint()


def test_a_split_is_by_shares_by_its_seed_as_given_or_as_listed(root):
    lots = {tuple(task(root, split_seed=seed).split_of) for seed in range(5)}
    assert len(lots) == 5
    assert task(root, split={"test": 2, "train": 6, "val": 2}).split_of == task(root, split=[6, 2, 2]).split_of
    lists = {"train": ["price", "rent"], "val": ["stock", "theft"], "test": ["invoice", "complaint"]}
    assert {s: pool.names for s, pool in task(root, split=lists).pools.items()} == {
        split: tuple(sorted(names)) for split, names in lists.items()
    }
    with pytest.raises(ValueError, match=r"task\.split is given, but the data does not say"):
        task(root, split="given")
    with pytest.raises(ValueError, match=r"task\.split lists the classes of val alone"):
        task(root, split={"train": 6, "val": ["stock"], "test": 2})


def test_sizes_that_the_classes_cannot_fill_are_errors(root):
    with pytest.raises(ValueError, match=r"task.num_ways is 3, but the split 'val' has only 2 classes"):
        task(root, num_ways=3)
    with pytest.raises(
        ValueError,
        match=r"num_shots \+ task.num_queries is 21, but the class 'invoice' .* only 20 .*, and too few have 9 others",
    ):
        task(root, num_shots=18)


def test_show_draws_the_names_and_sentences_of_an_episode(root):
    a_task = task(root)
    draw = a_task.draw("test", [3])
    shown = "\n".join(text.get_text() for text in a_task.show("test", [3]).texts)
    for text in sentences(a_task, draw["query"]) + sentences(a_task, draw["support"]):
        assert text in shown
    assert all(name in shown for name in a_task.pools["test"].names)


@pytest.mark.parametrize("folder", ["text_jsonl-*", "hashed-*"])
def test_verify_notices_changed_bytes_in_texts_and_features(tmp_path, folder):
    a_task = task(tmp_path)
    a_task.verify()
    path = next((tmp_path / "prepared").glob(folder)) / "images.npy"
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)
    for read_again in (a_task.verify, lambda: task(tmp_path)):
        with pytest.raises(DataError, match="has changed since it was prepared"):
            read_again()


# ----------------------------------------------------------------------------------------------------------- features


def test_words_are_lower_case_and_punctuation_stands_alone():
    assert words("What's up, DOC?") == ["what", "'", "s", "up", ",", "doc", "?"]
    assert words("¿?") == ["¿", "?"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("हिन्दी में!", ["हिन्दी", "में", "!"]),
        (unicodedata.normalize("NFD", "Crème q\u0323u"), ["crème", "q\u0323u"]),
        ("我要2个iPhone。", ["我", "要", "2", "个", "iphone", "。"]),
        ("カード3", ["カ", "ー", "ド", "3"]),
        ("ที่นี่ ok", ["ที่", "นี่", "ok"]),
        ("क्\u200dष", ["क्\u200dष"]),
    ],
)
def test_marks_belong_to_words_and_unspaced_languages_have_a_word_a_letter(text, expected):
    assert words(text) == expected


def test_features_of_runs_that_name_no_rule_of_words_are_as_they_were():
    assert words("हि ne 我要", 1) == ["ह", "\u093f", "ne", "我要"]
    assert (HASHED.describe(), TOKENS.describe()) == ("hashed-256-2-3-4", "tokens-32-2-50")
    assert HASHED.buckets("我要") != replace(HASHED, word_rule=2).buckets("我要")
    assert HASHED.buckets("so it is") == replace(HASHED, word_rule=2).buckets("so it is")
    assert replace(TOKENS, word_rule=2).describe() == "tokens-32-2-50-words2"


def test_other_sentences_are_read_by_the_words_of_the_run(root, tmp_path, caplog):
    """An option of the group has today's rule; a run from before names none, and keeps its own on every data set."""
    caplog.set_level("INFO")
    fitted = json.loads(json.dumps(task(root, features=HASHED).fitted()))
    now = task(root, features=replace(HASHED, word_rule=2), fitted=fitted)
    assert now.features == HASHED and now.fitted() == fitted
    assert "words are by task.features.word_rule=1, as in the run's training" in caplog.text
    with pytest.raises(ValueError, match=r"hashed-512-2-3-4-words2, but the run was trained on hashed-256-2-3-4"):
        task(root, features=replace(HASHED, word_rule=2, num_buckets=512), fitted=fitted)


def test_sentences_of_one_word_are_told(root, tmp_path, caplog):
    caplog.set_level("INFO")
    rows = [{"text": f"{c}{i}", "label": c} for c in "abcdefghij" for i in range(10)]
    task(root, path=written(tmp_path / "words.csv", rows, ","), features=TOKENS)
    assert "60 of 60 training sentences have one word. Words are parted by blanks" in caplog.text


def test_a_bucket_is_found_for_every_word_run_and_character_run():
    grams = Hashed(2**31, 2, [3, 3]).buckets("ab c")  # " ab c ": w ab, w c, w ab c; " ab", "ab ", "b c", " c "
    assert len(set(grams)) == 7
    assert len(Hashed(2**31, 1, None).buckets("ab c")) == 2
    assert Hashed(9, 10**12, [1, 10**12]).buckets("ab c") == Hashed(9, 2, [1, 6]).buckets("ab c")  # and at once


def test_hashed_vectors_are_scikit_learns_tf_idf_fitted_on_the_training_classes(root):
    a_task = task(root)
    texts = a_task.text_set.texts
    counts = np.stack([np.bincount(HASHED.buckets(text), minlength=256) for text in texts])
    labels = a_task.text_set.labels()
    training = np.array([a_task.split_of[c] == "train" for c in labels])
    expected = TfidfTransformer(sublinear_tf=True).fit(counts[training]).transform(counts).toarray()
    x = a_task.encoded.take(torch.arange(len(texts)))
    torch.testing.assert_close(x, torch.from_numpy(expected), rtol=1e-12, atol=1e-12)


def test_equal_words_have_equal_numbers_and_rare_ones_share_the_last(root):
    a_task = task(root, features=TOKENS)
    seen: dict[str, int] = {}
    table = a_task.encoded.take(torch.arange(200)).tolist()
    for row, text in zip(table, a_task.text_set.texts, strict=True):
        numbers = [number for number in row if number]
        assert len(numbers) == len(words(text))
        for word, number in zip(words(text), numbers, strict=True):
            assert seen.setdefault(word, number) == number
    known = a_task.spec.num_tokens - 50
    labels, texts = a_task.text_set.labels(), a_task.text_set.texts
    training = [text for text, c in zip(texts, labels, strict=True) if a_task.split_of[c] == "train"]
    counts = Counter(word for text in training for word in words(text))
    assert {word for word, number in seen.items() if number < known} == {w for w, n in counts.items() if n >= 2}
    assert max(seen.values()) < a_task.spec.num_tokens


def test_long_sentences_are_cut(root):
    x = task(root, features=Tokens(4, 1, 1)).encoded.take(torch.arange(200))
    assert x.shape == (200, 4)


def test_changing_the_test_sentences_changes_nothing_of_what_training_reads(root, tmp_path):
    """Vocabulary and idf are those of the training classes: a rewritten test class leaves the training episodes alone."""
    plain = task(root)
    rewritten = [json.loads(line) for line in FILE.read_text().splitlines()]
    for row in rewritten:
        if row["label"] in plain.pools["test"].names:
            row["text"] = "unheard " + row["text"]
    (tmp_path / "other.jsonl").write_text("\n".join(map(json.dumps, rewritten)))
    for features in (HASHED, TOKENS):
        before, after = (
            task(root, features=features, path=path) for path in (str(FILE), str(tmp_path / "other.jsonl"))
        )
        a, b = before.sample("train", range(20)), after.sample("train", range(20))
        assert torch.equal(a.support.x[..., : b.support.x.shape[-1]], b.support.x[..., : a.support.x.shape[-1]])
        assert before.sample("test", range(20)).support.x.sum() != after.sample("test", range(20)).support.x.sum()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Hashed(0, 1, None), "num_buckets 0"),
        (lambda: Hashed(9, 1, [4, 3]), "ascending"),
        (lambda: Hashed(9, 1, []), "two ascending"),
        (lambda: Hashed(9, 1, [3]), "two ascending"),
        (lambda: Tokens(0, 1, 1), "task.features.max_tokens is 0"),
        (lambda: Tokens(1, 1, 0), "task.features.unknown_buckets is 0"),
    ],
)
def test_features_that_cannot_be_are_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# ----------------------------------------------------------------------------------------------------------- baseline


@pytest.mark.parametrize("features", [HASHED, TOKENS], ids=["hashed", "tokens"])
def test_the_baseline_is_the_nearest_centroid_by_cosine_of_the_features(root, features):
    a_task = task(root, features=features)
    texts, rights = a_task.text_set.texts, []
    if features is HASHED:
        vectors = a_task.encoded.take(torch.arange(len(texts))).numpy()
    else:
        counts = np.stack(
            [np.bincount(row, minlength=a_task.spec.num_tokens) for row in a_task.encoded.take(torch.arange(200))]
        )
        labels = a_task.text_set.labels()
        training = counts[[a_task.split_of[c] == "train" for c in labels]]
        idf = np.log((1 + len(training)) / (1 + (training > 0).sum(0))) + 1
        vectors = counts * idf * (np.arange(a_task.spec.num_tokens) > 0)
    draw = a_task.draw("test", range(30))
    for b in range(30):
        centroids = vectors[draw["support"][b]].mean(1)  # [N, V]
        centroids /= np.linalg.norm(centroids, axis=1, keepdims=True)
        guesses = (vectors[draw["query"][b]] @ centroids.T).argmax(-1)  # [N, Q]
        rights.append((guesses == np.arange(2)[:, None]).mean())
    for execution in (Looped(), Vmapped(None)):
        subject = Subject(baseline_of(a_task), {}, a_task, "test", 30, execution)
        score = FrozenBaseline().episode_scores(subject)["frozen_accuracy"]
        assert score.mean().item() == pytest.approx(np.mean(rights), abs=1e-12)


def test_training_episodes_have_no_baseline(root):
    a_task = task(root)
    assert FrozenBaseline().episode_scores(Subject(baseline_of(a_task), {}, a_task, "train", 10, Looped())) == {}


# ------------------------------------------------------------------------------------------------------- files, wrong


GOOD = "".join(json.dumps({"text": f"{c} {i}", "label": c}) + "\n" for c in "abcdefghij" for i in range(5))
WRONG = {  # the content of a file, and what is said of it
    "not JSON": (GOOD + "{text: 1}\n", r"line 51 is not JSON: .* at column"),
    "no object": (GOOD + "[1, 2]\n", r"line 51 is no object"),
    "a label twice": (GOOD + '{"text": "x", "label": "a", "label": "b"}\n', r"line 51 has 'label' more than once"),
    "a label twice in a list": ('[{"text": "x", "label": "a", "label": "a"}]', r"entry 1 has 'label' more than once"),
    "a missing label": (GOOD + '{"text": "x"}\n', r"line 51 has no 'label'"),
    "a list in an object": ('{"data": [{"text": "a"}]}\n', r"has no 'text', but others within it.*one object .* on each"),
    "a missing text": ('{"label": "x"}\n' + GOOD, r"line 1 has no 'text'"),
    "a blank text": (GOOD + '\n{"text": " \\t", "label": "a"}\n', r"line 52: 'text' is empty"),
    "an unseen text": (GOOD + '{"text": "\\u200b", "label": "a"}\n', r"line 51: 'text' is empty"),
    "a blank label": (GOOD + '{"text": "x", "label": ""}\n', r"line 51: 'label' is empty"),
    "half a character": (GOOD + '{"text": "\\ud83d", "label": "a"}\n', r"line 51: 'text' holds half a character"),
    "a text that is none": (GOOD + '{"text": ["x"], "label": "a"}\n', r"line 51: 'text' is \['x'\], but must be a string"),
    "another split": (GOOD + '{"text": "x", "label": "a", "split": "x"}\n', r"'split' is 'x', but must be one of train"),
    "a class in two splits": (GOOD + '{"text": "x", "label": "a", "split": "val"}\n', r"class 'a' is in the split ''"),
    "nothing": ("", r"holds no sentence, but an episode needs 2 classes"),
    "one class": (GOOD[: GOOD.index('{"text": "b')], r"holds the class 'a' alone"),
    "names that differ by case": (GOOD + '{"text": "x", "label": "A"}\n', r"'a' \(.*line 1\) and 'A' .* differ by case"),
    "names that differ by blanks": (GOOD + '{"text": "x", "label": "a "}\n', r"'a' .* and 'a ' .* differ by case or blanks"),
    "too few sentences": (GOOD, r"num_queries is 6, .* 'train' has only 5 examples, and too few have 9 others: '\w' 5"),
    "another encoding": (GOOD.encode() + b'{"text": "caf\xe9", "label": "a"}', r"line 51 is not UTF-8 \(byte 0xe9\)"),
    "bytes": (b"\x00\xff\xfe" * 50, r"line 1 holds a NUL"),
    "a packed file": (gzip.compress(GOOD.encode()), r"mine.jsonl is packed by gzip\. .*: gzip -dc "),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_file_gives_one_clear_message_and_code_2_and_nothing_half_prepared(tmp_path, case):
    content, message = WRONG[case]
    path = tmp_path / "mine.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    shots = 3 if case == "too few sentences" else 1
    where = [f"task.path={path}", f"data_root={tmp_path / 'root'}", *["task.split=given"] * ("split" in case)]
    outcome = metarun("task=text_jsonl", *where, f"task.num_shots={shots}", "task.num_queries=3")
    assert outcome.code == 2
    assert outcome.err.count("\n  - ") == 1
    assert re.search(message, outcome.err), outcome.err
    left = [path.name for path in (tmp_path / "root").glob("prepared/*") if not path.name.endswith(".lock")]
    assert len(left) == (1 if case == "too few sentences" else 0)  # there the sentences are in order
    assert not [name for name in left if "partial" in name]


CSV = {
    "no header": (
        "where is my card,card\nhello,greeting\n",
        r"must name the columns text and label, but it is 'where is",
    ),
    "other columns": ("remark,label\nx,a\n", r"must name the columns text and label"),
    "nothing": ("", r"must name the columns text and label, but it is ''"),
    "a short row": ("text,label\nx,a\ny\n", r"line 3: 1 entries, where the header has 2"),
    "a comma without quotes": (
        "text,label\nhello, there,greeting\n",
        r"mine.csv, line 2: 3 entries, where the header has 2; quote texts that contain commas\.",
    ),
    "a name twice": ("text,label,text\nx,a,y\n", r"several columns are named 'text'; give each its own name"),
    "an open quote in the header": ('"text,label\nx,a\n', r"columns text and label, but it is '\"text,label'"),
    "a text without end": (
        f'text,label\n"{"x," * 70_000}",a\n',
        r"line 2 is not CSV: an entry has more than 131072 .* Shorten",
    ),
    "an open quote": ('text,label\nx,a\n"y,b\n', r"line 3 is not CSV: unexpected end of data"),
}


@pytest.mark.parametrize("case", CSV)
def test_a_wrong_csv_file_is_an_error_that_names_the_line(tmp_path, root, case):
    content, message = CSV[case]
    (tmp_path / "mine.csv").write_text(content)
    with pytest.raises(DataError, match=message):
        task(root, path=str(tmp_path / "mine.csv"))


def test_paths_that_name_no_file_are_missing_data(tmp_path, root):
    with pytest.raises(MissingDataError, match=r"task\.path .*nowhere.jsonl' does not exist. Name a file of lines"):
        task(root, path=str(tmp_path / "nowhere.jsonl"))
    with pytest.raises(MissingDataError, match=r"is a folder"):
        task(root, path=str(tmp_path))


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read every file")
def test_a_file_that_may_not_be_read_is_an_error(tmp_path, root):
    path = tmp_path / "mine.jsonl"
    path.write_text(GOOD)
    path.chmod(0)
    with pytest.raises(DataError, match="cannot be read: Permission denied"):
        task(root, path=str(path))


def texts_of(folder: Path, rows: list[Row]) -> TextSet:
    return text_set(Source(folder, (), lambda: class_rows(rows, "here")).prepared())


def test_repeated_sentences_are_kept_once_whatever_their_case_blanks_and_label(tmp_path):
    rows = [("Where is  it", "a"), ("where IS it ", "a"), ("where is it", "b"), ("go", "b"), ("stay", "a")]
    texts = texts_of(tmp_path / "set", [Row(t, c, "", "") for t, c in rows])
    assert texts.texts == ("Where is it", "stay", "go")
    assert texts.counts.tolist() == [2, 1]


def test_sentences_that_differ_by_apostrophes_commas_or_wide_letters_alone_are_told(root, tmp_path):
    texts = ["it's a {c}", "it\u2019s; a {c}", "it's \uff41 {c}", "is it {c}", "{c} it is"]
    lines = [f"{text.format(c=c)},{c}" for c in "abcdef" for text in texts]
    (tmp_path / "marks.csv").write_text("\n".join(["text,label", *lines]))
    facts = task(root, path=str(tmp_path / "marks.csv"), split=[1, 1, 1]).text_set.prepared.facts
    assert any(note.startswith("12 sentences differ from another of the class by punct") for note in facts["notes"])


def test_sentences_that_differ_by_html_or_symbols_alone_are_told(root, tmp_path):
    texts = [
        "it's a {c} & b",
        "<p class='x'>it&#39;s a {c} &amp; b</p>",
        "it's a {c} \U0001f600\ufe0f & b",
        "it is b {c}",
    ]
    lines = [f"{text.format(c=c)},{c}" for c in "abcdef" for text in texts]
    (tmp_path / "html.csv").write_text("\n".join(["text,label", *lines]), encoding="utf-8")
    facts = task(root, path=str(tmp_path / "html.csv"), split=[1, 1, 1], num_queries=2).text_set.prepared.facts
    assert any(note.startswith("12 sentences differ from another of the class by") for note in facts["notes"])


def test_quotation_marks_after_a_blank_are_none_of_the_entry(root, tmp_path):
    lines = [f'"{c} {i}", "{c}{c}"' if i % 2 else f"{c} {i},{c}{c}" for c in "abcdef" for i in range(5)]
    (tmp_path / "blank.csv").write_text("\n".join(["text, label", *lines]))
    text_set = task(root, path=str(tmp_path / "blank.csv"), split=[1, 1, 1]).text_set
    assert text_set.names == tuple(2 * c for c in "abcdef") and text_set.counts.tolist() == [5] * 6
    (tmp_path / "said.csv").write_text(
        "\n".join(["label,text", *(f'{c}, "{c}{i}" or "b"' for c in "abcdef" for i in range(5))])
    )
    assert '"a0" or "b"' in task(root, path=str(tmp_path / "said.csv"), split=[1, 1, 1]).text_set.texts


def test_lines_of_a_file_of_tabs_may_end_as_on_an_old_mac(root, tmp_path):
    lines = ["text\tlabel", *(f'{c} {i}"\t{c}' for c in "abcdef" for i in range(5))]
    (tmp_path / "mac.tsv").write_text("\r".join(lines), newline="")
    assert 'a 0"' in task(root, path=str(tmp_path / "mac.tsv"), split=[1, 1, 1]).text_set.texts


def test_a_field_that_says_splits_by_another_name_is_told_with_the_fix(root, tmp_path, caplog):
    caplog.set_level("INFO", "metarun")
    rows = [{**row, "fold": ("train", "valid", "test")[i % 3], "many": [1]} for i, row in enumerate(ROWS)]
    path = tmp_path / "fold.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    task(root, path=str(path))
    assert "'fold' says splits: name it split, and task.split=given uses it." in " ".join(caplog.messages)


def test_classes_of_sentences_that_may_be_one_are_told(root, tmp_path, caplog):
    caplog.set_level("INFO", "metarun")
    names = ["lost card", "lost_card", "null", "rent", "rent|stock", "stock"]
    lines = [f"word{name[0]} {i} {n},{name}" for n, name in enumerate(names) for i in range(6)]
    (tmp_path / "names.csv").write_text("\n".join(["text,label", *lines]))
    task(root, path=str(tmp_path / "names.csv"), split=[1, 1, 1])
    said = [message for message in caplog.messages if "classes" in message and "field" not in message]
    assert ["'null'" in said[0], "'rent|stock'" in said[1], "'lost card' and 'lost_card'" in said[2]] == [True] * 3


def test_sentences_that_differ_by_letters_that_nobody_sees_are_one(tmp_path):
    forms = ("wh\u00adere is it", "where\u200b is it", "where is it", "\ufeffgo\u2060", "go", "stay \u200b", "stay")
    rows = [*(Row(form, "a", "", "") for form in forms), Row("b", "b", "", "")]
    assert texts_of(tmp_path / "set", rows).texts == ("go", "stay", "where is it", "b")
    rows = [
        Row(form, "a", "", "") for form in ("\u0645\u06cc\u200c\u062e", "\u0645\u06cc\u062e")
    ]  # a joiner of Persian is seen
    assert texts_of(tmp_path / "joined", [*rows, Row("b", "b", "", "")]).counts.tolist() == [2, 1]


def test_sentences_that_differ_by_their_last_marks_alone_are_told(root, tmp_path):
    rows = [{**row, "text": f"{row['text']} x"} for row in ROWS]
    rows += [
        {**row, "text": f"{row['text']}{mark}", "talk": talk}
        for row in rows[:3]
        for mark, talk in (("!", "y"), (" ?", "z"))
    ]
    path = written(tmp_path / "marks.csv", rows, ",")
    note = "sentences differ from another of the class by punctuation, symbols, HTML or the width of letters alone"
    a_task = task(root, path=path)
    assert any(said.startswith(f"6 {note}") for said in a_task.text_set.prepared.facts["notes"])
    assert len(a_task.text_set.texts) == len(rows)
    together = written(tmp_path / "together.csv", [{**row, "talk": row["text"].rstrip("?! ")} for row in rows], ",")
    assert note not in " ".join(task(root, path=together, group_field="talk").text_set.prepared.facts["notes"])


def test_names_of_groups_that_are_nearly_equal_are_told(root, tmp_path):
    rows = [{**row, "talk": row["talk"].upper() if i % 2 else row["talk"]} for i, row in enumerate(ROWS)]
    notes = task(root, path=written(tmp_path / "groups.csv", rows, ","), group_field="talk").text_set.prepared.facts[
        "notes"
    ]
    assert any(
        note.startswith("names of groups that are nearly equal, and taken for different ones: ") for note in notes
    )


def test_a_sentence_in_two_classes_of_ones_own_file_is_an_error_that_names_both(root, tmp_path):
    lines = FILE.read_text().splitlines()
    twin = json.dumps({"text": json.loads(lines[0])["text"].upper(), "label": "alone"})
    for order in ([*lines, twin], [twin, *lines]):
        (tmp_path / "mine.jsonl").write_text("\n".join(order))
        with pytest.raises(DataError) as error:
            task(root, path=str(tmp_path / "mine.jsonl"))
        places = [
            f"'{label}' ({tmp_path / 'mine.jsonl'}, line {order.index(line) + 1})"
            for label, line in (("alone", twin), (json.loads(lines[0])["label"], lines[0]))
        ]
        assert all(place in str(error.value) for place in places)


def test_the_order_of_the_lines_decides_not_which_of_equal_sentences_is_kept(root, tmp_path):
    rows = [*ROWS, *({**row, "text": row["text"].upper(), "talk": f"{row['talk']} again"} for row in ROWS[::3])]
    found = []
    for number, order in enumerate((rows, rows[::-1])):
        path = written(tmp_path / f"{number}.csv", order, ",")
        found.append(task(root, path=path, group_field="talk").text_set)
    assert found[0].texts == found[1].texts and len(found[0].texts) == len(ROWS)
    assert found[0].prepared.facts["groups"] == found[1].prepared.facts["groups"]


def test_accents_of_a_letter_and_beside_it_are_one_sentence_and_one_class(root, tmp_path):
    rows = [{"text": f"né {c} {i // 2}", "label": f"é{c}"} for c in "abcdefghij" for i in range(10)]
    for row in rows[1::2]:
        row.update({name: unicodedata.normalize("NFD", text) for name, text in row.items()})
    (tmp_path / "two.jsonl").write_text("\n".join(map(json.dumps, rows)))
    decomposed = unicodedata.normalize("NFD", "éa")
    split = {"train": [decomposed, "éb"], "val": ["éc", "éd"], "test": ["ée", "éf"]}
    a_task = task(root, path=str(tmp_path / "two.jsonl"), split=split)
    assert a_task.text_set.counts.tolist() == [5] * 10
    assert a_task.pools["train"].names == ("éa", "éb")
    assert {*a_task.reader().read(tmp_path / "two.jsonl", labelled=True).labels} == {*a_task.text_set.names}


def test_blanks_in_a_label_are_made_single(tmp_path):
    rows = [Row(f"{c} {i}", c, "", "") for c in ("a\tb", " c") for i in range(2)]
    assert texts_of(tmp_path / "set", rows).names == ("a b", "c")


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_letters_with_marks_are_one_class_and_one_sentence_however_written(tmp_path, root, form):
    rows = [
        {"text": unicodedata.normalize(form if i % 2 else "NFC", f"Hôtel {c} {i // 2}"), "label": of}
        for c in "abcdef"
        for i in range(10)
        for of in [unicodedata.normalize("NFD" if i % 3 else "NFC", f"réserver {c}")]
    ]
    (tmp_path / "mine.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    names = [f"réserver {c}" for c in "abcdef"]
    parts = {s: [unicodedata.normalize("NFD", n) for n in names[k::3]] for k, s in enumerate(("train", "val", "test"))}
    a_task = task(root, path=str(tmp_path / "mine.jsonl"), split=parts)
    assert a_task.text_set.names == tuple(names) and len(a_task.text_set.texts) == 30
    assert a_task.pools["val"].names == ("réserver b", "réserver e")


def test_the_split_column_of_the_file_is_kept(tmp_path, root):
    splits = dict(zip("abcdef", ["train", "val", "test"] * 2, strict=True))
    rows = [{"text": f"{c} {i}", "label": c, "split": split} for c, split in splits.items() for i in range(5)]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, rows)))
    a_task = task(root, path=str(tmp_path / "mine.jsonl"), split="given")
    assert {s: pool.names for s, pool in a_task.pools.items()} == {
        "train": ("a", "d"),
        "val": ("b", "e"),
        "test": ("c", "f"),
    }


ROWS = [{"text": f"{c} {i} said so", "label": c, "talk": f"{c}{i // 2}"} for c in "abcdefghij" for i in range(10)]


def written(path: Path, rows: list[dict], separator: str) -> str:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0]], delimiter=separator)
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


@pytest.mark.parametrize(("name", "separator"), [("a.tsv", "\t"), ("b.csv", ";"), ("c.csv", "\t")])
def test_fields_are_found_by_name_whatever_separates_them(root, tmp_path, caplog, name, separator):
    caplog.set_level("INFO")
    rows = [{"id": i, "Utterance": row["text"], "intent": row["label"]} for i, row in enumerate(ROWS)]
    found = task(root, path=written(tmp_path / name, rows, separator))
    assert found.text_set.counts.tolist() == [10] * 10
    said = [r.getMessage() for r in caplog.records if "sentences are in the field 'Utterance'" in r.getMessage()]
    assert len(said) == 1 and "classes in 'intent'" in said[0] and "Not read: 'id'" in said[0]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_a_first_line_says_what_separates_fields(root, tmp_path, name):
    rows = [{"text": f"{row['text']}, {i}", "label": row["label"]} for i, row in enumerate(ROWS)]
    as_it_is = task(root, path=written(tmp_path / f"plain.{name[-3:]}", rows, ";"))
    lines = ["sep=:", "text:label", *(f"{row['text']}:{row['label']}" for row in rows)]
    (tmp_path / name).write_bytes("\r\n".join(lines).encode())
    assert task(root, path=str(tmp_path / name)).text_set.texts == as_it_is.text_set.texts


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"PAR1", r"a.csv is a parquet file\. .*pandas.read_parquet.* a_1\.csv"),
        ("a.jsonl", gzip.compress(b"{}", mtime=0), r"is packed by gzip\. .*gzip -dc \S*a\.jsonl > \S*a_1\.jsonl"),
        ("a.jsonl.gz", gzip.compress(b"{}", mtime=0), r"gzip -dc \S*a\.jsonl\.gz > \S*a\.jsonl"),
        ("a.tsv", "text\tlabel\n".encode("utf-16"), r"is text in UTF-16\. .*iconv -f UTF-16 -t UTF-8 .*a_1\.tsv"),
        ("a.csv", b"text,label\ncaf\xe9,x\n", r"line 2 is not UTF-8 .*iconv -f CP1252 .*a_1\.csv"),
        ("a.csv", b"text,label\na\0b,x\n", r"line 2 holds a NUL"),
        ("a.csv", b'[{"text": "a"}]', r"is a file of JSON\. "),
        ("a.csv", b"<!DOCTYPE html>", r"is a web page"),
    ],
)
def test_sentences_in_a_file_of_another_kind_are_refused_with_a_command(root, tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message.replace(" a_1", r" \S*a_1")):
        task(root, path=str(tmp_path / name))


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_names_in_quotation_marks_are_read_whatever_separates_them(root, tmp_path, name, separator):
    lines = [["text", "label"], *([f"{row['text']}, he; 'so'", row["label"]] for row in ROWS)]
    (tmp_path / name).write_text("".join(separator.join(f'"{entry}"' for entry in line) + "\n" for line in lines))
    assert sorted(task(root, path=str(tmp_path / name)).text_set.texts) == sorted(text for text, _ in lines[1:])
    with open(tmp_path / name, "a") as file:
        file.write(f'"more{separator}a{separator}\n')
    with pytest.raises(DataError, match=r"line 102 is not CSV") as error:
        task(root, path=str(tmp_path / name))
    assert "line 1 " not in str(error.value)


def test_a_json_list_is_read_and_fields_can_be_named(root, tmp_path):
    rows = [{"text": "not this", "label": "nor this", "a": row["text"], "b": row["label"]} for row in ROWS]
    (tmp_path / "list.json").write_text(json.dumps(rows, indent=1))
    found = task(root, path=str(tmp_path / "list.json"), text_field="a", label_field="b")
    assert found.text_set.names == tuple("abcdefghij")
    with pytest.raises(DataError, match=r"task.text_field is 'txt', but .* has no such field; did you mean 'text'\?"):
        task(root, path=str(tmp_path / "list.json"), text_field="txt", label_field="b")


def test_splits_are_read_in_any_case_and_by_their_other_names(root, tmp_path):
    spelt = ["Train", "TRAIN", "training", "val", "valid", "Validation", "dev", "test", "train", "Test"]
    parts = dict(zip("abcdefghij", spelt, strict=True))
    path = written(tmp_path / "given.csv", [{**row, "split": parts[row["label"]]} for row in ROWS], ",")
    expected = ["train"] * 3 + ["val"] * 4 + ["test"] + ["train"] + ["test"]
    assert task(root, path=path, split="given").split_of == tuple(expected)


def test_a_split_field_counts_with_given_alone(root, tmp_path, caplog):
    caplog.set_level("INFO")
    path = written(tmp_path / "odd.csv", [{**row, "Split": f"fold {i % 3}"} for i, row in enumerate(ROWS)], ",")
    assert task(root, path=path).split_of == task(root, path=written(tmp_path / "none.csv", ROWS, ",")).split_of
    assert "Not read: 'talk', 'Split'. task.split=given uses 'Split'." in caplog.text
    with pytest.raises(DataError, match="'Split' is 'fold 0', but must be one of train, val, test"):
        task(root, path=path, split="given")


def test_sentences_of_one_group_are_never_in_both_support_and_query(root, tmp_path):
    a_task = task(root, path=written(tmp_path / "talks.csv", ROWS, ","), group_field="talk")
    talk_of = {row["text"]: row["talk"] for row in ROWS}
    draw = a_task.draw("train", range(100))
    for support, query in zip(draw["support"], draw["query"], strict=True):
        talks = [{talk_of[text] for text in sentences(a_task, part)} for part in (support, query)]
        assert not talks[0] & talks[1]
    with pytest.raises(ValueError, match="has only 5 groups"):
        task(root, path=str(tmp_path / "talks.csv"), group_field="talk", num_queries=4)


def test_other_groups_are_other_data(root, tmp_path):
    others = [{**row, "talk": f"{row['label']}{i % 5}"} for i, row in enumerate(ROWS)]
    paths = [written(tmp_path / f"{i}.csv", rows, ",") for i, rows in enumerate((ROWS, others))]
    of_talks = [task(root, path=path, group_field="talk").fingerprint() for path in paths]
    assert len({*of_talks, *(task(root, path=path).fingerprint() for path in paths)}) == 3


def test_notes_name_the_file_that_is_read_and_not_one_of_the_same_content(root, tmp_path, caplog):
    caplog.set_level("INFO")
    for name in ("first.csv", "second.csv"):
        caplog.clear()
        task(root, path=written(tmp_path / name, [{**row, "x": 1} for row in ROWS], ","))
        assert f"{tmp_path / name}: sentences are in" in caplog.text
    assert "first.csv" not in caplog.text


def test_all_faults_of_a_file_are_told_at_once(root, tmp_path):
    bad = '{"text": "x"}\n' * 7 + '{"text": 1\n' + '{"text": "x", "label": "A"}\n'
    (tmp_path / "mine.jsonl").write_text(GOOD + bad)
    with pytest.raises(DataError) as error:
        task(root, path=str(tmp_path / "mine.jsonl"))
    said = str(error.value)
    assert "line 55 has no 'label' (and 2 more)" in said and "line 58 is not JSON" in said and "differ by case" in said


@pytest.mark.parametrize("features", [HASHED, TOKENS], ids=["hashed", "tokens"])
def test_other_sentences_are_encoded_by_what_was_fitted_in_training(root, tmp_path, features):
    known = task(root, features=features)
    rows = [json.loads(line) for line in FILE.read_text().splitlines()]
    (tmp_path / "new.jsonl").write_text("\n".join(json.dumps(row | {"label": f"new {row['label']}"}) for row in rows))
    fitted = json.loads(json.dumps(known.fitted()))
    new = task(root, path=str(tmp_path / "new.jsonl"), split={"test": "all"}, features=features, fitted=fitted)
    assert new.splits == ("test",) and len(new.pools["test"].names) == 10
    assert torch.equal(new.encoded.take(torch.arange(200)), known.encoded.take(torch.arange(200)))
    assert new.spec.vocabulary == known.spec.vocabulary
    with pytest.raises(ValueError, match="leaves no training class"):
        task(root, path=str(tmp_path / "new.jsonl"), split={"test": "all"}, features=features)


# ------------------------------------------------------------------------------------------------------- own vectors


def vectors(folder: Path, array: np.ndarray | None = None) -> Vectors:
    """A file of vectors for the lines of FILE: by default the number of the line, and its square."""
    lines = np.arange(200.0)
    np.save(folder / "vectors.npy", np.stack([lines, lines**2], 1) if array is None else array)
    return Vectors(str(folder / "vectors.npy"))


def test_an_own_vector_is_that_of_the_line_its_sentence_stands_on(root, tmp_path):
    a_task, line_of = task(root, features=vectors(tmp_path)), [*label_of()].index
    x = a_task.encoded.take(torch.arange(200))
    assert x.tolist() == [[line_of(text), line_of(text) ** 2] for text in a_task.text_set.texts]
    lines = FILE.read_text().splitlines()
    (tmp_path / "again.jsonl").write_text("\n".join(["", *lines[:5], *lines]))  # a repeated one has the first's
    more = vectors(tmp_path, np.concatenate([np.full((5, 1), 7), np.arange(200)[:, None]]))
    x = task(root, path=str(tmp_path / "again.jsonl"), features=more).encoded.take(torch.arange(200))
    assert x.ravel().tolist() == [7 if line_of(text) < 5 else line_of(text) for text in a_task.text_set.texts]


def test_vectors_that_sentences_share_and_those_that_a_repeat_has_not_are_told(root, tmp_path, caplog):
    caplog.set_level("INFO", "metarun")
    task(root, features=vectors(tmp_path))
    assert "vector of another" not in " ".join(caplog.messages)
    lines = FILE.read_text().splitlines()
    (tmp_path / "again.jsonl").write_text("\n".join([*lines, *lines[:2]]))
    rows = np.arange(202, dtype=float)[:, None]
    rows[200], rows[7] = rows[0] * (1 + 1e-6), rows[5]
    task(root, path=str(tmp_path / "again.jsonl"), features=vectors(tmp_path, rows))
    said = " ".join(caplog.messages)
    assert "1 sentences have the vector of another sentence" in said and "(rows, counted from 0): 7 = 5." in said
    assert "1 repeated sentences have other vectors than before (rows, counted from 0): 201 and 1. Are the rows" in said


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((199, 2)), "vectors.npy has 199 rows, but .*requests.jsonl has 200 sentences"),
        (np.full((200, 2), np.nan), "vectors.npy: the array holds numbers that are not finite"),
        (np.zeros(200), r"vectors.npy has shape \[200\], but must be one array"),
        (np.zeros((200, 2), dtype=complex), "vectors.npy: the array holds complex128"),
        (np.zeros((200, 2), dtype=object), "cannot be read as an array"),
    ],
)
def test_own_vectors_that_do_not_fit_are_refused_with_the_fix(root, tmp_path, array, message):
    with pytest.raises(DataError, match=message):
        task(root, features=vectors(tmp_path, array))


def test_own_vectors_need_their_file_and_sentences_of_ones_own(root, tmp_path):
    with pytest.raises(MissingDataError, match=r"task.features.path .* is no file"):
        task(root, features=Vectors(str(tmp_path / "gone.npy")))
    (tmp_path / "text.npy").write_text("0.5 0.5")
    with pytest.raises(DataError, match=r"text.npy cannot be read as an array: it is no .npy file. Write it"):
        task(root, features=Vectors(str(tmp_path / "text.npy")))
    with pytest.raises(ValueError, match="Choose task=text_jsonl"):
        vectors(tmp_path).beside("", Fields(None, None))


def test_other_own_vectors_are_other_data(root, tmp_path):
    first = task(root, features=vectors(tmp_path)).fingerprint()
    assert task(root, features=vectors(tmp_path)).fingerprint() == first
    assert task(root, features=vectors(tmp_path, np.ones((200, 2)))).fingerprint() != first


def test_a_model_of_own_vectors_takes_vectors_or_sentences_that_it_has_some_of(tmp_path):
    rng, lines = np.random.default_rng(0), [json.loads(line) for line in FILE.read_text().splitlines()]
    centre = {label: rng.normal(size=8) for label in sorted({*label_of().values()})}
    features = vectors(tmp_path, np.stack([centre[row["label"]] + 0.1 * rng.normal(size=8) for row in lines]))
    own = ["task/features=vectors", f"task.features.path={features.path}", "base_learner=residual"]
    outcome = metarun(*RUN, *own, f"data_root={tmp_path}", f"run_dir={tmp_path / 'run'}")
    assert outcome.code == 0, outcome.err
    assert scores(tmp_path / "run")["test/accuracy"]["mean"] > 0.95
    chosen = [i for i, row in enumerate(lines) if row["label"] in ("rent", "price")]
    support, query = [lines[i] for i in chosen[2:]], np.load(features.path)[chosen[:2]]
    (tmp_path / "support.jsonl").write_text("\n".join(map(json.dumps, support)))
    np.savez(tmp_path / "query.npz", x=query, y=[lines[i]["label"] for i in chosen[:2]])
    predict = ["predict", str(tmp_path / "run"), f"--support={tmp_path / 'support.jsonl'}"]
    where = f"--out={tmp_path / 'predicted'}"
    assert metarun(*predict, f"--query={tmp_path / 'query.npz'}", where).code == 0
    (tmp_path / "new.txt").write_text("a sentence that nobody has seen\n")
    refused = metarun(*predict, f"--query={tmp_path / 'new.txt'}", where)
    assert refused.code == 2 and "vectors.npy has no vector of 1 of the sentences ('a sentence" in refused.err
    model = load(tmp_path / "run")
    adapted = model.adapt([row["text"] for row in support], [row["label"] for row in support])
    assert adapted.predict_proba(query).shape == (2, 2)
    with pytest.raises(DataError, match=r"inputs of shape \[8\]"):
        adapted.predict(query[:, :5])


# ------------------------------------------------------------------------------------------------- published data sets


def clinc(**changed) -> dict:
    pairs = {part: [[f"{c} {part} {i}", c] for c in "abc" for i in range(3)] for part in ("train", "val", "test")}
    return {**pairs, "oos_train": [["what", "oos"]], **changed}


@pytest.fixture
def release(tmp_path) -> Published:
    """One of three classes, on this machine's disk: file:// is a web server too."""
    path = tmp_path / "web.json"
    path.write_text(json.dumps(clinc()))
    md5 = hashlib.md5(path.read_bytes()).hexdigest()
    file = CLINC150.files[0]._replace(url=path.as_uri(), md5=md5, num_classes=3, num_examples=27)
    return replace(CLINC150, files=(file,))


def test_out_of_scope_sentences_are_left_out_and_parts_joined(tmp_path, release):
    found = text_set(release.source(tmp_path, download=True).prepared())
    assert found.names == ("a", "b", "c")
    assert found.counts.tolist() == [9, 9, 9]


def test_missing_files_are_an_error_that_says_which_where_and_how_to_get_them(tmp_path, release):
    with pytest.raises(MissingDataError, match=r"needs .*clinc150.data_full.json.*task.download=true.*METARUN_DATA"):
        release.source(tmp_path, download=False).prepared()
    assert not (tmp_path / "prepared").exists()


@pytest.mark.parametrize(
    "content",
    [json.dumps(clinc())[:200], "[]", json.dumps(clinc(val=[])), json.dumps(clinc(val=[["x"]])), "<html>404</html>"],
    ids=["truncated", "list", "fewer", "no pairs", "web page"],
)
def test_another_file_is_an_error_that_names_it_and_leaves_nothing(tmp_path, release, content):
    (tmp_path / "clinc150").mkdir()
    (tmp_path / "clinc150" / "data_full.json").write_text(content)
    with pytest.raises(
        DataError, match=r"data_full.json.*not CLINC150 as published: delete the file and download it again"
    ):
        release.source(tmp_path, download=False).prepared()
    assert not [p for p in (tmp_path / "prepared").iterdir() if not p.name.endswith(".lock")]


# ------------------------------------------------------------------------------------------------- the command line


PAGE = Path(__file__).parents[2] / "docs" / "your_own_data.md"
DOCUMENTED = re.findall(r"^\| `([^`]*task\.split={.*?)`", PAGE.read_text().partition("## Text")[2], re.MULTILINE)


def test_the_documented_splits_can_be_pasted_into_a_shell(tmp_path):
    assert len(DOCUMENTED) == 2
    for written in DOCUMENTED:
        command = f"printf '%s\\n' {written}"
        words = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True).stdout.splitlines()
        task = experiment("experiment=protonet_text", f"task.path={FILE}", f"data_root={tmp_path}", *words).task
        assert min(len(pool.names) for pool in task.pools.values()) >= 2


PRESETS = {
    "protonet_text": [],
    "maml_text": [],
    "protonet_text with maml": ["meta_learner=maml"],
    "protonet_text with anil": ["meta_learner=anil"],
}


@pytest.mark.parametrize("name", PRESETS)
def test_a_text_preset_starts_at_the_frozen_features_or_next_to_them(name, tmp_path):
    x = experiment(f"experiment={name.split()[0]}", f"task.path={FILE}", f"data_root={tmp_path}", *PRESETS[name])
    start = evaluate(x.subject(x.theta_0, "val", 50, Looped()))["accuracy"].mean
    baseline = baseline_of(x.task)
    frozen = evaluate(Subject(baseline, baseline.init(), x.task, "val", 50, Looped()))["accuracy"].mean
    assert start == pytest.approx(frozen, abs=1e-9 if name == "protonet_text" else 0.03)


RUN = ["task=text_jsonl", f"task.path={FILE}", "meta_learner=protonet", "device=cpu", "execution=looped", "steps=4"]
RUN += [
    "evaluation.every=2",
    "evaluation.num_val_tasks=4",
    "evaluation.num_tasks=20",
    "meta_batch_size=2",
    "logger=none",
]
BAG = ["base_learner=embedding_bag", "base_learner.width=8"]


def test_from_a_file_to_a_test_score_and_the_frozen_one_beside_it(tmp_path):
    outcome = metarun(*RUN, *BAG, f"data_root={tmp_path}", f"run_dir={tmp_path / 'run'}")
    assert outcome.code == 0, outcome.err
    kept = scores(tmp_path / "run")
    assert kept["test/frozen_accuracy"]["n"] == kept["test/accuracy"]["n"] == 20
    assert f"without any training (frozen features): {kept['test/frozen_accuracy']['mean']:.4f}" in outcome.out
    worse = kept["test/accuracy"]["mean"] < kept["test/frozen_accuracy"]["mean"]
    said = "training did not help: the best checkpoint is the start, and frozen features would be better by"
    assert (said in outcome.out) == worse


@pytest.mark.parametrize(
    "split", ["{train:[price,rent],val:[stock,theft],test:[invoice,complaint]}", "{train:4,val:3,test:3}"]
)
def test_a_split_can_be_written_on_the_command_line(tmp_path, split):
    outcome = metarun(
        "data", "prepare", "text_jsonl", f"task.path={FILE}", f"data_root={tmp_path}", f"task.split={split}"
    )
    assert outcome.code == 0, outcome.err


def test_a_run_resumed_on_the_command_line_ends_as_one_never_stopped(tmp_path):
    few = [*RUN, *BAG, "task/features=tokens", f"data_root={tmp_path}"]
    assert metarun(*few, f"run_dir={tmp_path / 'whole'}").code == 0
    assert metarun(*few, "steps=2", f"run_dir={tmp_path / 'half'}").code == 0
    outcome = metarun(f"resume={tmp_path / 'half'}", "steps=4")
    assert outcome.code == 0, outcome.err
    assert scores(tmp_path / "half") == scores(tmp_path / "whole")


def test_words_have_the_numbers_of_the_training_on_an_evaluation_task(tmp_path):
    other = "evaluation.task.text_jsonl"
    words = [*RUN, *BAG, "task/features=tokens", f"data_root={tmp_path}", f"{other}.path={FILE}"]
    words += ["evaluation.task=text_jsonl", f"task/features@{other}.features=tokens"]
    refused = metarun(*words, f"{other}.features.min_count=3", f"run_dir={tmp_path / 'other'}")
    assert refused.code == 2
    assert f"{other}.features are " in refused.err and "but the run was trained on " in refused.err
    assert not (tmp_path / "other").exists()
    for name, changed in (("same", f"{other}.num_shots=1"), ("split", f"{other}.split_seed=1")):
        outcome = metarun(*words, changed, f"run_dir={tmp_path / name}")
        assert outcome.code == 0, outcome.err


def test_a_task_that_numbers_its_words_otherwise_is_refused(root):
    training = task(root, features=TOKENS).spec
    check_words("evaluation.task.far", training, training)
    check_words("evaluation.task.far", task(root).spec, training)
    with pytest.raises(
        ValueError, match=r"it numbers its words by its own .*task/features@evaluation\.task\.far\.features"
    ):
        check_words("evaluation.task.far", replace(training, vocabulary="others"), training)


def test_an_evaluation_shows_the_frozen_score_too(tmp_path):
    assert metarun(*RUN, *BAG, f"data_root={tmp_path}", f"run_dir={tmp_path / 'run'}").code == 0
    assert metarun("evaluate", tmp_path / "run", "task.num_shots=1").code == 0
    kept = read(next((tmp_path / "run" / "evaluations").glob("*.json")))
    assert 0 < kept["test/frozen_accuracy"]["mean"] <= 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["task/features=tokens", "base_learner=mlp"],
            r"base_learner: MLP takes numbers, .* words .*embedding_bag",
        ),
        (["base_learner=transformer"], r"base_learner transformer reads words, but .* task/features=tokens"),
        (["base_learner=text_cnn"], r"base_learner text_cnn reads words"),
        (["base_learner=embedding_bag", "task.features=tokens"], r"Write task/features=tokens"),
        (
            ["base_learner=embedding_bag", "task/features=tokns"],
            r"no task/features called 'tokns'; did you mean 'tokens'",
        ),
        (["task/features=tokens", *BAG, "meta_learner=teacher"], r"meta_learner: its teacher: MLP takes numbers"),
        (
            ["task/features=sentence", "task.features.model=nowhere"],
            r"nowhere.*pip install sentence-transformers",
        ),
    ],
)
def test_networks_and_features_that_do_not_fit_are_refused_with_those_that_do(tmp_path, overrides, message):
    outcome = metarun(*RUN, *overrides, f"data_root={tmp_path}")
    assert outcome.code == 2
    assert re.search(message, outcome.err), outcome.err


# ---------------------------------------------------------------------------------------------------------- real data


@pytest.mark.data
@pytest.mark.parametrize(
    ("make", "classes", "texts", "split", "digest"),
    [
        (clinc150, 150, 22495, [50, 50, 50], "5eb2c84a860888fe73bb52397ab1fb37c24c8d7196e32df4e48ab1483c7adda3"),
        (banking77, 77, 13071, [25, 25, 27], "3ced5b75b58424a8c85fe7e59dd91d66e7d27e128a560835fb5f062f7b527506"),
    ],
)
def test_the_published_sets_have_their_sizes_and_one_manifest(data_root, make, classes, texts, split, digest):
    given = {"seed": 0, "device": torch.device("cpu"), "dtype": torch.float32, "data_root": str(data_root)}
    size = {"num_ways": 5, "num_shots": 5, "num_queries": 5}
    a_task = make(**size, **WITHOUT_OTHERS, **given, features=TOKENS, split=split, split_seed=0, download=False)
    assert len(a_task.text_set.names) == classes
    assert len(a_task.text_set.texts) == texts
    assert [len(a_task.pools[s].names) for s in ("train", "val", "test")] == split
    assert manifest(a_task, "test", 100) == digest


@pytest.mark.data
@pytest.mark.parametrize(("make", "sizes"), [(clinc150, [50, 50, 50]), (banking77, [25, 25, 27])])
def test_published_splits_name_every_class_once(data_root, make, sizes):
    given = {"seed": 0, "device": torch.device("cpu"), "dtype": torch.float32, "data_root": str(data_root)}
    size = {"num_ways": 5, "num_shots": 1, "num_queries": 5}
    made = [
        make(**size, **WITHOUT_OTHERS, **given, features=TOKENS, split=name, split_seed=0, download=False)
        for name in get_args(PublishedSplit)
    ]
    for one in made:
        classes = [name for s in ("train", "val", "test") for name in one.pools[s].names]
        assert [len(one.pools[s].names) for s in ("train", "val", "test")] == sizes
        assert sorted(classes) == sorted(one.text_set.names)
    assert len({one.fingerprint() for one in made}) == 5


@pytest.mark.data
@pytest.mark.parametrize("split", ["protaugment_1", "{train:[alarm,gas],val:[timer,mpg],test:[pto_used,date]}"])
def test_a_seed_of_the_lot_is_refused_where_no_lot_is_drawn(data_root, split, tmp_path):
    words = ["experiment=protonet_clinc150_5w1s", f"task.split={split}", f"data_root={data_root}", "task.num_ways=2"]
    outcome = metarun(*words, "task.split_seed=3", f"run_dir={tmp_path / 'run'}")
    assert outcome.code == 2 and "task.split_seed=3 has no effect" in outcome.err
    assert not (tmp_path / "run").exists()
    other = ["evaluation.task=clinc150", f"evaluation.task.clinc150.split={split}"]
    refused = metarun(*words[:1], *words[2:], *other, "evaluation.task.clinc150.split_seed=3", f"run_dir={tmp_path}/a")
    assert refused.code == 2 and "evaluation.task.clinc150.split_seed=3 has no effect, for evaluation.t" in refused.err


def test_a_seed_of_the_lot_has_an_effect_on_a_lot_alone():
    named, drawn = {"split": "given", "split_seed": 3}, {"split": {"train": 5, "val": 2, "test": 2}, "split_seed": 3}
    task, other = "task.split_seed=3 has no effect", "evaluation.task.a.split_seed=3 has no effect"

    def problems(own: dict, elsewhere: dict, *given: str) -> str:
        cfg = OmegaConf.create({"task": own, "evaluation": {"task": {"a": elsewhere}}})
        return " ".join(lot_problems(cfg, given or None))

    assert task in problems(named, {}) and other in problems({}, named) and not problems(drawn, drawn)
    assert not problems(drawn, named)  # which may be inherited
    assert other in problems(drawn, named, "evaluation.task.a.split_seed")
    assert not problems(named, named, "task.split")  # an evaluation of a run that drew
    column = {"split": None, "split_column": "part", "split_seed": 3}
    assert "for task.split_column says" in problems(column, {})


def test_ones_own_sentences_have_no_published_split(root):
    with pytest.raises(ValueError, match=r"protaugment_1, a published split of CLINC150 and Banking77"):
        task(root, split="protaugment_1")
