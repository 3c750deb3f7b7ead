"""Recurrent networks that act on every coordinate of a vector alike: the optimizers of learned inner loops.

Written from primitives, so that they run vmapped. n coordinates, H hidden units. State is a tuple of tensors.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

State = tuple[Tensor, Tensor]  # h and c [n, H] of an LSTM


def log_and_sign(x: Tensor, p: float) -> Tensor:
    """Two numbers of like size for each x of any size: [...] -> [..., 2].

    (log|x| / p, sign x) where |x| is at least e^-p, else (-1, e^p x)        Andrychowicz et al. 2016, appendix A
    """
    return torch.stack([x.abs().log().clamp(min=-p) / p, (torch.e**p * x).clamp(-1, 1)], -1)


class LSTMCell(nn.Module):
    """i, f, g, o = W [x, h] + b;   c <- sigmoid(f) c + sigmoid(i) tanh(g);   h <- sigmoid(o) tanh(c)

    Weights ~ U[-1, 1] / sqrt(H), as torch's; the forget gate's bias starts at 1, so that a cell remembers.
    """

    def __init__(self, num_inputs: int, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        bound = hidden_size**-0.5
        self.from_input = nn.Parameter(torch.empty(4 * hidden_size, num_inputs).uniform_(-bound, bound))
        self.from_hidden = nn.Parameter(torch.empty(4 * hidden_size, hidden_size).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(4 * hidden_size))
        self.bias.data[hidden_size : 2 * hidden_size] = 1

    def start(self, like: Tensor) -> State:
        """Zeros for each coordinate of ``like`` [n]."""
        return like.new_zeros(len(like), self.hidden_size), like.new_zeros(len(like), self.hidden_size)

    def forward(self, x: Tensor, state: State) -> State:
        h, c = state
        gates = F.linear(x, self.from_input) + F.linear(h, self.from_hidden, self.bias)  # [n, 4 H]
        i, f, g, o = gates.chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c


class CoordinatewiseLSTM(nn.Module):
    """A stack of LSTM cells and a linear output: inputs [n, 2] and a state -> outputs [n] and the next state."""

    def __init__(self, hidden_size: int, num_layers: int) -> None:
        super().__init__()
        if hidden_size < 1 or num_layers < 1:
            raise ValueError(f"hidden_size {hidden_size} and num_layers {num_layers} must be 1 or more.")
        sizes = [2] + [hidden_size] * num_layers
        self.cells = nn.ModuleList(LSTMCell(a, b) for a, b in pairwise(sizes))
        self.head = nn.Linear(hidden_size, 1)

    def start(self, like: Tensor) -> tuple[State, ...]:
        return tuple(cell.start(like) for cell in self.cells)  # type: ignore[operator]

    def forward(self, x: Tensor, state: tuple[State, ...]) -> tuple[Tensor, tuple[State, ...]]:
        states = []
        for cell, before in zip(self.cells, state, strict=True):
            states.append(cell(x, before))
            x = states[-1][0]
        return self.head(x)[:, 0], tuple(states)
