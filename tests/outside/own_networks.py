"""Networks of an outsider, made of torch's layers, for inputs of any shape."""

import math
from collections import OrderedDict

import torch
from torch import Tensor, nn


class Reader(nn.Module):
    """Reads the numbers of an input one after another, by a ``cell`` of torch's (LSTM, GRU, RNN)."""

    def __init__(self, input_shape, num_outputs: int, cell: str) -> None:
        super().__init__()
        self.body = getattr(nn, cell)(1, 6, batch_first=True)
        self.norm, self.head = nn.LayerNorm(6), nn.Linear(6, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.body(x.flatten(1)[..., None])[0][:, -1]))


class Frozen(nn.Module):
    """A linear layer that is ``kept``, then one that learns, and a head, which is frozen too if ``head`` says so."""

    def __init__(self, input_shape, num_outputs: int, head: bool) -> None:
        super().__init__()
        kept = nn.Linear(math.prod(input_shape), 5)
        layers = {"flat": nn.Flatten(), "kept": kept, "tanh": nn.Tanh(), "learned": nn.Linear(5, 5), "end": nn.Tanh()}
        self.body = nn.Sequential(OrderedDict(layers))
        self.head = nn.Linear(5, num_outputs)
        for part in [kept, self.head] if head else [kept]:
            part.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class Shared(nn.Module):
    """A frozen layer of inputs that a buffer moves, then norms and layers: one stands twice, and two share a weight."""

    def __init__(self, input_shape, num_outputs: int) -> None:
        super().__init__()
        self.register_buffer("offset", torch.linspace(-0.3, 0.4, math.prod(input_shape)))
        self.kept = nn.Linear(math.prod(input_shape), 6).requires_grad_(False)
        self.norm, self.groups = nn.LayerNorm(6), nn.GroupNorm(2, 6)
        self.one, self.other, self.last = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, num_outputs)
        self.other.weight, self.again = self.one.weight, self.one

    def forward(self, x: Tensor) -> Tensor:
        z = self.norm(torch.tanh(self.kept(x.flatten(1) + self.offset)))
        z = self.groups(torch.tanh(self.one(z)) + torch.sin(self.other(z)))
        return self.last(torch.tanh(self.again(z)))


class Noisy(nn.Module):
    """Adds noise to its input in training."""

    def __init__(self, input_shape, num_outputs: int) -> None:
        super().__init__()
        self.layer = nn.Linear(math.prod(input_shape), num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(1) + 0.1 * torch.randn_like(x.flatten(1)))


class Cumulative(nn.Module):
    """A linear layer of inputs to which those of the examples before are added."""

    def __init__(self, input_shape, num_outputs: int) -> None:
        super().__init__()
        self.layer = nn.Linear(math.prod(input_shape), num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(1) + 0.1 * x.flatten(1).cumsum(0))


class Judge(nn.Module):
    """A second network, with a norm of torch's, in the place of a teacher, whose settings it has and does not use."""

    def __init__(self, input_shape, num_outputs: int, hidden, batch_norm, activation, init) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.LayerNorm(math.prod(input_shape)))
        self.head = nn.Linear(math.prod(input_shape), num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x))
