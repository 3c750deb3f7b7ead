"""Recurrent networks that act on every coordinate of a vector alike: the optimizers of learned inner loops.

Written from primitives, so that they run vmapped. n coordinates, H hidden units. State is a tuple of tensors.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

State = tuple[Tensor, Tensor]  # h and c [n, H] of an LSTM


def log_and_sign(x: Tensor, p: float) -> Tensor:
    """Two numbers of moderate size for each entry of x, whatever its magnitude: [...] -> [..., 2].

    (log|x| / p, sign x) where |x| is at least e^-p, else (-1, e^p x)        Andrychowicz et al. 2016, appendix A
    """
    return torch.stack([x.abs().log().clamp(min=-p) / p, (torch.e**p * x).clamp(-1, 1)], -1)


class LSTMCell(nn.Module):
    """LSTM cell on n coordinates alike: x [n, num_inputs] and the state (h, c) -> the next state, h and c [n, H].

        i, f, g, o = W [x, h] + b;   c <- sigmoid(f) c + sigmoid(i) tanh(g);   h <- sigmoid(o) tanh(c)

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
        """Make the state of zeros, h and c [n, H], for the coordinates of ``like`` [n]."""
        return like.new_zeros(len(like), self.hidden_size), like.new_zeros(len(like), self.hidden_size)

    def forward(self, x: Tensor, state: State) -> State:
        h, c = state
        gates = F.linear(x, self.from_input) + F.linear(h, self.from_hidden, self.bias)  # [n, 4 H]
        i, f, g, o = gates.chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c


class CoordinatewiseLSTM(nn.Module):
    """A stack of LSTM cells and a linear output: inputs [n, 2] and a state -> outputs [n] and the next state.

    Raises ValueError for a ``hidden_size`` or ``num_layers`` below 1.
    """

    def __init__(self, hidden_size: int, num_layers: int) -> None:
        super().__init__()
        if hidden_size < 1 or num_layers < 1:
            raise ValueError(f"hidden_size {hidden_size} and num_layers {num_layers} must be 1 or more.")
        sizes = [2] + [hidden_size] * num_layers
        self.cells = nn.ModuleList(LSTMCell(a, b) for a, b in pairwise(sizes))
        self.head = nn.Linear(hidden_size, 1)

    def start(self, like: Tensor) -> tuple[State, ...]:
        """Make the state of zeros of each cell for the coordinates of ``like`` [n]."""
        return tuple(cell.start(like) for cell in self.cells)  # type: ignore[operator]

    def forward(self, x: Tensor, state: tuple[State, ...]) -> tuple[Tensor, tuple[State, ...]]:
        states = []
        for cell, before in zip(self.cells, state, strict=True):
            states.append(cell(x, before))
            x = states[-1][0]
        return self.head(x)[:, 0], tuple(states)


class GatedUpdate(nn.Module):
    """The update of the meta-LSTM: an LSTM's cell whose contents are a weight of the base learner.

        h <- LSTM(x, h);   f <- sigmoid(W_f [h, phi, f] + b_f);   i <- sigmoid(W_i [h, phi, i] + b_i)
        phi <- f phi - i g

    x [n, 4], phi and g [n]; f and i begin at 0. It starts as gradient descent with little decay: weights ~ U[-0.01, 0.01],
    b_f ~ U[4, 5] (f about 0.99) and b_i ~ U[-5, -4] (i about 0.01), as in the released code of Ravi and Larochelle 2017.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        if hidden_size < 1:
            raise ValueError(f"hidden_size is {hidden_size}; use 1 or more.")
        self.cell = LSTMCell(4, hidden_size)
        self.forget, self.input = nn.Linear(hidden_size + 2, 1), nn.Linear(hidden_size + 2, 1)
        for p in self.parameters():
            nn.init.uniform_(p, -0.01, 0.01)
        nn.init.uniform_(self.forget.bias, 4, 5)
        nn.init.uniform_(self.input.bias, -5, -4)

    def start(self, like: Tensor) -> tuple[State, Tensor, Tensor]:
        """Make the state of zeros for the coordinates of ``like`` [n]: the cell's, and the gates f and i [n]."""
        return self.cell.start(like), like.new_zeros(len(like)), like.new_zeros(len(like))

    def forward(
        self, x: Tensor, phi: Tensor, g: Tensor, state: tuple[State, Tensor, Tensor]
    ) -> tuple[Tensor, tuple[State, Tensor, Tensor]]:
        hidden, f, i = state
        hidden = self.cell(x, hidden)

        def gate(layer: nn.Module, before: Tensor) -> Tensor:
            return layer(torch.cat([hidden[0], phi[:, None], before[:, None]], 1))[:, 0].sigmoid()  # [n]

        f, i = gate(self.forget, f), gate(self.input, i)
        return f * phi - i * g, (hidden, f, i)
