"""Base symbols through the compiled range coder: byte for byte what `entropy_coder` writes, inside a longer message."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vcinr_batch.codec.entropy_model import COUNT_BITS, LEVEL_OFFSETS, FrozenTables
from vcinr_batch.codec.range_coder import (
    CORRUPT,
    FREQUENCY_BITS,
    Scalar,
    bit_length,
    compiled,
    consume,
    decode_bits,
    decode_target,
    encode_bits,
    encode_interval,
    find_entry,
)

Integers = NDArray[np.int64]

ESCAPE_LENGTHS = 36
_COUNT_SCALE = 1 << (FREQUENCY_BITS - COUNT_BITS)
_WIDTHS = np.array([8, 16, 32, 64, 128])
_CHUNK = 16
_INT32 = 1 << 31


@dataclass(frozen=True, eq=False)
class SymbolPlan:
    """What coding with one level's tables needs; per-dimension arrays are in coding order."""

    order: Integers
    """[K], dimensions in coding order: widest tables first."""
    shape: Integers
    """[K, 4]: first, escape entry, low bits, where the dimension's cumulative frequencies start."""
    cumulative: Integers
    """Frequencies summed up, one table after another, each with 2^24 less its padding at the end."""


@lru_cache(maxsize=128)
def symbol_plan(tables: FrozenTables, level: int) -> SymbolPlan:
    """The plan of one level's tables."""
    size = tables.size[level].astype(np.int64)
    width = _WIDTHS[np.searchsorted(_WIDTHS, size)]
    order = np.argsort(-width, kind="stable")
    cumulative: list[Integers] = []
    starts = np.concatenate([[0], np.cumsum(size[order] + 1)[:-1]])
    for k in order.tolist():
        counts = tables.counts[tables.starts[level, k] :][: size[k]].astype(np.int64) * _COUNT_SCALE
        counts[-1] -= int(width[k] - size[k])
        cumulative.append(np.concatenate([[0], np.cumsum(counts)]))
    fields = [tables.first[level][order], size[order] - 1, tables.shift[level][order], starts]
    return SymbolPlan(order, np.stack([np.asarray(f, np.int64) for f in fields], 1), np.concatenate(cumulative))


@lru_cache(maxsize=128)
def offset_cumulative(tables: FrozenTables, quality: int) -> Integers:
    """[6], summed frequencies of the level offsets."""
    counts = tables.offset_counts[quality].astype(np.int64) * _COUNT_SCALE
    cumulative: Integers = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return cumulative


def offset_of(level: int, quality: int) -> int:
    """The number under which a sample's choice of tables is coded."""
    return level - quality - LEVEL_OFFSETS[0]


def _escape_length_cumulative() -> Integers:
    frequency = np.array([max(1 << (FREQUENCY_BITS - 1) >> n, 1) for n in range(ESCAPE_LENGTHS)], np.int64)
    frequency[0] -= frequency.sum() - (1 << FREQUENCY_BITS)
    cumulative: Integers = np.concatenate([[0], np.cumsum(frequency)]).astype(np.int64)
    return cumulative


ESCAPE_CUMULATIVE = _escape_length_cumulative()
"""[37], summed frequencies of an escape's length."""


@compiled
def encode_entry(
    state: NDArray[np.uint64], words: NDArray[np.uint32], table: Integers, start: Scalar, entry: Scalar
) -> None:
    """Code an entry of the table that begins at `start`."""
    low = table[start + entry]
    encode_interval(state, words, low, table[start + entry + 1] - low)


@compiled
def decode_entry(
    state: NDArray[np.uint64], payload: NDArray[np.uint8], table: Integers, start: Scalar, size: Scalar
) -> Scalar:
    """Inverse of `encode_entry`; or `CORRUPT`."""
    target = decode_target(state)
    if target == CORRUPT or target >= table[start + size]:
        return CORRUPT
    entry = find_entry(table, start, size, target)
    low = table[start + entry]
    consume(state, payload, low, table[start + entry + 1] - low)
    return entry


@compiled
def encode_symbols_into(
    state: NDArray[np.uint64],
    words: NDArray[np.uint32],
    symbols: NDArray[np.int32],
    order: Integers,
    shape: Integers,
    cumulative: Integers,
    escape_cumulative: Integers,
    numbers: Integers,
) -> None:
    """Code one sample's symbols [K] after its offset. `numbers` [K] is scratch."""
    escapes = 0
    for i in range(len(order)):
        first, escape, shift, start = shape[i]
        offset = (np.int64(symbols[order[i]]) >> shift) - first
        if offset < 0 or offset >= escape:
            numbers[escapes] = 2 * (offset - escape) + 1 if offset >= 0 else -2 * offset
            escapes += 1
            offset = escape
        encode_entry(state, words, cumulative, start, offset)
    for i in range(escapes):
        encode_entry(state, words, escape_cumulative, 0, bit_length(numbers[i]))
    for part in range(2):
        for i in range(escapes):
            _encode_part(state, words, numbers[i], bit_length(numbers[i]), part)
    for part in range(2):
        for i in range(len(order)):
            _encode_part(state, words, np.int64(symbols[order[i]]), shape[i, 2], part)


@compiled
def decode_symbols_from(
    state: NDArray[np.uint64],
    payload: NDArray[np.uint8],
    symbols: NDArray[np.int32],
    order: Integers,
    shape: Integers,
    cumulative: Integers,
    escape_cumulative: Integers,
    numbers: Integers,
    lengths: Integers,
    high: Integers,
) -> bool:
    """Inverse of `encode_symbols_into`; False for bytes that it never writes. Scratch: the last three, [K] each."""
    escapes = 0
    for i in range(len(order)):
        first, escape, _, start = shape[i]
        entry = decode_entry(state, payload, cumulative, start, escape + 1)
        if entry == CORRUPT:
            return False
        high[i] = entry + first
    for i in range(len(order)):
        if high[i] == shape[i, 0] + shape[i, 1]:
            lengths[escapes] = decode_entry(state, payload, escape_cumulative, 0, len(escape_cumulative) - 1)
            if lengths[escapes] == CORRUPT:
                return False
            numbers[escapes] = np.int64(1) << lengths[escapes]
            escapes += 1
    for part in range(2):
        for i in range(escapes):
            bits = _decode_part(state, payload, lengths[i], part)
            if bits == CORRUPT:
                return False
            numbers[i] += bits
    escapes = 0
    for i in range(len(order)):
        first, escape, shift, _ = shape[i]
        if high[i] == first + escape:
            number = numbers[escapes] - 1
            high[i] = first - 1 - (number >> 1) if number & 1 else first + escape + (number >> 1)
            escapes += 1
        if not -(_INT32 >> shift) <= high[i] < _INT32 >> shift:
            return False
        high[i] <<= shift
    for part in range(2):
        for i in range(len(order)):
            bits = _decode_part(state, payload, shape[i, 2], part)
            if bits == CORRUPT:
                return False
            high[i] += bits
    for i in range(len(order)):
        symbols[order[i]] = high[i]
    return True


@compiled
def encode_number(
    state: NDArray[np.uint64], words: NDArray[np.uint32], number: Scalar, escape_cumulative: Integers
) -> None:
    """Code an integer from 0 to 2^36 - 2 as an Elias gamma code does: the length of number + 1, then its bits."""
    length = bit_length(number + 1)
    encode_entry(state, words, escape_cumulative, 0, length)
    _encode_part(state, words, number + 1, length, 0)
    _encode_part(state, words, number + 1, length, 1)


@compiled
def decode_number(state: NDArray[np.uint64], payload: NDArray[np.uint8], escape_cumulative: Integers) -> Scalar:
    """Inverse of `encode_number`; or `CORRUPT`."""
    length = decode_entry(state, payload, escape_cumulative, 0, len(escape_cumulative) - 1)
    if length == CORRUPT:
        return CORRUPT
    number = (np.int64(1) << length) - 1
    for part in range(2):
        bits = _decode_part(state, payload, length, part)
        if bits == CORRUPT:
            return CORRUPT
        number += bits
    return number


@compiled
def _encode_part(
    state: NDArray[np.uint64], words: NDArray[np.uint32], value: Scalar, bits: Scalar, part: Scalar
) -> None:
    """Of the lowest `bits` of a value those above the lowest 16 (part 0), or the lowest 16 (part 1)."""
    if part == 0 and bits > _CHUNK:
        encode_bits(state, words, value >> _CHUNK, bits - _CHUNK)
    if part == 1 and bits > 0:
        encode_bits(state, words, value, min(bits, _CHUNK))


@compiled
def _decode_part(state: NDArray[np.uint64], payload: NDArray[np.uint8], bits: Scalar, part: Scalar) -> Scalar:
    if part == 0 and bits > _CHUNK:
        value = decode_bits(state, payload, bits - _CHUNK)
        return CORRUPT if value == CORRUPT else value << _CHUNK
    if part == 1 and bits > 0:
        return decode_bits(state, payload, min(bits, _CHUNK))
    return 0


def plan_arguments(plan: SymbolPlan) -> Any:
    """A plan as the kernels take it."""
    return plan.order, plan.shape, plan.cumulative, ESCAPE_CUMULATIVE
