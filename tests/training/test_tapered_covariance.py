"""Tapers by scale against one taper, against sums written out, and on fields of two known scales."""

import numpy as np
from numpy.typing import NDArray

from vcinr_batch.training.tapered_covariance import tapered_covariance

Array = NDArray[np.float64]
SIDE = 12


def grid_distances() -> NDArray[np.float32]:
    rows, columns = np.indices((SIDE, SIDE)).reshape(2, -1)
    return np.asarray(np.hypot(rows[:, None] - rows, columns[:, None] - columns), np.float32)


def two_scale_covariance(distances: NDArray[np.float32]) -> Array:
    """A pattern of 5 cells with variance 1 and one of 0.7 cells with variance 0.3."""
    square = distances.astype(np.float64) ** 2
    return np.asarray(np.exp(-square / 50) + 0.3 * np.exp(-square / 0.98))


def draw(covariance: Array, count: int, seed: int = 0) -> Array:
    root = np.linalg.cholesky(covariance + 1e-9 * np.eye(len(covariance)))
    fields: Array = np.random.default_rng(seed).standard_normal((count, len(covariance))) @ root.T
    return fields


def test_one_taper_is_the_sample_covariance_times_a_gaussian() -> None:
    distances = grid_distances()
    anomalies = draw(two_scale_covariance(distances), 10)
    expected = anomalies.T @ anomalies / 10 * np.exp(-((distances / 3) ** 2) / 2)
    np.testing.assert_allclose(tapered_covariance(anomalies, distances, 3.0), expected, rtol=1e-4, atol=1e-6)


def test_scales_with_one_taper_for_all_change_nothing() -> None:
    distances = grid_distances()
    anomalies = draw(two_scale_covariance(distances), 10)
    same = tapered_covariance(anomalies, distances, 3.0, ((1.0, 3.0), (2.0, 3.0)))
    np.testing.assert_allclose(same, tapered_covariance(anomalies, distances, 3.0), rtol=1e-3, atol=1e-5)


def test_with_tapers_by_scale_it_is_a_covariance_with_the_variance_of_each_point() -> None:
    distances = grid_distances()
    anomalies = draw(two_scale_covariance(distances), 6)
    covariance = tapered_covariance(anomalies, distances, 2.0, ((1.5, 4.0), (3.0, 8.0)))
    np.testing.assert_allclose(covariance, covariance.T, atol=1e-6)
    np.testing.assert_allclose(np.diag(covariance), (anomalies**2).mean(axis=0), rtol=1e-5)
    # Rounding in float32 only; entries are of order 1 and there are 144 in a row.
    assert np.linalg.eigvalsh(covariance.astype(np.float64)).min() > -1e-4


def test_two_points_far_apart_keep_the_large_scale_that_a_short_taper_would_cut() -> None:
    distances = grid_distances()
    anomalies = draw(two_scale_covariance(distances), 200)
    fine = tapered_covariance(anomalies, distances, 2.0)
    both = tapered_covariance(anomalies, distances, 2.0, ((1.5, 20.0),))
    far = int(np.argmin(np.abs(distances[0] - 6)))
    # exp(-36 / 50) = 0.49 truly; the taper of 2 cells leaves exp(-4.5) = 0.01 of it.
    assert fine[0, far] < 0.05
    assert both[0, far] > 0.25
