"""Tables drawn from random structural causal models and networks: what a prior-fitted network is trained on.

A table is a random network (``tabular_network``). Of ``causal`` tables the columns are any of its nodes, and the target is
one more, before or after them; of the others the columns are the network's inputs, and the target is an output. Of
``clusters`` tables the rows lie around centres, and the classes are those of the centres; of ``trees`` tables of the rest
the target is a sum of random decision trees of the columns. Else classes are the target node between random thresholds,
or the largest of several nodes. Columns are skewed, rounded or categories, values are
missing; the columns are in random order, and zeros fill them up to the highest ``num_features``.

Inputs and regression targets are standardised by the support rows, as a user's table can be. Every class of the query is
in the support; classes are numbered without gaps.

After Hollmann et al., ICLR 2023, https://arxiv.org/abs/2207.01848, whose released code has such a prior with sampled
hyperparameters; the families, ranges and shares here are our own choice. B tables, R rows, F columns, N classes
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from metarun.core import Batch, Draw, Episode, TaskSpec
from metarun.objectives import CROSS_ENTROPY, SQUARED_ERROR
from metarun.tasks import tabular_columns, tabular_network
from metarun.tasks.sizes import Count, PointSize, Sized, sizes_by_split
from metarun.tasks.tabular_labels import label_shapes, labelled, shared_classes, standard_targets, tree_targets
from metarun.tasks.tabular_network import MAX_CLUSTERS, REFERENCE, between, parted, whole

MAX_CAUSES = 12  # of a causal table: more of them, and no column says much of the target
AT_ONCE = 16  # tables
CHOICES = (
    *("features", "classes", "layers", "active", "causal", "clusters", "each", "odd_causes", "spread", "imbalance"),
    *("sparsity", "gain", "noise", "trees", "way", "flips", "skew", "skewed", "categorical", "some", "missing"),
    *("rate", "reason", "which"),
)


class TabularPrior(Sized):
    """Support x [K, F], y [K] (classes) or [K, 1] (targets), and so the query.

    ``num_features``, ``num_classes`` and ``num_layers`` are [lowest, highest] of a table. ``causal``, ``clusters``,
    ``trees``, ``categorical`` and ``missing`` are the shares of tables that are causal, in clusters, labelled by trees,
    have categorical columns, and lack values.
    """

    def __init__(  # noqa: PLR0913, PLR0917
        self,
        kind: Literal["classification", "regression"],
        num_features: tuple[int, int],
        num_classes: tuple[int, int],
        num_layers: tuple[int, int],
        causal: float,
        clusters: float,
        trees: float,
        categorical: float,
        missing: float,
        num_shots: Count,
        num_queries: Count,
        train_num_shots: Count | None,
        train_num_queries: Count | None,
        seed: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.sizes = sizes_by_split(PointSize, (num_shots, num_queries), train_num_shots, train_num_queries)
        self.kind, self.ranges = kind, {"features": num_features, "classes": num_classes, "layers": num_layers}
        self.shares = {"causal": causal, "clusters": clusters, "trees": trees, "categorical": categorical}
        self.shares["missing"] = missing
        self.seed, self.device, self.dtype = seed, device, dtype
        self._check()
        classes = num_classes[1] if kind == "classification" else None
        objective, rows = (
            CROSS_ENTROPY if classes else SQUARED_ERROR,
            max(size.num_shots for size in self.sizes.values()),
        )
        self.spec = TaskSpec((num_features[1],), classes or 1, objective, classes, classes, most_rows=rows)
        self.width = num_features[1] + (classes or 1)  # a layer has room for all columns and targets
        sizes = num_layers[1], self.width
        self.table_shapes = tabular_network.table_shapes(*sizes) | tabular_columns.column_shapes(num_features[1])
        self.table_shapes |= label_shapes((num_layers[1] + 1) * self.width, classes or 1)
        self.row_shapes = tabular_network.row_shapes(*sizes) | {"missing": (num_features[1],), "flip": (2,)}

    def _check(self) -> None:
        """Raise ValueError unless ranges and shares are possible."""
        for name, (low, high) in self.ranges.items():
            least, most = {"classes": (2, MAX_CLUSTERS // 2)}.get(name, (1, 1000))
            if not least <= low <= high <= most:
                raise ValueError(
                    f"task.num_{name} is [{low}, {high}]; give [lowest, highest], both from {least} to {most}."
                )
        for name, share in self.shares.items():
            if not 0 <= share <= 1:
                raise ValueError(f"task.{name} is {share}; it is a share of the tables: use 0 to 1.")

    def draw(self, split: str, indices: Sequence[int] | np.ndarray) -> Draw:
        """Choices of a table as uniforms, and bits: of its mechanism, and of each row: reference, query, support."""
        of_table, of_row = (
            sum(int(np.prod(shape)) for shape in shapes.values()) for shapes in (self.table_shapes, self.row_shapes)
        )
        sizes = of_table, REFERENCE + sum(self.sizes[split]), of_row
        draw = tabular_network.drawn(self.seed, f"tabular_prior/{split}", np.asarray(indices), len(CHOICES), sizes)
        return {**draw, "queries": np.full(len(draw["choices"]), self.sizes[split].num_queries)}

    def episodes(self, draw: Draw) -> Episode:
        parts = [range(k, min(k + AT_ONCE, len(draw["table"]))) for k in range(0, len(draw["table"]), AT_ONCE)]
        made = [self._tables({name: values[part] for name, values in draw.items()}) for part in parts]
        support, query = (
            Batch(*(torch.cat(leaves) for leaves in zip(*both, strict=True))) for both in zip(*made, strict=True)
        )
        return Episode(support, query)

    def _tables(self, draw: Draw) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """The support and the query, each x and y, of some tables: all at once would not fit into the caches."""
        choice = self._choices(draw)
        table, rows = parted(draw["table"], self.table_shapes), parted(draw["rows"], self.row_shapes)
        cluster = tabular_network.clusters(choice, table, rows, choice["num_clusters"])
        inputs = tabular_network.causes(choice, table, rows, choice["active"], cluster)
        nodes = tabular_network.nodes(choice, table, rows, inputs)
        x, targets = self._chosen(choice, table, nodes)
        targets = np.where(choice["trees"][:, None, None], tree_targets(choice, table, x), targets)
        x, used = tabular_columns.with_gaps(choice, rows, tabular_columns.warped(choice, table, x), choice["features"])
        first = REFERENCE + draw["queries"][0]  # of the support
        if self.kind == "regression":
            y = standard_targets(choice, targets[..., 0], first)[..., None]
        else:
            y = labelled(choice, table, rows, targets, cluster)
            order, y = shared_classes(y[:, REFERENCE:], first - REFERENCE)
            x[:, REFERENCE:] = np.take_along_axis(x[:, REFERENCE:], order[..., None], 1)
            y = np.concatenate([y[:, :1].repeat(REFERENCE, 1), y], 1)
        x = tabular_columns.standard_columns(x, x[:, first:])
        x = np.where(np.arange(x.shape[-1]) < used[:, None, None], x, 0.0)
        parts = slice(first, None), slice(REFERENCE, first)
        support, query = ((self._tensor(x[:, part]), self._tensor(y[:, part])) for part in parts)
        return support, query

    def _tensor(self, values: np.ndarray) -> Tensor:
        """On the run's device; classes stay whole numbers."""
        tensor = torch.from_numpy(values)
        return tensor.to(self.device, self.dtype if tensor.is_floating_point() else None)

    def _choices(self, draw: Draw) -> Draw:
        """The hyperparameters of each table [B] by name, of its uniforms."""
        u = dict(zip(CHOICES, draw["choices"].T, strict=True))
        low, high = self.ranges["classes"]
        support = draw["rows"].shape[1] - REFERENCE - draw["queries"][0]
        classes = whole(((u["classes"] - 0.4) / 0.6).clip(0), low, high)  # four of ten have as few as can be
        classes = np.minimum(classes, max(low, support // 4))
        clustered = u["clusters"] < self.shares["clusters"]
        causal = u["causal"] < self.shares["causal"]
        features = whole(u["features"], *self.ranges["features"])
        active = np.where(causal | clustered, whole(u["active"], 1, min(self.width, MAX_CAUSES)), features)
        per_class = 1 + (u["each"] < 0.3)
        gaps = u["missing"] < self.shares["missing"]
        return {
            **{name: u[name] for name in ("odd_causes", "imbalance", "skew", "skewed", "reason", "way")},
            **{"features": features, "classes": classes, "clustered": clustered, "causal": causal | clustered},
            "trees": (u["trees"] < self.shares["trees"]) & ~clustered,
            "layers": np.floor(u["layers"] * (self.ranges["layers"][1] - self.ranges["layers"][0] + 1)).astype(int)
            + self.ranges["layers"][0],
            "active": np.minimum(active, self.width),
            "num_clusters": np.where(clustered, classes * per_class, 1),
            "spread": np.where(clustered, between(u["spread"], 0.6, 4), 0.0),
            "sparsity": 0.95 * u["sparsity"],
            "gain": between(u["gain"], 0.5, 2.5),
            "noise": between(u["noise"], 0.003, 0.4),
            "flips": np.where(u["flips"] < 0.6, 0, (u["flips"] - 0.6) * 0.3),
            "categorical": np.where(u["categorical"] < self.shares["categorical"], u["some"], 0),
            "missing": np.where(gaps, 0.3 * u["rate"], 0),
            "which": u["which"],
        }

    def _chosen(self, choice: Draw, table: Draw, nodes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The nodes [B, R, M] that are a table's columns [B, R, F], and those behind its target [B, R, N]."""
        place = np.arange(nodes.shape[-1])
        layer, causal = place // self.width, choice["causal"][:, None]
        last = choice["layers"][:, None]
        target = np.where(causal, (layer >= 1) & (layer <= last), layer == last)
        key = tabular_network.uniforms(table["order"])
        targets = np.argsort(np.where(target, key, 2), 1, kind="stable")[:, : self.spec.num_outputs]
        cause = place < choice["active"][:, None]
        column = np.where(causal, cause | ((layer >= 1) & (layer <= last)), cause)
        np.put_along_axis(column, targets, False, 1)
        columns = np.argsort(np.where(column, 1 - key, 2), 1, kind="stable")[:, : self.ranges["features"][1]]
        picked = (np.take_along_axis(nodes, places[:, None], -1) for places in (columns, targets))
        x, t = picked
        return x, t

    def fingerprint(self) -> str:
        settings = {"kind": self.kind, **{name: list(pair) for name, pair in self.ranges.items()}, **self.shares}
        return "tabular prior: " + ", ".join(f"{name} {value}" for name, value in settings.items())
