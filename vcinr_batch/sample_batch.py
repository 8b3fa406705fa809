"""Samples side by side, and the errors that their rows record."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vcinr_batch.bundle import Bundle
from vcinr_batch.data.layout import Layout
from vcinr_batch.data.normalization import background_at, normalize, range_at, scale_at
from vcinr_batch.data.samples import Sample
from vcinr_batch.error_bound import GUARD_BAND
from vcinr_batch.metrics import max_error, rmse, round_up

Values = NDArray[np.float32]
Masks = NDArray[np.bool_]


@dataclass(frozen=True)
class Batch:
    """Samples side by side."""

    values: Values
    """[B, P, C], physical; anything outside the mask."""
    masks: Masks
    """[B, P]."""
    normalized: Values
    """[B, P, C], zero outside the mask."""
    value_range: NDArray[np.float32]
    """[B]."""

    def take(self, index: NDArray[np.int64]) -> "Batch":
        return Batch(self.values[index], self.masks[index], self.normalized[index], self.value_range[index])


def make_batch(samples: Sequence[Sample], bundle: Bundle, layout: Layout) -> Batch:
    blocks = [sample.block for sample in samples]
    values = np.stack([sample.values for sample in samples])
    full = np.ones(values.shape[1], bool)
    masks = np.stack([full if sample.mask is None else sample.mask for sample in samples])
    background = background_at(bundle.normalizer, layout, blocks)
    normalized = normalize(values, background, scale_at(bundle.normalizer, layout, blocks))
    normalized = np.where(masks[..., None], normalized, np.float32(0))
    return Batch(values, masks, normalized, range_at(bundle.normalizer, layout, blocks))


def recorded_errors(
    decoded: Values, batch: Batch, background: Values
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """RMSE and max error [B] as rows hold them: with the guard band, rounded up."""
    error = np.where(batch.masks[..., None], decoded.astype(np.float64) - batch.values, 0.0)
    guard = guard_band(decoded, background, batch.masks)
    return round_up(rmse(error, batch.masks) + guard), round_up(max_error(error, batch.masks) + guard)


def guard_band(decoded: Values, background: Values, masks: Masks) -> NDArray[np.float64]:
    """How far another machine's decode may be off, [B]: the network's rounding, and that of adding the background."""
    anomaly = max_error(decoded.astype(np.float64) - background, masks)
    return GUARD_BAND * anomaly + 2 * np.finfo(np.float32).eps * max_error(decoded, masks)
