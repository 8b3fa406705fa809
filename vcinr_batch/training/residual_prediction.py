"""Linear prediction of residuals from their decoded neighbours, from second moments in closed form."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vcinr_batch.codec.residual_model import MAX_REACH, WEIGHT_BITS

Array = NDArray[np.float64]

_CHUNK_POINTS = 2048


@dataclass(frozen=True, eq=False)
class Moments:
    """Second moments of a residual and its neighbours, means over samples."""

    gram: Array
    """[P, T, T]."""
    cross: Array
    """[P, T]."""
    variance: Array
    """[P]."""
    there: NDArray[np.bool_]
    """[P, T], neighbours inside the block that hold values."""
    valid: NDArray[np.bool_]
    """[P]."""


def moments(residual: Array, valid: NDArray[np.bool_], taps: NDArray[np.int8], block: tuple[int, int, int]) -> Moments:
    """Moments of residuals [N, P], zero where not valid."""
    count, points = residual.shape
    places = _padded_places(taps, block)
    there = np.pad(valid, (0, 1))[places]
    samples = np.ascontiguousarray(np.pad(residual, ((0, 0), (0, 1))).T)  # [P + 1, N], the last one zero
    gram, cross = np.empty((points, len(taps), len(taps))), np.empty((points, len(taps)))
    for start in range(0, points, _CHUNK_POINTS):
        stop = min(start + _CHUNK_POINTS, points)
        near = samples[places[start:stop]]  # [p, T, N]
        gram[start:stop] = near @ near.transpose(0, 2, 1) / count
        cross[start:stop] = (near @ samples[start:stop, :, None])[..., 0] / count
    return Moments(gram, cross, (samples[:-1] ** 2).mean(1), there, valid)


def common_weights(known: Moments, noise: float) -> Array:
    """Weights [1, T] for all points; neighbours carry rounding noise of this variance."""
    at = known.valid
    if not at.any():
        return np.zeros((1, known.cross.shape[1]))
    gram = _noisy(known, noise)[at].mean(0)
    ridge = 1e-4 * np.trace(gram) / len(gram) + 1e-30
    solved: Array = np.linalg.solve(gram + ridge * np.eye(len(gram)), known.cross[at].mean(0))[None]
    return solved


def local_weights(known: Moments, noise: float, ridge: float) -> Array:
    """Weights [P, T] of each point's own, drawn towards those for all points."""
    common = common_weights(known, noise)[0]
    gram = _noisy(known, noise)
    left = known.cross - gram @ common
    strength = ridge * np.einsum("pii->p", gram) / gram.shape[1] + 1e-30
    own = np.linalg.solve(gram + strength[:, None, None] * np.eye(gram.shape[1]), left[..., None])[..., 0]
    kept = known.there & known.valid[:, None]
    local: Array = np.where(kept, common + own, 0.0)
    return local


def prediction_error(known: Moments, weights: Array, noise: float) -> Array:
    """Mean squared error [P] of a prediction from noisy neighbours, the point's own noise included."""
    gram = _noisy(known, noise)
    error = known.variance - 2 * (weights * known.cross).sum(1) + np.einsum("pi,pij,pj->p", weights, gram, weights)
    floored: Array = np.maximum(error, 0) + noise + 1e-30
    return floored


def to_fixed(known: Moments, weights: Array, noise: float) -> NDArray[np.int16]:
    """Weights [P or 1, T] as multiples of 2^-9 within an int16.

    One after another; those still to come make up for the rounding of those before (as in optimal brain
    quantisation, Frantar and Alistarh 2022): neighbours are alike, so that most of the error cancels.
    """
    gram = _noisy(known, noise)
    if len(weights) == 1:
        gram = gram[known.valid].mean(0, keepdims=True) if known.valid.any() else gram[:1]
    ridge = 1e-9 * np.einsum("pii->p", gram) / gram.shape[1] + 1e-30
    inverse = np.linalg.inv(gram + ridge[:, None, None] * np.eye(gram.shape[1]))
    exact = weights * 2**WEIGHT_BITS
    rounded = np.empty(weights.shape)
    for t in range(weights.shape[1]):
        rounded[:, t] = np.clip(np.rint(exact[:, t]), -32767, 32767)
        column = inverse[:, :, t] / inverse[:, t, t, None]
        exact = exact - (exact[:, t] - rounded[:, t])[:, None] * column
        inverse = inverse - column[:, :, None] * inverse[:, None, t, :]
        inverse[:, t, t] = 1.0
    fixed = rounded.astype(np.int16)
    return fixed if len(weights) == 1 else np.where(known.there & known.valid[:, None], fixed, 0).astype(np.int16)


def _noisy(known: Moments, noise: float) -> Array:
    unit = np.eye(known.gram.shape[1])
    absent = ~known.there * (1e-6 * known.variance.mean() + 1e-30)
    noisy: Array = known.gram + (noise * known.there + absent)[:, None, :] * unit
    return noisy


def _padded_places(taps: NDArray[np.int8], block: tuple[int, int, int]) -> NDArray[np.int64]:
    """Point number of each neighbour [P, T]; P for one outside the block."""
    points = int(np.prod(block))
    number = np.pad(np.arange(points).reshape(block), MAX_REACH, constant_values=points)
    views = [
        number[tuple(slice(MAX_REACH + o, MAX_REACH + o + length) for o, length in zip(tap, block, strict=True))]
        for tap in taps.tolist()
    ]
    return np.stack([view.ravel() for view in views], 1)
