"""The baselines that learn: all principal components of the training anomalies, quantised alike, under Laplace tables.

Plain (EOF, PCA) and localised: eigenvectors of the tapered covariance. Real bytes, by the entropy coder and the frozen
tables of this package; as in a bundle, the basis and the tables belong to the decoder.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipelines.baseline_codecs import Field, Parameters
from pipelines.heldout_samples import HeldOut
from vcinr_batch.bundle import Bundle
from vcinr_batch.codec.entropy_coder import decode_symbols, encode_symbols
from vcinr_batch.codec.entropy_model import FrozenTables
from vcinr_batch.codec.table_freezing import Cdf, freeze_tables
from vcinr_batch.training.localized_basis import CovarianceBasis, eof_basis, localized_basis, point_distances
from vcinr_batch.training.training_samples import TrainingSamples

LEVELS = 55
STEPS_PER_OCTAVE = 4
"""A sample may take the tables of two levels above or below its own: factors of 0.7, 0.84, 1, 1.19 and 1.41."""
COARSEST_STEP = 2.0
"""As a share of the range; the finest is 2^-13.5 of it."""
MAX_FULL_POINTS = 4000
"""Up to here there are as many vectors as points; beyond, the leading `MAX_VECTORS`."""
MAX_VECTORS = 1024
SMOOTHED_COMPONENTS = 17

Learn = Callable[[NDArray[np.float64]], CovarianceBasis]


@dataclass(frozen=True, eq=False)
class BasisCodec:
    """Codes a sample by its components along orthonormal vectors, all with the same step."""

    name: str
    vectors: NDArray[np.float32]
    """[P, K], zero at points that never have a value."""
    tables: FrozenTables
    parameter: str = "level of the step"
    is_discrete: bool = True
    keeps_bounds: bool = False

    @property
    def ends(self) -> tuple[float, float]:
        return (0.0, float(self.tables.quality_count - 1))

    @property
    def model_bytes(self) -> int:
        """The basis as float16, where it has values, and the tables."""
        arrays = (self.tables.shift, self.tables.first, self.tables.size, self.tables.counts, self.tables.offset_counts)
        points = int(np.any(self.vectors != 0, axis=1).sum())
        return 2 * points * self.vectors.shape[1] + sum(array.nbytes for array in arrays)

    def encode(self, held_out: HeldOut, parameters: Parameters) -> list[bytes]:
        """A byte names the level where samples have different ones."""
        components = self._anomalies(held_out) @ self.vectors
        payloads = [b""] * len(components)
        levels = parameters.astype(np.int64)
        prefix = len(np.unique(levels)) > 1
        for level in np.unique(levels).tolist():
            at = np.flatnonzero(levels == level)
            symbols = np.rint(components[at] / self.tables.steps[level]).astype(np.int32)
            for i, payload in zip(at, encode_symbols(symbols, self.tables, level), strict=True):
                payloads[i] = (bytes([level]) if prefix else b"") + payload
        return payloads

    def encode_within(self, held_out: HeldOut, bounds: Parameters) -> list[bytes]:
        raise NotImplementedError

    def decode(self, held_out: HeldOut, payloads: Sequence[bytes], parameters: Parameters) -> Field:
        levels = parameters.astype(np.int64)
        prefix = len(np.unique(levels)) > 1
        components = np.zeros((len(payloads), self.vectors.shape[1]), np.float32)
        for level in np.unique(levels).tolist():
            at = np.flatnonzero(levels == level)
            symbols = decode_symbols([payloads[i][prefix:] for i in at], self.tables, level)
            components[at] = symbols * self.tables.steps[level]
        anomalies = (components @ self.vectors.T).reshape(held_out.values.shape)
        scale = held_out.scale.reshape(-1, *[1] * len(held_out.shape))
        return (anomalies * scale + held_out.background).astype(np.float32)

    def _anomalies(self, held_out: HeldOut) -> Field:
        """[N, P] in units of the bundle's scale."""
        anomalies = held_out.anomalies.reshape(len(held_out.anomalies), -1)
        return np.asarray(anomalies / held_out.scale[:, None], np.float32)


def eof_codec(training: TrainingSamples) -> BasisCodec:
    """All EOFs, and where there are fewer samples than points, arbitrary vectors that complete the space."""
    return _make_codec("EOF", training, lambda anomalies: _completed_eofs(anomalies, _vector_limit(training)))


def localized_codec(training: TrainingSamples, bundle: Bundle) -> BasisCodec:
    """Eigenvectors of the tapered covariance, with the bundle's taper.

    Raises:
        ConfigError: more points than a dense covariance can hold.
    """
    config, channels = bundle.config.network, training.normalized.shape[2]
    distances = np.repeat(np.repeat(point_distances(bundle.grid, training.valid), channels, 0), channels, 1)
    taper = config.taper_length, config.stationary_share, config.global_modes
    return _make_codec(
        "localised EOF",
        training,
        lambda anomalies: localized_basis(anomalies, distances, _vector_limit(training), *taper),
        asks_unseen=len(distances) <= MAX_FULL_POINTS,  # beyond, a second basis would take minutes
    )


def _vector_limit(training: TrainingSamples) -> int:
    points = int(training.valid.sum()) * training.normalized.shape[2]
    return points if points <= MAX_FULL_POINTS else MAX_VECTORS


def _training_anomalies(training: TrainingSamples) -> NDArray[np.float64]:
    """[N, V]."""
    return training.normalized[:, training.valid].reshape(len(training.normalized), -1).astype(np.float64)


def _completed_eofs(anomalies: NDArray[np.float64], count: int) -> CovarianceBasis:
    """EOFs of anomalies [N, V], and orthonormal vectors without variance up to that many."""
    basis = eof_basis(anomalies, count)
    missing = count - basis.vectors.shape[1]
    if missing <= 0:
        return basis
    draw = np.random.default_rng(0).standard_normal((anomalies.shape[1], missing))
    draw -= basis.vectors @ (basis.vectors.T @ draw)
    others = np.linalg.qr(draw)[0]
    return CovarianceBasis(
        np.concatenate([basis.vectors, others], axis=1), np.concatenate([basis.variances, np.zeros(missing)])
    )


def _make_codec(name: str, training: TrainingSamples, learn: Learn, asks_unseen: bool = True) -> BasisCodec:
    anomalies = _training_anomalies(training)
    basis = learn(anomalies)
    variances = np.maximum(basis.variances, 1e-12)
    if asks_unseen:
        # What a basis has learned from has too little variance in its last components: there unseen samples tell.
        seen = learn(anomalies[~training.validation])
        unseen = _smooth(np.square(anomalies[training.validation] @ seen.vectors).mean(axis=0))
        variances = np.maximum(variances, unseen[: len(variances)])
    channels, count = training.normalized.shape[2], basis.vectors.shape[1]
    vectors = np.zeros((len(training.valid), channels, count), np.float32)
    vectors[training.valid] = basis.vectors.astype(np.float16).astype(np.float32).reshape(-1, channels, count)
    steps = COARSEST_STEP * training.value_range * 2.0 ** (-np.arange(LEVELS) / STEPS_PER_OCTAVE)
    tables = freeze_tables(_laplace_cdf(np.sqrt(variances / 2)), steps)
    return BasisCodec(name, vectors.reshape(-1, count), tables)


def _smooth(variances: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean of the logarithm over neighbours in the order of the components; from few samples each alone is noise."""
    width = min(SMOOTHED_COMPONENTS, len(variances))
    logs = np.log(np.maximum(variances, 1e-12))
    padded = np.pad(logs, (width // 2, width - 1 - width // 2), mode="edge")
    return np.exp(np.convolve(padded, np.full(width, 1 / width), mode="valid"))


def _laplace_cdf(scales: NDArray[np.float64]) -> Cdf:
    """x [N, K] or [N, 1] -> [N, K], of Laplace distributions with these scales [K]."""

    def cdf(x: NDArray[np.float64]) -> NDArray[np.float64]:
        tail = 0.5 * np.exp(-np.abs(x) / scales)
        return np.where(x < 0, tail, 1 - tail)

    return cdf
