"""The arithmetic of a hard error bound: its steps, its guard band, and samples that are stored as they are.

With a bound E a sample is stored as its decoded base and the residual in whole steps of 2 (E - g). The guard band g
covers what decodes on two machines may differ by. All of it follows from the request and numbers that the bundle holds,
by IEEE operations that every machine rounds alike: a decoder multiplies by the very step that the encoder divided by.
"""

import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vcinr_batch.data.layout import Layout
from vcinr_batch.data.normalization import Normalizer, range_at, scale_at
from vcinr_batch.errors import CorruptBitstreamError
from vcinr_batch.quality_request import QualityRequest

GUARD_BAND = 1e-5
"""Added to every recorded error, as a share of the largest anomaly from the background: fp32 decodes on two machines
differ by less. Measured: fp32 is off float64 by 4e-7 (2 layers of 48, w0 20) to 4e-6 (14 layers of 512, w0 30)."""
LARGEST_RESIDUAL = 2**30
"""In steps; a sample with a larger one is stored losslessly."""

_LEAST_SHARE = 0.5
_FLOAT32_EPS = float(np.finfo(np.float32).eps)


def bounds_of(
    request: QualityRequest, normalizer: Normalizer, layout: Layout, blocks: Sequence[tuple[int, ...]]
) -> NDArray[np.float64]:
    """The bound E of some blocks, float64 [B] in the unit."""
    if request.max_error_share is not None:
        return float(request.max_error_share) * range_at(normalizer, layout, blocks).astype(np.float64)
    assert request.max_error is not None
    return np.full(len(blocks), float(request.max_error), np.float64)


def residual_steps(
    bounds: NDArray[np.float64], normalizer: Normalizer, layout: Layout, blocks: Sequence[tuple[int, ...]]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Steps of the residual [B] in the unit, and in the network's units; 0 where the bound leaves no room for a step.

    The guard band is what `recorded_guard` gives for values and anomalies as large as the training data's range.
    """
    value_range = range_at(normalizer, layout, blocks).astype(np.float64)
    guard = GUARD_BAND * value_range + 3 * _FLOAT32_EPS * (abs(float(normalizer.offset)) + value_range)
    steps = np.where(guard <= _LEAST_SHARE * bounds, 2 * (bounds - guard), 0.0)
    return steps, steps / scale_at(normalizer, layout, blocks).astype(np.float64).reshape(-1)


def residual_of(
    values: NDArray[np.float32], base: NDArray[np.float32], masks: NDArray[np.bool_], steps: NDArray[np.float64]
) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Residual int32 [B, P] of values and base [B, P, 1], 0 outside the masks, and where [B] it is small enough."""
    exact = (values[..., 0].astype(np.float64) - base[..., 0]) / steps[:, None]
    exact = np.rint(np.where(masks, exact, 0.0))
    fits = np.asarray(np.abs(exact).max(axis=1, initial=0.0) <= LARGEST_RESIDUAL)
    return np.where(fits[:, None], exact, 0.0).astype(np.int32), fits


def add_residual(
    base: NDArray[np.float32], residual: NDArray[np.int32], steps: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Base [B, P, 1] and residual [B, P] -> values float32 [B, P, 1], rounded once."""
    values: NDArray[np.float64] = base.astype(np.float64) + (residual * steps[:, None])[..., None]
    return values.astype(np.float32)


def pack_values(values: NDArray[np.float32], mask: NDArray[np.bool_]) -> bytes:
    """The values [P, C] under a mask [P], losslessly.

    Their bits as unsigned integers, each as the difference to the one before it (modulo 2^32, the first to 0); zlib of
    the lowest bytes of all of them, then the next higher ones.
    """
    bits = np.ascontiguousarray(values[mask], np.float32).reshape(-1).view(np.uint32)
    gaps = np.diff(bits, prepend=np.uint32(0)).astype("<u4")
    return zlib.compress(gaps.view(np.uint8).reshape(-1, 4).T.tobytes(), 9)


def unpack_values(payload: bytes, mask: NDArray[np.bool_], channels: int) -> NDArray[np.float32]:
    """Mirror of `pack_values`: float32 [P, C], NaN outside the mask; inflates no more than that.

    Raises:
        CorruptBitstreamError: not such values, or not as many.
    """
    size = 4 * int(mask.sum()) * channels
    inflater = zlib.decompressobj()
    try:
        planes = inflater.decompress(payload, size + 1)
    except zlib.error as error:
        raise CorruptBitstreamError(f"{len(payload)} bytes that do not inflate: {error}") from error
    if len(planes) != size or not inflater.eof or inflater.unused_data:
        raise CorruptBitstreamError(f"holds {len(planes)} bytes or more, expected exactly {size}")
    gaps = np.ascontiguousarray(np.frombuffer(planes, np.uint8).reshape(4, -1).T).view("<u4").reshape(-1)
    values = np.full((len(mask), channels), np.nan, np.float32)
    values[mask] = np.cumsum(gaps, dtype=np.uint32).view(np.float32).reshape(-1, channels)
    return values
