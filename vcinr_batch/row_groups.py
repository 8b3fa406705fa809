"""Functions of rows in groups of one size: a row's result does not depend on the rows that it comes with.

Matrix products add in an order that depends on their shape, so that the last bits of a sample's values would tell how
many others were decoded beside it. In groups of one size every sample has products of the same shape.
"""

from collections.abc import Callable

import torch
from torch import Tensor

GROUP_ROWS = 8
"""Enough that a matrix is read for many rows at once, and few enough that one row alone costs little more."""


def in_groups(function: Callable[[Tensor], Tensor], rows: Tensor, size: int = GROUP_ROWS) -> Tensor:
    """A function of rows [B, ...], which takes any number of them, on exactly `size` rows at a time.

    The last group is filled up with its last row. No rows are given to the function as they are.

    Returns:
        [B, ...], whatever the function makes of a row.
    """
    if not len(rows):
        return function(rows)
    values: Tensor | None = None
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        # Always a copy: how a product rounds may also depend on where its factors lie in memory.
        found = function(torch.cat([part, part[-1:].expand(size - len(part), *part.shape[1:])]))
        if values is None:
            values = found.new_empty((len(rows), *found.shape[1:]))
        values[start : start + len(part)] = found[: len(part)]
    assert values is not None
    return values
