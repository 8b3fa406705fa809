"""How dask should cut an archive: along its parts, so that no two tasks read the same one."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vcinr_batch.archive.manifest import ArchivePart
from vcinr_batch.archive.selection import Selection
from vcinr_batch.data.layout import Layout

CHUNK_BYTES = 128 << 20
"""A part that decodes to more is cut at its samples."""
_VALUE_BYTES = 4

ChunkLengths = int | tuple[int, ...]


def preferred_chunks(layout: Layout, parts: Sequence[ArchivePart], shown: Selection) -> dict[str, ChunkLengths]:
    """Lengths of dask's chunks along every dimension, for `encoding["preferred_chunks"]`.

    Args:
        layout: of the archive.
        parts: of the archive.
        shown: all of the archive; its labels may stand in another order than in the parts.

    Returns:
        One length where all chunks but a shorter last one are of it, else every length. A chunk is what a part holds
        along each axis, or as many of its samples as decode to 128 MiB. Where the source's order scatters a part's
        labels, a chunk has the part's length and touches several parts.
    """
    starts = [sorted({part.start[k] for part in parts}) for k in range(len(layout.axes))]
    if math.prod(map(len, starts)) > 2 * len(parts):  # the parts are no grid: cut at samples only
        starts = [[0] for _ in starts]
    blocks = _blocks_per_chunk(layout, starts)
    axes = zip(shown.places, layout.block_shape, starts, blocks, strict=True)
    return {name: _lengths(*axis) for name, axis in zip(layout.dims, axes, strict=True)}


def _blocks_per_chunk(layout: Layout, starts: Sequence[Sequence[int]]) -> list[int]:
    """Blocks of the largest chunk along each axis: those of a part, halved from the first axis on while too many."""
    most = [
        max(b - a for a, b in zip(first, [*first[1:], count], strict=True))
        for first, count in zip(starts, layout.block_counts, strict=True)
    ]
    block_bytes = _VALUE_BYTES * layout.points_per_sample * layout.channels
    for k in range(len(most)):
        while most[k] > 1 and block_bytes * math.prod(most) > CHUNK_BYTES:
            most[k] = math.ceil(most[k] / 2)
    return most


def _lengths(places: NDArray[np.int64], block_length: int, starts: Sequence[int], most: int) -> ChunkLengths:
    """Chunks along one axis: runs of labels of one part, and of `most` blocks of it at most.

    Args:
        places: of the labels shown, on the archive's axis.
        block_length: of the archive along this axis.
        starts: first blocks of its parts.
        most: blocks of a chunk.
    """
    blocks = places // block_length
    parts = np.searchsorted(np.asarray(starts), blocks, side="right")
    new_block, new_part = _changes(blocks), _changes(parts)
    if new_part.sum() > len(starts) + 1:  # one more is a global longitude that starts elsewhere
        return min(len(places), most * block_length)
    block_number = np.cumsum(new_block)
    first_of_part = block_number[np.maximum.accumulate(np.where(new_part, np.arange(len(places)), 0))]
    new_chunk = new_part | (new_block & ((block_number - first_of_part) % most == 0))
    lengths = np.diff([*np.flatnonzero(new_chunk).tolist(), len(places)]).tolist()
    same = all(length == lengths[0] for length in lengths[:-1]) and lengths[-1] <= lengths[0]
    return int(lengths[0]) if same else tuple(lengths)


def _changes(numbers: NDArray[np.integer]) -> NDArray[np.bool_]:  # type: ignore[type-arg]
    """Where a run of equal numbers begins."""
    return np.concatenate([[True], numbers[1:] != numbers[:-1]])
