"""Where the values of every block go in an array of chosen labels."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vcinr_batch.errors import ConfigError

Positions = NDArray[np.int64]


class Placement:
    """Puts decoded blocks into their places.

    Args:
        places: for every axis, the positions on the archive's axis that the array shows, in any order.
        block_shape: length of a block along each axis.
    """

    def __init__(self, places: Sequence[Positions], block_shape: Sequence[int]) -> None:
        axes = list(enumerate(zip(places, block_shape, strict=True)))
        # Blocks of one label, each shown once, are looked up all at a time: labels in order, and where they go.
        orders = {k: np.argsort(along, kind="stable") for k, (along, length) in axes if length == 1}
        labels = {k: places[k][order] for k, order in orders.items()}
        self._single = {k: (labels[k], orders[k]) for k in orders if (labels[k][1:] != labels[k][:-1]).all()}
        self._others = {k: _by_block(along, length) for k, (along, length) in axes if k not in self._single}

    def put(self, blocks: Positions, decoded: NDArray[Any], values: NDArray[Any]) -> None:
        """Copy what is shown of some blocks.

        Args:
            blocks: [B, axes], their indexes along every axis, each block once.
            decoded: their values [B, *block_shape, C].
            values: the array [number of places along every axis, C].
        """
        shown = values.transpose(*self._single, *self._others, values.ndim - 1)
        single = [order[np.searchsorted(labels, blocks[:, k])] for k, (labels, order) in self._single.items()]
        lengths = [decoded.shape[1 + k] for k in self._others]
        blocks_shaped = decoded.reshape(len(blocks), *lengths, decoded.shape[-1])
        for rows in _groups(blocks[:, list(self._others)]):
            others = [along[int(blocks[rows[0], k])] for k, along in self._others.items()]
            _copy(blocks_shaped[_index(rows)], shown, [there[rows] for there in single], others)


def allocate(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """An array to put decoded values into, NaN to begin with.

    Raises:
        ConfigError: it does not fit into memory.
    """
    try:
        return np.full(shape, np.nan, np.float32)
    except (MemoryError, ValueError) as error:
        gigabytes = 4 * math.prod(shape) / 1e9
        raise ConfigError(f"the selection has shape {shape}, {gigabytes:.0f} GB: select less") from error


def _copy(
    decoded: NDArray[Any], shown: NDArray[Any], single: Sequence[Positions], others: Sequence[tuple[Positions, ...]]
) -> None:
    """Blocks [B, *lengths of the other axes, C] into an array [*single axes, *other axes, C], by their places there."""
    there, inside = [_index(along) for along, _ in others], [_index(along) for _, along in others]
    are_slices = all(isinstance(index, slice) for index in (*there, *inside))
    if single and are_slices:  # the usual case: all of them in one go
        at = [_index(along) for along in single] if len(single) == 1 else single
        shown[(*at, *there)] = decoded[(slice(None), *inside)]
        return
    for row, block in enumerate(decoded):
        place = shown[tuple(int(along[row]) for along in single)]
        if are_slices:  # many times as fast as by index
            place[tuple(there)] = block[tuple(inside)]
        else:
            place[np.ix_(*(along for along, _ in others))] = block[np.ix_(*(along for _, along in others))]


def _groups(blocks: Positions) -> Iterator[Positions]:
    """The numbers of the rows that are alike."""
    if (blocks == blocks[:1]).all():
        yield np.arange(len(blocks))
        return
    _, group = np.unique(blocks, axis=0, return_inverse=True)
    order = np.argsort(group.reshape(-1), kind="stable")
    yield from np.split(order, np.cumsum(np.bincount(group.reshape(-1)))[:-1])


def _by_block(places: Positions, length: int) -> dict[int, tuple[Positions, Positions]]:
    """Block index -> where its labels stand in `places`, and where within the block."""
    blocks = places // length
    order = np.argsort(blocks, kind="stable")
    found, first = np.unique(blocks[order], return_index=True)
    return {
        block: (there, places[there] - block * length)
        for block, there in zip(found.tolist(), np.split(order, first[1:]), strict=True)
    }


def _index(positions: Positions) -> slice | Positions:
    """Positions that follow each other, upwards or downwards, as a slice; others as they are."""
    first, last = int(positions[0]), int(positions[-1])
    step = 1 if last >= first else -1
    if len(positions) != abs(last - first) + 1:
        return positions
    if len(positions) > 1 and (positions[1:] - positions[:-1] != step).any():
        return positions
    return slice(first, last + step if last + step >= 0 else None, step)
