"""The correlation of two values as a function of their distance alone, in a form that is a covariance.

Averages over pairs that lie equally far apart are the best known correlations of a small sample, but they need not
belong to any covariance: their matrix has negative eigenvalues, and the modes of small scale go lost in them. A sum of
Gaussians with weights that are not negative is positive definite by construction (Gaspari and Cohn 1999, section 2).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_BINS = 256
_LENGTHS = 14
# Far pairs share one large-scale pattern or two and tell little about the next sample's.
_FARTHEST = 0.6
_NEAR = 1 / 8
_MAX_STEPS = 100
_FLAT = 1e-10
_TABLE_SIZE = 4096
_ROWS = 256


@dataclass(frozen=True, eq=False)
class StationaryCorrelation:
    """Sum over j of weights[j] exp(-d^2 / 2 lengths[j]^2), plus `nugget` at distance 0; 1 there."""

    lengths: NDArray[np.float64]
    weights: NDArray[np.float64]
    """Not negative."""
    nugget: float


def fit_correlation(correlation: NDArray[np.float32], distances: NDArray[np.float32]) -> StationaryCorrelation:
    """Least squares over the distances, near ones before far ones.

    Args:
        correlation: [V, V], of a sample.
        distances: [V, V].
    """
    largest = max(float(distances.max()), 1e-12)
    pairs, mean = _means_by_distance(correlation, distances, largest)
    distance = np.arange(_BINS + 1) * largest / _BINS
    neighbour = min(float(np.min(distances, where=distances > 0, initial=largest)), largest / 2)
    lengths = np.geomspace(0.7 * neighbour, largest, _LENGTHS)
    trust = np.sqrt(pairs) / (1 + (distance / (_NEAR * largest)) ** 2)
    trust[distance > _FARTHEST * largest] = 0
    # The last row is that of a value with itself, the only one that knows the nugget.
    trust = np.append(trust, 10 * max(trust.max(), 1.0))
    terms = np.zeros((_BINS + 2, _LENGTHS + 1))
    terms[:-1, :-1], terms[-1] = _gaussians(distance, lengths), 1
    weights = _non_negative_least_squares(terms * trust[:, None], np.append(mean, 1) * trust)
    weights /= weights.sum()
    return StationaryCorrelation(lengths, weights[:-1], float(weights[-1]))


def correlation_at(fitted: StationaryCorrelation, distances: NDArray[np.float32]) -> NDArray[np.float32]:
    """Distances between the same points [V, V] -> correlations [V, V]; the nugget is on the diagonal."""
    # Interpolated: exact to 1e-6, and a large grid would wait minutes for its exponentials.
    grid = np.linspace(0, max(float(distances.max()), 1e-12), _TABLE_SIZE)
    table = _gaussians(grid, fitted.lengths) @ fitted.weights
    result = np.empty_like(distances)
    for start in range(0, len(distances), _ROWS):
        rows = slice(start, start + _ROWS)
        result[rows] = np.interp(distances[rows], grid, table)
    np.fill_diagonal(result, 1)
    return result


def _means_by_distance(
    correlation: NDArray[np.float32], distances: NDArray[np.float32], largest: float
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Number and mean of the pairs of different values in each bin [bins + 1]."""
    index = (distances * (_BINS / largest)).round().astype(np.int32).ravel()
    pairs = np.bincount(index, minlength=_BINS + 1)
    total = np.bincount(index, correlation.ravel(), minlength=_BINS + 1)
    pairs[0] -= len(distances)
    total[0] -= np.trace(correlation, dtype=np.float64)
    return pairs, total / np.maximum(pairs, 1)


def _gaussians(distance: NDArray[np.float64], lengths: NDArray[np.float64]) -> NDArray[np.float64]:
    terms: NDArray[np.float64] = np.exp(-((distance[:, None] / lengths) ** 2) / 2)
    return terms


def _non_negative_least_squares(matrix: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """The w >= 0 that minimises |matrix w - target|^2 (Lawson and Hanson 1974, chapter 23)."""
    weights = np.zeros(matrix.shape[1])
    free = np.zeros(matrix.shape[1], bool)
    for _ in range(_MAX_STEPS):
        slope = np.where(free, -np.inf, matrix.T @ (target - matrix @ weights))
        if slope.max() <= _FLAT * np.abs(matrix.T @ target).max():
            break
        free[slope.argmax()] = True
        while True:
            trial = np.zeros_like(weights)
            trial[free] = np.linalg.lstsq(matrix[:, free], target, rcond=None)[0]
            wrong = free & (trial < 0)
            if not wrong.any():
                break
            # As far towards the trial as no weight turns negative; the one that stops the way is fixed at 0.
            share = weights[wrong] / (weights[wrong] - trial[wrong])
            weights += share.min() * (trial - weights)
            free[np.flatnonzero(wrong)[share.argmin()]] = False
            weights[~free] = 0
        weights = trial
    return weights
