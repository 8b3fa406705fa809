"""What a decoder knows about residuals: prediction weights, scale maps and one distribution, all integers.

A residual is the field minus its decoded base, in steps of twice the error bound. It is predicted from neighbours that
are decoded already, with weights of its own at every point: the covariance of a residual is anything but stationary.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import frexp, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vcinr_batch.errors import ConfigError, CorruptBitstreamError

WEIGHT_BITS = 9
"""Weights are multiples of 2^-9, and so are predictions, in steps."""
SCALE_ZERO = 64
"""Scale index j stands for a scale of 2^((j - 64) / 16) steps."""
SCALE_COUNT = 256
CDF_SIZE = 257
CDF_TOTAL = 1 << 24
MAX_TAPS = 32
MAX_REACH = 4
CONTEXT_SIZE = 32
OVERALL_SIZE = 16
MAX_SETS = 256
NO_LOCAL = 255

# 2^(i / 16), the bounds between sixteenths of an octave; literals, so that every machine compares with the same.
SIXTEENTHS = (
    1.0, 1.0442737824274138, 1.0905077326652577, 1.1387886347566916,
    1.189207115002721, 1.241857812073484, 1.2968395546510096, 1.3542555469368927,
    1.4142135623730951, 1.4768261459394993, 1.5422108254079407, 1.6104903319492543,
    1.6817928305074292, 1.7562521603732995, 1.8340080864093424, 1.9152065613971474,
)  # fmt: skip


def step_index(step_in_network_units: float) -> int:
    """floor(16 log2(step)), the same on every machine: by frexp and comparison with literals.

    Raises:
        ConfigError: a step that is not finite or not above zero.
    """
    if not 0 < step_in_network_units < float("inf"):
        raise ConfigError(f"expected a step above zero, got {step_in_network_units!r}")
    fraction, exponent = frexp(step_in_network_units)
    return 16 * (exponent - 1) + sum(2 * fraction >= bound for bound in SIXTEENTHS) - 1


def block_shape(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Planes, rows and columns of a sample: the last two axes longer than 1 are rows and columns."""
    long = [length for length in shape if length != 1]
    rows, columns = ([1, 1, *long])[-2:]
    return prod(long[:-2]), rows, columns


@dataclass(frozen=True, eq=False)
class ResidualModel:
    """Integer arrays for P points, Q levels, S sets of statistics and T taps; checked on construction.

    Raises:
        CorruptBitstreamError: the arrays contradict each other or leave their ranges.
    """

    first_step: NDArray[np.int32]
    """[1], `step_index` that the second axis of `sets` begins with."""
    sets: NDArray[np.uint8]
    """[Q, N], which set codes a residual of level q at step index first_step + 16 n .. + 15; clipped at the ends."""
    level_shift: NDArray[np.int8]
    """[Q], added to the scale index: how much larger a level's residuals are than those that its sets were made for."""
    set_scale: NDArray[np.uint8]
    """[S], which scale map a set takes."""
    set_local: NDArray[np.uint8]
    """[S], which of `local` holds a set's weights; 255 for none: `weights` then."""
    taps: NDArray[np.int8]
    """[T, 3], which neighbours predict: planes, rows and columns from the point; before it in coding order."""
    spread: NDArray[np.uint8]
    """[T], how much each neighbour's error says about the scale; sums to 64."""
    weights: NDArray[np.int16]
    """[S, T], multiples of 2^-9, the same at all points."""
    local: NDArray[np.int16]
    """[M, P, T], multiples of 2^-9."""
    scale: NDArray[np.uint8]
    """[G, P], scale index of the prediction's error at each point."""
    scale_step: NDArray[np.int32]
    """[G], `step_index` that a scale map was made for."""
    context: NDArray[np.int8]
    """[S, 32, 16], added to the scale index: by the neighbours' errors, and by those of the sample so far."""
    cdf: NDArray[np.uint32]
    """[S, 257], 2^24 times the probability that an error is below i / 16 scales; half at 0, rising."""

    def __post_init__(self) -> None:
        _check_model(self)

    @property
    def point_count(self) -> int:
        """P."""
        return int(self.scale.shape[1])

    def set_of(self, quality: int, index: int) -> int:
        """The set that codes residuals of this base level at this `step_index`."""
        if not 0 <= quality < len(self.sets):
            raise ConfigError(f"quality {quality}: this bundle's residual model has levels 0 to {len(self.sets) - 1}")
        column = min(max((index - int(self.first_step[0])) >> 4, 0), self.sets.shape[1] - 1)
        return int(self.sets[quality, column])


def residual_model_to_arrays(model: ResidualModel) -> dict[str, NDArray[Any]]:
    """The arrays by field name, for a bundle."""
    return {name: getattr(model, name) for name in _DTYPES}


def residual_model_from_arrays(arrays: Mapping[str, NDArray[Any]]) -> ResidualModel:
    """Inverse of `residual_model_to_arrays`, on untrusted arrays.

    Raises:
        CorruptBitstreamError: an array is missing or not expected, has another dtype, or the model is not valid.
    """
    wrong = sorted(set(_DTYPES) ^ set(arrays))
    if wrong:
        raise CorruptBitstreamError(f"residual model: missing or unexpected arrays: {', '.join(wrong)}"[:300])
    return ResidualModel(**{name: arrays[name] for name in _DTYPES})


_DTYPES = {
    "first_step": np.int32,
    "sets": np.uint8,
    "level_shift": np.int8,
    "set_scale": np.uint8,
    "set_local": np.uint8,
    "taps": np.int8,
    "spread": np.uint8,
    "weights": np.int16,
    "local": np.int16,
    "scale": np.uint8,
    "scale_step": np.int32,
    "context": np.int8,
    "cdf": np.uint32,
}


def _check_model(model: ResidualModel) -> None:
    for name, dtype in _DTYPES.items():
        array = getattr(model, name)
        if not isinstance(array, np.ndarray) or array.dtype != dtype:
            raise CorruptBitstreamError(f"residual model: {name} must be an array of {np.dtype(dtype)}")
    sets, levels, taps = model.set_scale.size, len(model.sets), len(model.taps)
    _require(model.first_step.shape == (1,) and abs(int(model.first_step[0])) < 1 << 20, "first_step of shape [1]")
    _require(1 <= sets <= MAX_SETS, "1 to 256 sets")
    _require(model.scale_step.shape == model.scale.shape[:1], "scale_step of shape [G]")
    _require(bool((np.abs(model.scale_step.astype(np.int64)) < 1 << 20).all()), "scale_step below 2^20")
    _require(model.sets.ndim == 2 and model.sets.size > 0 and int(model.sets.max()) < sets, "sets that are there")
    _require(model.level_shift.shape == (levels,), "level_shift of shape [Q]")
    _require(model.scale.ndim == 2 and model.scale.size > 0, "scale of shape [G, P]")
    _require(model.set_scale.shape == (sets,) and int(model.set_scale.max()) < len(model.scale), "a scale map each")
    _require(1 <= taps <= MAX_TAPS and model.taps.shape == (taps, 3), "taps of shape [T, 3], at most 32")
    _require(all(_precedes(*tap) for tap in model.taps.tolist()), "taps at most 4 away and before the point")
    _require(model.spread.shape == (taps,) and int(model.spread.sum(dtype=np.int64)) == 64, "spread that sums to 64")
    _require(model.weights.shape == (sets, taps), "weights of shape [S, T]")
    _require(model.local.ndim == 3 and model.local.shape[1:] == (model.point_count, taps), "local of shape [M, P, T]")
    _require(model.set_local.shape == (sets,), "set_local of shape [S]")
    chosen = model.set_local[model.set_local != NO_LOCAL]
    _require(not (chosen >= len(model.local)).any(), "local weights that are there")
    _require(model.context.shape == (sets, CONTEXT_SIZE, OVERALL_SIZE), "context of shape [S, 32, 16]")
    _require(model.cdf.shape == (sets, CDF_SIZE), "cdf of shape [S, 257]")
    _require(bool((model.cdf[:, 0] == CDF_TOTAL // 2).all()), "a cdf of one half at 0")
    _require(bool((np.diff(model.cdf.astype(np.int64), axis=1) >= 0).all()), "a cdf that does not fall")
    _require(int(model.cdf.max()) <= CDF_TOTAL, "a cdf of at most 2^24")


def _precedes(plane: int, row: int, column: int) -> bool:
    near = max(abs(plane), abs(row), abs(column)) <= MAX_REACH
    return near and (plane, row, column) < (0, 0, 0)


def _require(condition: bool, expected: str) -> None:
    if not condition:
        raise CorruptBitstreamError(f"residual model: expected {expected}")
