"""Transformer layers: what a row sees, against torch's own layers, with second derivatives."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import grad, vmap

from metarun.core import Params
from metarun.models.attention import causal, encode, read, remember, transformer

WIDTH, HEADS, FEEDFORWARD = 8, 2, 12
STYLES = pytest.mark.parametrize("norm_first", [True, False])


def layers(depth: int = 2) -> Params:
    """Layers of which no weight and no bias is zero."""
    torch.manual_seed(0)
    made = transformer(WIDTH, depth, HEADS, FEEDFORWARD, torch.zeros(1, dtype=torch.float64))
    return [
        {part: {k: v + 0.1 * torch.randn_like(v) for k, v in weights.items()} for part, weights in layer.items()}
        for layer in made
    ]


def rows(number: int, seed: int = 1) -> Tensor:
    return torch.randn(number, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def torchs(layer: Params, norm_first: bool, activation: str) -> nn.TransformerEncoderLayer:
    """torch's layer with the same weights."""
    own = nn.TransformerEncoderLayer(
        WIDTH, HEADS, FEEDFORWARD, 0.0, activation, batch_first=True, norm_first=norm_first, dtype=torch.float64
    )
    names = {
        "qkv": "self_attn.in_proj_",
        "out": "self_attn.out_proj.",
        "expand": "linear1.",
        "contract": "linear2.",
        "norm_1": "norm1.",
        "norm_2": "norm2.",
    }
    own.load_state_dict({names[part] + k: v for part, weights in layer.items() for k, v in weights.items()})
    return own.train()  # in evaluation torch takes a path of its own


@STYLES
@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("masked", [False, True])
def test_layers_compute_what_torchs_transformer_encoder_layer_does(
    norm_first: bool, activation: str, masked: bool
) -> None:
    theta, x = layers(), rows(5)
    seen = causal(5, x) if masked else None
    expected = x[None]
    for layer in theta:
        expected = torchs(layer, norm_first, activation)(expected, src_mask=~seen if masked else None)
    found = encode(theta, x, seen, HEADS, norm_first, getattr(F, activation))
    torch.testing.assert_close(found, expected[0], atol=1e-12, rtol=1e-12)


@STYLES
def test_in_a_causal_sequence_a_later_row_moves_no_earlier_one(norm_first: bool) -> None:
    theta, x = layers(), rows(6)
    other = x.clone()
    other[4:] = rows(2, seed=2)
    seen = causal(6, x)
    before, after = (encode(theta, r, seen, HEADS, norm_first) for r in (x, other))
    assert torch.equal(before[:4], after[:4])
    assert not torch.isclose(before[4:], after[4:]).any(1).all()


@STYLES
@pytest.mark.parametrize("itself", [True, False])
def test_a_query_sees_the_support_and_no_other_query(norm_first: bool, itself: bool) -> None:
    theta, support, queries = layers(), rows(5), rows(3, seed=2)
    memory = remember(theta, support, None, HEADS, norm_first)
    together = read(theta, memory, queries, None, itself, norm_first)
    alone = torch.cat([read(theta, memory, q[None], None, itself, norm_first) for q in queries])
    torch.testing.assert_close(together, alone, atol=1e-12, rtol=1e-12)


@STYLES
@pytest.mark.parametrize("itself", [True, False])
def test_reading_a_memory_is_encoding_all_rows_with_a_mask(norm_first: bool, itself: bool) -> None:
    theta, support, queries = layers(), rows(5), rows(3, seed=2)
    seen = torch.zeros(8, 8, dtype=torch.bool)
    seen[:, :5] = True
    seen[5:, 5:] = torch.eye(3, dtype=torch.bool) if itself else False
    together = encode(theta, torch.cat([support, queries]), seen, HEADS, norm_first)
    encoded, memory = (compute(theta, support, None, HEADS, norm_first) for compute in (encode, remember))
    found = torch.cat([encoded, read(theta, memory, queries, None, itself, norm_first)])
    torch.testing.assert_close(found, together, atol=1e-12, rtol=1e-12)


@STYLES
@pytest.mark.parametrize("itself", [True, False])
def test_rows_that_may_not_be_seen_change_nothing(norm_first: bool, itself: bool) -> None:
    theta, support, queries = layers(), rows(5), rows(3, seed=2)
    padded = torch.cat([support, 100 * rows(4, seed=3)])
    seen = torch.arange(9) < 5
    encoded, memory = (compute(theta, support, None, HEADS, norm_first) for compute in (encode, remember))
    padded_memory = remember(theta, padded, seen, HEADS, norm_first)
    torch.testing.assert_close(encode(theta, padded, seen, HEADS, norm_first)[:5], encoded, atol=1e-10, rtol=0)
    torch.testing.assert_close(
        read(theta, padded_memory, queries, seen, itself, norm_first),
        read(theta, memory, queries, None, itself, norm_first),
        atol=1e-10,
        rtol=0,
    )


def test_where_nothing_is_seen_a_query_that_sees_itself_is_a_sequence_of_one() -> None:
    theta, support, query = layers(), rows(5), rows(1, seed=2)
    nothing = torch.zeros(5, dtype=torch.bool)
    memory = remember(theta, support, nothing, HEADS)
    assert all(part.isfinite().all() for pair in memory for part in pair)
    found = read(theta, memory, query, nothing)
    torch.testing.assert_close(found, encode(theta, query, None, HEADS), atol=1e-12, rtol=1e-12)


@STYLES
def test_the_order_of_a_set_does_not_matter_to_its_readers(norm_first: bool) -> None:
    theta, support, queries = layers(), rows(5), rows(3, seed=2)
    outcomes = [
        read(theta, remember(theta, s, None, HEADS, norm_first), queries, None, True, norm_first)
        for s in (support, support.flip(0))
    ]
    torch.testing.assert_close(*outcomes, atol=1e-12, rtol=1e-12)


@STYLES
def test_second_derivatives_of_attention_under_vmap_are_those_of_a_loop(norm_first: bool) -> None:
    theta, x = layers(1), torch.stack([rows(4, seed=s) for s in range(3)])
    seen = torch.stack([torch.arange(4) < n for n in (2, 3, 4)])  # of each task another

    def of_gradient(x: Tensor, seen: Tensor) -> Tensor:
        g = grad(lambda x: encode(theta, x, seen, HEADS, norm_first).sin().sum())(x)
        return (g * g).sum()

    looped = torch.stack([grad(of_gradient)(*pair) for pair in zip(x, seen, strict=True)])
    torch.testing.assert_close(vmap(grad(of_gradient))(x, seen), looped, atol=1e-10, rtol=1e-10)


def test_a_width_that_heads_do_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match=r"width a multiple of heads"):
        transformer(9, 1, 2, 12, torch.zeros(1))
