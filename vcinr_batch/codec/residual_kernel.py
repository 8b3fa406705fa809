"""Residual integers through the compiled range coder, point by point in coding order.

Everything that finds an integer is integer arithmetic, so that every machine finds the same ones.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vcinr_batch.codec.range_coder import (
    CORRUPT,
    FREQUENCY_BITS,
    bit_length,
    compiled,
    consume,
    decode_target,
    encode_interval,
)
from vcinr_batch.codec.residual_arithmetic import (
    ESCAPE,
    INT32,
    INVERSE,
    NEUTRAL,
    REACH,
    TOTAL,
    UPDATE,
    Integers,
    Padded,
    interval_start,
    look,
    middle_of,
    overall_bin,
    relative_error,
    search,
)
from vcinr_batch.codec.residual_model import MAX_REACH, NO_LOCAL, SCALE_COUNT, ResidualModel
from vcinr_batch.codec.symbol_kernel import decode_number, encode_number


def set_arguments(model: ResidualModel, quality: int, index: int, shape: tuple[int, int, int]) -> tuple[Any, ...]:
    """The statistics for one base level and `step_index` as the kernels take them, for samples of this shape."""
    chosen = model.set_of(quality, index)
    local = int(model.set_local[chosen])
    weights = model.weights[chosen : chosen + 1] if local == NO_LOCAL else model.local[local]
    number = model.set_scale[chosen]
    scale = model.scale[number] + (int(model.scale_step[number]) - index + np.int64(model.level_shift[quality]))
    return (
        *geometry(model.taps, shape),
        np.ascontiguousarray(weights),
        model.spread.astype(np.int64),
        np.clip(scale, 0, SCALE_COUNT - 1),
        model.context[chosen].astype(np.int64),
        model.cdf[chosen].astype(np.int64),
        INVERSE,
        REACH,
    )


def geometry(taps: NDArray[np.int8], shape: tuple[int, int, int]) -> tuple[Integers, Integers]:
    """Planes, rows, columns, the lengths of a padded row and plane, planes of padding; where each tap is in there."""
    planes, rows, columns = shape
    row_length = columns + 2 * MAX_REACH
    plane_length = (rows + MAX_REACH) * row_length
    places = taps.astype(np.int64) @ np.array([plane_length, row_length, 1])
    depth = -int(taps[:, 0].min())
    return np.array([planes, rows, columns, row_length, plane_length, depth], np.int64), places


def scratch(taps: NDArray[np.int8], shape: tuple[int, int, int]) -> tuple[Padded, Padded]:
    """Room for a padded sample: integers, and relative errors."""
    planes, _, _, _, plane_length, depth = geometry(taps, shape)[0].tolist()
    room = (planes + depth) * plane_length + MAX_REACH
    return np.empty(room, np.int32), np.empty(room, np.int32)


@compiled
def encode_residual_into(
    state: NDArray[np.uint64],
    words: NDArray[np.uint32],
    residual: NDArray[np.int32],
    mask: NDArray[np.bool_],
    escape_cumulative: Integers,
    field: Padded,
    relative: Padded,
    shape: Integers,
    offsets: Integers,
    weights: NDArray[np.int16],
    spread: Integers,
    scale: Integers,
    context: Integers,
    cdf: Integers,
    inverse: Integers,
    reach: Integers,
) -> bool:
    """Code one sample's residual [P] where the mask is set; False where the buffer is too short."""
    planes, rows, columns, row_length, plane_length, depth = shape
    field[:] = 0
    relative[:] = NEUTRAL
    total, count, overall = 0, 0, overall_bin(0, 0)
    p = 0
    for plane in range(planes):
        for row in range(rows):
            at = (plane + depth) * plane_length + (row + MAX_REACH) * row_length + MAX_REACH
            for _ in range(columns):
                if mask[p]:
                    mean, j = look(field, relative, at, offsets, weights, p, spread, scale[p], context, overall)
                    value = np.int64(residual[p])
                    if np.int64(state[2]) + 8 > len(words):
                        return False
                    middle = middle_of(mean)
                    low, high = middle - reach[j], middle + reach[j]
                    if low <= value <= high:
                        start = interval_start(value, mean, low, high, inverse[j], cdf)
                        end = interval_start(value + 1, mean, low, high, inverse[j], cdf)
                        encode_interval(state, words, start, end - start)
                    else:
                        encode_interval(state, words, TOTAL - ESCAPE, ESCAPE)
                        number = 2 * (value - high - 1) if value > high else 2 * (low - 1 - value) + 1
                        encode_number(state, words, number, escape_cumulative)
                    field[at] = value
                    relative[at] = relative_error(value, mean, inverse[scale[p]])
                    total += relative[at]
                    count += 1
                    if count & UPDATE == 0:
                        overall = overall_bin(total, count)
                p += 1
                at += 1
    return True


@compiled
def decode_residual_from(
    state: NDArray[np.uint64],
    payload: NDArray[np.uint8],
    residual: NDArray[np.int32],
    mask: NDArray[np.bool_],
    escape_cumulative: Integers,
    field: Padded,
    relative: Padded,
    shape: Integers,
    offsets: Integers,
    weights: NDArray[np.int16],
    spread: Integers,
    scale: Integers,
    context: Integers,
    cdf: Integers,
    inverse: Integers,
    reach: Integers,
) -> bool:
    """Inverse of `encode_residual_into`, 0 outside the mask; False for bytes that it never writes."""
    planes, rows, columns, row_length, plane_length, depth = shape
    field[:] = 0
    relative[:] = NEUTRAL
    total, count, overall = 0, 0, overall_bin(0, 0)
    p = 0
    for plane in range(planes):
        for row in range(rows):
            at = (plane + depth) * plane_length + (row + MAX_REACH) * row_length + MAX_REACH
            for _ in range(columns):
                residual[p] = 0
                if mask[p]:
                    mean, j = look(field, relative, at, offsets, weights, p, spread, scale[p], context, overall)
                    middle = middle_of(mean)
                    low, high = middle - reach[j], middle + reach[j]
                    target = decode_target(state)
                    if target == CORRUPT:
                        return False
                    if target < TOTAL - ESCAPE:
                        value = search(target, mean, middle, low, high, inverse[j], cdf)
                        start = interval_start(value, mean, low, high, inverse[j], cdf)
                        end = interval_start(value + 1, mean, low, high, inverse[j], cdf)
                        consume(state, payload, start, end - start)
                    else:
                        consume(state, payload, TOTAL - ESCAPE, ESCAPE)
                        number = decode_number(state, payload, escape_cumulative)
                        if number == CORRUPT:
                            return False
                        value = low - 1 - (number >> 1) if number & 1 else high + 1 + (number >> 1)
                    if not -INT32 <= value < INT32:
                        return False
                    residual[p] = value
                    field[at] = value
                    relative[at] = relative_error(value, mean, inverse[scale[p]])
                    total += relative[at]
                    count += 1
                    if count & UPDATE == 0:
                        overall = overall_bin(total, count)
                p += 1
                at += 1
    return True


@compiled
def residual_bits(
    bits: NDArray[np.float32],
    residual: NDArray[np.int32],
    mask: NDArray[np.bool_],
    field: Padded,
    relative: Padded,
    shape: Integers,
    offsets: Integers,
    weights: NDArray[np.int16],
    spread: Integers,
    scale: Integers,
    context: Integers,
    cdf: Integers,
    inverse: Integers,
    reach: Integers,
) -> float:
    """What `encode_residual_into` needs, in bits; no part of the format. `bits` [P] gets each point's."""
    planes, rows, columns, row_length, plane_length, depth = shape
    field[:] = 0
    relative[:] = NEUTRAL
    total, count, overall = 0, 0, overall_bin(0, 0)
    p = 0
    needed = 0.0
    for plane in range(planes):
        for row in range(rows):
            at = (plane + depth) * plane_length + (row + MAX_REACH) * row_length + MAX_REACH
            for _ in range(columns):
                if mask[p]:
                    mean, j = look(field, relative, at, offsets, weights, p, spread, scale[p], context, overall)
                    value = np.int64(residual[p])
                    middle = middle_of(mean)
                    low, high = middle - reach[j], middle + reach[j]
                    if low <= value <= high:
                        start = interval_start(value, mean, low, high, inverse[j], cdf)
                        end = interval_start(value + 1, mean, low, high, inverse[j], cdf)
                        bits[p] = FREQUENCY_BITS - np.log2(np.float64(end - start))
                    else:
                        number = 2 * (value - high - 1) if value > high else 2 * (low - 1 - value) + 1
                        length = bit_length(number + 1)
                        bits[p] = 20 + min(length + 1, FREQUENCY_BITS) + length
                    needed += bits[p]
                    field[at] = value
                    relative[at] = relative_error(value, mean, inverse[scale[p]])
                    total += relative[at]
                    count += 1
                    if count & UPDATE == 0:
                        overall = overall_bin(total, count)
                p += 1
                at += 1
    return needed
