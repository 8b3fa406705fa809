"""Rate and distortion of numpy arrays."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vcinr_batch.errors import ConfigError

FLOAT32_BITS = 32


@dataclass(frozen=True)
class RateDistortion:
    """What an archive costs and what it loses. Every byte counts: rows, footers, manifest, rejected tables."""

    samples: int
    values: int
    """Values in the source (masked ones left out), over all samples."""
    archive_bytes: int
    """The archive without the bundle."""
    bundle_bytes: int
    rmse: float
    """Root of the mean squared error over all values, in the variable's unit."""
    max_error: float
    """Largest absolute error, in the variable's unit."""
    mean_psnr_db: float
    """Mean over samples of the PSNR."""
    source_bits: int
    """Bits per value in the source as delivered."""

    def __post_init__(self) -> None:
        if self.samples < 1 or self.values < 1:
            raise ConfigError(f"rate needs at least one sample and value, got {self.samples} and {self.values}")

    @property
    def bits_per_value(self) -> float:
        """Rate without the bundle."""
        return 8 * self.archive_bytes / self.values

    @property
    def bits_per_value_with_bundle(self) -> float:
        return 8 * (self.archive_bytes + self.bundle_bytes) / self.values

    @property
    def ratio_to_source(self) -> float:
        """How many times smaller than the source as delivered, without the bundle."""
        return self.source_bits / self.bits_per_value

    @property
    def ratio_to_float32(self) -> float:
        """How many times smaller than the same values as float32, without the bundle."""
        return FLOAT32_BITS / self.bits_per_value


def rmse(error: NDArray[np.floating[Any]], mask: NDArray[np.bool_] | None = None) -> NDArray[np.float64]:
    """Root mean squared error of every sample.

    Args:
        error: [B, P, C], decoded minus source.
        mask: [B, P] or [P], True where it counts; None counts everything.

    Returns:
        float64 [B]; 0 for a sample with nothing to count.
    """
    squares = np.square(_masked(error, mask))
    counts = np.maximum(_counts(error, mask), 1)
    return np.asarray(np.sqrt(squares.sum(axis=(1, 2)) / counts))


def max_error(error: NDArray[np.floating[Any]], mask: NDArray[np.bool_] | None = None) -> NDArray[np.float64]:
    """Largest absolute error of every sample: arguments and shapes as `rmse`."""
    return np.asarray(np.abs(_masked(error, mask)).max(axis=(1, 2), initial=0.0))


def psnr_db(
    rmse: NDArray[np.floating[Any]] | float, value_range: NDArray[np.floating[Any]] | float
) -> NDArray[np.float64]:
    """PSNR = 20 log10(range / rmse), in dB; infinite where the error is zero.

    Args:
        rmse: in the variable's unit.
        value_range: max - min of the training values in the same unit, > 0; broadcast against `rmse`.
    """
    with np.errstate(divide="ignore"):
        ratio = np.asarray(value_range, np.float64) / np.asarray(rmse, np.float64)
        return np.asarray(20 * np.log10(ratio))


def round_up(values: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """Smallest float32 with at most 8 significant bits that is >= the value, so that a stored error is never too small.

    The low 16 bits of the result are zero, which compresses to about a byte and a half; it is at most 0.8 % larger.

    Args:
        values: not negative, any shape.

    Returns:
        float32; infinity stays, and so does NaN. What exceeds the largest such float32 becomes infinity.
    """
    exact = np.asarray(values, np.float64)
    # A float64 may round down on its way to float32: step up where it did.
    with np.errstate(over="ignore"):
        single = exact.astype(np.float32)
    single = np.where(single < exact, np.nextafter(single, np.float32(np.inf)), single)
    bits = np.array(single, np.float32).view(np.uint32)
    # Non-negative floats are ordered like their bits, so a carry into the exponent is right as well.
    up = ((bits + np.uint32(0xFFFF)) & np.uint32(0xFFFF0000)).view(np.float32)
    return np.where(np.isfinite(single), up, single)


def _masked(error: NDArray[np.floating[Any]], mask: NDArray[np.bool_] | None) -> NDArray[np.float64]:
    wide = np.asarray(error, np.float64)
    return wide if mask is None else np.where(mask[..., None], wide, 0.0)


def _counts(error: NDArray[np.floating[Any]], mask: NDArray[np.bool_] | None) -> NDArray[np.int64]:
    samples, points, channels = error.shape
    if mask is None:
        return np.full(samples, points * channels, np.int64)
    return np.broadcast_to(mask.sum(axis=-1) * channels, samples).astype(np.int64)
