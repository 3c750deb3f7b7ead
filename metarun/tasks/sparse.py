"""Sparse matrices whose rows become dense when they are taken."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sparse:
    """Rows of a matrix with ``size`` columns: row r holds values[first[r] : first[r + 1]] in those columns."""

    columns: Tensor
    values: Tensor
    first: Tensor
    size: int

    def take(self, numbers: Tensor) -> Tensor:
        """The rows [R] as a dense matrix [R, size]."""
        lengths = self.first[numbers + 1] - self.first[numbers]
        row = torch.repeat_interleave(torch.arange(len(numbers), device=numbers.device), lengths)
        within = torch.arange(len(row), device=row.device) - (lengths.cumsum(0) - lengths)[row]
        places = self.first[numbers][row] + within
        dense = self.values.new_zeros(len(numbers), self.size)
        return dense.index_put_((row, self.columns[places]), self.values[places])
