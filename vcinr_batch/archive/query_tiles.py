"""Which blocks of a layout the points of a query lie in, and where in them: what a network is evaluated by."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vcinr_batch.archive.query import AxisQuery, Query
from vcinr_batch.data.coordinates import Grid
from vcinr_batch.data.interpolation import Floats
from vcinr_batch.data.layout import Layout

Block = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Tile:
    """Blocks of which the same points within are asked for."""

    positions: list[Floats]
    """Within a block: one array per axis of the layout, that broadcast to the points' shape."""
    blocks: dict[Block, list[NDArray[np.int64]]]
    """For each block where its points stand, along every dimension of the answer."""


def query_tiles(layout: Layout, grid: Grid, query: Query, axes: Sequence[AxisQuery]) -> list[Tile]:
    """The blocks that contain the points (the nearest label of the grid belongs to them), the alike ones together."""
    by_axis = [_block_positions(layout, grid, k, axis.positions) for k, axis in enumerate(axes)]
    groups: list[list[tuple[Block, NDArray[np.int64]]]] = []  # along each dimension: blocks, and where their points are
    dims = [(k,) for k in query.outer] + ([query.pointwise] if query.pointwise else [])
    for members in dims:
        blocks = np.stack([by_axis[k][0] for k in members], axis=1)
        found, inverse = np.unique(blocks, axis=0, return_inverse=True)
        order = np.argsort(inverse.ravel(), kind="stable")
        where = np.split(order, np.cumsum(np.bincount(inverse.ravel()))[:-1])
        groups.append([(tuple(block), there) for block, there in zip(found.tolist(), where, strict=True)])
    tiles: dict[tuple[bytes, ...], Tile] = {}
    for choice in itertools.product(*groups):
        block, positions, where_all = [0] * len(axes), [np.zeros(0)] * len(axes), [there for _, there in choice]
        for at, (members, (parts, there)) in enumerate(zip(dims, choice, strict=True)):
            for k, part in zip(members, parts, strict=True):
                block[k] = part
                positions[k] = by_axis[k][1][there].reshape([-1 if j == at else 1 for j in range(len(dims))])
        name = tuple(along.tobytes() for along in positions)
        tiles.setdefault(name, Tile(positions, {})).blocks[tuple(block)] = where_all
    return list(tiles.values())


def _block_positions(layout: Layout, grid: Grid, k: int, positions: Floats) -> tuple[NDArray[np.int64], Floats]:
    """For fractional positions on an axis, the block of each and the position within it."""
    if grid.geographic_dims is not None and k in grid.geographic_dims:  # one block, which knows no ends of a longitude
        return np.zeros(len(positions), np.int64), positions
    n, length = len(layout.axes[k]), layout.block_shape[k]
    nearest = np.floor(positions + 0.5).astype(np.int64)
    is_round = nearest >= n  # around the globe, nearer to the first label than to the last
    block = np.where(is_round, 0, nearest) // length
    return block, np.where(is_round, positions - n, positions) - block * length
