"""Networks of somebody else: their meta-gradient is that of finite differences however it is executed, or they are refused.

float64, tiny: B = 3 tasks of S = 4 examples [2, 4, 4] with two targets each, two steps of MAML. CLOSE is for the truncation
of central differences; a fused norm under vmap is off by 1e-3 to 1e-1.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint
from torchvision.models.convnext import LayerNorm2d
from torchvision.ops import StochasticDepth

from metarun.applied.model import load
from metarun.config.apart import taken_apart
from metarun.config.compose import nobody_chose
from metarun.config.experiment import Experiment, take_theta
from metarun.config.networks import exact, suited
from metarun.config.probe import reads_all_queries
from metarun.core import Batch, Draw, Episode, MetaLearner, Params, TaskDistribution, TaskSpec, frozen
from metarun.errors import ConfigError
from metarun.evaluation.calibration import calibrated
from metarun.evaluation.eval_mode import modules_of
from metarun.execution.compiled import Compiled
from metarun.execution.execution import Auto, Execution, Looped, Vmapped
from metarun.meta_learners.anil import ANIL
from metarun.meta_learners.fine_tune import FineTune
from metarun.meta_learners.maml import MAML
from metarun.meta_learners.maml_plus_plus import MAMLPlusPlus
from metarun.meta_learners.protonet import ProtoNet
from metarun.models.dropout import dropping
from metarun.models.exact.replaced import make_exact
from metarun.models.norm_state import evaluating
from metarun.objectives import CROSS_ENTROPY, SQUARED_ERROR
from metarun.trees import leaf_names, ravel, slice_tasks, tree_leaves, tree_map
from tests.composing import experiment, options
from tests.helpers import relative_error
from tests.running import OUTSIDE, metarun, read
from tests.test_conformance import TASKS

CLOSE = 1e-6
STEPS = 10
TASK_COUNT = 3
IMAGE = (2, 4, 4)
AUTO = Auto(None)


class Images(TaskDistribution):
    """Noise images, whose targets are noise too."""

    spec = TaskSpec(IMAGE, 2, SQUARED_ERROR)

    def draw(self, split, indices) -> Draw:
        return {"seed": np.asarray(indices)}

    def episodes(self, draw: Draw) -> Episode:
        def batch(half: int) -> Batch:
            made = [torch.Generator().manual_seed(2 * int(seed) + half) for seed in draw["seed"]]
            x, y = (
                torch.stack([torch.randn(4, *shape, generator=one, dtype=torch.float64) for one in made])
                for shape in (IMAGE, (2,))
            )
            return Batch(x, y)

        return Episode(batch(0), batch(1))

    def fingerprint(self) -> str:
        return "noise"


class Net(nn.Module):
    """Somebody's network: ``layers``, called by ``how``, make ``features`` numbers of maps [4, 4, 4]."""

    def __init__(
        self, layers: nn.Module, how: Callable[[nn.Module, Tensor], Tensor] = lambda m, z: m(z), features: int = 64
    ) -> None:
        super().__init__()
        self.layers, self.how = layers, how
        self.body, self.head = nn.Conv2d(2, 4, 3, padding=1), nn.Linear(features, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.how(self.layers, self.body(x)).tanh().flatten(1))


def words(z: Tensor) -> Tensor:
    """Maps [S, 4, 4, 4] as sequences [S, 4 places, 16]."""
    return z.flatten(2)


def attended(**settings: object) -> Callable[[nn.Module, Tensor], Tensor]:
    return lambda m, z: m(words(z), words(z), words(z), **settings)[0]


def affine(norm: nn.Module) -> nn.Module:
    """``norm`` with a weight and bias away from 1 and 0, where torch's fused norms go wrong."""
    for p in norm.parameters():
        p.data += 0.5 * torch.rand_like(p)
    return norm


class InAList(nn.Module):
    """A norm that is called by a list of its own, and twice."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = self.same = nn.LayerNorm(4)
        self.steps = [self.norm, nn.Tanh(), self.same]

    def forward(self, x: Tensor) -> Tensor:
        for step in self.steps:
            x = step(x)
        return x


class Tied(nn.Module):
    """Two layers of one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.there, self.back = nn.Linear(4, 4), nn.Linear(4, 4)
        self.back.weight = self.there.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.back(self.there(x).tanh())


HIDDEN = torch.tensor([[False] * 3 + [True]] * 4)  # of each of S examples, the last of four places
CAUSAL = torch.ones(4, 4).triu(1).bool()
ENCODER = {"d_model": 16, "nhead": 2, "dim_feedforward": 6, "dropout": 0.0, "batch_first": True}

VMAPPED: dict[str, Callable[[], Net]] = {
    "batch norm": lambda: Net(affine(nn.BatchNorm2d(4, track_running_stats=False))),
    "batch norm with running statistics": lambda: Net(affine(nn.BatchNorm2d(4, eps=0.1))),
    "batch norm without a weight": lambda: Net(nn.BatchNorm2d(4, affine=False)),
    "batch norm without a bias": lambda: Net(affine(nn.BatchNorm2d(4, bias=False))),
    "batch norm with fixed statistics": lambda: Net(affine(nn.BatchNorm2d(4)).eval()),
    "batch norm of vectors": lambda: Net(affine(nn.BatchNorm1d(64)), lambda m, z: m(z.flatten(1))),
    "batch norm of sequences": lambda: Net(affine(nn.BatchNorm1d(4)), lambda m, z: m(words(z))),
    "batch norm of volumes": lambda: Net(affine(nn.BatchNorm3d(2)), lambda m, z: m(z.unflatten(1, (2, 2)))),
    "batch norm, then ReLU in place": lambda: Net(nn.Sequential(affine(nn.BatchNorm2d(4)), nn.SiLU(inplace=True))),
    "layer norm": lambda: Net(affine(nn.LayerNorm(4, eps=0.1))),
    "layer norm of several axes": lambda: Net(affine(nn.LayerNorm(IMAGE[1:]))),
    "layer norm without a bias": lambda: Net(affine(nn.LayerNorm(4, bias=False))),
    "layer norm without a weight": lambda: Net(nn.LayerNorm(4, elementwise_affine=False)),
    "layer norm of torchvision": lambda: Net(affine(LayerNorm2d(4))),
    "layer norm in a list, and twice": lambda: Net(affine(InAList())),
    "instance norm": lambda: Net(affine(nn.InstanceNorm2d(4, affine=True))),
    "instance norm without a weight": lambda: Net(nn.InstanceNorm2d(4)),
    "instance norm of sequences": lambda: Net(affine(nn.InstanceNorm1d(4, affine=True)), lambda m, z: m(words(z))),
    "instance norm of volumes": lambda: Net(
        affine(nn.InstanceNorm3d(2, affine=True)), lambda m, z: m(z.unflatten(1, (2, 2)))
    ),
    "group norm": lambda: Net(affine(nn.GroupNorm(2, 4))),
    "root mean square norm": lambda: Net(affine(nn.RMSNorm(4))),
    "attention": lambda: Net(nn.MultiheadAttention(16, 2, batch_first=True), attended(need_weights=False)),
    "attention with masks": lambda: Net(
        nn.MultiheadAttention(16, 2, batch_first=True), attended(attn_mask=CAUSAL, key_padding_mask=HIDDEN)
    ),
    "attention, places first": lambda: Net(nn.MultiheadAttention(16, 2, bias=False), attended(need_weights=False)),
    "attention of other widths": lambda: Net(
        nn.MultiheadAttention(16, 2, kdim=8, vdim=4, batch_first=True),
        lambda m, z: m(words(z), words(z)[..., :8], words(z)[..., :4], need_weights=False)[0],
    ),
    "attention with a bias among the keys": lambda: Net(
        nn.MultiheadAttention(16, 2, add_bias_kv=True, batch_first=True), attended()
    ),
    "a transformer's layer": lambda: Net(
        nn.TransformerEncoderLayer(**ENCODER), lambda m, z: m(words(z), src_mask=CAUSAL, is_causal=True)
    ),
    "a transformer's encoder": lambda: Net(
        nn.TransformerEncoder(nn.TransformerEncoderLayer(**ENCODER), 2),
        lambda m, z: m(words(z), src_key_padding_mask=HIDDEN),
    ),
    "a whole transformer": lambda: Net(
        nn.Transformer(16, 2, 1, 1, 6, 0.0, batch_first=True), lambda m, z: m(words(z), words(z)[:, :2]), 32
    ),
    "weights by their norm": lambda: Net(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))),
    "orthogonal weights": lambda: Net(nn.utils.parametrizations.orthogonal(nn.Linear(4, 4))),
    "one weight in two layers": lambda: Net(Tied()),
    "frozen layers": lambda: Net(affine(nn.LayerNorm(4)).requires_grad_(False)),
}


class OwnNorm(nn.LayerNorm):
    """Not torch's: a forward pass of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


class Padded(nn.Embedding):
    """Adds to maps the vectors of their rounded numbers, of which 0 stands for padding."""

    def __init__(self) -> None:
        super().__init__(3, 4, padding_idx=0)

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x.detach().abs().long().clamp(max=2)).mean(-2)


class Branch(nn.Module):
    """Another function where the inputs are large."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight if x.sum() > 0 else -x * self.weight.exp()


UNBATCHED = "doesn't match the broadcast"  # torch's words for a recurrent layer under vmap
LOOPED: dict[str, tuple[Callable[[], Net], str]] = {
    "LSTM": (
        lambda: Net(nn.LSTM(16, 3, batch_first=True), lambda m, z: m(words(z))[0], 12),
        "doesn't match the broadcast",
    ),
    "GRU": (
        lambda: Net(nn.GRU(16, 3, batch_first=True), lambda m, z: m(words(z))[0], 12),
        "doesn't match the broadcast",
    ),
    "RNN": (
        lambda: Net(nn.RNN(16, 3, 2, batch_first=True), lambda m, z: m(words(z))[0], 12),
        "doesn't match the broadcast",
    ),
    "a cell of an LSTM": (
        lambda: Net(nn.LSTMCell(64, 3), lambda m, z: m(z.flatten(1))[0], 3),
        "doesn't match the broadcast",
    ),
    "a branch on a tensor's value": (lambda: Net(Branch()), "data-dependent control flow .*test_own_networks.py, line"),
    "F.layer_norm": (
        lambda: Net(affine(nn.LayerNorm(4)), lambda m, z: F.layer_norm(z, (4,), m.weight, m.bias)),
        "off, relative .*replace F.layer_norm",
    ),
    "F.instance_norm": (
        lambda: Net(affine(nn.GroupNorm(2, 4)), lambda m, z: F.instance_norm(z, weight=m.weight, bias=m.bias)),
        "off, relative",
    ),
    "F.batch_norm": (
        lambda: Net(
            affine(nn.GroupNorm(2, 4)), lambda m, z: F.batch_norm(z, None, None, m.weight, m.bias, training=True)
        ),
        "off, relative",
    ),
    "a class derived from a norm": (
        lambda: Net(affine(OwnNorm(4))),
        "off, relative .*classes derived from torch's norms",
    ),
}


class Counter(nn.Module):
    """Counts its calls."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.number, self.mean = how, 0, torch.zeros(())
        self.register_buffer("calls", torch.zeros(()))
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "buffer":
            self.calls += 1
        if self.how == "another buffer":
            self.calls = self.calls + x.detach().mean()
        if self.how == "number":
            self.number += 1
        if self.how == "tensor":
            self.mean = 0.9 * self.mean + x.detach().mean()
        if self.how == "parameter":
            self.weight.data.mul_(1.1)
        return x * self.weight


REFUSED: dict[str, tuple[Callable[[], Net], str]] = {
    "a buffer that counts": (
        lambda: Net(Counter("buffer")),
        "changes base_learner.layers.calls, which no checkpoint keeps",
    ),
    "a buffer that is replaced": (lambda: Net(Counter("another buffer")), "changes base_learner.layers.calls"),
    "a number that counts": (
        lambda: Net(Counter("number")),
        "changes base_learner.layers.number.* or make it a parameter",
    ),
    "a tensor that no buffer holds": (lambda: Net(Counter("tensor")), "changes base_learner.layers.mean, which no"),
    "a parameter that changes": (lambda: Net(Counter("parameter")), "changes theta.layers.weight"),
    "running statistics of an instance norm": (
        lambda: Net(nn.InstanceNorm2d(4, track_running_stats=True)),
        "changes base_learner.layers.running_mean.*norms: track_running_stats=False",
    ),
    "running statistics of a norm over processes": (
        lambda: Net(nn.SyncBatchNorm(4)),
        "changes base_learner.layers.running_mean.*norms: track_running_stats=False",
    ),
    "torch's fused attention": (
        lambda: Net(nn.Linear(16, 16), lambda m, z: F.scaled_dot_product_attention(m(words(z)), words(z), words(z))),
        r"there is no meta-gradient through Net: .*torch has no derivative of .*Call it within .*sdpa_kernel",
    ),
    "a tensor that was computed": (
        lambda: Net(torch.nn.utils.weight_norm(nn.Linear(4, 4))),
        "it cannot be copied to be tried.*use that of torch.nn.utils.parametrizations",
    ),
    "spectral norm": (
        lambda: Net(nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4))),
        r"changes base_learner.layers.*_u, .* or make it a parameter; for spectral_norm, take weight_norm [^;]*\.$",
    ),
    "torch's checkpoints": (
        lambda: Net(nn.Linear(4, 4), lambda m, z: checkpoint(lambda v: m(v).tanh(), z, use_reentrant=False)),
        "there is no meta-gradient through Net: .*leave out torch.utils.checkpoint.*execution.inner_memory=recomputed",
    ),
    "weights that a backward pass reads": (
        lambda: Net(nn.Linear(4, 4), hooked),
        "there is no meta-gradient through Net: .*read weights in forward, by their names",
    ),
    "a weight that is read from a list": (
        lambda: Net(beside(nn.Linear(4, 4)), lambda m, z: m(z) + m.beside[0]),
        "there is no meta-gradient through Net: .*or from a list of its own, where they are not theta",
    ),
    "nothing to train": (lambda: Net(nn.Identity()).requires_grad_(False), "every parameter is frozen"),
    "sizes that do not fit": (
        lambda: Misfit(nn.Identity()),
        r"there is no meta-gradient through Misfit: .*must match the size .*test_own_networks.py, line \d+",
    ),
}


def beside(layer: nn.Linear) -> nn.Linear:
    """The layer, which keeps its bias in a list as well."""
    layer.beside = [layer.bias]
    return layer


def hooked(m: nn.Module, z: Tensor) -> Tensor:
    """m(z), of which the backward pass reads the weights that m then has."""
    out = m(z)
    out.register_hook(lambda slope: slope * m.weight.sum())
    return out


class Misfit(Net):
    """Adds what has two rows fewer."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.zeros(len(x) - 2, 2)


def built(make: Callable[[], Net]) -> MAML:
    torch.manual_seed(0)
    net = make()
    exact(net)
    return MAML(net.double(), SQUARED_ERROR, 0.2, 2, False, "all", "sgd")


def episodes() -> Episode:
    return Images().sample("train", range(TASK_COUNT))


# one of each layer of ours: a trace takes as long as all else
TRACED = {
    "batch norm",
    "batch norm without a weight",
    "layer norm",
    "instance norm",
    "attention",
    "weights by their norm",
}
TRACED |= {"LSTM", "F.layer_norm"}


@contextmanager
def traced() -> Iterator[None]:
    """Inside, what is to be compiled is traced as ever, and then run as it is: compiling takes 20 s a graph."""
    with mock.patch("metarun.execution.compiled.lowered", lambda graph, leaves, combined: graph):
        yield


def slopes(learner: MetaLearner, theta: Params) -> tuple[Tensor, Tensor]:
    """Three directions [3, n], and the slopes [3] of the mean meta-loss along them by differences, task by task."""
    tasks, h, (point, tree_of) = episodes(), 3e-5, ravel(theta)

    def loss(where: Tensor) -> float:
        values = [learner.meta_loss(tree_of(where), slice_tasks(tasks, i))[0] for i in range(TASK_COUNT)]
        return float(torch.stack(values).mean().detach())

    directions = torch.randn(3, len(point), generator=torch.Generator().manual_seed(2), dtype=point.dtype)
    directions /= directions.norm(dim=1, keepdim=True)
    # of fourth order, so that truncation is far below CLOSE
    rises = [[loss(point + k * h * v) - loss(point - k * h * v) for k in (1, 2)] for v in directions]
    return directions, torch.tensor([(8 * once - twice) / (12 * h) for once, twice in rises], dtype=point.dtype)


def start_of(learner: MetaLearner) -> Params:
    """theta_0, moved off ones and zeros."""
    torch.manual_seed(1)
    return tree_map(lambda p: p + 0.1 * torch.randn_like(p), learner.init())


def assert_exact(learner: MetaLearner, theta: Params, executions: list[Execution]) -> None:
    """The meta-gradient is that of differences, by each of the executions."""
    directions, expected = slopes(learner, theta)
    for execution in executions:
        with traced():
            gradient = ravel(execution.mean_grad(learner.meta_loss, theta, episodes())[0])[0]
        error = (directions @ gradient - expected).norm() / expected.norm()
        assert error < CLOSE, f"{execution.describe()}: {error:.1g}"


@pytest.mark.parametrize("kind", VMAPPED)
def test_a_network_is_exact_however_it_is_executed(kind):
    learner = built(VMAPPED[kind])
    assert suited(AUTO, learner, Images(), STEPS) == (AUTO, [])
    compiled = [Compiled(Vmapped(None))] if kind in TRACED else []
    assert_exact(learner, start_of(learner), [Looped(), Vmapped(None), Vmapped(2), *compiled])


@pytest.mark.parametrize("kind", LOOPED)
def test_a_network_that_vmap_gets_wrong_is_looped_with_the_reason_or_refused(kind):
    make, why = LOOPED[kind]
    learner = built(make)
    execution, (note,) = suited(AUTO, learner, Images(), STEPS)
    assert execution == Looped()
    assert re.search(f"^execution: looped, because Net cannot be vmapped: .*{why}", note)
    with pytest.raises(ConfigError, match=f"^1 problem.*\n.*{why}.*Use execution=looped, or execution=auto") as refusal:
        suited(Vmapped(None), learner, Images(), STEPS)
    assert refusal.value.exit_code == 2
    assert suited(Looped(), learner, Images(), STEPS) == (Looped(), [])
    compiled = [Compiled(Looped())] if kind in TRACED else []
    assert_exact(learner, start_of(learner), [Looped(), *compiled])


def test_embeddings_whose_padding_would_learn_under_vmap_are_looped_for_that_reason():
    execution, (note,) = suited(AUTO, built(lambda: Net(Padded())), Images(), STEPS)
    assert execution == Looped() and re.search("off, relative .torch's embeddings with padding_idx", note)
    assert "norm" not in note


@pytest.mark.parametrize("execution", [AUTO, Looped(), Vmapped(None)], ids=lambda e: e.describe())
@pytest.mark.parametrize("kind", REFUSED)
def test_a_network_that_cannot_be_trained_is_refused_with_the_fix(kind, execution):
    make, why = REFUSED[kind]
    learner = built(make)
    with pytest.raises(ConfigError, match=f"(?s)^1 problem.*base_learner: .*{why}"):
        suited(execution, learner, Images(), STEPS)


# ---- queries that are read together ----


class OwnBatchNorm(nn.BatchNorm2d):
    """Not torch's, for metarun."""


TOGETHER: dict[str, Callable[[], Net]] = {
    "sums over the batch": lambda: Net(nn.Identity(), lambda m, z: z.cumsum(0)),
    "sums from its end": lambda: Net(nn.Identity(), lambda m, z: z.flip(0).cumsum(0).flip(0)),
    "the batch's mean": lambda: Net(nn.Identity(), lambda m, z: z - z.mean(0)),
    "a class derived from a batch norm": lambda: Net(OwnBatchNorm(4, track_running_stats=False)),
    "attention among examples": VMAPPED["attention, places first"],
}
APART: dict[str, Callable[[], Net]] = {
    **VMAPPED,
    "dropout": lambda: Net(nn.Dropout(0.4)),
    "noise": lambda: Net(nn.Identity(), lambda m, z: z + torch.randn_like(z)),
    "LSTM": LOOPED["LSTM"][0],
}
del APART["attention, places first"]


def read_together(make: Callable[[], Net]) -> bool:
    learner = built(make)
    learner.base_learner.float()
    return reads_all_queries(learner, take_theta(learner), episodes())


@pytest.mark.parametrize("kind", TOGETHER)
def test_a_network_that_reads_its_queries_together_is_found(kind):
    assert read_together(TOGETHER[kind])


@pytest.mark.parametrize("kind", APART)
def test_norms_dropout_and_noise_are_not_taken_for_reading_queries_together(kind):
    assert not read_together(APART[kind])


def test_a_run_and_its_model_say_that_a_network_reads_its_queries_together(tmp_path):
    words = [*BUDGET, "task=sinusoid", "base_learner=cumulative", f"run_dir={tmp_path / 'run'}"]
    outcome = metarun(*words)
    assert "Cumulative reads the whole query batch (num_queries=3): with other queries the score changes" in outcome.out
    assert load(tmp_path / "run", config_dir=[OUTSIDE.partition("=")[2]]).looks_at_all_queries
    files = [tmp_path / "support.npz", tmp_path / "query.npz"]
    np.savez(files[0], x=[[0.1], [0.2]], y=[1.0, 2.0])
    np.savez(files[1], x=[[0.1], [0.2]])
    named = [str(word) for pair in zip(("--support", "--query"), files, strict=True) for word in pair]
    outcome = metarun("predict", str(tmp_path / "run"), *named, OUTSIDE, f"--out={tmp_path / 'out.csv'}")
    assert "transductive: each prediction depends on all queries" in outcome.err


# ---- what is replaced ----


def test_names_parameters_and_settings_stay_and_a_second_time_nothing_is_replaced():
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 6, 0.3), 2, norm=nn.LayerNorm(16, eps=0.5))
    net = nn.Sequential(encoder, nn.BatchNorm1d(4, eps=0.25), nn.Dropout2d(0.2), StochasticDepth(0.1, "batch"))
    before = {name: id(p) for name, p in net.named_parameters()}
    replaced = {"MultiheadAttention": 2, "Dropout": 6, "LayerNorm": 5}
    assert make_exact(net) == {**replaced, "BatchNorm1d": 1, "Dropout2d": 1, "StochasticDepth": 1}
    assert {name: id(p) for name, p in net.named_parameters()} == before
    assert (encoder.norm.eps, net[1].eps, net[1].mode, encoder.layers[0].dropout1.rate) == (0.5, 0.25, "running", 0.3)
    assert not make_exact(net)


PADDED = {"a transformer's encoder"}  # torch's own gives zeros for hidden places, in evaluation alone


@pytest.mark.parametrize("kind", sorted(VMAPPED.keys() - PADDED))
def test_a_network_with_layers_replaced_is_the_same_function(kind):
    torch.manual_seed(0)
    net, x = VMAPPED[kind]().double(), torch.randn(4, *IMAGE, dtype=torch.float64)
    for norm in (m for m in net.modules() if isinstance(m, BATCH_NORMS) and m.training):
        norm.running_mean = norm.running_var = (
            None  # in evaluation by its own statistics too: nothing is calibrated here
        )
    modes = [[(m, training and m.training) for m in net.modules()] for training in (True, False)]

    def outputs() -> list[Tensor]:
        found = []
        for flags in modes:
            for module, training in flags:
                module.training = training
            found.append(net(x))
        return found

    expected = outputs()
    make_exact(net.float())
    net.double()
    torch.testing.assert_close(outputs(), expected, rtol=1e-6, atol=1e-6)  # parameters were in float32 in between


BATCH_NORMS = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d


def test_a_module_in_two_places_keeps_no_parameters_that_it_was_called_with():
    net = Net(InAList())
    make_exact(net)

    def held() -> dict[str, int]:
        return {name: id(p) for name, p in net.named_parameters(remove_duplicate=False)}

    before = held()
    functional_call(net, {name: p + 1 for name, p in net.named_parameters()}, (torch.zeros(4, *IMAGE),))
    assert held() == before


OF_WORDS = dict.fromkeys(("embedding_bag", "text_cnn", "transformer"), "words")
OF_WORDS |= dict.fromkeys(("residual", "weighted"), "sentences")


@pytest.mark.parametrize("name", options("base_learner"))
def test_in_metaruns_own_networks_nothing_is_left_to_replace_or_to_try(name):
    more = ["meta_learner=relationnet", "task.padding=8"] if name == "relation_conv" else []
    x = experiment(*TASKS[OF_WORDS.get(name, "images")], f"base_learner={name}", *more)
    assert x.notes == []


def test_a_norm_with_running_statistics_is_evaluated_by_those_of_training_tasks():
    learner, tasks = built(VMAPPED["batch norm with running statistics"]), Images()
    theta, x = learner.init(), tasks.sample("val", [7]).query.x[0]
    with calibrated(learner, theta, tasks, Looped()), evaluating(learner.base_learner), torch.no_grad():
        torch.testing.assert_close(learner.predict(theta, x)[:1], learner.predict(theta, x[:1]))


DROPPING = [nn.Dropout(0.4), nn.Dropout2d(0.4), StochasticDepth(0.4, "row"), StochasticDepth(0.4, "batch")]


@pytest.mark.parametrize("layer", DROPPING, ids=str)
def test_dropout_is_a_function_of_the_step_and_exact_however_it_is_executed(layer):
    learner = built(lambda: Net(nn.Sequential(layer, nn.Tanh())))
    assert suited(AUTO, learner, Images(), STEPS) == (AUTO, [])
    x, theta = torch.ones(4, *IMAGE, dtype=torch.float64), learner.init()
    whole, by_step = learner.predict(theta, x), []
    for step in (0, 0, *range(1, 9)):
        with dropping(modules_of(learner), 0, step):
            by_step.append(learner.predict(theta, x))
    assert torch.equal(by_step[0], by_step[1])
    (step, *_) = [step for step, found in enumerate(by_step[1:]) if not torch.equal(found, whole)]
    with dropping(modules_of(learner), 0, step):
        assert_exact(learner, theta, [Looped(), Vmapped(None), Vmapped(2)])


def test_noise_is_not_drawn_again_where_steps_are_recomputed():
    recomputed = replace(AUTO, inner_memory="recomputed")
    learner = built(lambda: Net(nn.Identity(), lambda m, z: z + torch.randn_like(z)))
    execution, (note,) = suited(replace(AUTO, inner_memory="auto"), learner, Images(), STEPS)
    assert execution == AUTO and "Net draws random numbers" in note
    with pytest.raises(ConfigError, match=r"Net draws random numbers.* Use stored; for dropout, nn.Dropout"):
        suited(recomputed, learner, Images(), STEPS)


def test_a_learner_whose_second_derivative_comes_later_is_tried_as_it_ends():
    net = built(LOOPED["F.layer_norm"][0]).base_learner
    learner = MAMLPlusPlus(
        net, SQUARED_ERROR, 0.2, 2, 0, False, False, first_order_epochs=1, steps_per_epoch=5, epoch=0
    )
    assert suited(AUTO, learner, Images(), 5)[0] == Looped()
    assert suited(AUTO, learner, Images(), 4)[0] == AUTO  # its run ends before


def test_a_trial_changes_nothing():
    learner = built(lambda: Net(nn.Identity(), lambda m, z: z + torch.randn_like(z)))
    held = {name: (id(p), p.device.type, p.detach().clone()) for name, p in learner.base_learner.named_parameters()}
    torch.manual_seed(3)
    suited(AUTO, learner, Images(), STEPS)
    drawn = torch.rand(2)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(2))
    for name, p in learner.base_learner.named_parameters():
        assert (id(p), p.device.type) == held[name][:2] and torch.equal(p, held[name][2])


def test_a_network_without_sizes_is_refused():
    with pytest.raises(ConfigError, match=r"without a shape \(layers.weight, layers.bias\).* Use layers with sizes"):
        exact(Net(nn.LazyLinear(4)))


@pytest.mark.parametrize("hold", [nn.Module.register_parameter, nn.Module.register_buffer], ids=["weight", "buffer"])
def test_a_network_that_holds_complex_numbers_is_refused(hold):
    layers = nn.Identity()
    hold(layers, "phase", nn.Parameter(torch.ones(4, dtype=torch.cfloat)))
    with pytest.raises(
        ConfigError, match=r"complex numbers \(layers.phase\), .* call torch.view_as_complex in forward"
    ):
        exact(Net(layers))


BESIDE = {
    "layers in a list": (lambda: [nn.Linear(4, 4)], r"\(layers.beside\), .* Use nn.ModuleList"),
    "a parameter in a dict": (lambda: {"a": [nn.Parameter(torch.ones(4))]}, r"\(layers.beside\), .* nn.ParameterList"),
    "a frozen teacher": (lambda: [nn.Linear(4, 4).requires_grad_(False)], None),
    "numbers": (lambda: [torch.ones(4), 3, "a"], None),
    "a list in itself": (lambda: (held := [3]).append(held) or held, None),
    "recurrent weights by their norm": (
        lambda: nn.utils.parametrizations.weight_norm(nn.LSTM(4, 4), "weight_ih_l0"),
        None,
    ),
}


@pytest.mark.parametrize(("kept", "told"), BESIDE.values(), ids=BESIDE)
def test_weights_that_torch_does_not_find_are_refused_unless_frozen(kept, told):
    layers = nn.Identity()
    layers.beside = kept()
    with pytest.raises(ConfigError, match=told) if told else nullcontext():
        exact(Net(layers))


# ---- body and head ----


class Between(nn.Module):
    """Something ``between`` body and head, which a learner that takes them apart would leave out."""

    def __init__(self, between: nn.Module) -> None:
        super().__init__()
        self.body, self.between = nn.Sequential(nn.Flatten(), nn.Linear(32, 5)), between
        self.head = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.between(self.body(x)))


class Noise(nn.Module):
    """Draws numbers in evaluation, too."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x)


class Huge(nn.Module):
    """Overflows under weights that are not small."""

    def forward(self, x: Tensor) -> Tensor:
        return (1e4 * x).exp()


LEARNERS = {
    "anil": lambda net: ANIL(net, SQUARED_ERROR, 0.1, 2),
    "fine_tune": lambda net: FineTune(net, SQUARED_ERROR, None, None, "all", 0.1, 2, "sgd"),
    "maml": lambda net: MAML(net, SQUARED_ERROR, 0.2, 2, False, "head", "sgd"),
}


@pytest.mark.parametrize("name", LEARNERS)
def test_what_forward_does_between_body_and_head_is_not_left_out_unsaid(name):
    def problems(between: nn.Module, *last: nn.Module) -> list[str]:
        torch.manual_seed(0)
        net = Between(between)
        net.body.extend(last)
        learner = LEARNERS[name](net.double())
        theta = take_theta(learner)
        return taken_apart(mock.Mock(learner=learner, theta_0=theta, task=Images()))

    assert problems(nn.Identity()) == problems(nn.Identity(), Noise()) == problems(nn.Identity(), Huge()) == []
    says = r"takes head\(body\(x\)\) for the network, but forward of Between .* Move what it does besides into body or head"
    assert [bool(re.search(says, told)) for told in problems(nn.Tanh())] == [True] * (name != "maml")


class Two(Images):
    """The same images, in two classes."""

    spec = TaskSpec(IMAGE, 2, CROSS_ENTROPY, num_ways=2)

    def episodes(self, draw: Draw) -> Episode:
        images = super().episodes(draw)
        y = (torch.arange(4) % 2).expand(len(images.support.x), 4)
        return Episode(Batch(images.support.x, y), Batch(images.query.x, y))


class Bodily(nn.Module):
    """Features after(body(before(x))), and a head that reads them or none."""

    def __init__(self, before: nn.Module, after: nn.Module, head: bool) -> None:
        super().__init__()
        self.body, self.before, self.after = nn.Sequential(nn.Flatten(), nn.Linear(32, 5)), before, after
        if head:
            self.head = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        z = self.after(self.body(self.before(x)))
        return self.head(z).tanh() if hasattr(self, "head") else z  # tanh: of no matter to who takes features alone


@pytest.mark.parametrize("head", [False, True])
def test_learners_of_features_leave_nothing_out_unsaid_around_the_body(head):
    def problems(before: nn.Module, after: nn.Module) -> list[str]:
        learner = ProtoNet(Bodily(before, after, head).double(), CROSS_ENTROPY, 2, "euclidean")
        return taken_apart(mock.Mock(learner=learner, theta_0=take_theta(learner), task=Two()))

    assert problems(nn.Identity(), nn.Identity()) == []
    says = "base_learner: ProtoNet takes body(x) for the features of the network, but forward of Bodily has other ones."
    for wrong in (problems(nn.Tanh(), nn.Identity()), problems(nn.Identity(), nn.Tanh())):
        assert [told.startswith(says) for told in wrong] == [True]


def test_a_parameter_that_body_and_head_share_is_not_trained_as_two():
    net = Between(nn.Identity()).double()
    net.body[1].bias = net.head.bias = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    learner = LEARNERS["fine_tune"](net)
    (told,) = taken_apart(mock.Mock(learner=learner, theta_0=take_theta(learner), task=Images()))
    assert "body and head of Between share a parameter, which would become two" in told


# ---- frozen layers ----


@pytest.mark.parametrize("learner", options("meta_learner"))
def test_frozen_layers_are_no_part_of_theta_and_stay_as_they_are(learner):
    x = accepted(learner)
    net = x.learner.base_learner
    held = {name: p.detach().clone() for name, p in frozen(net).items()}
    assert held.keys() == {"body.kept.weight", "body.kept.bias"}
    tasks, loss_fn = x.task.sample("train", range(2)), x.learner.at(0).meta_loss
    theta = x.theta_0
    assert tree_leaves(theta) and not [name for name in leaf_names(theta) if "kept" in name]
    gradient, _ = Looped().mean_grad(loss_fn, theta, tasks)
    assert relative_error(Vmapped(None).mean_grad(loss_fn, theta, tasks)[0], gradient) < 1e-8
    assert all(torch.equal(p, held[name]) for name, p in frozen(net).items())
    if learner == "convcnp":  # reads x without a base learner
        return
    with torch.no_grad():
        for p in frozen(net).values():
            p.mul_(-0.5)
    assert relative_error(Looped().mean_grad(loss_fn, theta, tasks)[0], gradient) > 1e-3  # they are used


def accepted(learner: str) -> Experiment:
    """An experiment of ``learner`` with a network of which a layer is frozen, on the first task that it can do."""
    refusals = []
    for task in ("classes", "images", "sinusoid"):
        try:
            return experiment(f"meta_learner={learner}", *TASKS[task], "base_learner=frozen")
        except ConfigError as refusal:
            refusals.append(str(refusal))
    pytest.fail("\n".join(refusals))


def test_a_part_that_inner_steps_move_must_not_be_frozen_as_a_whole():
    with pytest.raises(
        ConfigError, match=r"adapts the head of the base learner alone, but every parameter .* is frozen"
    ):
        experiment("meta_learner=anil", *TASKS["images"], "base_learner=frozen", "base_learner.head=true")


# ---- whole runs ----


BUDGET = ["device=cpu", "steps=4", "meta_batch_size=2", "task.num_queries=3", "evaluation.every=2"]
BUDGET += ["evaluation.num_val_tasks=3", "evaluation.num_tasks=4", "logger=none", OUTSIDE]


def test_a_run_says_what_it_replaced_and_why_it_loops(tmp_path):
    run = tmp_path / "run"
    outcome = metarun(*BUDGET, "base_learner=reader", "execution=auto", f"run_dir={run}")
    assert outcome.code == 0, outcome.text
    said = (run / "log.txt").read_text()
    assert "Reader: 1 LayerNorm of torch replaced by exact layers" in said
    assert re.search("execution: looped, because Reader cannot be vmapped: RuntimeError: .*own_networks.py, line", said)
    assert read(run / "execution.json")["chosen"].startswith("looped")
    assert metarun("evaluate", str(run), OUTSIDE).code == 0
    again = metarun("evaluate", str(run), OUTSIDE, "execution=vmapped")
    assert again.code == 2 and "Use execution=looped" in again.err


def test_a_run_that_cannot_be_vmapped_as_asked_leaves_no_folder(tmp_path):
    outcome = metarun(*BUDGET, "base_learner=reader", "execution=vmapped", f"run_dir={tmp_path / 'run'}")
    assert outcome.code == 2 and "Reader cannot be vmapped" in outcome.err and "Traceback" not in outcome.err
    assert not (tmp_path / "run").exists()


def test_a_second_network_is_made_exact_and_tried_as_the_base_learner_is():
    x = experiment(*TASKS["images"], "meta_learner=teacher", "meta_learner.teacher._target_=own_networks.Judge")
    assert x.notes == ["Judge: 1 LayerNorm of torch replaced by exact layers (docs/base_learners.md)"]


def test_numbers_that_a_device_lacks_are_refused(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    outcome = metarun("device=mps", "dtype=float64")
    assert outcome.code == 2 and "device=mps has no such numbers; use dtype=float32, or device=cpu" in outcome.err


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([], 1),
        (["experiment=smoke"], 1),
        (["base_learner=mlp"], 0),
        (["base_learner.hidden=[8]"], 0),
        (["experiment=x"], 0),
    ],
)
def test_images_that_the_default_network_reads_are_told(overrides, said):
    assert len(nobody_chose(overrides, (3, 32, 32))) == said
    assert nobody_chose(overrides, (2,)) == []
