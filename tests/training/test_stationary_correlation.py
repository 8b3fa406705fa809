"""Fitted correlation functions against known ones, and against SciPy's non-negative least squares."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import nnls

from vcinr_batch.training import stationary_correlation as module
from vcinr_batch.training.stationary_correlation import StationaryCorrelation, correlation_at, fit_correlation


def grid_distances(side: int) -> NDArray[np.float32]:
    rows, columns = np.indices((side, side)).reshape(2, -1)
    return np.asarray(np.hypot(rows[:, None] - rows, columns[:, None] - columns), np.float32)


def sample_correlation(true: NDArray[np.float64], count: int, seed: int = 0) -> NDArray[np.float32]:
    fields = np.random.default_rng(seed).standard_normal((count, len(true))) @ np.linalg.cholesky(true).T
    covariance = fields.T @ fields / count
    std = np.sqrt(np.diag(covariance))
    return np.asarray(covariance / np.outer(std, std), np.float32)


def test_an_exponential_correlation_is_found_from_its_own_matrix() -> None:
    distances = grid_distances(12)
    correlation = np.exp(-distances / 4)
    fitted = correlation_at(fit_correlation(correlation, distances), distances)
    near = distances < 6
    # 14 Gaussians an eighth of a decade apart; the bins of 1/256 of the grid's diagonal round distances by 0.03.
    np.testing.assert_allclose(fitted[near], correlation[near], atol=0.02)


def test_the_fit_is_a_covariance_where_plain_averages_of_a_small_sample_are_none() -> None:
    distances = grid_distances(12)
    sample = sample_correlation(np.exp(-distances.astype(np.float64) / 3), 5)
    bins = np.round(distances * 10).astype(int)
    means = np.bincount(bins.ravel(), sample.ravel()) / np.maximum(np.bincount(bins.ravel()), 1)
    assert np.linalg.eigvalsh(means[bins]).min() < -0.1
    fitted = correlation_at(fit_correlation(sample, distances), distances)
    # float32 and the table: far below what any mode of the grid varies by.
    assert np.linalg.eigvalsh(fitted.astype(np.float64)).min() > -1e-4


def test_what_neighbours_do_not_share_is_the_nugget() -> None:
    distances = grid_distances(10)
    correlation = np.asarray(0.7 * np.exp(-((distances / 4) ** 2) / 2) + 0.3 * np.eye(100), np.float32)
    fitted = fit_correlation(correlation, distances)
    # The shortest Gaussian, at 0.7 cells, may take part of it: both tell neighbours apart.
    assert 1 - fitted.weights[2:].sum() == pytest.approx(0.3, abs=0.05)
    assert fitted.weights.sum() + fitted.nugget == pytest.approx(1)
    assert (correlation_at(fitted, distances).diagonal() == 1).all()


def test_values_at_one_place_keep_the_correlation_they_have() -> None:
    """Two hours of one grid, correlated by one half: their distance is 0."""
    space = grid_distances(6)
    distances = np.tile(space, (2, 2))
    correlation = np.asarray(np.kron([[1, 0.5], [0.5, 1]], np.exp(-((space / 2) ** 2) / 2)), np.float32)
    fitted = correlation_at(fit_correlation(correlation, distances), distances)
    between = fitted[:36, 36:].diagonal()
    assert 0.4 < between.min() <= between.max() < 1
    assert np.linalg.eigvalsh(fitted.astype(np.float64)).min() > -1e-5


def test_a_single_point_is_correlated_with_itself() -> None:
    one = np.ones((1, 1), np.float32)
    fitted = fit_correlation(one, np.zeros((1, 1), np.float32))
    np.testing.assert_array_equal(correlation_at(fitted, np.zeros((1, 1), np.float32)), one)


def test_interpolation_in_the_table_is_exact_to_1e_6() -> None:
    distances = grid_distances(20)
    fitted = StationaryCorrelation(np.array([0.7, 3.0, 20.0]), np.array([0.2, 0.5, 0.3]), 0.0)
    exact = sum(w * np.exp(-((distances / s) ** 2) / 2) for w, s in zip(fitted.weights, fitted.lengths, strict=True))
    # Curvature 0.2 / 0.7^2, spacing 27 / 4096 cells: 1/8 of spacing^2 times curvature is 2e-6.
    np.testing.assert_allclose(correlation_at(fitted, distances), exact, atol=4e-6)


@pytest.mark.parametrize("seed", range(5))
def test_weights_are_those_of_scipy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    matrix, target = rng.random((30, 12)), rng.standard_normal(30)
    np.testing.assert_allclose(module._non_negative_least_squares(matrix, target), nnls(matrix, target)[0], atol=1e-8)
