"""The covariance of a small sample, each scale of it cut off at its own distance.

Correlations over a long distance are noise for small structures and known well for large ones. So anomalies are split
by smoothing into bands, and each pair of bands has its taper (Buehner and Shlyaeva 2015, scale-dependent localisation).
"""

from collections.abc import Sequence
from itertools import combinations_with_replacement

import numpy as np
from numpy.typing import NDArray

_NO_VARIANCE = 1e-20


def tapered_covariance(
    anomalies: NDArray[np.float64],
    distances: NDArray[np.float32],
    taper_length: float,
    coarse_tapers: Sequence[tuple[float, float]] = (),
) -> NDArray[np.float32]:
    """Sum over pairs of bands of their covariance times their taper; the variance of each point is the sample's.

    For bands with tapers l and m the taper is `2 l m / (l^2 + m^2) exp(-d^2 / (l^2 + m^2))`, which is
    `exp(-d^2 / 2 l^2)` within a band. On a plane these tapers together are positive definite, so the covariance is.

    Args:
        anomalies: [N, V].
        distances: [V, V].
        taper_length: l of the finest band, in the unit of the distances.
        coarse_tapers: for each further band the length of the Gaussian smoothing that it starts at, and its taper;
            smoothing lengths ascend.

    Returns:
        [V, V].
    """
    bands = _bands(anomalies, distances, [smoothing for smoothing, _ in coarse_tapers])
    tapers = [taper_length, *(taper for _, taper in coarse_tapers)]
    total = np.zeros_like(distances)
    for i, j in combinations_with_replacement(range(len(bands)), 2):
        covariance = (bands[i].T @ bands[j] / len(anomalies)).astype(np.float32)
        if i != j:
            covariance = covariance + covariance.T
        total += covariance * _taper(distances, tapers[i], tapers[j])
    if len(bands) > 1:
        wanted = (anomalies**2).mean(axis=0)
        ratio = np.sqrt(wanted / np.maximum(np.diag(total), _NO_VARIANCE)).astype(np.float32)
        total *= ratio[:, None] * ratio
    return total


def _bands(
    anomalies: NDArray[np.float64], distances: NDArray[np.float32], smoothings: Sequence[float]
) -> list[NDArray[np.float64]]:
    """Finest band first; together they are the anomalies."""
    bands, rest = [], anomalies
    for length in smoothings:
        kernel = np.exp(-((distances / np.float32(length)) ** 2) / 2)
        smooth = anomalies @ (kernel / kernel.sum(axis=1, keepdims=True)).T
        bands.append(rest - smooth)
        rest = smooth
    return [*bands, rest]


def _taper(distances: NDArray[np.float32], first: float, second: float) -> NDArray[np.float32]:
    if first == second:
        return np.asarray(np.exp(-((distances / np.float32(first)) ** 2) / 2), np.float32)
    squares = first**2 + second**2
    factor = np.float32(2 * first * second / squares)
    return np.asarray(factor * np.exp(-((distances / np.float32(np.sqrt(squares))) ** 2)), np.float32)
