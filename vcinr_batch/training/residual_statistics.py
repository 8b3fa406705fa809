"""Scale maps, context tables and distributions of one set of residuals, chosen for the fewest bits."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from vcinr_batch.codec.range_coder import FREQUENCY_BITS, compiled
from vcinr_batch.codec.residual_arithmetic import (
    INVERSE,
    NEUTRAL,
    REACH,
    UPDATE,
    Integers,
    Padded,
    interval_start,
    middle_of,
    overall_bin,
    quarters,
    relative_error,
)
from vcinr_batch.codec.residual_kernel import geometry, scratch
from vcinr_batch.codec.residual_model import (
    CDF_SIZE,
    CDF_TOTAL,
    CONTEXT_SIZE,
    MAX_REACH,
    OVERALL_SIZE,
    SCALE_COUNT,
    SCALE_ZERO,
    WEIGHT_BITS,
)

Array = NDArray[np.float64]

_COMPONENTS = 2.0 ** np.arange(-2, 3.01, 0.5)
_MAX_POINTS = 50_000
_OFFSETS = np.arange(-48, 49, 4)


@compiled
def gather(
    means: NDArray[np.int32],
    near_bins: NDArray[np.uint8],
    overall_bins: NDArray[np.uint8],
    residual: NDArray[np.int32],
    mask: NDArray[np.bool_],
    field: Padded,
    relative: Padded,
    shape: Integers,
    offsets: Integers,
    weights: NDArray[np.int16],
    spread: Integers,
    scale: Integers,
    inverse: Integers,
) -> None:
    """Prediction and both context bins at every point [P] of one sample, as the coder finds them."""
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
                    w = p if len(weights) > 1 else 0
                    mean, near = np.int64(0), np.int64(0)
                    for t in range(len(offsets)):
                        mean += np.int64(field[at + offsets[t]]) * np.int64(weights[w, t])
                        near += relative[at + offsets[t]] * spread[t]
                    means[p] = min(max(mean, -(1 << 30)), 1 << 30)
                    near_bins[p] = min(max(quarters(near) - 20, 0), CONTEXT_SIZE - 1)
                    overall_bins[p] = overall
                    value = np.int64(residual[p])
                    field[at] = value
                    relative[at] = relative_error(value, mean, inverse[scale[p]])
                    total += relative[at]
                    count += 1
                    if count & UPDATE == 0:
                        overall = overall_bin(total, count)
                p += 1
                at += 1


@compiled
def costs(
    table: NDArray[np.float64],
    cells: NDArray[np.int64],
    values: NDArray[np.int32],
    means: NDArray[np.int32],
    scale: NDArray[np.int64],
    offsets: NDArray[np.int64],
    cdf: Integers,
    inverse: Integers,
    reach: Integers,
) -> None:
    """Adds to table [cells, offsets] the bits of each value if its scale index were so much larger."""
    for i in range(len(values)):
        for k in range(len(offsets)):
            j = min(max(scale[i] + offsets[k], 0), SCALE_COUNT - 1)
            middle = middle_of(means[i])
            low, high = middle - reach[j], middle + reach[j]
            value = np.int64(values[i])
            if low <= value <= high:
                start = interval_start(value, means[i], low, high, inverse[j], cdf)
                end = interval_start(value + 1, means[i], low, high, inverse[j], cdf)
                table[cells[i], k] += FREQUENCY_BITS - np.log2(np.float64(end - start))
            else:
                table[cells[i], k] += 40.0


def fit_cdf(
    values: NDArray[np.int32], means: NDArray[np.int32], scale: Integers, rounds: int = 40
) -> NDArray[np.uint32]:
    """Mixture of normal distributions of set widths that fits integers best (expectation maximisation)."""
    sigma = 2.0 ** ((scale - SCALE_ZERO) / 16)
    centre = values - means / 2.0**WEIGHT_BITS
    upper = torch.from_numpy((np.abs(centre) + 0.5) / sigma)[:, None] / torch.from_numpy(_COMPONENTS)
    lower = torch.from_numpy((np.abs(centre) - 0.5) / sigma)[:, None] / torch.from_numpy(_COMPONENTS)
    mass = (torch.special.ndtr(-lower) - torch.special.ndtr(-upper)).clamp_min(1e-12).numpy()
    share = np.full(len(_COMPONENTS), 1 / len(_COMPONENTS))
    for _ in range(rounds if len(mass) else 0):
        share = share * (mass.T @ (1 / (mass @ share))) / len(mass)
    share = (share + 1e-5) / (share + 1e-5).sum()
    edges = torch.arange(CDF_SIZE, dtype=torch.float64)[:, None] / 16 / torch.from_numpy(_COMPONENTS)
    below = torch.special.ndtr(edges).numpy() @ share
    table: NDArray[np.uint32] = np.rint(CDF_TOTAL * below).astype(np.uint32)
    table[0] = CDF_TOTAL // 2
    return table


@dataclass(frozen=True, eq=False)
class SetStatistics:
    """What a set has beside weights and scale map."""

    context: NDArray[np.int8]
    cdf: NDArray[np.uint32]


def scale_map(
    integers: NDArray[np.int32],
    valid: NDArray[np.bool_],
    weights: NDArray[np.int16],
    taps: NDArray[np.int8],
    spread: NDArray[np.uint8],
    block: tuple[int, int, int],
) -> NDArray[np.uint8]:
    """Scale index [P] by the mean error of the prediction at each point, drawn a little towards that of all points."""
    flat = np.full(integers.shape[1], SCALE_ZERO, np.uint8)
    means, _ = _look_at_all(integers, valid, weights, taps, spread, block, flat)
    error = np.abs(integers - means / 2.0**WEIGHT_BITS)
    overall = error[:, valid].mean() if valid.any() else 1.0
    average = (error.sum(0) + 2 * overall) / (len(error) + 2) + 0.003
    index: NDArray[np.float64] = np.rint(16 * np.log2(average) + SCALE_ZERO)
    return np.clip(index, 0, SCALE_COUNT - 1).astype(np.uint8)


def fit_set(
    integers: NDArray[np.int32],
    valid: NDArray[np.bool_],
    weights: NDArray[np.int16],
    taps: NDArray[np.int8],
    spread: NDArray[np.uint8],
    block: tuple[int, int, int],
    scale: NDArray[np.uint8],
    rounds: int = 2,
) -> SetStatistics:
    """Context table and cdf of residuals [N, P] under these weights and scales, in turns."""
    means, bins = _look_at_all(integers, valid, weights, taps, spread, block, scale)
    at = np.flatnonzero(np.broadcast_to(valid, integers.shape).ravel())
    few = at[:: max(1, len(at) // _MAX_POINTS)]
    value, mean, index = integers.ravel()[few], means.ravel()[few], scale[few % len(scale)].astype(np.int64)
    cell = bins[0].ravel()[few].astype(np.int64) * OVERALL_SIZE + bins[1].ravel()[few]
    context = np.zeros((CONTEXT_SIZE, OVERALL_SIZE), np.int64)
    cdf = fit_cdf(value, mean, index)
    for _ in range(rounds):
        table = np.zeros((CONTEXT_SIZE * OVERALL_SIZE, len(_OFFSETS)))
        costs(table, cell, value, mean, index, _OFFSETS, cdf.astype(np.int64), INVERSE, REACH)
        context = _OFFSETS[_smooth(table.reshape(CONTEXT_SIZE, OVERALL_SIZE, -1)).argmin(-1)]
        cdf = fit_cdf(value, mean, np.clip(index + context.ravel()[cell], 0, SCALE_COUNT - 1))
    return SetStatistics(context.astype(np.int8), cdf)


def _look_at_all(
    integers: NDArray[np.int32],
    valid: NDArray[np.bool_],
    weights: NDArray[np.int16],
    taps: NDArray[np.int8],
    spread: NDArray[np.uint8],
    block: tuple[int, int, int],
    scale: NDArray[np.uint8],
) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
    """Predictions [N, P] and both context bins [2, N, P] of all samples."""
    means, bins = np.zeros(integers.shape, np.int32), np.zeros((2, *integers.shape), np.uint8)
    room, where = scratch(taps, block), geometry(taps, block)
    for n in range(len(integers)):
        gather(
            means[n], bins[0, n], bins[1, n], integers[n], valid, *room,
            *where, weights, spread.astype(np.int64), scale.astype(np.int64), INVERSE,
        )  # fmt: skip
    return means, bins


def _smooth(table: Array) -> Array:
    """Each cell's costs with some of its neighbours', so that rare cells follow the others."""
    total = table.copy()
    share = 0.3
    layer = table
    for _ in range(6):
        padded = np.pad(layer, ((1, 1), (1, 1), (0, 0)))
        layer = share * (padded[2:, 1:-1] + padded[:-2, 1:-1] + padded[1:-1, 2:] + padded[1:-1, :-2]) / 2
        total += layer * 0.1
    return total
