"""Frozen entropy model: one integer frequency table per quality level and code dimension.

Tables are integers so that every machine decodes the same symbols. A symbol s of a dimension splits into
`high = s >> shift`, coded by the dimension's table, and `low = s & (2^shift - 1)`, coded uniformly. The last entry
of a table is the escape, which stands for every `high` that the table does not list.

The tables of a finer level fit a sample with larger symbols than usual, those of a coarser level one with smaller
symbols. So each sample takes the level's tables that code it shortest, within two levels of its own: a gain per sample
that costs the bundle nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vcinr_batch.errors import CorruptBitstreamError

COUNT_BITS = 16
COUNT_TOTAL = 1 << COUNT_BITS
MAX_TABLE_SIZE = 128
MAX_SHIFT = 30
MAX_QUALITY_LEVELS = 64
MAX_CODE_DIM = 1 << 16
LEVEL_OFFSETS = (-2, -1, 0, 1, 2)


@dataclass(frozen=True, eq=False)
class FrozenTables:
    """Integer tables for Q quality levels and K code dimensions; checked on construction.

    Raises:
        CorruptBitstreamError: the arrays contradict each other or leave their ranges.
    """

    steps: NDArray[np.float64]
    """[Q], quantisation step per quality level in the unit of the code; descending, so quality rises."""
    shift: NDArray[np.uint8]
    """[Q, K], number of low bits that are coded uniformly; 0..30."""
    first: NDArray[np.int32]
    """[Q, K], smallest `high` with an entry of its own."""
    size: NDArray[np.uint16]
    """[Q, K], entries of the table, the escape included; 2..128."""
    counts: NDArray[np.uint16]
    """[sum of size], the tables one after another, row-major over (Q, K); each sums to 2^16, each entry >= 1."""
    offset_counts: NDArray[np.uint16]
    """[Q, 5], how often a sample of this level is coded by the tables of level -2..+2 from its own; sums to 2^16."""

    def __post_init__(self) -> None:
        _check_tables(self)

    @property
    def quality_count(self) -> int:
        """Q."""
        return len(self.steps)

    @property
    def code_dim(self) -> int:
        """K."""
        return int(self.shift.shape[1])

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """[Q, K], where each table starts in `counts`."""
        ends = np.cumsum(self.size.ravel(), dtype=np.int64)
        return (ends - self.size.ravel()).reshape(self.size.shape)


def split_symbols(
    symbols: NDArray[np.int32], shift: NDArray[Any], first: NDArray[Any], size: NDArray[Any]
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Which entry of its table codes each symbol, and what the escapes stand for.

    Args:
        symbols: int32 [B, K].
        shift: [K], like `first` and `size` those of the symbols' tables.

    Returns:
        entries: int32 [B, K], `size - 1` for an escape.
        numbers: int64 [escapes], row by row: 0, 2, 4.. for the values above the table, 1, 3, 5.. for those below.
    """
    offset = (symbols >> shift.astype(np.int32)) - first.astype(np.int64)
    escape = size.astype(np.int64) - 1
    escaped = (offset < 0) | (offset >= escape)
    entries = np.where(escaped, escape, offset).astype(np.int32)
    outside = offset[escaped]
    above = outside - np.broadcast_to(escape, offset.shape)[escaped]
    return entries, np.where(outside >= 0, 2 * above, -2 * outside - 1)


def choose_levels(tables: FrozenTables, quality: int, symbols: NDArray[np.int32]) -> NDArray[np.int64]:
    """Which level's tables code each sample shortest: int64 [B], within two of `quality`."""
    levels = [quality + offset for offset in LEVEL_OFFSETS if 0 <= quality + offset < tables.quality_count]
    side_bits = COUNT_BITS - np.log2(tables.offset_counts[quality])
    bits = [
        symbol_bits(tables, level, symbols).sum(axis=1) + side_bits[level - quality - LEVEL_OFFSETS[0]]
        for level in levels
    ]
    best: NDArray[np.int64] = np.asarray(levels, np.int64)[np.argmin(bits, axis=0)]
    return best


def symbol_bits(tables: FrozenTables, level: int, symbols: NDArray[np.int32]) -> NDArray[np.float32]:
    """Bits of each symbol under one level's tables, float32 [B, K]; an escape counts as one bit beyond its entry."""
    costs = _entry_costs(tables, level)
    entries, _ = split_symbols(symbols, tables.shift[level], tables.first[level], tables.size[level])
    bits: NDArray[np.float32] = costs.ravel()[entries + np.arange(len(costs)) * costs.shape[1]]
    return bits


def ideal_bits(tables: FrozenTables, quality: int, symbols: NDArray[np.int32]) -> NDArray[np.float64]:
    """Information of each sample's symbols under the tables.

    Args:
        symbols: int32 [B, K].

    Returns:
        float64 [B], bits: choice of the tables, their entries, uniform low bits, and 2 floor(log2(u + 1)) + 1 bits for
        an escape with number u.
    """
    chosen = choose_levels(tables, quality, symbols)
    bits = COUNT_BITS - np.log2(tables.offset_counts[quality][chosen - quality - LEVEL_OFFSETS[0]].astype(np.float64))
    for level in np.unique(chosen):
        of_level = chosen == level
        entries, numbers = split_symbols(
            symbols[of_level], tables.shift[level], tables.first[level], tables.size[level]
        )
        level_bits = COUNT_BITS - np.log2(tables.counts[tables.starts[level] + entries].astype(np.float64))
        level_bits += tables.shift[level]
        level_bits[entries == tables.size[level].astype(np.int32) - 1] += 2 * np.floor(np.log2(numbers + 1)) + 1
        bits[of_level] += level_bits.sum(axis=1)
    return np.asarray(bits)


def tables_to_arrays(tables: FrozenTables) -> dict[str, NDArray[Any]]:
    """The six arrays by field name, for a bundle."""
    return {name: getattr(tables, name) for name in _DTYPES}


def tables_from_arrays(arrays: Mapping[str, NDArray[Any]]) -> FrozenTables:
    """Inverse of `tables_to_arrays`, on untrusted arrays.

    Raises:
        CorruptBitstreamError: an array is missing, has another dtype, or the tables are not valid.
    """
    missing = sorted(set(_DTYPES) - set(arrays))
    if missing:
        raise CorruptBitstreamError(f"entropy tables: missing {', '.join(missing)}")
    return FrozenTables(**{name: arrays[name] for name in _DTYPES})


# Keeps a decoded code within float32.
_STEP_RANGE = (1e-28, 1e28)
_DTYPES = {
    "steps": np.float64,
    "shift": np.uint8,
    "first": np.int32,
    "size": np.uint16,
    "counts": np.uint16,
    "offset_counts": np.uint16,
}


def _check_tables(tables: FrozenTables) -> None:
    for name, dtype in _DTYPES.items():
        array = getattr(tables, name)
        if not isinstance(array, np.ndarray) or array.dtype != dtype:
            raise CorruptBitstreamError(f"entropy tables: {name} must be an array of {np.dtype(dtype)}")
    levels, shape = tables.steps.shape, tables.shift.shape
    _require(len(levels) == 1 and 1 <= levels[0] <= MAX_QUALITY_LEVELS, "1 to 64 quality levels")
    _require(len(shape) == 2 and shape[0] == levels[0] and 1 <= shape[1] <= MAX_CODE_DIM, "shift of shape [Q, K]")
    _require(tables.first.shape == shape and tables.size.shape == shape, "first and size of shape [Q, K]")
    _require(bool(((tables.steps >= _STEP_RANGE[0]) & (tables.steps <= _STEP_RANGE[1])).all()), "steps in 1e-28..1e28")
    _require(bool((np.diff(tables.steps) < 0).all()), "descending steps")
    _require(bool((tables.shift <= MAX_SHIFT).all()), "shift of at most 30")
    _require(bool(((tables.size >= 2) & (tables.size <= MAX_TABLE_SIZE)).all()), "2 to 128 entries per table")
    _require(tables.counts.shape == (int(tables.size.sum(dtype=np.int64)),), "as many counts as the sizes say")
    _require(bool((tables.counts >= 1).all()), "counts of at least 1")
    totals = np.add.reduceat(tables.counts.astype(np.int64), tables.starts.ravel())
    _require(bool((totals == COUNT_TOTAL).all()), "counts that sum to 65536 in each table")
    _require(tables.offset_counts.shape == (*levels, len(LEVEL_OFFSETS)), "offset_counts of shape [Q, 5]")
    _require(bool((tables.offset_counts >= 1).all()), "offset_counts of at least 1")
    _require(bool((tables.offset_counts.sum(axis=1, dtype=np.int64) == COUNT_TOTAL).all()), "offset_counts like counts")


def _require(condition: bool, expected: str) -> None:
    if not condition:
        raise CorruptBitstreamError(f"entropy tables: expected {expected}")


@lru_cache(maxsize=128)
def _entry_costs(tables: FrozenTables, level: int) -> NDArray[np.float32]:
    """[K, S], bits of each entry of a level's tables, low bits included."""
    size = tables.size[level].astype(np.int64)
    column = np.arange(int(size.max()))
    place = np.minimum(tables.starts[level][:, None] + column, len(tables.counts) - 1)
    costs = COUNT_BITS - np.log2(tables.counts[place].astype(np.float64)) + tables.shift[level][:, None]
    costs += column == size[:, None] - 1
    return np.asarray(costs, np.float32)
