"""Start of the linear term B(x) phi: a covariance basis learned from training samples, plain (EOF) or localised.

The EOF basis of a small training set overfits in its higher modes. Eigenvectors of the tapered covariance do not: the
covariance times exp(-d^2 / 2 l^2) elementwise, mixed with its stationary average, as in data assimilation
(Houtekamer and Mitchell 2001).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from vcinr_batch.config import NetworkConfig
from vcinr_batch.data.coordinates import Grid
from vcinr_batch.errors import ConfigError
from vcinr_batch.training.stationary_correlation import correlation_at, fit_correlation
from vcinr_batch.training.tapered_covariance import tapered_covariance

EARTH_RADIUS_KM = 6371.0
MAX_DENSE_POINTS = 20_000
"""Largest grid whose point-by-point covariance is formed: 1.6 GB of float32 a matrix."""
MAX_EXACT_POINTS = 4_000
"""Up to here the eigenvectors come from a full decomposition, beyond from subspace iteration."""

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class CovarianceBasis:
    """Orthonormal vectors [V, K] on the V valid points x channels, and their variances [K], descending."""

    vectors: Array
    variances: Array


def eof_basis(anomalies: Array, count: int) -> CovarianceBasis:
    """Leading eigenvectors of the sample covariance of anomalies [N, V] (EOFs, PCA); at most N of them."""
    _, singular, vectors = np.linalg.svd(anomalies, full_matrices=False)
    return CovarianceBasis(vectors[:count].T, singular[:count] ** 2 / len(anomalies))


def localized_basis(
    anomalies: Array,
    distances: NDArray[np.float32],
    count: int,
    taper_length: float,
    stationary_share: float,
    global_modes: int,
    coarse_tapers: Sequence[tuple[float, float]] = (),
) -> CovarianceBasis:
    """Leading eigenvectors of the tapered covariance mixed with its stationary average.

    Args:
        anomalies: [N, V], from the background.
        distances: [V, V], in the unit of `taper_length`.
        count: K, how many vectors to return, at most V.
        taper_length: l of the Gaussian taper exp(-d^2 / 2 l^2).
        stationary_share: weight in [0, 1] of the stationary covariance, a function of the distance alone.
        global_modes: leading EOFs kept as they are; only what is left is localised.
        coarse_tapers: smoothing length and taper length of each coarser scale, as in `tapered_covariance`.
    """
    far = eof_basis(anomalies, global_modes) if global_modes else None
    local = anomalies if far is None else anomalies - anomalies @ far.vectors @ far.vectors.T
    covariance = _localize(local, distances, taper_length, stationary_share, coarse_tapers)
    if far is not None:
        covariance += ((far.vectors * far.variances) @ far.vectors.T).astype(np.float32)
    return _leading_eigenvectors(covariance, min(count, len(covariance)))


def point_distances(grid: Grid, valid: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Distances [V, V] between the valid points: great-circle km on the sphere, else Euclidean in grid cells.

    On the sphere every further dimension of the block (hours, levels) is left out of the distance.

    Raises:
        ConfigError: more points than a dense covariance can hold.
    """
    if valid.sum() > MAX_DENSE_POINTS:
        raise ConfigError(
            f"network.linear_term: a covariance basis needs at most {MAX_DENSE_POINTS} valid points per sample, "
            f"got {int(valid.sum())}; use smaller blocks or linear_term: none"
        )
    distances: NDArray[np.float32]
    if grid.system == "sphere":
        xyz = grid.coordinates()[valid, :3].astype(np.float64)
        # By the chord: the arc cosine would lose half of the digits between neighbours.
        angle = 2 * np.arcsin(np.minimum(_euclidean(xyz) / 2, 1))
        distances = (EARTH_RADIUS_KM * angle).astype(np.float32)
    else:
        cells = np.stack(np.unravel_index(np.flatnonzero(valid), grid.shape), axis=1)
        distances = _euclidean(cells.astype(np.float64)).astype(np.float32)
    return distances


def start_linear_term(
    normalized: NDArray[np.float32], valid: NDArray[np.bool_], grid: Grid, config: NetworkConfig
) -> NDArray[np.float32]:
    """The basis [P, C, L] that the linear term starts from, scaled so that training latents have unit variance.

    Args:
        normalized: training samples [N, P, C], anomalies in network units.
        valid: [P], points that take part; the basis is zero elsewhere.
        grid: where the P points are.
        config: kind of basis, L and the taper.
    """
    count, points, channels = normalized.shape
    anomalies = normalized[:, valid].reshape(count, -1).astype(np.float64)
    if config.linear_term == "eof":
        basis = eof_basis(anomalies, config.latent_dim)
    else:
        distances = np.repeat(np.repeat(point_distances(grid, valid), channels, axis=0), channels, axis=1)
        basis = localized_basis(
            anomalies,
            distances,
            config.latent_dim,
            config.taper_length,
            config.stationary_share,
            config.global_modes,
            config.coarse_tapers,
        )
    scaled = basis.vectors * np.sqrt(basis.variances)
    table = np.zeros((points, channels, config.latent_dim), np.float32)
    table[valid, :, : scaled.shape[1]] = scaled.reshape(-1, channels, scaled.shape[1])
    return table


def _euclidean(points: Array) -> Array:
    """[V, D] -> distances [V, V]."""
    square = (points**2).sum(axis=1)
    distances: Array = np.sqrt(np.maximum(square[:, None] + square - 2 * points @ points.T, 0))
    np.fill_diagonal(distances, 0)
    return distances


def _localize(
    anomalies: Array,
    distances: NDArray[np.float32],
    taper_length: float,
    stationary_share: float,
    coarse_tapers: Sequence[tuple[float, float]],
) -> NDArray[np.float32]:
    tapered = tapered_covariance(anomalies, distances, taper_length, coarse_tapers)
    if stationary_share == 0:
        return tapered
    std = np.sqrt(np.maximum((anomalies**2).mean(axis=0), 1e-20))
    correlation = ((anomalies / std).T @ (anomalies / std) / len(anomalies)).astype(np.float32)
    stationary = correlation_at(fit_correlation(correlation, distances), distances)
    std32 = (np.sqrt(stationary_share) * std).astype(np.float32)
    tapered *= np.float32(1 - stationary_share)
    tapered += stationary * std32[:, None] * std32
    return tapered


def _leading_eigenvectors(covariance: NDArray[np.float32], count: int) -> CovarianceBasis:
    matrix = torch.from_numpy(covariance)
    if len(matrix) <= MAX_EXACT_POINTS:
        variances, vectors = torch.linalg.eigh(matrix.double())
        variances, vectors = variances.flip(0)[:count], vectors.flip(1)[:, :count]
    else:
        variances, vectors = _subspace_iteration(matrix, count)
    return CovarianceBasis(vectors.numpy().astype(np.float64), np.maximum(variances.numpy().astype(np.float64), 1e-12))


def _subspace_iteration(matrix: torch.Tensor, count: int, iterations: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """Leading eigenpairs of a large symmetric positive matrix: Halko et al. 2011, algorithm 4.4, then Rayleigh-Ritz."""
    generator = torch.Generator().manual_seed(0)
    guess = torch.randn(len(matrix), min(count + 32, len(matrix)), generator=generator)
    for _ in range(iterations):
        guess = torch.linalg.qr(matrix @ guess).Q
    small_values, small_vectors = torch.linalg.eigh(guess.T @ (matrix @ guess))
    return small_values.flip(0)[:count], (guess @ small_vectors.flip(1))[:, :count]
