"""Rate over distortion from a few operating points: interpolation in log rate, and Bjontegaard's mean difference."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_SAMPLES = 2000


class RateCurve:
    """Bits per value over PSNR, between the points that no other point beats."""

    def __init__(self, psnr_db: Sequence[float], bits_per_value: Sequence[float]) -> None:
        points = [(psnr, bits) for psnr, bits in zip(psnr_db, bits_per_value, strict=True) if bits > 0]
        kept: list[tuple[float, float]] = []
        for psnr, bits in sorted(points, key=lambda point: (-point[0], point[1])):
            if not kept or bits < kept[-1][1]:  # what costs as much as a better point is left out
                kept.append((psnr, bits))
        kept.reverse()
        self.psnr_db: Array = np.array([psnr for psnr, _ in kept])
        self.log_bits: Array = np.log(np.array([bits for _, bits in kept]))

    def is_coarser(self, psnr_db: float) -> bool:
        """Whether a PSNR lies below the coarsest point."""
        return bool(len(self.psnr_db) and psnr_db < self.psnr_db[0])

    def bits_at(self, psnr_db: float) -> float | None:
        """Bits per value that are enough for a PSNR: linear in log rate between the two points beside it.

        Below the coarsest point that point's bits, which buy more than is asked for; None above the finest.
        """
        if not len(self.psnr_db) or psnr_db > self.psnr_db[-1]:
            return None
        return float(np.exp(np.interp(psnr_db, self.psnr_db, self.log_bits)))


def bd_rate(
    curve: RateCurve, anchor: RateCurve, low_db: float, high_db: float
) -> tuple[float, tuple[float, float]] | None:
    """How many percent more bits than the anchor a codec needs at the same PSNR, on the mean over the common interval.

    Bjontegaard's measure, by monotone cubic interpolation of the log rate (PCHIP) instead of one polynomial.

    Args:
        curve: of the codec.
        anchor: of the codec that it is compared with.
        low_db: the interval begins here or later.
        high_db: and ends here or before.

    Returns:
        The percentage, negative where the codec needs fewer bits, and the interval in dB. None where the two have less
        than 1 dB in common, or one has fewer than two points.
    """
    if min(len(curve.psnr_db), len(anchor.psnr_db)) < 2:
        return None
    low = max(low_db, float(curve.psnr_db[0]), float(anchor.psnr_db[0]))
    high = min(high_db, float(curve.psnr_db[-1]), float(anchor.psnr_db[-1]))
    if high - low < 1:
        return None
    at = np.linspace(low, high, _SAMPLES)
    difference = monotone_cubic(curve.psnr_db, curve.log_bits, at) - monotone_cubic(anchor.psnr_db, anchor.log_bits, at)
    mean = float((difference[1:] + difference[:-1]).mean() / 2)
    return 100 * float(np.expm1(mean)), (low, high)


def monotone_cubic(x: Array, y: Array, at: Array) -> Array:
    """Piecewise cubic interpolation without overshoot (Fritsch and Butland 1984), as PCHIP does it.

    Args:
        x: [n], rising; n >= 2.
        y: [n].
        at: within x.
    """
    width, slope = np.diff(x), np.diff(y) / np.diff(x)
    tangent = _tangents(width, slope)
    i = np.clip(np.searchsorted(x, at, side="right") - 1, 0, len(x) - 2)
    t = (at - x[i]) / width[i]
    value: Array = (
        y[i] * (1 + 2 * t) * (1 - t) ** 2
        + width[i] * tangent[i] * t * (1 - t) ** 2
        + y[i + 1] * t**2 * (3 - 2 * t)
        + width[i] * tangent[i + 1] * t**2 * (t - 1)
    )
    return value


def _tangents(width: Array, slope: Array) -> Array:
    if len(slope) == 1:
        return np.full(2, slope[0])
    first, second = 2 * width[1:] + width[:-1], width[1:] + 2 * width[:-1]
    same_sign = slope[:-1] * slope[1:] > 0
    safe = np.where(same_sign, slope[:-1], 1.0), np.where(same_sign, slope[1:], 1.0)
    inner = np.where(same_sign, (first + second) / (first / safe[0] + second / safe[1]), 0.0)
    start = _end_tangent(width[0], width[1], slope[0], slope[1])
    stop = _end_tangent(width[-1], width[-2], slope[-1], slope[-2])
    return np.concatenate([[start], inner, [stop]])


def _end_tangent(near: float, far: float, near_slope: float, far_slope: float) -> float:
    """Of the parabola through three points, kept from overshooting."""
    tangent = ((2 * near + far) * near_slope - near * far_slope) / (near + far)
    if tangent * near_slope <= 0:
        return 0.0
    if near_slope * far_slope <= 0 and abs(tangent) > 3 * abs(near_slope):
        return 3 * near_slope
    return tangent
