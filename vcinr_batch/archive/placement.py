"""Where the values of every block go in an array of chosen labels."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Run = slice | None
"""Positions that follow each other, upwards or downwards; None where they do not."""


class Placement:
    """Puts decoded blocks into their places.

    Args:
        places: for every axis, the positions on the archive's axis that the array shows, in any order.
        block_shape: length of a block along each axis.
    """

    def __init__(self, places: Sequence[NDArray[np.int64]], block_shape: Sequence[int]) -> None:
        self._along = [_by_block(along, length) for along, length in zip(places, block_shape, strict=True)]

    def put(self, block: Sequence[int], decoded: NDArray[Any], values: NDArray[Any]) -> None:
        """Copy what is shown of a block.

        Args:
            block: its index along each axis.
            decoded: its values [*block_shape, C].
            values: the array [number of places along every axis, C].
        """
        found = [along[i] for along, i in zip(self._along, block, strict=True)]
        runs = [(there, inside) for _, _, there, inside in found if there is not None and inside is not None]
        if len(runs) == len(found):  # the usual case, many times as fast as by index
            values[tuple(there for there, _ in runs)] = decoded[tuple(inside for _, inside in runs)]
        else:
            values[np.ix_(*(there for there, *_ in found))] = decoded[np.ix_(*(inside for _, inside, *_ in found))]


def _by_block(
    places: NDArray[np.int64], length: int
) -> dict[int, tuple[NDArray[np.int64], NDArray[np.int64], Run, Run]]:
    """Block index -> where its labels stand in `places`, and where within the block; both as runs, too."""
    blocks = places // length
    order = np.argsort(blocks, kind="stable")
    found, first = np.unique(blocks[order], return_index=True)
    result = {}
    for block, there in zip(found.tolist(), np.split(order, first[1:]), strict=True):
        inside = places[there] - block * length
        result[block] = (there, inside, _run(there), _run(inside))
    return result


def _run(positions: NDArray[np.int64]) -> Run:
    first, last = int(positions[0]), int(positions[-1])
    step = 1 if last >= first else -1
    if len(positions) != abs(last - first) + 1:
        return None
    if len(positions) > 1 and (positions[1:] - positions[:-1] != step).any():
        return None
    return slice(first, last + step if last + step >= 0 else None, step)
