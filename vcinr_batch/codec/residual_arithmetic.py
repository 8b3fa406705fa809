"""Integer arithmetic of the residual coder at one point: prediction, scale, and intervals of frequencies.

Predictions and errors are in 2^-9 of a step, errors relative to their scale in sixteenths.
"""

import numpy as np
from numpy.typing import NDArray

from vcinr_batch.codec.range_coder import FREQUENCY_BITS, Scalar, bit_length, compiled
from vcinr_batch.codec.residual_model import (
    CONTEXT_SIZE,
    OVERALL_SIZE,
    SCALE_COUNT,
    SCALE_ZERO,
    SIXTEENTHS,
    WEIGHT_BITS,
)

Integers = NDArray[np.int64]
Padded = NDArray[np.int32]
"""A sample with room for neighbours that are not there."""

NEUTRAL = 12
"""Relative error taken for a neighbour that is not there."""
TOTAL = 1 << FREQUENCY_BITS
ESCAPE = 16
"""Frequency of the escape, the last of each distribution."""
_MAX_REACH_STEPS = 1 << 14
_MAX_RELATIVE = 1 << 14
_INVERSE_BITS = 24
INT32 = 1 << 31
_MAX_ERROR = 1 << 30
_HALF = 1 << (WEIGHT_BITS - 1)
UPDATE = 15
"""The overall bin is found again after every 16 points."""

INVERSE = np.array(
    [int((1 << (_INVERSE_BITS + SCALE_ZERO // 16)) / SIXTEENTHS[j % 16]) >> (j // 16) for j in range(SCALE_COUNT)]
)
"""[256], 2^24 over the scale."""
REACH = np.minimum(2 + 16 * (1 + (1 << _INVERSE_BITS) // INVERSE), _MAX_REACH_STEPS)
"""[256], how far from the prediction integers have a frequency of their own."""


@compiled
def look(
    field: Padded,
    relative: Padded,
    at: Scalar,
    offsets: Integers,
    weights: NDArray[np.int16],
    p: Scalar,
    spread: Integers,
    scale: Scalar,
    context: Integers,
    overall: Scalar,
) -> tuple[Scalar, Scalar]:
    """Prediction in 2^-9 steps and scale index of the point at place `at` of the padded sample."""
    row = p if len(weights) > 1 else 0
    mean, near = np.int64(0), np.int64(0)
    for t in range(len(offsets)):
        mean += np.int64(field[at + offsets[t]]) * np.int64(weights[row, t])
        near += relative[at + offsets[t]] * spread[t]
    bin_of_near = min(max(quarters(near) - 20, 0), CONTEXT_SIZE - 1)
    j = scale + context[bin_of_near][overall]
    return mean, min(max(j, 0), SCALE_COUNT - 1)


@compiled
def overall_bin(total: Scalar, count: Scalar) -> Scalar:
    """Which column of the context table: by the mean relative error so far, begun with 16 neutral ones."""
    mean = ((total + 16 * NEUTRAL) << 6) // (count + 16)
    return min(max(quarters(mean) - 32, 0), OVERALL_SIZE - 1)


@compiled
def quarters(number: Scalar) -> Scalar:
    """4 floor(log2(number)) and its next two binary digits; 0 below 4."""
    if number < 4:
        return 0
    length = bit_length(number)
    return 4 * length + ((number >> (length - 2)) & 3)


@compiled
def middle_of(mean: Scalar) -> Scalar:
    return min(max((mean + _HALF) >> WEIGHT_BITS, -INT32), INT32 - 1)


@compiled
def relative_error(value: Scalar, mean: Scalar, inverse: Scalar) -> Scalar:
    """Error in sixteenths of the scale."""
    error = min(abs((value << WEIGHT_BITS) - mean), _MAX_ERROR)
    return min((error * inverse) >> (_INVERSE_BITS + WEIGHT_BITS - 4), _MAX_RELATIVE)


@compiled
def interval_start(value: Scalar, mean: Scalar, low: Scalar, high: Scalar, inverse: Scalar, cdf: Integers) -> Scalar:
    """Sum of the frequencies before that of an integer from low to high + 1."""
    if value <= low:
        return 0
    if value > high:
        return TOTAL - ESCAPE
    edge = (value << WEIGHT_BITS) - _HALF - mean
    # In 1/256 of the table's spacing, itself a sixteenth of the scale.
    place = (min(abs(edge), _MAX_ERROR) * inverse) >> (_INVERSE_BITS + WEIGHT_BITS - 12)
    i = place >> 8
    last = len(cdf) - 1
    below = cdf[last] if i >= last else cdf[i] + (((cdf[i + 1] - cdf[i]) * (place & 255)) >> 8)
    if edge < 0:
        below = TOTAL - below
    spare = TOTAL - ESCAPE - (high - low + 1)
    return ((below * spare) >> FREQUENCY_BITS) + value - low


@compiled
def search(
    target: Scalar, mean: Scalar, middle: Scalar, low: Scalar, high: Scalar, inverse: Scalar, cdf: Integers
) -> Scalar:
    """The integer whose frequencies hold the target: outwards from the prediction in growing steps, then bisection."""
    below, above, stride = middle, middle + 1, 1
    while interval_start(below, mean, low, high, inverse, cdf) > target:
        above, below = below, max(below - stride, low)
        stride *= 2
    if above == middle + 1:
        while interval_start(above, mean, low, high, inverse, cdf) <= target:
            below, above = above, min(above + stride, high + 1)
            stride *= 2
    while above - below > 1:
        centre = (below + above) >> 1
        if interval_start(centre, mean, low, high, inverse, cdf) <= target:
            below = centre
        else:
            above = centre
    return below
