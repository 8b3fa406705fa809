"""Samples with an error bound <-> bytes: base symbols, then residual integers, in one range-coder stream.

The kernels are compiled when they are first used; importing this module costs nothing.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vcinr_batch.codec.entropy_model import LEVEL_OFFSETS, FrozenTables, choose_levels, ideal_bits
from vcinr_batch.codec.residual_model import ResidualModel, block_shape, step_index
from vcinr_batch.errors import ConfigError, CorruptBitstreamError

__all__ = ["bounded_bits", "decode_bounded", "encode_bounded", "step_index"]

# A base symbol takes at most 15 bytes; a residual 24 bits for the escape, 24 for its length and 35 of its value.
_MAX_BYTES_PER_VALUE = 15
_SPARE_BYTES = 64


def encode_bounded(
    symbols: NDArray[np.int32],
    residual: NDArray[np.int32],
    masks: NDArray[np.bool_],
    tables: FrozenTables,
    model: ResidualModel,
    quality: int,
    step_index: int,
    shape: tuple[int, ...],
) -> list[bytes]:
    """Code each row's symbols and residual into its own payload.

    Args:
        symbols: int32 [B, K], base symbols of level `quality`.
        residual: int32 [B, P], in steps of twice the error bound; every int32 can be coded.
        masks: bool [B, P], the points that are coded.
        step_index: of the step, see `step_index`.
        shape: of a sample, with P points.

    Returns:
        B payloads without any framing. The last byte of a payload is never zero.

    Raises:
        ConfigError: no such quality level, or arrays whose shapes or dtypes do not fit.
    """
    from vcinr_batch.codec import range_coder, residual_kernel, symbol_kernel

    _check(symbols, residual, masks, tables, model, quality, shape)
    arguments = residual_kernel.set_arguments(model, quality, step_index, block_shape(shape))
    room = residual_kernel.scratch(model.taps, block_shape(shape))
    levels, numbers = choose_levels(tables, quality, symbols), np.empty(tables.code_dim, np.int64)
    words, state = np.empty(6 * tables.code_dim + residual.shape[1] // 4 + 64, np.uint32), np.empty(3, np.uint64)
    offsets = symbol_kernel.offset_cumulative(tables, quality)
    payloads = []
    for i in range(len(symbols)):
        plan = symbol_kernel.plan_arguments(symbol_kernel.symbol_plan(tables, int(levels[i])))
        while True:
            range_coder.start_encoder(state)
            offset = symbol_kernel.offset_of(int(levels[i]), quality)
            symbol_kernel.encode_entry(state, words, offsets, 0, offset)
            symbol_kernel.encode_symbols_into(state, words, symbols[i], *(*plan, numbers))
            if residual_kernel.encode_residual_into(state, words, residual[i], masks[i], plan[-1], *room, *arguments):
                break
            words = np.empty(2 * len(words), np.uint32)
        length = range_coder.finish_encoder(state, words)
        payloads.append(words[: (length + 3) // 4].astype(">u4").tobytes()[:length])
    return payloads


def decode_bounded(
    payloads: Sequence[bytes],
    masks: NDArray[np.bool_],
    tables: FrozenTables,
    model: ResidualModel,
    quality: int,
    step_index: int,
    shape: tuple[int, ...],
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Inverse of `encode_bounded`: symbols int32 [B, K] and residual int32 [B, P], 0 outside the masks.

    Raises:
        ConfigError: as `encode_bounded`.
        CorruptBitstreamError: a payload that `encode_bounded` never writes; names its position.
    """
    from vcinr_batch.codec import range_coder, residual_kernel, symbol_kernel

    symbols = np.zeros((len(payloads), tables.code_dim), np.int32)
    residual = np.zeros(masks.shape, np.int32)
    _check(symbols, residual, masks, tables, model, quality, shape)
    arguments = residual_kernel.set_arguments(model, quality, step_index, block_shape(shape))
    room = residual_kernel.scratch(model.taps, block_shape(shape))
    state, scratch = np.empty(3, np.uint64), np.empty((3, tables.code_dim), np.int64)
    offsets = symbol_kernel.offset_cumulative(tables, quality)
    for i, payload in enumerate(payloads):
        limit = _MAX_BYTES_PER_VALUE * (tables.code_dim + int(masks[i].sum())) + _SPARE_BYTES
        if len(payload) > limit or payload[-1:] == b"\0":
            what = "ends in a zero byte" if len(payload) <= limit else "more bytes than a sample can have"
            raise CorruptBitstreamError(f"payload {i} of {len(payloads)}: {what}")
        data = np.frombuffer(payload, np.uint8)
        range_coder.start_decoder(state, data)
        offset = symbol_kernel.decode_entry(state, data, offsets, 0, len(LEVEL_OFFSETS))
        level = quality + LEVEL_OFFSETS[offset]
        good = offset != range_coder.CORRUPT and 0 <= level < tables.quality_count
        if good:
            plan = symbol_kernel.plan_arguments(symbol_kernel.symbol_plan(tables, level))
            good = symbol_kernel.decode_symbols_from(
                state, data, symbols[i], *plan, *scratch
            ) and residual_kernel.decode_residual_from(state, data, residual[i], masks[i], plan[-1], *room, *arguments)
        if not good:
            raise CorruptBitstreamError(f"payload {i} of {len(payloads)}: no symbols lead to these bytes")
    return symbols, residual


def bounded_bits(
    symbols: NDArray[np.int32],
    residual: NDArray[np.int32],
    masks: NDArray[np.bool_],
    tables: FrozenTables,
    model: ResidualModel,
    quality: int,
    step_index: int,
    shape: tuple[int, ...],
) -> NDArray[np.float64]:
    """Bits that `encode_bounded` needs for each row, float64 [B]; its payloads have at most a byte more.

    Raises:
        ConfigError: as `encode_bounded`.
    """
    from vcinr_batch.codec import residual_kernel

    _check(symbols, residual, masks, tables, model, quality, shape)
    arguments = residual_kernel.set_arguments(model, quality, step_index, block_shape(shape))
    room = residual_kernel.scratch(model.taps, block_shape(shape))
    each = np.empty(residual.shape[1], np.float32)
    bits = ideal_bits(tables, quality, symbols)
    for i in range(len(symbols)):
        bits[i] += residual_kernel.residual_bits(each, residual[i], masks[i], *room, *arguments)
    return bits


def _check(
    symbols: NDArray[Any],
    residual: NDArray[Any],
    masks: NDArray[Any],
    tables: FrozenTables,
    model: ResidualModel,
    quality: int,
    shape: tuple[int, ...],
) -> None:
    if not 0 <= quality < tables.quality_count:
        raise ConfigError(f"quality {quality}: this bundle has levels 0 to {tables.quality_count - 1}")
    points = int(np.prod(shape, dtype=np.int64))
    if points != model.point_count:
        raise ConfigError(
            f"the residual model is for {model.point_count} points, a sample of shape {shape} has {points}"
        )
    expected = {"symbols": (np.int32, tables.code_dim), "residual": (np.int32, points), "masks": (np.bool_, points)}
    for (name, (dtype, length)), array in zip(expected.items(), (symbols, residual, masks), strict=True):
        if array.ndim != 2 or array.shape[1] != length or array.dtype != dtype or len(array) != len(symbols):
            raise ConfigError(
                f"expected {name} {np.dtype(dtype)} [{len(symbols)}, {length}], got {array.dtype} {array.shape}"
            )
