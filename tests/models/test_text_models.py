"""Networks for sentences compute what they say, and padding changes nothing. S sentences, L words, D width."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, grad, vmap

from metarun.core import Batch
from metarun.models.embedding_bag import BagOfTokens, EmbeddingBag
from metarun.models.exact.layers import LayerNorm
from metarun.models.residual import Residual
from metarun.models.text_cnn import TextCNN
from metarun.models.transformer import Transformer
from metarun.models.weighted import Weighted
from tests.helpers import INNER_LR, maml, relative_error

TOKENS, LENGTH, OUTPUTS = 11, 6, 3
X = torch.tensor([[3, 1, 4, 1, 5, 9], [2, 6, 0, 0, 0, 0], [10, 0, 0, 0, 0, 0], [5, 3, 5, 8, 0, 0]])
NETWORKS = {
    "embedding_bag": lambda length: EmbeddingBag((length,), OUTPUTS, TOKENS, 4),
    "text_cnn": lambda length: TextCNN((length,), OUTPUTS, TOKENS, 4, [1, 2, 3], 5),
    "transformer": lambda length: Transformer((length,), OUTPUTS, TOKENS, 4, 2, 2),
}


def network(name: str, length: int = LENGTH) -> nn.Module:
    """In float64, with every parameter away from its start (zeros and ones hide terms)."""
    torch.manual_seed(0)
    net = NETWORKS[name](length).double()
    for p in net.parameters():
        p.data += 0.3 * torch.randn_like(p)
    return net


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", NETWORKS)
def test_padding_changes_nothing_to_the_last_bits(name):
    long, short = network(name, 9), network(name)
    state = {key: p[:LENGTH] if key == "body.position" else p for key, p in long.state_dict().items()}
    short.load_state_dict(state)
    padded = F.pad(X, (0, 3))
    close(long(padded), short(X))
    close(short(X[1:2]), short(X)[1:2])  # nor do longer sentences beside it


@pytest.mark.parametrize("name", NETWORKS)
def test_what_the_table_holds_for_padding_has_no_say(name):
    net = network(name)
    before = net(X)
    net.body.embedding.weight.data[0] = 1e3
    assert torch.equal(net(X), before)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_sentence_of_padding_alone_is_finite_and_so_are_its_gradients(name):
    net = network(name)
    net(torch.zeros_like(X)).square().sum().backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in net.parameters())


@pytest.mark.parametrize("name", NETWORKS)
def test_second_order_gradients_agree_vmapped_looped_and_by_finite_differences(name):
    net = network(name)
    params = {key: p.detach() for key, p in net.named_parameters()}
    y = torch.tensor([0, 1, 2, 0])

    def loss(params, x):
        return F.cross_entropy(functional_call(net, params, (x,)), y)

    def after_a_step(params, x):
        return loss(
            {key: p - 0.5 * g for (key, p), g in zip(params.items(), grad(loss)(params, x).values(), strict=True)}, x
        )

    xs = torch.stack([X, X.roll(1, 0)])
    together = vmap(grad(after_a_step), (None, 0))(params, xs)
    for i in range(2):
        assert relative_error({key: g[i] for key, g in together.items()}, grad(after_a_step)(params, xs[i])) < 1e-10
    direction = {key: torch.randn_like(p) for key, p in params.items()}
    slope = sum((together[key][0] * direction[key]).sum() for key in params)
    h = 1e-5
    ends = [after_a_step({key: p + sign * h * direction[key] for key, p in params.items()}, X) for sign in (1, -1)]
    torch.testing.assert_close(
        slope, (ends[0] - ends[1]) / (2 * h), rtol=1e-5, atol=1e-8
    )  # h^2 = 1e-10 times a third derivative, and rounding / h


def test_a_bag_is_the_mean_of_the_vectors_of_words_and_the_weighted_sum_of_buckets():
    net = network("embedding_bag")
    table = net.body.embedding.weight
    close(net.body(X)[3], table[[5, 3, 5, 8]].mean(0))
    buckets = EmbeddingBag((7,), OUTPUTS, None, 4).double()
    x = torch.rand(2, 7).double()
    close(
        buckets.body(x),
        F.embedding_bag(torch.arange(7).repeat(2, 1), buckets.body.embedding, mode="sum", per_sample_weights=x),
    )


def test_an_untrained_bag_keeps_lengths():
    torch.manual_seed(0)
    x = F.normalize(torch.rand(200, 300))
    lengths = EmbeddingBag((300,), OUTPUTS, None, 400).body(x).norm(dim=1)
    assert abs(lengths.mean() - 1) < 0.02  # a deviation of 1 / sqrt(2 * 400) = 0.035 each, alike in direction


def test_counts_of_tokens_are_weighted():
    weights = torch.arange(TOKENS).double()
    counts = BagOfTokens(weights, OUTPUTS).body(X)
    assert counts[0].tolist() == [0, 2, 0, 3, 4, 5, 0, 0, 0, 9, 0]
    assert counts[1].tolist() == [0, 0, 2, 0, 0, 0, 6, 0, 0, 0, 0]  # padding has the weight 0


def test_convolutions_over_words_are_those_of_torch_with_the_maximum_over_the_words():
    net = network("text_cnn")
    for s, length in enumerate((6, 2, 1, 4)):
        vectors = F.embedding(X[s, :length], net.body.embedding.weight).T[None]  # [1, D, L]
        expected = []
        for window, layer in zip((1, 2, 3), net.body.filters, strict=True):
            kernel = layer.weight.view(5, window, 4).transpose(1, 2)
            found = F.conv1d(F.pad(vectors, (0, window - 1)), kernel, layer.bias).relu()
            expected.append(found.amax(2)[0])
        close(net.body(X[s : s + 1])[0], torch.cat(expected))


def test_a_transformer_layer_is_torch_s():
    net = network("transformer")
    layer = net.body.layers[0]
    theirs = nn.TransformerEncoderLayer(4, 2, 16, 0.0, "gelu", batch_first=True, norm_first=True).double().eval()
    theirs.self_attn.in_proj_weight.data = torch.cat([part.weight for part in (layer.query, layer.key, layer.value)])
    theirs.self_attn.in_proj_bias.data = torch.cat([part.bias for part in (layer.query, layer.key, layer.value)])
    pairs = [(theirs.self_attn.out_proj, layer.out), (theirs.linear1, layer.expand), (theirs.linear2, layer.contract)]
    pairs += [(theirs.norm1, layer.before_attention), (theirs.norm2, layer.before_mlp)]
    for to, of in pairs:
        to.weight.data, to.bias.data = of.weight.data, of.bias.data
    h, is_word = torch.randn(4, LENGTH, 4).double(), X > 0
    close(layer(h, is_word)[is_word], theirs(h, src_key_padding_mask=~is_word)[is_word])


def test_an_untrained_transformer_is_a_mean_of_normalised_word_vectors():
    torch.manual_seed(0)
    net = NETWORKS["transformer"](LENGTH).double()
    vectors = net.body.norm(net.body.embedding.weight[X[0]] + net.body.position)
    close(net.body(X[:1])[0], vectors.mean(0))


def test_layer_norm_is_torch_s():
    x, norm = torch.randn(3, 5, 4).double(), LayerNorm(4).double()
    norm.weight.data, norm.bias.data = torch.rand(4).double(), torch.rand(4).double()
    close(norm(x), F.layer_norm(x, (4,), norm.weight, norm.bias))


def test_an_untrained_correction_corrects_nothing():
    net, x = Residual((5,), OUTPUTS, 4).double(), torch.randn(2, 5).double()
    assert torch.equal(net.body(x), x)
    net.body.back.weight.data += 1
    close(net.body(x), x + (x @ net.body.into.weight.T + net.body.into.bias).relu().sum(1, keepdim=True))


def test_untrained_weights_change_nothing_and_are_positive_whatever_is_learned():
    net, x = Weighted((5,), OUTPUTS).double(), torch.randn(2, 5).double()
    assert torch.equal(net.body(x), x)
    net.body.log_weight.data -= torch.arange(5.0)
    close(net.body(x), x / torch.arange(5.0).double().exp())


def test_an_inner_step_from_weights_untrained_makes_the_head_the_centred_class_means():
    net, x, y = Weighted((5,), OUTPUTS).double(), torch.randn(6, 5).double(), torch.tensor([0, 1, 2, 0, 1, 2])
    phi = maml(net, False, "head").path(dict(net.named_parameters()), Batch(x, y), 1)
    *_, after = phi
    means = torch.stack([x[y == n].mean(0) for n in range(OUTPUTS)])
    close(after["head.weight"], INNER_LR * (means - means.mean(0)) / OUTPUTS)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EmbeddingBag((1, 4, 4), 2, None, 4), "embedding_bag needs a vector or tokens"),
        (lambda: EmbeddingBag((4,), 2, 9, 0), "base_learner.width is 0"),
        (lambda: TextCNN((4,), 2, None, 4, [1], 3), "text_cnn reads words.*task/features=tokens"),
        (lambda: TextCNN((4,), 2, 9, 4, [], 3), r"windows \[\]"),
        (lambda: Transformer((4,), 2, None, 4, 1, 2), "transformer reads words"),
        (lambda: Transformer((4,), 2, 9, 4, 1, 3), "width 4, layers 1 and heads 3 .* a multiple"),
        (lambda: Residual((1, 4), 2, 3), "residual corrects vectors"),
        (lambda: Residual((4,), 2, 0), "base_learner.hidden is 0"),
        (lambda: Weighted((1, 4), 2), "weighted weighs the numbers of vectors"),
    ],
)
def test_sizes_and_inputs_that_do_not_fit_are_refused_with_what_does(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_start_of_an_embedding_has_the_deviation_it_names():
    torch.manual_seed(0)
    weight = EmbeddingBag((4,), 2, 500, 64).body.embedding.weight
    assert weight.std().item() == pytest.approx(1 / math.sqrt(64), rel=0.02)  # of 32000 numbers
