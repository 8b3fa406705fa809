"""Symbols <-> bytes: a range coder driven by the frozen tables.

A payload is the number that the range coder ends on, in the fewest bytes; FORMAT.md specifies it without reference to
the library that does the arithmetic here. Frequencies are multiples of 2^-24 and reach the coder as float32 integers,
which it uses exactly (sums stay below 2^24), so no rounding decides a symbol.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import constriction
import numpy as np
from numpy.typing import NDArray

from vcinr_batch.codec.entropy_model import COUNT_BITS, LEVEL_OFFSETS, FrozenTables, choose_levels, split_symbols
from vcinr_batch.errors import ConfigError, CorruptBitstreamError

_FREQUENCY_BITS = 24
_COUNT_SCALE = 1 << (_FREQUENCY_BITS - COUNT_BITS)
_WIDTHS = np.array([8, 16, 32, 64, 128])
_CHUNK_BITS = 16
_ESCAPE_LENGTHS = 36
# Entry and escape length take at most 24 bits each, the escape's value and the low bits together at most 36 + 30.
_MAX_BYTES_PER_SYMBOL = 15
_CATEGORICAL = constriction.stream.model.Categorical(perfect=False)
_UNIFORM = constriction.stream.model.Uniform()


def encode_symbols(symbols: NDArray[np.int32], tables: FrozenTables, quality: int) -> list[bytes]:
    """Code each row of symbols into its own payload.

    Args:
        symbols: int32 [B, K]; every int32 can be coded.
        quality: level of the tables, 0..Q-1.

    Returns:
        B payloads without any framing. The last byte of a payload is never zero; a payload may be empty.

    Raises:
        ConfigError: no such quality level, or symbols of another shape or dtype.
    """
    _check_quality(tables, quality)
    if symbols.ndim != 2 or symbols.shape[1] != tables.code_dim or symbols.dtype != np.int32:
        raise ConfigError(f"expected int32 symbols [B, {tables.code_dim}], got {symbols.dtype} {symbols.shape}")
    chosen = choose_levels(tables, quality, symbols)
    payloads = [b""] * len(symbols)
    for level in np.unique(chosen).tolist():
        samples = np.flatnonzero(chosen == level)
        encoded = _encode_level(symbols[samples], tables, quality, level)
        for i, payload in zip(samples.tolist(), encoded, strict=True):
            payloads[i] = payload
    return payloads


def decode_symbols(payloads: Sequence[bytes], tables: FrozenTables, quality: int) -> NDArray[np.int32]:
    """Inverse of `encode_symbols`: int32 [B, K].

    Any bytes end in bounded time. Noticed are bytes that no message leads to, a zero at the end, more bytes than a
    sample can have, and symbols beyond 32 bits. Coding the symbols again and comparing would notice every payload
    that `encode_symbols` does not write, at the cost of encoding; that is left to the archive row's checksum.

    Raises:
        ConfigError: no such quality level.
        CorruptBitstreamError: a payload that `encode_symbols` never writes; names its position.
    """
    _check_quality(tables, quality)
    symbols = np.empty((len(payloads), tables.code_dim), np.int32)
    for i, payload in enumerate(payloads):
        try:
            symbols[i] = _decode_sample(payload, tables, quality)
        except CorruptBitstreamError as error:
            raise CorruptBitstreamError(f"payload {i} of {len(payloads)}: {error}") from error
    return symbols


def _check_quality(tables: FrozenTables, quality: int) -> None:
    if not 0 <= quality < tables.quality_count:
        raise ConfigError(f"quality {quality}: this bundle has levels 0 to {tables.quality_count - 1}")


@dataclass(frozen=True, eq=False)
class _Chunk:
    """At most 16 bits each of some values, coded uniformly in one call."""

    places: NDArray[np.int64]
    shift: int
    sizes: NDArray[np.int32]  # 2^bits

    def take(self, values: NDArray[Any]) -> NDArray[np.int32]:
        """Values [.., n] -> their bits of this chunk [.., places]."""
        return ((values[..., self.places] >> self.shift) & (self.sizes - 1)).astype(np.int32)


def _chunks(widths: NDArray[np.int64]) -> tuple[_Chunk, ...]:
    """Cut values of the given widths: all bits above the lowest 16 first, then the others; empty chunks left out."""
    parts = ((_CHUNK_BITS, widths - _CHUNK_BITS), (0, np.minimum(widths, _CHUNK_BITS)))
    return tuple(
        _Chunk(np.flatnonzero(bits > 0), shift, (1 << bits[bits > 0]).astype(np.int32))
        for shift, bits in parts
        if (bits > 0).any()
    )


@dataclass(frozen=True, eq=False)
class _Level:
    """What coding with one level's tables needs, prepared once. Per-dimension arrays are in coding order."""

    order: NDArray[np.int64]  # [K], dimensions in coding order: widest tables first, so that each run has one width
    place: NDArray[np.int64]  # [K], the inverse of `order`
    runs: tuple[tuple[slice, NDArray[np.float32]], ...]  # places in coding order; [places, width] frequencies - 1
    first: NDArray[np.int64]
    escape: NDArray[np.int64]
    shift: NDArray[np.int64]
    limit: NDArray[np.int64]  # 2^31 >> shift
    chunks: tuple[_Chunk, ...]  # of the low bits


@lru_cache(maxsize=128)
def _level(tables: FrozenTables, level: int) -> _Level:
    width = _WIDTHS[np.searchsorted(_WIDTHS, tables.size[level])]
    order = np.argsort(-width, kind="stable")
    shift = tables.shift[level][order].astype(np.int64)
    return _Level(
        order=order,
        place=np.argsort(order),
        runs=tuple(_runs(tables, level, order, width[order])),
        first=tables.first[level][order].astype(np.int64),
        escape=tables.size[level][order].astype(np.int64) - 1,
        shift=shift,
        limit=(1 << 31) >> shift,
        chunks=_chunks(shift),
    )


def _runs(
    tables: FrozenTables, level: int, order: NDArray[np.int64], width: NDArray[np.int64]
) -> list[tuple[slice, NDArray[np.float32]]]:
    bounds = [0, *(np.flatnonzero(np.diff(width)) + 1).tolist(), len(width)]
    runs = []
    for start, stop in pairwise(bounds):
        frequency = _frequencies(tables, level, order[start:stop], int(width[start]))
        runs.append((slice(start, stop), (frequency - 1).astype(np.float32)))
    return runs


def _frequencies(tables: FrozenTables, level: int, dims: NDArray[np.int64], width: int) -> NDArray[np.int64]:
    """[dims, width] integers that sum to 2^24 in each row; entries past the table get 1 each, at the escape's cost."""
    size, start = tables.size[level][dims].astype(np.int64), tables.starts[level][dims]
    column = np.arange(width)
    place = np.minimum(start[:, None] + column, len(tables.counts) - 1)
    counts = tables.counts[place].astype(np.int64) * _COUNT_SCALE
    frequency = np.where(column < size[:, None], counts, 1)
    frequency[np.arange(len(dims)), size - 1] -= width - size
    return frequency


@lru_cache(maxsize=128)
def _offset_parameters(tables: FrozenTables, quality: int) -> NDArray[np.float32]:
    """[1, 5], frequency - 1 of the level offsets."""
    return np.asarray(tables.offset_counts[quality].astype(np.int64) * _COUNT_SCALE - 1, np.float32)[None]


def _escape_length_parameters() -> NDArray[np.float32]:
    """[1, 36], frequency - 1 of floor(log2(u + 1)): one half, one quarter, .. as in an Elias gamma code."""
    frequency = np.array([max(1 << (_FREQUENCY_BITS - 1) >> n, 1) for n in range(_ESCAPE_LENGTHS)])
    frequency[0] -= frequency.sum() - (1 << _FREQUENCY_BITS)
    return (frequency - 1).astype(np.float32)[None]


_ESCAPE_PARAMETERS = _escape_length_parameters()


def _encode_level(symbols: NDArray[np.int32], tables: FrozenTables, quality: int, level: int) -> list[bytes]:
    """Payloads of samples that all take the tables of one level."""
    plan = _level(tables, level)
    ordered = symbols[:, plan.order]
    entries, numbers = split_symbols(ordered, plan.shift, plan.first, plan.escape + 1)
    escapes = np.split(numbers, np.cumsum((entries == plan.escape).sum(axis=1))[:-1])
    low_bits = [chunk.take(ordered) for chunk in plan.chunks]
    offset = np.array([level - quality - LEVEL_OFFSETS[0]], np.int32)
    payloads = []
    for i in range(len(symbols)):
        encoder = constriction.stream.queue.RangeEncoder()
        encoder.encode(offset, _CATEGORICAL, _offset_parameters(tables, quality))
        for places, parameters in plan.runs:
            encoder.encode(entries[i, places], _CATEGORICAL, parameters)
        if len(escapes[i]):
            _encode_escapes(encoder, escapes[i])
        for chunk, bits in zip(plan.chunks, low_bits, strict=True):
            encoder.encode(bits[i], _UNIFORM, chunk.sizes)
        payloads.append(_shortest_bytes(encoder))
    return payloads


def _encode_escapes(encoder: Any, numbers: NDArray[np.int64]) -> None:
    # Exact: numbers stay below 2^34, far from where a double would round up to the next power of two.
    lengths = np.frexp((numbers + 1).astype(np.float64))[1].astype(np.int64) - 1
    encoder.encode(lengths.astype(np.int32), _CATEGORICAL, np.repeat(_ESCAPE_PARAMETERS, len(lengths), axis=0))
    for chunk in _chunks(lengths):
        encoder.encode(chunk.take(numbers + 1), _UNIFORM, chunk.sizes)


def _decode_escapes(decoder: Any, count: int) -> NDArray[np.int64]:
    lengths = decoder.decode(_CATEGORICAL, np.repeat(_ESCAPE_PARAMETERS, count, axis=0)).astype(np.int64)
    numbers: NDArray[np.int64] = (1 << lengths) - 1 + _decode_chunks(decoder, _chunks(lengths), count)
    return numbers


def _decode_chunks(decoder: Any, chunks: tuple[_Chunk, ...], count: int) -> NDArray[np.int64]:
    values = np.zeros(count, np.int64)
    for chunk in chunks:
        values[chunk.places] += decoder.decode(_UNIFORM, chunk.sizes).astype(np.int64) << chunk.shift
    return values


def _decode_sample(payload: bytes, tables: FrozenTables, quality: int) -> NDArray[np.int64]:
    """Symbols [K] of one sample."""
    if len(payload) > _MAX_BYTES_PER_SYMBOL * tables.code_dim + 16:
        raise CorruptBitstreamError(f"{len(payload)} bytes are more than a sample can have")
    if payload[-1:] == b"\0":
        raise CorruptBitstreamError("ends in a zero byte")
    words = np.frombuffer(payload + bytes(-len(payload) % 4), ">u4").astype(np.uint32)
    decoder = constriction.stream.queue.RangeDecoder(words)
    try:
        offset = decoder.decode(_CATEGORICAL, _offset_parameters(tables, quality))[0]
        level = quality + LEVEL_OFFSETS[offset]
        if not 0 <= level < tables.quality_count:
            raise CorruptBitstreamError("chooses tables that are not there")
        return _decode_level(decoder, _level(tables, level))
    except AssertionError as error:  # how the range coder says that no message leads to these bytes
        raise CorruptBitstreamError("no symbols lead to these bytes") from error


def _decode_level(decoder: Any, plan: _Level) -> NDArray[np.int64]:
    entries = np.concatenate([decoder.decode(_CATEGORICAL, parameters) for _, parameters in plan.runs])
    if (entries > plan.escape).any():
        raise CorruptBitstreamError("an entry past the end of its table")
    high: NDArray[np.int64] = entries + plan.first
    escaped = np.flatnonzero(entries == plan.escape)
    if len(escaped):
        numbers = _decode_escapes(decoder, len(escaped))
        distance = numbers >> 1
        offset = np.where(numbers & 1, -1 - distance, plan.escape[escaped] + distance)
        high[escaped] = plan.first[escaped] + offset
    if ((high < -plan.limit) | (high >= plan.limit)).any():
        raise CorruptBitstreamError("a symbol beyond 32 bits")
    symbols = (high << plan.shift) + _decode_chunks(decoder, plan.chunks, len(high))
    return symbols[plan.place]


def _shortest_bytes(encoder: Any) -> bytes:
    """The fewest bytes whose extension by zeros lies in the encoder's final interval."""
    position, (lower, width) = encoder.pos()
    words = encoder.get_compressed()
    total_bytes = 4 * (position + 2)
    # Some point of the interval with all carries done; it and `lower` agree on where the interval starts.
    point = int.from_bytes(words.astype(">u4").tobytes(), "big") << 8 * (total_bytes - 4 * len(words))
    start = point - ((point - lower) & 0xFFFF_FFFF_FFFF_FFFF)
    for zero_bits in (64, 56, 48, 40, 32):  # the interval is at least 2^32 wide
        candidate = -(-start >> zero_bits) << zero_bits
        if candidate < start + width:
            break
    return int(candidate).to_bytes(total_bytes, "big").rstrip(b"\0")
